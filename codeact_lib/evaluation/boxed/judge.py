"""EvalPlus's own verdicts, and whether what the solution said elsewhere bears them out.

    task:   {"task_id", "entry_point", "atol", "code", "reference", "inputs", "expected", "seconds", "said"}
    answer: {"base", "plus": EvalPlus's status, "confirmed": {"base", "plus"}, "failure"}

It uses the functions EvalPlus 0.3.1 is made of (untrusted_check) instead of its ``evaluate``, which stays alive for
ever when a worker dies, waits up to 20 s at a normal end, reuses old results in silence and keeps its ground truth in a
pickle. EvalPlus forks twice per task: from this process that is 7 ms, with torch loaded it would be 196 ms.

EvalPlus compares inside the process that runs the solution, so a solution can make itself pass. A pass is confirmed
when the outputs in ``said``, which come from a process that never held the expected ones, pass the same comparison.

A solution that answered rightly there and fails here may have been disturbed by one that ran beside it, so it is judged
again in a box of its own.

A solution that ran out of time on the base inputs, here and where ``said`` comes from, is not run on the plus inputs:
it has failed, and an endless loop would only cost as long again. Its plus status is then that of base.
"""

import contextlib
import json
import os
import resource
import sys
import time
import types
from copy import deepcopy
from functools import cache, partial
from unittest import mock

from . import crew
from .plain import OUT_OF_TIME, Digest, Opaque, decode, digest

EVALPLUS_MEMORY = 4 << 30
MOST_SECONDS = 60.0  # EvalPlus's limit for all inputs of one check


def begin(job):
    """Import EvalPlus before the workers are forked."""
    load()


@cache
def load():
    """Import what is needed of EvalPlus, and its traps defused."""
    sys.modules.setdefault("datasets", types.SimpleNamespace(load_dataset=None))  # see prepare
    # EvalPlus sets its memory limits to 4 GiB per solution; where the hard limit is lower that fails, and with it every
    # task. Then (and on macOS, where these limits do not work) the limits of the box have to do.
    kinds = (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_STACK)
    hard = [h for h in (resource.getrlimit(kind)[1] for kind in kinds) if h != resource.RLIM_INFINITY]
    if sys.platform == "darwin" or min(hard, default=EVALPLUS_MEMORY) < EVALPLUS_MEMORY:
        os.environ["EVALPLUS_MAX_MEMORY_BYTES"] = "-1"
    import multiprocessing.heap

    import evalplus.eval

    # A box may hide /dev/shm and /proc, which these would use: locks and shared memory, the size of the memory.
    multiprocessing.heap.Arena._dir_candidates = []
    for name in ("Value", "Array"):
        setattr(evalplus.eval, name, partial(getattr(multiprocessing, name), lock=False))
    memory = None if os.getenv("EVALPLUS_MAX_MEMORY_BYTES") == "-1" else EVALPLUS_MEMORY
    evalplus.eval.query_maximum_memory_bytes = lambda: memory
    evalplus.eval.compare = evalplus.eval.unsafe_execute
    evalplus.eval.unsafe_execute = sealed
    return evalplus


def sealed(*arguments):
    """EvalPlus's process of a solution, without our pipes."""
    crew.seal()
    load().eval.compare(*arguments)


# ------------------------------------------------------------------------------------------------ one task


class Root:
    """Expected output of ``find_zero``: equals any x at which the polynomial is zero within ``atol``."""

    def __init__(self, coefficients, atol):
        self.coefficients, self.atol = deepcopy(coefficients), atol

    def __eq__(self, x):
        return abs(sum(c * x**i for i, c in enumerate(self.coefficients))) <= self.atol


def work(job, task):
    """One task, see above."""
    evalplus = load()
    limit, verdict = job["min_time_limit"], {"failure": "", "confirmed": {}}
    for tests in ("base", "plus"):
        inputs = decode(json.loads(task["inputs"][tests]))
        kind, expected = criterion(evalplus, job["kind"], task, tests, inputs)
        said = task["said"][tests]
        verdict["confirmed"][tests] = is_borne_out(evalplus, kind, task, said, inputs, expected)
        start = time.monotonic()
        status, details = check(evalplus, kind, task, inputs, expected, task["seconds"][tests], limit)
        spent = time.monotonic() - start
        died = status == "timeout" and spent < time_allowed(task["seconds"][tests], limit)
        if died and not crew.is_alone(job):
            raise crew.DirtyBox("its process died")
        if status != "pass" and verdict["confirmed"][tests] and not crew.is_alone(job):
            raise crew.DirtyBox("its verdict contradicts its answers")
        verdict[tests] = status
        if status != "pass" and not verdict["failure"]:
            verdict["failure"] = "crash" if died else failure_kind(task["code"], status, details, said, spent, limit)
        if tests == "base" and verdict["failure"] == "timeout" and said.endswith(OUT_OF_TIME):
            return {**verdict, "plus": status}
    return verdict


def criterion(evalplus, kind, task, tests, inputs):
    """(kind, expected outputs) for EvalPlus's comparison.

    In EvalPlus 0.3.1 HumanEval/32 (``find_zero``) can never pass: its branch leaves the input uncounted. Named
    otherwise, the check goes the common way, with the same criterion as the expected output.
    """
    if kind == "humaneval" and task["entry_point"] == "find_zero":
        return "find_zero", [Root(*arguments, task["atol"]) for arguments in inputs]
    text, only_not_none = task["expected"][tests], task["entry_point"] in evalplus.eval.MBPP_OUTPUT_NOT_NONE_TASKS
    if kind == "mbpp" and only_not_none:
        return kind, [output is not None for output in decode(json.loads(text))]
    if '["opaque", ' in text or '["digest", ' in text:  # no data, or not all of it
        return kind, evalplus.gen.util.trusted_exec(task["reference"], inputs, task["entry_point"])
    return kind, decode(json.loads(text))


def check(evalplus, kind, task, inputs, expected, seconds, limit):
    """EvalPlus's verdict on one list of inputs: (status, outcome per input up to the first failure)."""
    return evalplus.eval.untrusted_check(
        kind,
        task["code"],
        inputs,
        task["entry_point"],
        expected=expected,
        atol=task["atol"],
        ref_time=seconds,
        fast_check=True,
        min_time_limit=limit,
    )


def time_allowed(seconds, limit):
    """How long EvalPlus waits for a process before it ends it; a process gone earlier without a word has died."""
    return min(MOST_SECONDS, sum(max(limit, 4 * s) for s in seconds)) + 2


def is_borne_out(evalplus, kind, task, said, inputs, expected):
    """Whether the outputs in ``said`` pass EvalPlus's comparison. Nothing of the solution runs here."""
    outputs = outputs_in(said)
    if outputs is None or len(outputs) != len(inputs) or any(isinstance(output, Opaque) for output in expected):
        return False
    expected = [digest(e) if isinstance(o, Digest) else e for o, e in zip(outputs, expected, strict=True)]
    told = iter(outputs)
    sys.modules["told"] = types.SimpleNamespace(answer=lambda *arguments: next(told))
    status, progress = types.SimpleNamespace(value=None), types.SimpleNamespace(value=0)
    code, details = f"from told import answer as {task['entry_point']}", [False] * len(inputs)
    # no time limit either: its handler would let another solution raise a timeout in here
    guards = {"reliability_guard": lambda **_: None, "create_tempdir": contextlib.nullcontext}
    guards["time_limit"] = contextlib.nullcontext
    with mock.patch.multiple(evalplus.eval, **guards):
        evalplus.eval.compare(
            *(kind, task["entry_point"], code, inputs, expected, [MOST_SECONDS] * len(inputs), task["atol"], True),
            *(status, details, progress),
        )
    return status.value == evalplus.eval._SUCCESS and all(details)


def outputs_in(said):
    """The outputs of an answer as values; None when there are none, or not such as `plain.encode` writes."""
    try:
        return decode(["list", json.loads(said)["outputs"]])
    except (ValueError, TypeError, KeyError, RecursionError, MemoryError, AttributeError):
        return None


def failure_kind(code, status, details, said, seconds, limit):
    """Why a solution failed: empty, syntax, timeout, error (it raised) or wrong (it answered)."""
    if not code.strip():
        return "empty"
    try:
        compile(code, "solution", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "syntax"
    if status == "timeout" or seconds >= limit:
        return "timeout"
    # EvalPlus does not tell a wrong answer from an exception; where the solution had answered that input, it was wrong
    return "wrong" if len(outputs_in(said) or ()) >= len(details) > 0 else "error"
