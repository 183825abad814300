"""EvalPlus's own verdicts, and whether what the solution said elsewhere bears them out.

Takes `messages.JudgeTask`, gives `messages.Judged`. EvalPlus compares inside the process that runs the solution,
so a solution can make itself pass. A pass is confirmed when the outputs in `said`, which come from a process that never
held the expected ones, pass the same comparison.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from copy import deepcopy
from types import SimpleNamespace
from typing import Any
from unittest import mock

from . import patches, pool
from .messages import Job, Judged, JudgeTask
from .plain import OUT_OF_TIME, Digest, Opaque, decode, encode_output

MOST_SECONDS = 60.0  # EvalPlus's limit for all inputs of one check


def begin(job: Job) -> None:
    """Import EvalPlus before the workers are forked."""
    patches.load_check()


def work(job: Job, task: JudgeTask) -> Judged:
    """One task: verdicts, whether the answers bear them out, and why it failed."""
    base, confirmed, failure = judge_inputs(job, task, "base")
    # Out of time on the base inputs, here and in `answers`: it has failed, and an endless loop would only cost as long
    # again on the plus inputs. Its plus status is then that of base.
    if failure == "timeout" and task["said"]["base"].endswith(OUT_OF_TIME):
        return {"base": base, "plus": base, "confirmed": {"base": confirmed}, "failure": failure}
    plus, also_confirmed, later_failure = judge_inputs(job, task, "plus")
    both = {"base": confirmed, "plus": also_confirmed}
    return {"base": base, "plus": plus, "confirmed": both, "failure": failure or later_failure}


def judge_inputs(job: Job, task: JudgeTask, tests: str) -> tuple[str, bool, str]:
    """(EvalPlus's status, whether the answers bear it out, why the solution failed) on the inputs of `tests`."""
    code = task["code"]
    name = task["entry_point"]
    inputs = decode(json.loads(task["inputs"][tests]))
    said = outputs_in(task["said"][tests])
    limit = job["min_time_limit"]
    kind, expected = criterion(job["kind"], task, tests, inputs)
    confirmed = said is not None and is_borne_out(kind, task, said, inputs, expected)
    # The function that EvalPlus 0.3.1 is made of, not its `evaluate`, which stays alive for ever when a worker dies,
    # waits up to 20 s at a normal end, reuses old results in silence and keeps its ground truth in a pickle. It forks
    # for each list of inputs: from this process 7 ms a task, with torch loaded it would be 196 ms.
    start = time.monotonic()
    status, details = patches.load_check().eval.untrusted_check(
        kind, code, inputs, name, expected, task["atol"], task["seconds"][tests], fast_check=True, min_time_limit=limit
    )
    spent = time.monotonic() - start
    if status == "pass":
        return status, confirmed, ""
    # EvalPlus waits so long for a process before it ends it; one that is gone earlier without a word has died.
    allowed = min(MOST_SECONDS, sum(task["limits"][tests])) + 2
    died = status == "timeout" and spent < allowed
    if not pool.is_alone(job):
        if died:
            raise pool.DirtyBox("its process died")
        # One that answered rightly there and fails here may have been disturbed by another that ran beside it.
        if confirmed:
            raise pool.DirtyBox("its verdict contradicts its answers")
    if died:
        return status, confirmed, "crash"
    late = status == "timeout" or spent >= limit
    return status, confirmed, failure_kind(code, late, answered=len(said or ()) >= len(details) > 0)


def failure_kind(code: str, late: bool, answered: bool) -> str:
    """Why a solution failed: empty, syntax, timeout, error (it raised) or wrong (it answered)."""
    if not code.strip():
        return "empty"
    try:
        compile(code, "solution", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "syntax"
    if late:
        return "timeout"
    # EvalPlus does not tell a wrong answer from an exception; where the solution had answered that input, it was wrong.
    return "wrong" if answered else "error"


class Root:
    """Expected output of `find_zero`: equals any x at which the polynomial is zero within `atol`."""

    def __init__(self, coefficients: list[float], atol: float) -> None:
        self.coefficients = deepcopy(coefficients)
        self.atol = atol

    def __eq__(self, x: Any) -> bool:
        # a complex root is none, and an int64 wraps around to zero
        if type(x) not in (int, float):
            return False
        return abs(sum(c * x**i for i, c in enumerate(self.coefficients))) <= self.atol


def criterion(kind: str, task: JudgeTask, tests: str, inputs: list[Any]) -> tuple[str, list[Any]]:
    """(kind, expected outputs) for EvalPlus's comparison."""
    evalplus = patches.load_check()
    # In EvalPlus 0.3.1 HumanEval/32 can never pass: its branch leaves the input uncounted. Named otherwise, the check
    # goes the common way, with the same criterion as the expected output.
    if kind == "humaneval" and task["entry_point"] == "find_zero":
        return "find_zero", [Root(*arguments, task["atol"]) for arguments in inputs]
    text = task["expected"][tests]
    if kind == "mbpp" and task["entry_point"] in evalplus.eval.MBPP_OUTPUT_NOT_NONE_TASKS:
        return kind, [output is not None for output in decode(json.loads(text))]
    if '["opaque", ' in text or '["digest", ' in text:  # no data, or not all of it
        return kind, evalplus.gen.util.trusted_exec(task["reference"], inputs, task["entry_point"])
    return kind, decode(json.loads(text))


def outputs_in(said: str) -> list[Any] | None:
    """The outputs of an answer as values; None when there are none, or not such as `plain.encode` writes."""
    try:
        return decode(["list", json.loads(said)["outputs"]])
    except (ValueError, TypeError, KeyError, RecursionError, MemoryError, AttributeError):
        return None


recorded: Iterator[Any] = iter(())


def next_recorded(*_: Any) -> Any:
    """Stands in for the solution in `is_borne_out`: says what was said, whatever it is asked."""
    return next(recorded)


def is_borne_out(kind: str, task: JudgeTask, said: list[Any], inputs: list[Any], expected: list[Any]) -> bool:
    """Whether the outputs `said` pass EvalPlus's comparison; nothing of the solution runs here."""
    # EvalPlus 0.3.1 has its comparison (tolerances, sets, five tasks with rules of their own) only inside the loop that
    # calls the solution. A copy could drift from it, so that loop runs here, on code that hands out what was recorded.
    global recorded
    if len(said) != len(inputs) or any(isinstance(output, Opaque) for output in expected):
        return False
    alike = []
    for output, wanted in zip(said, expected, strict=True):
        alike.append(decode(encode_output(wanted, large=0)) if isinstance(output, Digest) else wanted)
    recorded = iter(said)
    evalplus = patches.load_check()
    name = task["entry_point"]
    code = f"from {__name__} import next_recorded as {name}"
    limits = [MOST_SECONDS] * len(inputs)
    details = [False] * len(inputs)
    status = SimpleNamespace(value=None)
    progress = SimpleNamespace(value=0)
    # This process goes on afterwards: it must keep the functions that the guard takes away, and its folder. No time
    # limit either: its handler would let another solution raise a timeout in here.
    guards = {"reliability_guard": lambda **_: None, "create_tempdir": contextlib.nullcontext}
    with mock.patch.multiple(evalplus.eval, **guards, time_limit=contextlib.nullcontext):
        evalplus.eval.unsealed_execute(
            kind, name, code, inputs, alike, limits, task["atol"], True, status, details, progress
        )
    return status.value == evalplus.eval._SUCCESS and all(details)
