"""What the solutions say: each runs on the inputs of its task where no expected output is, nor was before.

Takes `messages.Question`, gives `messages.Answers`, where `why` is what stopped the solution ("" when it answered all).
"""

# Slim on purpose: a fork costs 2 ms, and a solution that searches the memory it lives in finds this and its inputs.

import contextlib
import json
import os
import resource
import select
import signal
import time
from typing import Any

from . import pool
from .messages import Answers, Job, Question
from .plain import ANSWERED, OUT_OF_TIME, decode, encode_output

MOST_BYTES = 4 << 20  # of one answer: a single output is a digest beyond 128 KiB
MOST_SECONDS = 120.0  # for all inputs of a task: EvalPlus gives 60 s, and here the outputs are written out too
# Of EvalPlus's limit: more, so that a solution near to it is not lost on the way to its verdict. On a busy machine a
# solution waits, which costs it no processor time; an endless loop spends it, and need not be watched twice as long.
TIMERS = ((signal.ITIMER_REAL, 2.0), (signal.ITIMER_PROF, 1.5))


class OutOfTime(Exception):
    """An input took longer than its limit."""


def begin(job: Job) -> None:
    """Nothing to import before the workers are forked."""


def work(job: Job, task: Question) -> Answers:
    """Outputs on the base inputs and, if all of them were answered, on the plus inputs."""
    said = {"base": ask(job, task, "base")}
    if said["base"].endswith(ANSWERED):
        said["plus"] = ask(job, task, "plus")
    return said


def ask(job: Job, task: Question, tests: str) -> str:
    """JSON text of what the solution says, from a process of its own."""
    limits = task["limits"][tests]
    readable, writable = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            pool.seal(keep=writable)
            limit_memory()
            said = outputs(task["code"], task["entry_point"], task["inputs"][tests], limits)
            text = json.dumps(said)
            with open(3, "wb") as file:
                file.write(text.encode())
        finally:
            os._exit(0)
    os.close(writable)
    text = read(readable, time.monotonic() + min(MOST_SECONDS, TIMERS[0][1] * sum(limits)) + 2)
    os.close(readable)
    os.kill(process, signal.SIGKILL)
    used = os.wait4(process, 0)[2]
    # Whose doing it was shows in a box of its own.
    if not pool.is_alone(job):
        if not text:
            raise pool.DirtyBox("its process died")
        if text.endswith(OUT_OF_TIME) and used.ru_utime + used.ru_stime < min(limits, default=0) / 2:
            raise pool.DirtyBox("it ran out of time without having run")
    return text or silence("crash")


def silence(why: str) -> str:
    """The answer of a solution that said nothing."""
    return json.dumps({"outputs": [], "why": why})


def read(readable: int, deadline: float) -> str:
    """What comes out of the pipe until it ends, or why it was not waited for."""
    received = bytearray()
    while select.select([readable], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(readable, 1 << 20)
        if not part:
            return received.decode(errors="replace")
        received += part
        if len(received) > MOST_BYTES:
            return silence("flood")
    return silence("timeout")


def limit_memory() -> None:
    """As EvalPlus does: recursion 15,000 deep through `sorted(key=)` needs a stack above the usual 8 MiB.

    macOS refuses such limits: there the watch over the whole box has to do.
    """
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_STACK):
        hard = resource.getrlimit(kind)[1]
        most = pool.SOLUTION_MEMORY
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def outputs(code: str, entry_point: str, inputs: str, limits: list[float]) -> dict[str, Any]:
    """{"outputs": as data, in the order of the inputs, "why": "", "error" or "timeout"}."""
    said: list[Any] = []
    namespace: dict[str, Any] = {}
    why = ""
    clock = Clock()
    try:
        clock.start(sum(limits))
        exec(code, namespace)
        function = namespace[entry_point]
        for arguments, seconds in zip(decode(json.loads(inputs)), limits, strict=True):
            clock.start(seconds)
            output = function(*arguments)
            # An iterator is read here, and need not end.
            clock.start(seconds)
            said.append(encode_output(output))
    except OutOfTime:
        why = "timeout"
    except BaseException:  # noqa: BLE001 - it may also leave by SystemExit
        why = "error"
    finally:
        clock.stop()
    return {"outputs": said, "why": why}


class Clock:
    """Raises `OutOfTime` in the solution when its time is over; one that swallows it is ended when it is over again."""

    def __init__(self) -> None:
        for kind in (signal.SIGALRM, signal.SIGPROF):
            signal.signal(kind, self.ring)

    def start(self, seconds: float, has_rung: bool = False) -> None:
        """Give the solution so many seconds from now on."""
        self.seconds = seconds
        self.has_rung = has_rung
        self.earliest = time.monotonic() + seconds / 2
        for timer, factor in TIMERS:
            signal.setitimer(timer, factor * seconds)

    def ring(self, *_: Any) -> None:
        """Take a signal of the timers."""
        # A signal that comes too early was sent by another solution: the process ends without a word, as it would at
        # any other signal.
        if time.monotonic() < self.earliest:
            os._exit(0)
        if self.has_rung:
            os.write(3, silence("timeout").encode())
            os._exit(0)
        self.start(self.seconds, has_rung=True)
        raise OutOfTime

    def stop(self) -> None:
        """Ask for no more signals."""
        for timer, _ in TIMERS:
            signal.setitimer(timer, 0)
