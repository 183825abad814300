"""Judging a benchmark's canonical solutions, base and plus tests: EvalPlus as it comes, and ours with its boxes."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.harness import compare, contest, write_bench
from codeact_lib.errors import CodeActError

BASELINE = "EvalPlus"
# As its command line runs it, but for the end: EvalPlus then waits up to 20 s in a thread, which is not counted.
PLAIN = """
import os, sys
from evalplus.evaluate import evaluate
evaluate(sys.argv[1], samples=sys.argv[2], parallel=int(sys.argv[3]), min_time_limit=float(sys.argv[4]))
sys.stdout.flush()
os._exit(0)
"""


def bench_eval(*, benchmark="mini-humaneval", limit=None, isolation="auto", parallel=None, repeats=3, folder=None):
    """Measure both, require that they count the same, and write results/bench/eval.json.

    Args:
        benchmark, limit: the first ``limit`` tasks of a benchmark (None: all); their canonical solutions are judged.
        isolation: a rung, or "auto".
        parallel: solutions at a time for both, None for one per usable core.

    Returns:
        The table of `bench.harness.compare`.

    Raises:
        CodeActError: the two counted differently.
    """
    from codeact_lib.evaluation.judge import usable_cores
    from codeact_lib.sandbox.run import choose_isolation

    what = {"benchmark": benchmark, "limit": limit, "parallel": parallel or usable_cores(), "min_time_limit": 4.0}
    isolation = choose_isolation(isolation)
    here, name = "bench.eval", f"ours, in {isolation}"
    contenders = {BASELINE: (f"{here}:prepare_plain", what)}
    contenders[name] = (f"{here}:prepare_ours", {**what, "isolation": isolation})
    rows = contest(contenders, repeats=repeats)
    if rows["unsolved"].nunique() != 1:
        raise CodeActError(f"The two count differently: {rows[['contender', 'unsolved']].to_dict('records')}.")
    # The memory of judging is that of children, which the harness does not see.
    table = compare(rows, BASELINE).drop(columns=["peak_memory_bytes", "peak_memory_kind", "memory_ratio"])
    about = {**what, "benchmark": Path(benchmark).name, "expected outputs": "computed anew by both"}
    write_bench("eval", table, about, folder)
    return table


def prepare_plain(benchmark, limit, parallel, min_time_limit):
    """``evalplus.evaluate`` in a process of its own; nothing of an earlier run is there to be reused."""
    loaded, samples = _load(benchmark, limit)

    def work():
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


def prepare_ours(benchmark, limit, parallel, min_time_limit, isolation):
    """`codeact_lib.evaluation.judge.evaluate_solutions`, canaries and second opinion included."""
    from codeact_lib.evaluation.judge import evaluate_solutions

    loaded, samples = _load(benchmark, limit)
    options = {"isolation": isolation, "parallel": parallel, "min_time_limit": min_time_limit, "say": None}

    def work():
        with tempfile.TemporaryDirectory() as folder:
            options.update(output_dir=folder, cache_dir=folder, sanitize=False)
            result = evaluate_solutions(samples, loaded, **options)
        return _facts([task_id for task_id, verdict in result.verdicts.items() if verdict["failure"]], loaded)

    return work


def _facts(unsolved, loaded):
    """Of EvalPlus 0.3.1 a known fault is left out: it can never pass HumanEval/32."""
    return {"tasks": len(loaded.tasks), "unsolved": " ".join(sorted({*unsolved} - {"HumanEval/32"})) or "none"}


def _load(benchmark, limit):
    from codeact_lib.evaluation.benchmarks import load_benchmark

    loaded = load_benchmark(benchmark, limit)
    whole = [{"task_id": t["task_id"], "solution": t["prompt"] + t["canonical_solution"]} for t in loaded.tasks]
    return loaded, whole


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
