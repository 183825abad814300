"""The bench harness: fresh processes, interleaved rounds, memory of the work alone, failures with their reason."""

import json
import os
import time

import pytest

from bench.harness import compare, contest, write_bench
from codeact_lib.errors import CodeActError

HERE = "test_harness"


def holds(megabytes, seconds=0.0):
    """A contender: fills so much memory, then waits."""
    before = bytearray(50_000_000)  # set up, not work

    def work():
        block = bytearray(os.urandom(1024)) * (megabytes * 1000)
        time.sleep(seconds)
        return {"process": os.getpid(), "size": len(block), "kind": f"{len(before)} before"}

    return work


def fails():
    raise ValueError("no such thing")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))


def test_contenders_take_turns_in_fresh_processes_and_only_their_work_is_measured():
    contenders = {
        "large": (f"{HERE}:holds", {"megabytes": 200, "seconds": 0.4}),
        "small": (f"{HERE}:holds", {"megabytes": 20, "seconds": 0.1}),
    }
    rows = contest(contenders, repeats=2, say=lambda line: None)
    assert rows["contender"].tolist() == ["large", "small", "large", "small"]
    assert rows["process"].nunique() == 4
    large, small = (rows[rows["contender"] == name]["peak_memory_bytes"] for name in ("large", "small"))
    assert large.between(190e6, 260e6).all() and small.between(15e6, 60e6).all()
    table = compare(rows, baseline="large").set_index("contender")
    assert table.loc["large", "speedup"] == 1 and table.loc["small", "speedup"] > 2
    assert 0.05 < table.loc["small", "memory_ratio"] < 0.3
    assert table.loc["small", "kind"] == "50000000 before"


def test_a_contender_that_fails_or_hangs_is_named_with_its_reason():
    with pytest.raises(CodeActError, match="broken failed: ValueError: no such thing"):
        contest({"broken": (f"{HERE}:fails", {})}, repeats=1)
    with pytest.raises(CodeActError, match="slow took more than 1 s"):
        contest({"slow": (f"{HERE}:holds", {"megabytes": 1, "seconds": 60})}, repeats=1, timeout=1)


def test_a_bench_file_says_on_what_it_was_measured(tmp_path):
    rows = contest({"only": (f"{HERE}:holds", {"megabytes": 1})}, repeats=1, say=lambda line: None)
    path = write_bench("holding", compare(rows, "only"), {"size": "1 MB"}, folder=tmp_path)
    facts = json.loads(path.read_text())
    assert (
        facts["about"] == {"size": "1 MB"} and facts["environment"]["cpu"] and facts["rows"][0]["contender"] == "only"
    )
    assert (
        "1 MB" in (tmp_path / "holding.md").read_text()
        and facts["environment"]["cpu"] in (tmp_path / "holding.md").read_text()
    )
