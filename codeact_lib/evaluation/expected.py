"""Expected outputs kept between evaluations: they depend on the benchmark alone; MBPP+ takes half a minute for them."""

from collections.abc import Iterable
from pathlib import Path

from codeact_lib.artifacts import read_json, write_json
from codeact_lib.errors import ArtifactError
from codeact_lib.evaluation.benchmarks import Task
from codeact_lib.evaluation.boxed.messages import TESTS, Prepared, Texts

WORTH_KEEPING = 2.0  # seconds that computing them took


def load_expected(path: Path, tasks: Iterable[Task]) -> dict[str, Texts]:
    """Task id -> expected outputs, for those of `tasks` that are known; nothing if the file is not usable."""
    try:
        kept = read_json(path)
    except ArtifactError:
        return {}
    known = {}
    for task in tasks:
        texts = kept.get(task["task_id"])
        if isinstance(texts, dict) and all(isinstance(texts.get(tests), str) for tests in TESTS):
            known[task["task_id"]] = texts
    return known


def save_expected(path: Path, prepared: dict[str, Prepared], min_time_limit: float) -> None:
    """Keep the expected outputs among what was `prepared` (task id -> answer), where they took long."""
    # EvalPlus keeps a pickle that holds time limits too, which depend on what else the machine did. Here it is JSON,
    # without times: a task is kept only where its reference is so fast that the time limit does not depend on it.
    total = 0.0
    kept = {}
    for task_id, row in prepared.items():
        times = [*row["seconds"]["base"], *row["seconds"]["plus"]]
        total += sum(times)
        if max(times, default=0.0) * 8 < min_time_limit:
            kept[task_id] = row["expected"]
    if total > WORTH_KEEPING:
        write_json(path, kept)
