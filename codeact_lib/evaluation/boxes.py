"""Tasks through a boxed program: one box for all, and one box per task for those that were in a box that went bad.

A box ends early when a solution dies of itself, leaves processes behind, seems to have been disturbed, or takes more
memory, processes or disk than there is for the whole box.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codeact_lib.errors import EvaluationError
from codeact_lib.evaluation.boxed.messages import Job, Rules
from codeact_lib.sandbox.run import BoxResult, run_isolated

PROGRAMS = Path(__file__).with_name("boxed")
SOLUTION_PROCESSES = 32  # beside the workers and the processes of the solutions themselves
START_SECONDS = 60.0  # for a box to start and to import EvalPlus on a slow disk
_RUN = "import sys; sys.path.insert(0, sys.argv[1]); from boxed import pool, {name}; pool.main({name})"

Answer = dict[str, Any]  # of a boxed program: checked before it is believed


@dataclass
class BoxRunner:
    """How boxed programs are run in one evaluation."""

    isolation: str  # a backend of `codeact_lib.sandbox`
    rules: Rules
    total_memory: int | None = None  # bytes all processes of a box may hold together, None for half of the machine's
    incidents: dict[str, str] = field(default_factory=dict)  # task id -> how the box it was in went bad

    def run(self, program: str, tasks: Sequence[Any], log: Path | None = None) -> dict[str, Answer]:
        """Task id -> answer of `program`; an answer {"lost": why} where a task ended even a box of its own.

        What the boxes say is appended to `log`, which `read_events` reads after a kill.

        Raises:
            EvaluationError: a box does not even begin a task; the message holds its last words.
        """
        answers: dict[str, Answer] = {}
        pending = list(tasks)
        idle = 0
        while pending:
            found, started, ended = self._one_box(program, pending, log)
            left = [task for task in pending if task["task_id"] not in found]
            answers |= found
            # What was at work when a box went bad is not judged by what such a box says: each of these tasks gets a box
            # of its own, the tasks that had not begun a fresh one. So a hostile solution costs time, and only its own
            # verdict. One after the other: they share one budget of memory, and some isolations let boxes meet.
            suspects = [task for task in left if task["task_id"] in started]
            for task in suspects:
                task_id = task["task_id"]
                own, _, own_end = self._one_box(program, [task], log)
                self.incidents[task_id] = ended.stopped or "it went bad"
                answers[task_id] = own.get(task_id, {"lost": own_end.stopped or "its box died"})
            idle = idle + 1 if left and not started else 0
            # Once may be somebody who killed it while it started.
            if idle == 2:
                words = ended.stderr.strip().splitlines()[-3:] or [ended.stopped or f"exit code {ended.returncode}"]
                raise EvaluationError(f"The {program} box stopped before {left[0]['task_id']}: {' | '.join(words)}")
            pending = [task for task in pending if task["task_id"] not in answers]
        return answers

    def _one_box(
        self, program: str, tasks: Sequence[Any], log: Path | None
    ) -> tuple[dict[str, Answer], set[str], BoxResult]:
        """(answers, ids of the tasks it began, how it ended) of one box."""
        job: Job = {**self.rules, "tasks": list(tasks)}
        seconds = job["task_seconds"]
        with tempfile.TemporaryDirectory(prefix="codeact-job-") as made:
            # A copy that any user may read, wherever this package is installed.
            folder = Path(made)
            shutil.copytree(PROGRAMS, folder / "boxed", ignore=shutil.ignore_patterns("__pycache__"))
            for path in (folder, *folder.rglob("*")):
                path.chmod(0o755)
            # -P: Python must not look for modules in the folder it starts in, which a program can fill.
            ended = run_isolated(
                [sys.executable, "-P", "-c", _RUN.format(name=program), folder],
                readable=[folder],
                stdin=json.dumps(job).encode(),
                isolation=self.isolation,
                timeout=START_SECONDS + len(tasks) * seconds,
                stall_seconds=START_SECONDS + seconds,
                total_memory=self.total_memory,
                processes=SOLUTION_PROCESSES + 4 * min(job["parallel"], len(tasks)),
                log=log,
            )
        answers, started = read_events(ended.stdout, {task["task_id"] for task in tasks})
        return answers, started, ended


def read_events(text: str, known: set[str]) -> tuple[dict[str, Answer], set[str]]:
    """({task id: answer}, ids begun) of the lines that a box wrote about the tasks `known`."""
    answers: dict[str, list[Answer]] = {}
    started = set()
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue  # half a line
        if not isinstance(event, dict) or not isinstance(event.get("task_id"), str) or event["task_id"] not in known:
            continue  # no worker wrote that
        started.add(event["task_id"])
        if event.get("event") == "done":
            answers.setdefault(event["task_id"], []).append(event)
    # A task that is answered twice is not answered: one of the two is forged.
    return {task_id: events[0] for task_id, events in answers.items() if len(events) == 1}, started
