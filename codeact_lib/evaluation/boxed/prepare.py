"""What is asked of the solutions: the code to judge, the inputs as data, the expected outputs and their times.

    task:   a benchmark's task with "solution" and, where they are known, "expected" outputs
    answer: {"code", "inputs", "expected", "seconds"}, or {"broken": why the canonical solution does not run}

No solution runs here; the canonical solutions do, which are the benchmark's own. Texts are JSON of `plain.encode`.
"""

import json
import sys
import time
import types
from copy import deepcopy
from functools import cache

from .plain import encode, encode_output

SANITIZE_SECONDS = 20


def begin(job):
    """Import EvalPlus before the workers are forked, where it is needed at all."""
    if job["sanitize"] or job["kind"] == "mbpp":
        load()


@cache
def load():
    """The part of EvalPlus that reads answers and inputs."""
    # evalplus.data imports `datasets` for a leaderboard this program never asks for: 1.3 s and 100 MB in every fork.
    sys.modules.setdefault("datasets", types.SimpleNamespace(load_dataset=None))
    import evalplus.sanitize

    # EvalPlus 0.3.1 throws away a helper without `return`, even if it is a generator that the solution needs.
    evalplus.sanitize.has_return_statement = answers_something
    return evalplus


def answers_something(node):
    """Whether a function has a ``return`` or a ``yield``."""
    import evalplus.sanitize

    return any(n.type in ("return_statement", "yield") for n in evalplus.sanitize.traverse_tree(node))


def work(job, task):
    """One task, see above."""
    inputs = {tests: task[f"{tests}_input"] for tests in ("base", "plus")}
    if job["kind"] == "mbpp":
        inputs = {t: load().data.mbpp.mbpp_deserialize_inputs(task["task_id"], rows) for t, rows in inputs.items()}
    code = clean(load(), task["solution"], task["entry_point"]) if job["sanitize"] else task["solution"]
    asked = {"code": code, "inputs": {tests: as_text(rows) for tests, rows in inputs.items()}}
    if task["expected"] is not None:
        return {**asked, "expected": task["expected"], "seconds": {t: [0.0] * len(rows) for t, rows in inputs.items()}}
    try:
        found = {tests: run_reference(task, rows) for tests, rows in inputs.items()}
    except Exception as error:  # noqa: BLE001 - whatever the benchmark's own code raises is reported, not hidden
        return {"broken": f"{type(error).__name__}: {error}"}
    expected, seconds = ({tests: pair[n] for tests, pair in found.items()} for n in (0, 1))
    return {**asked, "expected": expected, "seconds": seconds}


def as_text(values):
    return json.dumps(encode(list(values)))


def clean(evalplus, solution, entry_point):
    """EvalPlus's sanitize; the answer as it is where that fails (it parses every pair of lines, so time is limited)."""
    faults = (SyntaxError, ValueError, RecursionError, MemoryError, evalplus.eval.utils.TimeoutException)
    try:
        with evalplus.eval.utils.time_limit(SANITIZE_SECONDS):
            return evalplus.sanitize.sanitize(solution, entry_point)
    except faults:
        return solution


def run_reference(task, inputs):
    """(outputs as JSON text, seconds per input) of the canonical solution."""
    namespace = {}
    exec(task["prompt"] + task["canonical_solution"], namespace)
    function, outputs, seconds = namespace[task["entry_point"]], [], []
    for arguments in deepcopy(inputs):
        start = time.time()
        output = function(*arguments)
        seconds.append(time.time() - start)
        outputs.append(encode_output(output))
    return json.dumps(["list", outputs]), seconds
