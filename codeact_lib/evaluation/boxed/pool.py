"""A pool of workers inside a box: each takes one task after the other and answers with a dict (`messages`)."""

import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any

from .messages import Job

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36
DIRTY = 3  # exit code of a box that was given up
SOLUTION_MEMORY = 4 << 30  # address space of a solution, as EvalPlus gives it

Work = Callable[[Job, Any], Any]


class DirtyBox(Exception):
    """A solution died of itself, was disturbed or left processes behind; the message says which."""


def prctl(option: int, value: int) -> None:
    """The system call, where there is one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def is_alone(job: Job) -> bool:
    """Whether the box is for one task only: then no other verdict can suffer, and this one is final."""
    return len(job["tasks"]) == 1


def silence_streams(*streams: int) -> None:
    """Let these streams of this process lead nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in streams:
        os.dup2(null, stream)


def seal(keep: int | None = None) -> None:
    """First thing in the process that runs a solution: no standard streams, no pipe but `keep`, which becomes 3."""
    # Else it could write what is taken for verdicts. Nor may it look into the other processes: they are not dumpable.
    silence_streams(0, 1, 2)
    if keep is not None:
        os.dup2(keep, 3)
    os.closerange(3 if keep is None else 4, 1 << 16)


def is_deserted(seconds: float = 1.0) -> bool:
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


def serve(work: Work, job: Job, pipe: Connection) -> None:
    """A worker: numbers of tasks in, answers out, as JSON. The leader of a group, to be ended with its children."""
    os.setpgid(0, 0)
    # Else a solution could raise KeyboardInterrupt in another, or in here.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    silence_streams(0, 1)  # what a reference solution prints is no verdict
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

    def __init__(self, work: Work, job: Job) -> None:
        self.task: int | None = None  # its number
        self.deadline = 0.0
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=serve, args=(work, job, theirs))
        self.process.start()
        theirs.close()  # else the death of the worker would not end the pipe

    def answer(self, ready: list[Any]) -> dict[str, Any] | None:
        """What the worker says, or why it will not say anything any more; None while it is at work."""
        if self.pipe in ready:
            try:
                return json.loads(self.pipe.recv_bytes())
            except (EOFError, OSError, ValueError):
                return {"lost": "its process died"}
        if self.process.sentinel in ready:
            return {"lost": "its process died"}
        if time.monotonic() >= self.deadline:
            return {"lost": "timeout"}
        return None

    def stop(self) -> None:
        """Kill it, with its group where it has made one."""
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(self.process.pid, signal.SIGKILL)


def run(work: Work, job: Job) -> int:
    """All tasks in the order given, `parallel` at a time; 0, or DIRTY where the box was given up."""
    names = [task["task_id"] for task in job["tasks"]]
    numbers = iter(range(len(names)))
    workers = [Worker(work, job) for _ in range(min(job["parallel"], len(names)))]

    def feed(worker: Worker) -> None:
        worker.task = next(numbers, None)
        if worker.task is not None:
            print(json.dumps({"task_id": names[worker.task], "event": "start"}), flush=True)
            worker.deadline = time.monotonic() + job["task_seconds"]
            worker.pipe.send_bytes(json.dumps(worker.task).encode())

    try:
        for worker in workers:
            feed(worker)
        while True:
            busy = [worker for worker in workers if worker.task is not None]
            if not busy:
                return 0
            ends: list[Any] = []
            for worker in busy:
                ends += [worker.pipe, worker.process.sentinel]  # a child of a killed worker may hold the pipe open
            nearest = min(worker.deadline for worker in busy)
            ready = wait(ends, timeout=max(0.0, nearest - time.monotonic()))
            for worker in busy:
                answer = worker.answer(ready)
                if answer is None:
                    continue
                # A worker that dies, hangs, or finds processes left behind or a solution disturbed means that the box
                # is not clean. With one task that is the answer; with several no further verdict is reached in here.
                if "lost" in answer and not is_alone(job):
                    return DIRTY
                print(json.dumps({**answer, "task_id": names[worker.task], "event": "done"}), flush=True)
                feed(worker)
    finally:
        for worker in workers:
            worker.stop()


def main(program: ModuleType) -> None:
    """Read the job, let `program.work` answer it, and leave without waiting for what a solution may have left."""
    prctl(PR_SET_DUMPABLE, 0)
    job = json.load(sys.stdin)
    multiprocessing.set_start_method("fork")
    program.begin(job)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page
    os._exit(run(program.work, job))
