"""What a run says while it goes: which stage, how long it has been and may still take, and who is waited for."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from codeact_lib.artifacts import StageManifest
from codeact_lib.errors import ArtifactError
from codeact_lib.measure import clock
from codeact_lib.pipeline.locks import stages_at_work
from codeact_lib.pipeline.stages import TABLE
from codeact_lib.pipeline.task import StageTask, run_options


class Progress:
    """Says it of `tasks`, line by line, to `say`."""

    def __init__(self, tasks: Sequence[StageTask], say: Callable[[str], object]) -> None:
        self.tasks = tasks
        self.say = say
        self.finished: dict[StageTask, float] = {}  # seconds of what was executed here
        self.skipped = 0
        self.stale: list[StageTask] = []
        self.awaited: list[str] = []
        self.started = time.monotonic()
        self.expected = {task: expected_seconds(task) for task in tasks}
        # what is not done, and the manifest it had then: another process may finish it before this one looks there
        self.waiting = {task: _written(task) for task in tasks if not task.is_done()}

    def skip(self, task: StageTask) -> bool:
        """Whether `task` is done already, here or by another process; counts it."""
        task.look_again()
        state = task.state()
        if not state.is_done:
            return False
        self.skipped += 1
        self.waiting.pop(task, None)
        if state.name == "stale code":
            self.stale.append(task)
        self.say(f"{self._head(task)}: {state.name}, skipped")
        return True

    @contextlib.contextmanager
    def step(self, task: StageTask) -> Iterator[None]:
        """Around the execution of a task: what runs now and how long the rest may take, then how long it took."""
        head = self._head(task)
        self.say(f"{head} … {clock(time.monotonic() - self.started)} elapsed{self._left()}")
        self.say(f"    {task.papermill_line()}")
        before = time.monotonic()
        with ticking(before, self._seconds(task) if self.finished else None):
            yield
        self.finished[task] = time.monotonic() - before
        self.waiting.pop(task, None)
        self.say(f"    done in {clock(self.finished[task])}")

    def wait_for(self, tasks: Sequence[StageTask]) -> None:
        """Say once who is waited for, as long as it is the same."""
        holders = {task.title: task.holder() for task in tasks}
        awaited = [f"{title}, held by {holder}" for title, holder in holders.items() if holder]
        if awaited and awaited != self.awaited:
            more = f", and {len(awaited) - 1} more" if len(awaited) > 1 else ""
            self.say(f"waiting for {awaited[0]}{more}")
        self.awaited = awaited

    def _head(self, task: StageTask) -> str:
        return f"[{self.tasks.index(task) + 1}/{len(self.tasks)}] {task.title}"

    def _seconds(self, task: StageTask) -> float:
        # once a task is finished, the guess for another is scaled by what those of its stage took, or else all
        alike = [other for other in self.finished if other.stage == task.stage] or list(self.finished)
        guessed = sum(self.expected[other] for other in alike)
        return self.expected[task] * sum(self.finished[other] for other in alike) / guessed

    def _left(self) -> str:
        # the time of what is not done is shared by the processes of this machine that work on it
        if not self.finished:
            return ""
        waiting = [task for task, written in self.waiting.items() if written == _written(task)]
        rest = sum(self._seconds(task) for task in waiting)
        return f", about {clock(rest / max(1, stages_at_work(self.tasks[0].paths.locks_dir)))} left"

    def summary(self) -> None:
        """The last lines: what was done in what time, what older code made, and where the report lies."""
        total = clock(time.monotonic() - self.started)
        paths = self.tasks[-1].paths
        if self.finished:
            self.say(f"Ran {_stages(len(self.finished))} in {total}; {_stages(self.skipped)} done before.")
        else:
            self.say(f"Nothing to do: all {self.skipped} stages are done.")
        if self.stale:
            again = f"codeact run {run_options(**self.stale[0].call)}"
            for stage in sorted({task.stage[:2] for task in self.stale}):
                again += f" --force {stage}"
            self.say(f"Made by older code and kept: {_stages(len(self.stale))}. To make them anew: {again}")
        if paths.report.exists():
            self.say(f"Tables, figures and report: {paths.shown(paths.report)}")


def _stages(number: int) -> str:
    return "1 stage" if number == 1 else f"{number} stages"


def _written(task: StageTask) -> int | None:
    """When the manifest of a task was written, as the file system has it; None without one."""
    with contextlib.suppress(FileNotFoundError):
        return task.manifest_path.stat().st_mtime_ns
    return None


def expected_seconds(task: StageTask) -> float:
    """What the stage took last time, whatever its parameters were; else what it takes with mini."""
    with contextlib.suppress(ArtifactError):
        return StageManifest.read(task.manifest_path).seconds + 3  # a kernel needs about 3 s to start and stop
    seconds = float(TABLE[task.stage]["mini_seconds"])
    if task.run and task.run.ratio and task.stage == "04_train_dynamic_pack":
        seconds *= 0.3 + 0.7 * task.run.ratio  # not all of it is training
    return seconds


@contextlib.contextmanager
def ticking(started: float, expected: float | None) -> Iterator[None]:
    """On a terminal, a line that counts the seconds while a notebook runs."""
    if not sys.stdout.isatty():
        yield
        return
    of = f" of about {clock(expected)}" if expected else ""
    finished = threading.Event()

    def tick() -> None:
        while not finished.wait(1.0):
            # to the start of the line, and clear it: a shorter text would leave the end of a longer one
            print(f"\r\033[K    {clock(time.monotonic() - started)}{of}", end="", flush=True)
        print("\r\033[K", end="", flush=True)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(tick)
        try:
            yield
        finally:
            finished.set()
