"""Choosing rows: CDAS, and the policies a claim about CDAS has to be compared with.

Complexity and Diversity Aware Sampling (CodeACT, arXiv 2408.02193) looks at each cluster of instructions on its own,
drops the rows whose instruction does not help (IFD >= 1), and keeps the hardest share of what remains: complexity by
the IFD order, diversity because every cluster gives its part.

    chosen = cdas_sample(ifd, cluster, 0.4)                # row numbers, cluster by cluster, hardest first
    table = choose("cdas", frame, 0.4)                     # every row: keep, rank, and why

The other policies take the same number of rows as CDAS would, so that two arms differ in which rows they hold, not how
many; `compare_policies` lays them side by side.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from codeact_lib.artifacts import write_jsonl
from codeact_lib.config import POLICIES
from codeact_lib.errors import DataError
from codeact_lib.extensions import is_own, load_own

BANDS = ("easy", "middle", "hard")
QUOTAS = ("kept", "all")
USABLE = ("ok", "truncated")  # statuses with a score that may be compared
UNTRAINABLE = ("empty", "prompt_too_long")  # nothing to learn from: no policy takes them
SELECTION_COLUMNS = ["example_id", "cluster", "ifd", "status", "keep", "reason", "rank"]

Status = ArrayLike | None  # (n,) words of the scorer; None: not looked at
Budget = int | None  # rows to take; None: by the ratio


# ---- policies --------------------------------------------------------------------------------------------------------
def cdas_sample(
    ifd: ArrayLike, cluster: ArrayLike, ratio: float, *, status: Status = None, quota: str = "kept"
) -> np.ndarray:
    """CDAS: in every cluster the first `int(n_kept * ratio)` rows with IFD < 1, in order of falling IFD.

    Args:
        ifd: (n,) scores without unit. NaN, infinities and values >= 1 are never chosen.
        cluster: (n,) labels.
        ratio: share to choose, in (0, 1].
        status: (n,) words of the scorer; only `ok` and `truncated` rows are looked at. `None` looks at all, as
            the authors' code does, where a row that failed to score has IFD 0 and counts in `n_kept`.
        quota: `kept` counts the share from the rows with IFD < 1 (the authors), `all` from all rows of the cluster.

    Returns:
        (m,) int64 row numbers: clusters in ascending order, IFD falling inside, ties in row order.
    """
    ifd, cluster = np.asarray(ifd, dtype=np.float64), np.asarray(cluster)
    _check(ratio, cluster, ifd=ifd, status=status)
    kept = np.flatnonzero(_helpful(ifd, status))
    # By cluster, then by falling IFD. lexsort is stable: ties stay in row order.
    kept = kept[np.lexsort((-ifd[kept], cluster[kept]))]
    labels, first, inverse, counts = np.unique(
        cluster[kept], return_index=True, return_inverse=True, return_counts=True
    )
    if quota not in QUOTAS:
        raise ValueError(f"quota {quota!r} is unknown; choose {' or '.join(QUOTAS)}")
    if quota == "all":
        all_labels, all_counts = np.unique(cluster, return_counts=True)
        counts = all_counts[np.searchsorted(all_labels, labels)]
    places = np.arange(len(kept)) - first[inverse]
    return kept[places < (counts * ratio).astype(np.int64)[inverse]]


def random_sample(
    n_rows: int, ratio: float, *, seed: int = 0, status: Status = None, budget: Budget = None
) -> np.ndarray:
    """`int(n_rows * ratio)` rows, or `budget`, drawn without replacement; row numbers in ascending order."""
    # IFD plays no part: mismatched and unscored rows can be drawn too. Rows without anything to train on cannot.
    _check(ratio, np.zeros(n_rows), status=status)
    pool = np.flatnonzero(_trainable(n_rows, status))
    size = _size(n_rows, ratio, budget, len(pool))
    return np.sort(np.random.default_rng(seed).permutation(pool)[:size])


def longest_sample(n_tokens: ArrayLike, ratio: float, *, status: Status = None, budget: Budget = None) -> np.ndarray:
    """The rows with the longest responses, longest first, ties by row: a strong baseline (arXiv 2402.04833)."""
    n_tokens = np.asarray(n_tokens, dtype=np.float64)
    _check(ratio, n_tokens, status=status)
    pool = np.flatnonzero(_trainable(len(n_tokens), status))
    size = _size(len(n_tokens), ratio, budget, len(pool))
    return pool[np.argsort(-n_tokens[pool], kind="stable")][:size]


def ifd_sample(ifd: ArrayLike, ratio: float, *, status: Status = None, budget: Budget = None) -> np.ndarray:
    """CDAS without its clusters: the rows with the highest IFD below 1 of the whole set, hardest first, ties by row."""
    return band_sample(ifd, ratio, "hard", status=status, budget=budget)


def band_sample(ifd: ArrayLike, ratio: float, band: str, *, status: Status = None, budget: Budget = None) -> np.ndarray:
    """The easy, middle or hard part of the rows with IFD below 1, whatever their cluster.

    `easy` takes the lowest IFD first, `hard` the highest first (it is `ifd_sample`), `middle` the rows around
    the median, easiest first; ties by row.
    """
    if band not in BANDS:
        raise ValueError(f"band {band!r} is unknown; choose one of {', '.join(BANDS)}")
    ifd = np.asarray(ifd, dtype=np.float64)
    _check(ratio, ifd, status=status)
    pool = np.flatnonzero(_helpful(ifd, status))
    size = _size(len(pool), ratio, budget, len(pool))
    # The order is turned by the sign, not read backwards: ties stay in row order.
    order = np.argsort(-ifd[pool] if band == "hard" else ifd[pool], kind="stable")
    start = (len(pool) - size) // 2 if band == "middle" else 0
    return pool[order][start : start + size]


def stratified_sample(
    cluster: ArrayLike, ratio: float, *, seed: int = 0, status: Status = None, budget: Budget = None
) -> np.ndarray:
    """CDAS without IFD: a random draw in every cluster, in proportion to the clusters' sizes.

    Row numbers, clusters ascending, rows ascending inside.
    """
    cluster = np.asarray(cluster)
    _check(ratio, cluster, status=status)
    pool = np.flatnonzero(_trainable(len(cluster), status))
    labels, inverse, counts = np.unique(cluster[pool], return_inverse=True, return_counts=True)
    shares = _apportion(counts, _size(len(cluster), ratio, budget, len(pool)))
    generator = np.random.default_rng(seed)
    drawn = [np.sort(generator.permutation(pool[inverse == i])[:share]) for i, share in enumerate(shares)]
    return np.concatenate(drawn).astype(np.int64) if drawn else pool


def _apportion(counts: np.ndarray, size: int) -> np.ndarray:
    """Whole numbers in proportion to `counts` that add up to `size`: largest remainder, ties to the lower label."""
    # Rounded down each, up to one row a cluster would be missing, and the arm would be smaller than the others.
    exact = counts * (size / max(counts.sum(), 1))
    shares = np.floor(exact + 1e-9).astype(np.int64)
    by_remainder = np.argsort(-(exact - shares), kind="stable")
    shares[by_remainder[: size - shares.sum()]] += 1
    return shares


def _size(n_rows: int, ratio: float, budget: Budget, available: int) -> int:
    return min(int(n_rows * ratio) if budget is None else budget, available)


def _helpful(ifd: np.ndarray, status: Status) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        helpful = np.isfinite(ifd) & (ifd < 1)
    return helpful if status is None else helpful & np.isin(np.asarray(status), USABLE)


def _trainable(n_rows: int, status: Status) -> np.ndarray:
    return np.ones(n_rows, dtype=bool) if status is None else ~np.isin(np.asarray(status), UNTRAINABLE)


def _check(ratio: float, reference: np.ndarray, **columns: ArrayLike | None) -> None:
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must lie in (0, 1], not {ratio}: 0.4 chooses 40%")
    for name, values in columns.items():
        n_rows = len(reference) if values is None else len(np.asarray(values))
        if n_rows != len(reference):
            raise ValueError(f"{name} has {n_rows} rows, the other columns have {len(reference)}")


# ---- the record ------------------------------------------------------------------------------------------------------
def choose(
    policy: str,
    frame: pd.DataFrame,
    ratio: float = 1.0,
    seed: int = 0,
    *,
    preset: str = "corrected",
    quota: str = "kept",
) -> pd.DataFrame:
    """Step 3 of CDAS in notebook 03 and `codeact select`: apply a policy, say for every row why it was kept or dropped.

    Args:
        policy: one of `POLICIES`, of which `full` keeps every row that can be trained on; or `module:function`,
            your own `(frame, budget, seed) -> row numbers`, at most `budget` of them, in order of selection.
        frame: `example_id, cluster, ifd, status`; `longest` also reads `n_response_tokens`.
        ratio: share of each cluster that CDAS takes. The other policies take as many rows in all as CDAS would.
        seed: of `random` and `stratified`.
        preset: `authors` does not look at the status: a row that failed to score has IFD 0 and counts as easiest.
        quota: see `cdas_sample`.

    Returns:
        Frame `example_id, cluster, ifd, status, keep, reason, rank` in the order of `frame`. `rank` is the place
        in the order of selection (0 first), -1 where the row was dropped.
    """
    if policy not in POLICIES and not is_own(policy):
        raise ValueError(f"policy {policy!r} is unknown; choose one of {', '.join(POLICIES)}, or give module:function")
    chosen = _chosen_rows(policy, frame, ratio, seed, preset, quota)
    rank = np.full(len(frame), -1, dtype=np.int64)
    rank[chosen] = np.arange(len(chosen))
    table = frame[["example_id", "cluster", "ifd", "status"]].reset_index(drop=True)
    reason = _reasons(policy, table, rank >= 0, ratio, preset)
    return table.assign(keep=rank >= 0, reason=reason, rank=rank)[SELECTION_COLUMNS]


def _chosen_rows(policy: str, frame: pd.DataFrame, ratio: float, seed: int, preset: str, quota: str) -> np.ndarray:
    status = frame["status"].to_numpy()
    if policy == "full":
        return np.flatnonzero(_trainable(len(frame), status))
    scored = None if preset == "authors" else status
    cdas = cdas_sample(frame["ifd"], frame["cluster"], ratio, status=scored, quota=quota)
    if policy == "cdas":
        return cdas
    if is_own(policy):
        return _own_choice(policy, frame, len(cdas), seed, _trainable(len(frame), status))
    if policy == "random":
        return random_sample(len(frame), ratio, seed=seed, status=status, budget=len(cdas))
    if policy == "longest":
        return longest_sample(frame["n_response_tokens"], ratio, status=status, budget=len(cdas))
    if policy in ("ifd", *BANDS):
        band = "hard" if policy == "ifd" else policy
        return band_sample(frame["ifd"], ratio, band, status=scored, budget=len(cdas))
    return stratified_sample(frame["cluster"], ratio, seed=seed, status=status, budget=len(cdas))


def _own_choice(policy: str, frame: pd.DataFrame, budget: int, seed: int, trainable: np.ndarray) -> np.ndarray:
    """What a user's function chose, checked."""
    # A policy that takes more rows than the others, or rows that nothing can be learnt from, would make every
    # comparison with it wrong.
    chosen = np.asarray(load_own(policy)(frame.reset_index(drop=True), budget, seed), dtype=np.int64)
    rules = {
        f"a list of row numbers from 0 to {len(frame) - 1}": chosen.ndim == 1
        and bool(np.all((chosen >= 0) & (chosen < len(frame)))),
        "no row twice": len(np.unique(chosen)) == chosen.size,
        f"at most the budget, {budget} rows": chosen.size <= budget,
    }
    rules["no row that is empty or whose prompt is too long"] = all(rules.values()) and bool(trainable[chosen].all())
    broken = [rule for rule, kept in rules.items() if not kept]
    if broken:
        raise DataError(f"{policy} must return {broken[0]}; it returned {chosen.size} numbers.")
    return chosen


_WHY = {  # policy: why a row was kept, and why it was dropped
    "full": ("all rows", "not trainable"),
    "cdas": ("among the hardest {share} of its cluster", "below its cluster's quota"),
    "random": ("drawn at random", "not drawn"),
    "longest": ("among the longest responses", "shorter than the chosen rows"),
    "ifd": ("among the hardest of all rows", "below the quota"),
    "stratified": ("drawn at random in its cluster", "not drawn"),
    "easy": ("among the easiest of all rows", "harder than the chosen rows"),
    "middle": ("of middle difficulty", "harder or easier than the chosen rows"),
    "hard": ("among the hardest of all rows", "below the quota"),
}


def _reasons(policy: str, table: pd.DataFrame, keep: np.ndarray, ratio: float, preset: str) -> np.ndarray:
    """Words for each row."""
    # A row that the policy could not look at says so, rather than that it lost.
    kept, dropped = _WHY.get(policy, (f"chosen by {policy}", f"not chosen by {policy}"))
    reason = np.where(keep, kept.format(share=f"{ratio:.0%}"), dropped).astype(object)
    status = table["status"].to_numpy()
    if policy in ("cdas", "ifd", *BANDS):
        with np.errstate(invalid="ignore"):
            reason[~keep & (table["ifd"].to_numpy() >= 1)] = "IFD >= 1: the instruction does not help"
        unseen = ~np.isin(status, USABLE) if preset != "authors" else ~np.isfinite(table["ifd"].to_numpy())
    else:
        unseen = np.isin(status, UNTRAINABLE)
    reason[~keep & unseen] = [f"status {word}" for word in status[~keep & unseen]]
    return reason


# ---- policies side by side -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class PolicyComparison:
    """Result of `compare_policies`.

    `summary` has one line a policy: `policy, rows`; quantiles `ifd_5, ifd_50, ifd_95` and `tokens_5, tokens_50,
    tokens_95` of what it took (of IFD where it is finite, of the responses' tokens); `misleading`, the share with
    IFD >= 1; `clusters` (share of the clusters that give at least one row), `least_covered` and `most_covered`
    (smallest and largest share of a cluster's rows that was taken).
    """

    chosen: dict[str, np.ndarray]  # policy -> (m,) row numbers in order of selection
    summary: pd.DataFrame
    overlap: pd.DataFrame  # policy x policy: share of the line's rows that the column's policy takes too


def compare_policies(
    frame: pd.DataFrame,
    ratio: float,
    policies: Iterable[str] = POLICIES,
    seed: int = 0,
    *,
    preset: str = "corrected",
    quota: str = "kept",
) -> PolicyComparison:
    """What each policy would take at the budget of CDAS, and how far they agree.

    Args:
        frame: `example_id, cluster, ifd, status, n_response_tokens`.
        ratio, seed, preset, quota: as in `choose`.
    """
    chosen = {policy: _chosen_rows(policy, frame, ratio, seed, preset, quota) for policy in policies}
    summary = pd.DataFrame([{"policy": policy, **_describe(frame, rows)} for policy, rows in chosen.items()])
    shared = [[len(np.intersect1d(a, b)) / max(len(a), 1) for b in chosen.values()] for a in chosen.values()]
    return PolicyComparison(chosen, summary, pd.DataFrame(shared, index=list(chosen), columns=list(chosen)))


def _describe(frame: pd.DataFrame, rows: np.ndarray) -> dict[str, float]:
    """One policy's line: what its rows are like, and how they spread over the clusters."""
    taken = frame.iloc[rows]
    ifd = taken["ifd"].to_numpy(dtype=np.float64)
    line = {"rows": len(rows), **_quantiles("ifd", ifd[np.isfinite(ifd)])}
    line |= _quantiles("tokens", taken["n_response_tokens"].to_numpy(dtype=np.float64))
    shares = (taken["cluster"].value_counts() / frame["cluster"].value_counts()).fillna(0)
    with np.errstate(invalid="ignore"):
        line["misleading"] = float(np.mean(ifd >= 1)) if len(ifd) else 0.0
    covered = {"clusters": (shares > 0).mean(), "least_covered": shares.min(), "most_covered": shares.max()}
    return {**line, **covered}


def _quantiles(name: str, values: np.ndarray) -> dict[str, float]:
    levels = (5, 50, 95)
    found = np.percentile(values, levels) if len(values) else [np.nan] * len(levels)
    return {f"{name}_{level}": float(value) for level, value in zip(levels, found, strict=True)}


# ---- the training set ------------------------------------------------------------------------------------------------
def write_training_set(path: str | Path, examples: pd.DataFrame, selection: pd.DataFrame) -> int:
    """Write the kept rows as JSONL `{example_id, instruction, response}`, in order of selection; returns their number.

    `examples`: frame with the texts. `selection`: what `choose` gave for the same ids.
    """
    kept = selection.loc[selection["keep"]].sort_values("rank")["example_id"]
    texts = examples.set_index("example_id").loc[kept, ["instruction", "response"]]
    write_jsonl(path, texts.reset_index().to_dict("records"))
    return len(texts)
