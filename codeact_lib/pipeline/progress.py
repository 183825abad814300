"""What a run says while it goes: which stage, how long it has been and may still take, and who is waited for."""

from __future__ import annotations

import contextlib
import sys
import threading
import time

from codeact_lib.artifacts import StageManifest
from codeact_lib.errors import ArtifactError
from codeact_lib.pipeline.stages import STAGES, clock, run_options, short_path

# What the stages of mini take on two cores: the first guess of the time left, scaled by what is measured.
MINI_SECONDS = dict(zip(STAGES, (33, 23, 4, 60, 26, 21), strict=True))


class Progress:
    """Says which stage runs, how long it has been, how long the rest may take, and who is waited for."""

    def __init__(self, tasks, say):
        self.tasks, self.say = tasks, say
        self.numbers = {id(task): number for number, task in enumerate(tasks, 1)}
        self.finished, self.skipped = [], 0  # (task, seconds) of what was executed here
        self.stale, self.awaited = [], None
        self.started = time.monotonic()
        self.expected = {id(task): _expected_seconds(task) for task in tasks}
        # what is not done, and the manifest it had then: another process may finish it before this one looks there
        self.waiting = {id(task): _written(task) for task in tasks if not task.is_done()}

    def skip(self, task):
        """Whether ``task`` is done already, here or by another process; counts it."""
        task.look_again()
        state, _ = task.state()
        if state not in ("done", "stale code"):
            return False
        self.skipped += 1
        self.waiting.pop(id(task), None)
        self.stale += [task] if state == "stale code" else []
        self.say(f"{self._head(task)}: {state}, skipped")
        return True

    @contextlib.contextmanager
    def step(self, task, taken_from=None):
        head = self._head(task)
        self.say(f"{head} … {clock(time.monotonic() - self.started)} elapsed{self._left()}")
        if taken_from:
            self.say(f"    taken over from {taken_from}, which is gone")
        self.say(f"    {task.papermill_line()}")
        before = time.monotonic()
        with _ticking(head, before, self._seconds(task) if self.finished else None):
            yield
        seconds = time.monotonic() - before
        self.finished.append((task, seconds))
        self.waiting.pop(id(task), None)
        self.say(f"    done in {clock(seconds)}")

    def wait_for(self, tasks, claims):
        """Say once who is waited for, as long as it is the same."""
        held = [(task, claims.holder(task.name)) for task in tasks]
        awaited = [f"{task.title}, held by {holder}" for task, holder in held if holder]
        if awaited and awaited != self.awaited:
            more = f", and {len(awaited) - 1} more" if len(awaited) > 1 else ""
            self.say(f"waiting for {awaited[0]}{more}")
        self.awaited = awaited

    def _head(self, task):
        return f"[{self.numbers[id(task)]}/{len(self.tasks)}] {task.title}"

    def _seconds(self, task):
        """What a task may take once one is finished: the guess, scaled by what those of its stage took, or else all."""
        alike = [pair for pair in self.finished if pair[0].stage == task.stage] or self.finished
        guessed = sum(self.expected[id(other)] for other, _ in alike)
        return self.expected[id(task)] * sum(seconds for _, seconds in alike) / guessed

    def _left(self):
        """Time for the stages that are not done, shared by the processes that work on them on this machine."""
        if not self.finished:
            return ""
        waiting = [task for task in self.tasks if id(task) in self.waiting and self.waiting[id(task)] == _written(task)]
        rest = sum(self._seconds(task) for task in waiting)
        return f", about {clock(rest / max(1, self.tasks[0].claims.working_here()))} left"

    def summary(self):
        total = clock(time.monotonic() - self.started)
        paths = self.tasks[-1].paths
        if not self.finished:
            self.say(f"Nothing to do: all {self.skipped} stages are done.")
        else:
            self.say(f"Ran {_stages(len(self.finished))} in {total}; {_stages(self.skipped)} done before.")
        if self.stale:
            stages = sorted({task.stage[:2] for task in self.stale})
            again = f"codeact run {run_options(self.stale[0].call)}" + "".join(f" --force {s}" for s in stages)
            self.say(f"Made by older code and kept: {_stages(len(self.stale))}. To make them anew: {again}")
        if paths.report.exists():
            self.say(f"Tables, figures and report: {short_path(paths.report, paths.root)}")


def _stages(number):
    return f"{number} stage" if number == 1 else f"{number} stages"


def _written(task):
    """When the manifest of a task was written, as the file system has it; None without one."""
    with contextlib.suppress(FileNotFoundError):
        return task.manifest_path.stat().st_mtime_ns
    return None


def _expected_seconds(task):
    """What the stage took last time, whatever its parameters were; else what it takes with mini."""
    with contextlib.suppress(ArtifactError):
        return StageManifest.read(task.manifest_path).seconds + 3  # a kernel needs about 3 s to start and stop
    share = 0.3 + 0.7 * task.run.ratio if task.stage == "04_train_dynamic_pack" else 1.0  # not all of it is training
    return MINI_SECONDS[task.stage] * share


@contextlib.contextmanager
def _ticking(head, started, expected):
    """On a terminal, a line that counts the seconds while a notebook runs."""
    if not sys.stdout.isatty():
        yield
        return
    finished = threading.Event()

    def tick():
        while not finished.wait(1.0):
            of = f" of about {clock(expected)}" if expected else ""
            print(f"\r\033[K    {clock(time.monotonic() - started)}{of}", end="", flush=True)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        print("\r\033[K", end="", flush=True)
