"""`python -m bench select`: seconds and memory of choosing from 10,000 to a million scored rows.

Selection starts from embeddings and IFD. The rows are made up: points around 64 centres on the unit sphere (float32, as
a sentence embedder gives them), IFD from a log-normal of which a tenth lies at 1 or above, some rows without a score.
The work is what 01 and 03 do with them: cluster, then CDAS with a reason for every row.
"""

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.harness import Say, Work, compare, contest, write_bench
from codeact_lib.embedding import cluster_embeddings
from codeact_lib.sampling import choose

SIZES = (10_000, 100_000, 1_000_000)
CENTRES = 64


def synthetic_rows(n_rows: int, dimensions: int, seed: int = 0) -> tuple[np.ndarray, pd.DataFrame]:
    """(n, d) float32 embeddings of length 1, and a frame with `example_id, ifd, status`."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(CENTRES, dimensions)).astype(np.float32)
    embeddings = np.empty((n_rows, dimensions), dtype=np.float32)
    for start in range(0, n_rows, 65_536):
        block = embeddings[start : start + 65_536]
        rng.standard_normal(out=block, dtype=np.float32)
        block += centres[rng.integers(CENTRES, size=len(block))]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    status = rng.choice(["ok", "truncated", "nan"], size=n_rows, p=[0.97, 0.02, 0.01])
    ifd = np.where(status == "nan", np.nan, rng.lognormal(-0.32, 0.25, size=n_rows))
    ids = [f"row-{i}" for i in range(n_rows)]
    return embeddings, pd.DataFrame({"example_id": ids, "ifd": ifd, "status": status})


def prepare(n_rows: int, dimensions: int, ratio: float = 0.4) -> Work:
    """Make the rows; the work clusters them, chooses, and returns what came of it."""
    import sklearn.cluster  # noqa: F401 - importing is not part of the work

    embeddings, frame = synthetic_rows(n_rows, dimensions)

    def work() -> dict[str, Any]:
        clustering = cluster_embeddings(embeddings)
        table = choose("cdas", frame.assign(cluster=clustering.labels), ratio)
        facts = {"rows": n_rows, "chosen": int(table["keep"].sum()), "algorithm": clustering.diagnostics["algorithm"]}
        return facts | {"process_memory_gb": round(_process_peak() / 1e9, 3)}

    return work


def _process_peak() -> int:
    """Largest resident memory of this process so far, embeddings included."""
    mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return mark if sys.platform == "darwin" else mark * 1024


def run(
    sizes: Sequence[int] = SIZES,
    dimensions: int = 384,
    repeats: int = 3,
    folder: str | Path | None = None,
    say: Say = print,
) -> pd.DataFrame:
    """Measure every size, each in a fresh process, and write results/bench/select.json and .md; returns the table.

    `microseconds_per_row` is the median time divided by the rows, `process_memory_gb` (1e9 bytes) the peak of the whole
    process with its embeddings, `peak_memory_bytes` what the work added to it.
    """
    contenders = {f"{n:,} rows": ("bench.select:prepare", {"n_rows": n, "dimensions": dimensions}) for n in sizes}
    table = compare(contest(contenders, repeats=repeats, say=say), baseline=next(iter(contenders)))
    table["microseconds_per_row"] = table["seconds"] / table["rows"] * 1e6
    table = table.drop(columns=["speedup", "memory_ratio"])  # of different amounts of work
    table = table.astype({"rows": int, "chosen": int})
    growth = float(table["microseconds_per_row"].iloc[-1] / table["microseconds_per_row"].iloc[0])
    about = {
        "work": "K-Means (k = 10; mini-batches above 200,000 rows), then CDAS with a reason for every row",
        "dimensions": dimensions,
        "cost per row, largest size over smallest": round(growth, 3),
    }
    say(f"wrote {write_bench('select', table, about, folder)}")
    return table
