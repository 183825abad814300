"""What is sent to the programs in a box and what they answer, all of it JSON.

A box gets one `Job` on its standard input. Of each task it says on its standard output that it was begun, and what came
out: {"task_id", "event": "start"}, then {"task_id", "event": "done", ...} with the fields of an answer below or, where
the task brought down what it ran in, {"lost": why}.
"""

from typing import Any, TypedDict

TESTS = ("base", "plus")
Texts = dict[str, str]  # base and plus -> JSON text of `plain.encode`: read only where the values are needed
Seconds = dict[str, list[float]]  # base and plus -> seconds per input
# Answer of `answers`: base and plus -> JSON text of {"outputs", "why"}; no plus where not all of base was answered.
Answers = dict[str, str]


class Rules(TypedDict):
    """What holds for all boxes of an evaluation."""

    kind: str  # "humaneval" or "mbpp"
    min_time_limit: float  # seconds per input at least
    sanitize: bool  # cut an answer down to what the function needs
    parallel: int  # tasks at a time
    task_seconds: float  # after so long a task is lost


class Job(Rules):
    """All that one box is sent."""

    tasks: list[Any]  # `PrepareTask`, `Question` or `JudgeTask`


class PrepareTask(TypedDict):
    """A model's answer to be read, with the expected outputs where they are known."""

    task_id: str
    task: dict[str, Any]  # as the benchmark has it
    solution: str
    expected: Texts | None


class Question(TypedDict):
    """What a solution is asked by `answers`, without anything that tells the right answer."""

    task_id: str
    entry_point: str
    code: str  # what will be judged
    inputs: Texts
    limits: Seconds


class Prepared(Question):
    """Answer of `prepare`; instead {"broken": why} where the canonical solution does not run."""

    reference: str  # the canonical solution
    expected: Texts
    seconds: Seconds  # what the reference took
    atol: float


class JudgeTask(Prepared):
    """All that a verdict needs."""

    said: Texts  # what `answers` heard


class Judged(TypedDict):
    """Answer of `judge`: EvalPlus's statuses, whether `said` bears each out, and how the solution failed."""

    base: str
    plus: str
    confirmed: dict[str, bool]
    failure: str
