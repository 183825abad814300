"""Workers inside a box: each takes one task after the other and answers with a dict; a line of JSON per event.

Standard input is the job, ``{"parallel", "task_seconds", ..., "tasks": [...]}``, standard output the lines
``{"task_id", "event": "start"}`` and ``{"task_id", "event": "done", ...}``. No solution can reach either: the process
that runs it has neither open, and may not look into the others (they are not dumpable).

A worker that dies, hangs, or finds processes left behind or a solution disturbed means that the box is not clean. With
one task left it says so in that task's answer; with several it ends the box at once, so that no verdict is reached in a
dirty one.
"""

import ctypes
import gc
import json
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import wait

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36
DIRTY = 3  # exit code of a box that was given up


class DirtyBox(Exception):
    """A solution died of itself, was disturbed or left processes behind; the message says which."""


def prctl(option, value):
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def is_alone(job):
    """Whether the box is for one task only: then no other verdict can suffer, and this one is final."""
    return len(job["tasks"]) == 1


def seal(keep=None):
    """First thing in the process that runs a solution: no standard streams, no pipe but ``keep``, which becomes 3."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    if keep is not None:
        os.dup2(keep, 3)
    os.closerange(3 if keep is None else 4, 1 << 16)


def is_deserted(seconds=1.0):
    """Whether this worker has no child any more. What a solution leaves behind becomes the worker's child (Linux)."""
    multiprocessing.active_children()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if pid == 0:
            time.sleep(0.005)
    return False


def serve(work, job, pipe):
    """A worker: numbers of tasks in, answers out, as JSON. The leader of a group, to be ended with its children."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # else a solution could raise KeyboardInterrupt in another, or in here
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):  # what a reference solution prints is no verdict
        os.dup2(null, stream)
    while True:
        task = job["tasks"][json.loads(pipe.recv_bytes())]
        try:
            answer = work(job, task)
            if not is_deserted():
                raise DirtyBox("it left processes behind")
        except DirtyBox as error:
            answer = {"lost": str(error)}
        pipe.send_bytes(json.dumps(answer).encode())


class Worker:
    """A forked worker, the task it is at and when its time is over."""

    def __init__(self, work, job):
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=serve, args=(work, job, theirs))
        self.process.start()
        theirs.close()  # else the death of the worker would not end the pipe
        self.task = None

    def give(self, number, seconds):
        self.task, self.deadline = number, time.monotonic() + seconds
        self.pipe.send_bytes(json.dumps(number).encode())

    def answer(self, ready):
        """What the worker says, or why it will not say anything any more; None while it is at work."""
        if self.pipe in ready:
            try:
                return json.loads(self.pipe.recv_bytes())
            except (EOFError, OSError, ValueError):
                return {"lost": "its process died"}
        if self.process.sentinel in ready:
            return {"lost": "its process died"}
        return {"lost": "timeout"} if time.monotonic() >= self.deadline else None

    def stop(self):
        assert self.process.pid, "it was started"
        for kill in (os.killpg, os.kill):
            try:
                kill(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def run(work, job, write):
    """All tasks in the order given, ``parallel`` at a time; returns the workers, or DIRTY."""
    waiting = list(range(len(job["tasks"])))[::-1]
    workers = [Worker(work, job) for _ in range(min(job["parallel"], len(waiting)))]

    def feed(worker):
        worker.task = None
        if waiting:
            number = waiting.pop()
            write({"task_id": job["tasks"][number]["task_id"], "event": "start"})
            worker.give(number, job["task_seconds"])

    for worker in workers:
        feed(worker)
    while busy := [w for w in workers if w.task is not None]:
        # the sentinel too: a child of a killed worker may hold its end of the pipe open
        ends = [end for w in busy for end in (w.pipe, w.process.sentinel)]
        ready = wait(ends, timeout=max(0.0, min(w.deadline for w in busy) - time.monotonic()))
        for worker in busy:
            answer = worker.answer(ready)
            if answer is None:
                continue
            if "lost" in answer and not is_alone(job):
                stop(workers)
                return DIRTY
            write({"task_id": job["tasks"][worker.task]["task_id"], "event": "done", **answer})
            feed(worker)
    stop(workers)
    return 0


def stop(workers):
    for worker in workers:
        worker.stop()


def main(program):
    """Read the job, let ``program.work`` answer it, and leave without waiting for what a solution may have left."""
    prctl(PR_SET_DUMPABLE, 0)
    job = json.load(sys.stdin)
    multiprocessing.set_start_method("fork")
    program.begin(job)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page

    def write(line):
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    os._exit(run(program.work, job, write))
