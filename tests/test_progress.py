"""What a run says of the time that is left."""

import re
from types import SimpleNamespace

import pytest

from codeact_lib import progress


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    return clock


def tasks(tmp_path, *stages, processes=1):
    claims = SimpleNamespace(working_here=lambda: processes)
    shared = {"run": SimpleNamespace(ratio=1.0), "manifest_path": tmp_path / "none.json", "claims": claims}
    shared |= {"is_done": lambda: False, "papermill_line": lambda: "papermill in.ipynb out.ipynb"}
    return [SimpleNamespace(stage=stage, title=f"{stage} {n}", **shared) for n, stage in enumerate(stages)]


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
    twice = 2 * progress.MINI_SECONDS["05_eval"]
    left = left_after(tasks(tmp_path, "05_eval", "04_train_dynamic_pack"), [twice], clock)
    assert left == f"{2 * progress.MINI_SECONDS['04_train_dynamic_pack'] // 60}:00 min"


def test_processes_that_work_side_by_side_share_the_time_left(tmp_path, clock):
    assert left_after(tasks(tmp_path, *["05_eval"] * 5, processes=2), [30], clock) == "1:00 min"
