"""What the solutions say: each runs on the inputs of its task where no expected output is, nor was before.

    task:   {"task_id", "code", "entry_point", "inputs": {"base", "plus"}, "limits": {"base", "plus"}}
    answer: {"base": JSON text of {"outputs", "why"}, "plus": the same or None}

``inputs`` is JSON text of `plain.encode`, ``limits`` are seconds per input, ``why`` is what stopped the solution
("" when it answered everything). Slim on purpose: a fork costs 2 ms, and a solution that searches the memory it lives
in finds this file and its inputs.
"""

import json
import os
import resource
import selectors
import signal
import time

from . import crew
from .plain import decode, encode_output

MEMORY = 4 << 30  # address space of a solution, as EvalPlus gives it
MOST_BYTES = 64 << 20  # of one answer
MOST_SECONDS = 120.0  # for all inputs of a task: EvalPlus gives 60 s, and here the outputs are written out too


class OutOfTime(Exception):
    """An input took longer than its limit."""


def begin(job):
    """Nothing to import before the workers are forked."""


def work(job, task):
    """Outputs on the base inputs and, if all of them were answered, on the plus inputs."""
    said = {"base": ask(job, task, "base"), "plus": None}
    if said["base"].endswith('"why": ""}'):
        said["plus"] = ask(job, task, "plus")
    return said


def ask(job, task, tests):
    """JSON text of what the solution says, from a process of its own."""
    readable, writable = os.pipe()
    process = os.fork()
    if process == 0:
        answer_and_exit(task, tests, writable)
    os.close(writable)
    seconds = min(MOST_SECONDS, sum(task["limits"][tests])) + 2
    text = read(readable, time.monotonic() + seconds)
    os.close(readable)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    if text:
        return text
    if not crew.is_alone(job):
        raise crew.DirtyBox("its process died")
    return silence("crash")


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
        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            hard = resource.getrlimit(kind)[1]
            most = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
            resource.setrlimit(kind, (most, most))
        text = json.dumps(outputs(task["code"], task["entry_point"], task["inputs"][tests], task["limits"][tests]))
        with open(3, "wb") as file:
            file.write(text.encode())
    finally:
        os._exit(0)


def outputs(code, entry_point, inputs, limits):
    """{"outputs": as data, in the order of the inputs, "why": "", "error" or "timeout"}."""
    said = []
    signal.signal(signal.SIGALRM, out_of_time)
    try:
        namespace = {}
        exec(code, namespace)
        function = namespace[entry_point]
        for arguments, seconds in zip(decode(json.loads(inputs)), limits, strict=True):
            signal.setitimer(signal.ITIMER_REAL, seconds)
            output = function(*arguments)
            signal.setitimer(signal.ITIMER_REAL, 0)
            said.append(encode_output(output))
    except OutOfTime:
        return {"outputs": said, "why": "timeout"}
    except BaseException:  # noqa: BLE001 - it may also leave by SystemExit
        return {"outputs": said, "why": "error"}
    return {"outputs": said, "why": ""}


def out_of_time(*_):
    raise OutOfTime
