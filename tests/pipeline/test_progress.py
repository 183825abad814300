"""What a run says of the time that is left."""

import re
from types import SimpleNamespace

import pytest

from codeact_lib.pipeline import progress
from codeact_lib.pipeline.locks import Lock


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    return clock


class Task(SimpleNamespace):
    __hash__ = object.__hash__  # as a StageTask has


def tasks(tmp_path, *stages):
    paths = SimpleNamespace(locks_dir=tmp_path)
    shared = {"run": SimpleNamespace(ratio=1.0), "paths": paths, "is_done": lambda: False}
    shared["papermill_line"] = lambda: "papermill in.ipynb out.ipynb"
    return [
        Task(stage=stage, title=f"{stage} {n}", manifest_path=tmp_path / f"{n}.json", **shared)
        for n, stage in enumerate(stages)
    ]


def left_after(tasks, seconds, clock):
    """What is said at the start of the task after those that took `seconds`."""
    said = []
    report = progress.Progress(tasks, said.append)
    for task, spent in zip(tasks, [*seconds, 0], strict=False):
        with report.step(task):
            clock.now += spent
    return re.search(r"about (.*) left", next(line for line in reversed(said) if "elapsed" in line))[1]


def test_each_kind_of_stage_is_expected_to_take_what_it_took_before(tmp_path, clock):
    trainings = ["04_train_dynamic_pack"] * 3
    assert left_after(tasks(tmp_path, "05_eval", *trainings, "05_eval"), [20, 100], clock) == "3:40 min"


def test_a_kind_not_seen_yet_is_guessed_at_the_speed_of_the_others(tmp_path, clock):
    twice = 2 * progress.TABLE["05_eval"]["mini_seconds"]
    left = left_after(tasks(tmp_path, "05_eval", "04_train_dynamic_pack"), [twice], clock)
    assert left == f"{2 * progress.TABLE['04_train_dynamic_pack']['mini_seconds'] // 60}:00 min"


def test_processes_that_work_side_by_side_share_the_time_left(tmp_path, clock):
    here, other = Lock(tmp_path / "a.run"), Lock(tmp_path / "b.lock")
    assert here.acquire() and other.acquire()
    assert left_after(tasks(tmp_path, *["05_eval"] * 5), [30], clock) == "1:00 min"


def test_what_another_process_finished_meanwhile_is_not_expected_any_more(tmp_path, clock):
    several = tasks(tmp_path, *["05_eval"] * 5)
    report = progress.Progress(several, lambda line: None)
    with report.step(several[0]):
        clock.now += 30
    several[4].manifest_path.write_text("{}")
    assert report._left() == ", about 1:30 min left"
