"""Judging a benchmark's canonical solutions, base and plus tests: EvalPlus as it comes, and ours with its boxes."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from bench.harness import Work, compare, contest, write_bench
from codeact_lib.errors import CodeActError
from codeact_lib.evaluation.benchmarks import Benchmark, load_benchmark
from codeact_lib.evaluation.judge import evaluate_solutions
from codeact_lib.measure import usable_cores
from codeact_lib.sandbox.run import choose_isolation

BASELINE = "EvalPlus"
# As its command line runs it, but for the end: EvalPlus then waits up to 20 s in a thread, which is not counted.
PLAIN = """
import os, sys
from evalplus.evaluate import evaluate
evaluate(sys.argv[1], samples=sys.argv[2], parallel=int(sys.argv[3]), min_time_limit=float(sys.argv[4]))
sys.stdout.flush()
os._exit(0)
"""


def bench_eval(
    *,
    benchmark: str = "mini-humaneval",
    limit: int | None = None,
    isolation: str = "auto",
    parallel: int | None = None,
    repeats: int = 3,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Measure both, require that they count the same, and write results/bench/eval.json.

    Args:
        benchmark, limit: the first `limit` tasks of a benchmark (None: all); their canonical solutions are judged.
        isolation: a rung, or "auto".
        parallel: solutions at a time for both, None for one per usable core.

    Returns:
        The table of `bench.harness.compare`.

    Raises:
        CodeActError: the two counted differently.
    """
    what = {"benchmark": benchmark, "limit": limit, "parallel": parallel or usable_cores(), "min_time_limit": 4.0}
    isolation = choose_isolation(isolation)
    contenders = {
        BASELINE: ("bench.eval:prepare_plain", what),
        f"ours, in {isolation}": ("bench.eval:prepare_ours", {**what, "isolation": isolation}),
    }
    rows = contest(contenders, repeats=repeats)
    if rows["unsolved"].nunique() != 1:
        raise CodeActError(f"The two count differently: {rows[['contender', 'unsolved']].to_dict('records')}.")
    # The memory of judging is that of children, which the harness does not see.
    table = compare(rows, BASELINE).drop(columns=["peak_memory_bytes", "peak_memory_kind", "memory_ratio"])
    about = {**what, "benchmark": Path(benchmark).name, "expected outputs": "computed anew by both"}
    write_bench("eval", table, about, folder)
    return table


def prepare_plain(benchmark: str, limit: int | None, parallel: int, min_time_limit: float) -> Work:
    """`evalplus.evaluate` in a process of its own; nothing of an earlier run is there to be reused."""
    loaded, samples = _load(benchmark, limit)

    def work() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            tasks = _write(folder / "tasks.data", loaded.tasks)
            path = _write(folder / "samples.jsonl", samples)
            settings = {f"{loaded.kind.upper()}_OVERRIDE_PATH": str(tasks), "XDG_CACHE_HOME": str(folder)}
            argv = [sys.executable, "-c", PLAIN, loaded.kind, str(path), str(parallel), str(min_time_limit)]
            subprocess.run(argv, env={**os.environ, **settings}, check=True, capture_output=True)
            results = json.loads((folder / "samples_eval_results.json").read_text())["eval"].values()
        passed = ("pass", "pass")
        return _facts([r["task_id"] for r, *_ in results if (r["base_status"], r["plus_status"]) != passed], loaded)

    return work


def prepare_ours(benchmark: str, limit: int | None, parallel: int, min_time_limit: float, isolation: str) -> Work:
    """`codeact_lib.evaluation.judge.evaluate_solutions`, canaries and second opinion included."""
    loaded, samples = _load(benchmark, limit)
    options: dict[str, Any] = {"isolation": isolation, "parallel": parallel, "min_time_limit": min_time_limit}

    def work() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            options.update(output_dir=folder, cache_dir=folder, sanitize=False, say=None)
            result = evaluate_solutions(samples, loaded, **options)
        return _facts([task_id for task_id, verdict in result.verdicts.items() if verdict["failure"]], loaded)

    return work


def _facts(unsolved: Iterable[str], loaded: Benchmark) -> dict[str, Any]:
    """Of EvalPlus 0.3.1 a known fault is left out: it can never pass HumanEval/32."""
    return {"tasks": len(loaded.tasks), "unsolved": " ".join(sorted({*unsolved} - {"HumanEval/32"})) or "none"}


def _load(benchmark: str, limit: int | None) -> tuple[Benchmark, list[dict[str, str]]]:
    loaded = load_benchmark(benchmark, limit)
    whole = [{"task_id": t["task_id"], "solution": t["prompt"] + t["canonical_solution"]} for t in loaded.tasks]
    return loaded, whole


def _write(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
