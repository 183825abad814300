"""Tasks through a boxed program: one box for all, and one box per task for those that were in a box that went bad.

A box ends early when a solution dies of itself, leaves processes behind, seems to have been disturbed, or takes more
memory, processes or disk than there is for the whole box. What was at work then is not judged by what such a box says:
each of these tasks gets a box of its own, the tasks that had not begun a fresh one. So a hostile solution costs time,
and only its own verdict.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from codeact_lib.errors import EvaluationError
from codeact_lib.sandbox.backends import NAMESPACES
from codeact_lib.sandbox.run import run_isolated

PROGRAMS = Path(__file__).with_name("boxed")
SOLUTION_PROCESSES = 64  # beside the workers and the processes of the solutions themselves
START_SECONDS = 60.0  # for a box to start and to import EvalPlus on a slow disk
_RUN = "import sys; sys.path.insert(0, sys.argv[1]); from boxed import crew, {name}; crew.main({name})"


@contextmanager
def boxed_programs():
    """A folder with a copy of the boxed programs that any user may read, wherever this package is installed."""
    with tempfile.TemporaryDirectory(prefix="codeact-job-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        (folder / "boxed").mkdir(mode=0o755)
        for path in PROGRAMS.glob("*.py"):
            shutil.copyfile(path, folder / "boxed" / path.name)
            (folder / "boxed" / path.name).chmod(0o644)
        yield folder


@dataclass
class Crew:
    """How boxed programs are run in one evaluation.

    Attributes:
        folder: what `boxed_programs` gave.
        isolation: a rung.
        parallel: tasks at a time.
        task_seconds: after so long a task is lost; a box may take `START_SECONDS` more, and as much per task.
        total_memory: bytes all processes of a box may hold together, None for half of the machine's.
        incidents: what happened: task id -> how its box ended.
    """

    folder: Path
    isolation: str
    parallel: int
    task_seconds: float
    total_memory: int | None = None
    incidents: dict[str, str] = field(default_factory=dict)

    def run(self, program, job, tasks) -> dict[str, dict]:
        """Task id -> answer of ``program``; an answer {"lost": why} where a task ended even a box of its own.

        Raises:
            EvaluationError: a box does not even begin a task; the message holds its last words.
        """
        answers: dict[str, dict] = {}
        pending, idle = list(tasks), 0
        while pending:
            found, started, ended = self._one_box(program, job, pending)
            left = [task for task in pending if task["task_id"] not in found]
            suspects = [task for task in left if task["task_id"] in started]
            self.incidents |= {task["task_id"]: ended.stopped or "it went bad" for task in suspects}
            answers |= found | self._each_alone(program, job, suspects)
            idle = idle + 1 if left and not started else 0
            if idle == 2:  # once may be somebody who killed it while it started
                raise EvaluationError(f"The {program} box stopped before {left[0]['task_id']}: {_last_words(ended)}")
            pending = [task for task in left if task["task_id"] not in answers]
        return answers

    def _each_alone(self, program, job, tasks):
        """Task id -> answer, from a box for each; one after the other where a box can reach into the next."""
        with ThreadPoolExecutor(self.parallel if self.isolation in NAMESPACES else 1) as pool:
            alone = pool.map(lambda task: self._alone(program, job, task), tasks)
            return {task["task_id"]: answer for task, answer in zip(tasks, alone, strict=True)}

    def _alone(self, program, job, task):
        found, _, ended = self._one_box(program, job, [task])
        return found.get(task["task_id"], {"lost": ended.stopped or "its box died"})

    def _one_box(self, program, job, tasks):
        """(answers, ids of the tasks it began, how it ended) of one box."""
        shared = {**job, "parallel": min(self.parallel, len(tasks)), "task_seconds": self.task_seconds}
        ended = run_isolated(
            [sys.executable, "-P", "-c", _RUN.format(name=program), self.folder],
            readable=[self.folder],
            stdin=json.dumps({**shared, "tasks": tasks}).encode(),
            isolation=self.isolation,
            timeout=START_SECONDS + len(tasks) * self.task_seconds,
            stall_seconds=START_SECONDS + self.task_seconds,
            total_memory=self.total_memory,
            processes=SOLUTION_PROCESSES + 4 * shared["parallel"],
        )
        return *_read_events(ended.stdout, {task["task_id"] for task in tasks}), ended


def _last_words(ended):
    lines = ended.stderr.strip().splitlines()
    return " | ".join(lines[-3:]) or ended.stopped or f"exit code {ended.returncode}"


def _read_events(text, known):
    """({task id: answer}, ids begun). Half a line or a stranger's is left out; answered twice is not answered."""
    answers: dict[str, list] = {}
    started = set()
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(event, dict) or not isinstance(event.get("task_id"), str) or event["task_id"] not in known:
            continue
        started.add(event["task_id"])
        if event.get("event") == "done":
            answers.setdefault(event["task_id"], []).append(event)
    return {task_id: events[0] for task_id, events in answers.items() if len(events) == 1}, started
