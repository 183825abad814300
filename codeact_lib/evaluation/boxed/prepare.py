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
    name = task["entry_point"]
    code = clean(message["solution"], name) if job["sanitize"] else message["solution"]
    prepared = Prepared(
        task_id=task["task_id"], entry_point=name, code=code, inputs={}, limits={}, expected={}, seconds={}
    )
    for tests in TESTS:
        inputs = task[f"{tests}_input"]
        if job["kind"] == "mbpp":
            inputs = patches.load_reader().data.mbpp.mbpp_deserialize_inputs(task["task_id"], inputs)
        prepared["inputs"][tests] = json.dumps(encode(list(inputs)))
        if message["expected"] is not None:
            prepared["expected"][tests] = message["expected"][tests]
            seconds = [0.0] * len(inputs)
        else:
            try:
                prepared["expected"][tests], seconds = run_reference(task, inputs)
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


def run_reference(task: dict[str, Any], inputs: Iterable[Any]) -> tuple[str, list[float]]:
    """(outputs as JSON text, seconds per input) of the canonical solution."""
    namespace: dict[str, Any] = {}
    exec(task["prompt"] + task["canonical_solution"], namespace)
    function = namespace[task["entry_point"]]
    outputs = []
    seconds = []
    for arguments in deepcopy(inputs):
        start = time.time()
        output = function(*arguments)
        seconds.append(time.time() - start)
        outputs.append(encode_output(output))
    return json.dumps(["list", outputs]), seconds
