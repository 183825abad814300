"""What is asked of the solutions: the code to judge, the inputs as data, the expected outputs and their times.

Takes `messages.PrepareTask`, gives `messages.Prepared`. No solution runs here; the canonical solutions do, which are
the benchmark's own.
"""

import json
import time
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from . import patches
from .messages import TESTS, Job, Prepared, PrepareTask
from .plain import encode, encode_output

SANITIZE_SECONDS = 20


def begin(job: Job) -> None:
    """Import EvalPlus before the workers are forked, where it is needed at all."""
    if job["sanitize"] or job["kind"] == "mbpp":
        patches.load_reader()


def work(job: Job, message: PrepareTask) -> Prepared | dict[str, str]:
    """One task; {"broken": why} where its canonical solution does not run."""
    task = message["task"]
    prepared = Prepared(
        task_id=task["task_id"],
        entry_point=task["entry_point"],
        code=message["solution"],
        inputs={},
        limits={},
        reference=task["prompt"] + task["canonical_solution"],
        expected=message["expected"] or {},
        seconds={},
        atol=task["atol"],
    )
    if job["sanitize"]:
        prepared["code"] = clean(message["solution"], task["entry_point"])
    for tests in TESTS:
        inputs = task[f"{tests}_input"]
        if job["kind"] == "mbpp":
            inputs = patches.load_reader().data.mbpp.mbpp_deserialize_inputs(task["task_id"], inputs)
        prepared["inputs"][tests] = json.dumps(encode(list(inputs)))
        seconds = [0.0] * len(inputs)
        if not message["expected"]:
            try:
                prepared["expected"][tests], seconds = run_reference(prepared, inputs)
            except Exception as error:  # noqa: BLE001 - whatever the benchmark's own code raises is reported
                return {"broken": f"{type(error).__name__}: {error}"}
        prepared["seconds"][tests] = seconds
        # EvalPlus's limit for each input.
        prepared["limits"][tests] = [max(job["min_time_limit"], 4 * taken) for taken in seconds]
    return prepared


def clean(solution: str, entry_point: str) -> str:
    """EvalPlus's sanitize; the answer as it is where that fails (it parses every pair of lines, so time is limited)."""
    evalplus = patches.load_reader()
    timeout = evalplus.eval.utils.TimeoutException
    try:
        with evalplus.eval.utils.time_limit(SANITIZE_SECONDS):
            return evalplus.sanitize.sanitize(solution, entry_point)
    except (SyntaxError, ValueError, RecursionError, MemoryError, timeout):
        return solution


def run_reference(prepared: Prepared, inputs: Iterable[Any]) -> tuple[str, list[float]]:
    """(outputs as JSON text, seconds per input) of the canonical solution."""
    namespace: dict[str, Any] = {}
    exec(prepared["reference"], namespace)
    function = namespace[prepared["entry_point"]]
    outputs = []
    seconds = []
    for arguments in deepcopy(inputs):
        start = time.time()
        output = function(*arguments)
        seconds.append(time.time() - start)
        outputs.append(encode_output(output))
    return json.dumps(["list", outputs]), seconds
