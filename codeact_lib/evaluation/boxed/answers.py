"""What the solutions say: each runs on the inputs of its task where no expected output is, nor was before.

    task:   {"task_id", "code", "entry_point", "inputs": {"base", "plus"}, "limits": {"base", "plus"}}
    answer: {"base": JSON text of {"outputs", "why"}, "plus": the same or None}

``inputs`` is JSON text of `plain.encode`, ``limits`` are EvalPlus's seconds per input, ``why`` is what stopped the
solution ("" when it answered everything). Slim on purpose: a fork costs 2 ms, and a solution that searches the memory
it lives in finds this file and its inputs.
"""

import contextlib
import json
import os
import resource
import selectors
import signal
import time

from . import crew
from .plain import ANSWERED, OUT_OF_TIME, decode, encode_output

MEMORY = 4 << 30  # address space of a solution, as EvalPlus gives it
MOST_BYTES = 64 << 20  # of one answer
MOST_SECONDS = 120.0  # for all inputs of a task: EvalPlus gives 60 s, and here the outputs are written out too
# Of EvalPlus's limit: more, so that a solution near to it is not lost on the way to its verdict. On a busy machine a
# solution waits, which costs it no processor time; an endless loop spends it, and need not be watched twice as long.
TIMERS = ((signal.ITIMER_REAL, 2.0), (signal.ITIMER_PROF, 1.5))
WAIT = max(factor for _, factor in TIMERS)


class OutOfTime(Exception):
    """An input took longer than its limit."""


def begin(job):
    """Nothing to import before the workers are forked."""


def work(job, task):
    """Outputs on the base inputs and, if all of them were answered, on the plus inputs."""
    said = {"base": ask(job, task, "base"), "plus": None}
    if said["base"].endswith(ANSWERED):
        said["plus"] = ask(job, task, "plus")
    return said


def ask(job, task, tests):
    """JSON text of what the solution says, from a process of its own."""
    limits = task["limits"][tests]
    readable, writable = os.pipe()
    process = os.fork()
    if process == 0:
        answer_and_exit(task, tests, writable)
    os.close(writable)
    text = read(readable, time.monotonic() + min(MOST_SECONDS, WAIT * sum(limits)) + 2)
    os.close(readable)
    os.kill(process, signal.SIGKILL)
    used = os.wait4(process, 0)[2]
    if not crew.is_alone(job):  # whose doing it was shows in a box of its own
        if not text:
            raise crew.DirtyBox("its process died")
        if text.endswith(OUT_OF_TIME) and used.ru_utime + used.ru_stime < min(limits, default=0) / 2:
            raise crew.DirtyBox("it ran out of time without having run")
    return text or silence("crash")


def silence(why):
    return json.dumps({"outputs": [], "why": why})


def read(readable, deadline):
    """What comes out of the pipe until it ends, or why it was not waited for."""
    parts, size = [], 0
    with selectors.DefaultSelector() as selector:
        selector.register(readable, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            part = os.read(readable, 1 << 20)
            if not part:
                return b"".join(parts).decode(errors="replace")
            parts.append(part)
            size += len(part)
            if size > MOST_BYTES:
                return silence("flood")
    return silence("timeout")


def answer_and_exit(task, tests, writable):
    """In the forked process: run the solution, say what it said, end whatever happens."""
    try:
        crew.seal(keep=writable)
        limit_memory()
        text = json.dumps(outputs(task["code"], task["entry_point"], task["inputs"][tests], task["limits"][tests]))
        with open(3, "wb") as file:
            file.write(text.encode())
    finally:
        os._exit(0)


def limit_memory():
    """`MEMORY` at most. macOS refuses such limits: there the watch over the whole box has to do."""
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        hard = resource.getrlimit(kind)[1]
        most = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def outputs(code, entry_point, inputs, limits):
    """{"outputs": as data, in the order of the inputs, "why": "", "error" or "timeout"}."""
    said, clock = [], Clock()
    try:
        namespace = {}
        clock.start(sum(limits))
        exec(code, namespace)
        function = namespace[entry_point]
        for arguments, seconds in zip(decode(json.loads(inputs)), limits, strict=True):
            clock.start(seconds)
            output = function(*arguments)
            clock.stop()
            said.append(encode_output(output))
    except OutOfTime:
        return {"outputs": said, "why": "timeout"}
    except BaseException:  # noqa: BLE001 - it may also leave by SystemExit
        return {"outputs": said, "why": "error"}
    finally:
        clock.stop()
    return {"outputs": said, "why": ""}


class Clock:
    """Raises `OutOfTime` in the solution when its time is over; one that swallows it is ended when it is over again.

    A signal that comes too early was sent by another solution: the process ends without a word, as it would at any
    other signal.
    """

    def __init__(self):
        for kind in (signal.SIGALRM, signal.SIGPROF):
            signal.signal(kind, self.ring)

    def start(self, seconds):
        self.rung, self.seconds = False, seconds
        self.wind()

    def wind(self):
        self.earliest = time.monotonic() + self.seconds / 2
        for timer, factor in TIMERS:
            signal.setitimer(timer, factor * self.seconds)

    def ring(self, *_):
        if time.monotonic() < self.earliest:
            os._exit(0)
        if self.rung:
            os.write(3, silence("timeout").encode())
            os._exit(0)
        self.rung = True
        self.wind()
        raise OutOfTime

    def stop(self):
        for timer, _ in TIMERS:
            signal.setitimer(timer, 0)
