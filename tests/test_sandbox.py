"""What a box keeps out, what it lets through, and that it ends."""

import os
import sys
import time

import psutil
import pytest

from codeact_lib import sandbox
from codeact_lib.errors import SandboxError
from codeact_lib.sandbox import LADDER, choose_isolation, probe_isolation, run_isolated

AVAILABLE = [rung.name for rung in probe_isolation() if rung.available]
needs_bubblewrap = pytest.mark.skipif("bubblewrap" not in AVAILABLE, reason="bubblewrap does not work on this machine")
each_rung = pytest.mark.parametrize("rung", AVAILABLE)


def python(code, *args):
    return [sys.executable, "-c", code, *args]


def test_the_last_rung_works_on_every_machine():
    assert "limits" in AVAILABLE
    assert choose_isolation("auto") == AVAILABLE[0]


@needs_bubblewrap
def test_bubblewrap_stops_every_canary():
    report = probe_isolation(["bubblewrap"])[0]
    assert len(report.stops) == 4 and all(report.stops.values())


def test_limits_claims_no_more_than_it_does():
    stops = probe_isolation(["limits"])[0].stops
    assert not stops["read a file outside"] and not stops["kill a process outside"]


@each_rung
def test_no_variable_of_the_caller_reaches_the_box(rung, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "canary-token")
    monkeypatch.setenv("EVALPLUS_TIMEOUT_PER_TASK", "10")
    result = run_isolated(python("import os; print(dict(os.environ))"), output_dir=tmp_path, isolation=rung)
    assert result.returncode == 0 and result.isolation == rung
    assert "canary-token" not in result.output and "EVALPLUS" not in result.output


@each_rung
def test_what_is_written_into_the_output_folder_comes_back_owned_by_the_caller(rung, tmp_path):
    code = "open('answer.txt', 'w').write('42')"
    assert run_isolated(python(code), output_dir=tmp_path / "out", isolation=rung).returncode == 0
    answer = tmp_path / "out" / "answer.txt"
    assert answer.read_text() == "42" and answer.stat().st_uid == os.getuid()


@each_rung
def test_readable_folders_are_readable(rung, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data.txt").write_text("seen")
    argv = python("import sys; print(open(sys.argv[1]).read())", tmp_path / "in" / "data.txt")
    result = run_isolated(argv, output_dir=tmp_path / "out", readable=[tmp_path / "in"], isolation=rung)
    assert result.output.strip() == "seen"


@needs_bubblewrap
def test_bubblewrap_hides_files_and_keeps_readable_ones_from_being_changed(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data.txt").write_text("kept")
    (tmp_path / "secret.txt").write_text("hidden")
    code = """
import os, sys
for path, mode in ((sys.argv[1], "r"), (sys.argv[2], "w"), ("/etc/passwd", "r"), ("/new.txt", "w")):
    try:
        open(path, mode)
        print("opened", path)
    except OSError:
        pass
print(os.getuid())
"""
    argv = python(code, tmp_path / "secret.txt", tmp_path / "in" / "data.txt")
    result = run_isolated(argv, output_dir=tmp_path / "out", readable=[tmp_path / "in"], isolation="bubblewrap")
    assert "opened" not in result.output
    assert result.output.strip() != "0"
    assert (tmp_path / "in" / "data.txt").read_text() == "kept"


@each_rung
def test_a_box_that_does_not_end_is_ended_with_its_children(rung, tmp_path):
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(60)"
    mark = f"import time; time.sleep(61)  # {tmp_path.name}-{rung}"
    start = time.monotonic()
    result = run_isolated(python(code, mark), output_dir=tmp_path, isolation=rung, timeout=1.5)
    assert result.stopped == "timeout" and result.returncode is None
    assert time.monotonic() - start < 30
    assert gone(lambda p: mark in (p.info["cmdline"] or ()))


@each_rung
def test_a_box_without_progress_is_ended_early(rung, tmp_path):
    code = "import time\nfor _ in range(3):\n open('log', 'a').write('x'); time.sleep(0.3)\ntime.sleep(60)"
    watch = (tmp_path / "log", 1.0)
    result = run_isolated(python(code), output_dir=tmp_path, isolation=rung, timeout=50, watch=watch)
    assert result.stopped == "stalled" and (tmp_path / "log").read_text() == "xxx"


@each_rung
def test_memory_and_file_size_are_limited(rung, tmp_path):
    limit = {"output_dir": tmp_path, "isolation": rung, "memory_bytes": 1 << 30}
    assert "MemoryError" in run_isolated(python("bytearray(2 << 30)"), **limit).output
    code = "f = open('big', 'wb'); f.truncate(1 << 40)"
    assert "Error" in run_isolated(python(code), **limit).output
    assert (tmp_path / "big").stat().st_size <= sandbox.DISK_BYTES


def test_a_flood_of_output_is_cut():
    assert len(sandbox._tail(open(__file__, "rb"), n=100)) <= 100


def test_an_unknown_or_missing_rung_is_refused_with_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(SandboxError, match="auto, bubblewrap or limits"):
        run_isolated(python("1"), output_dir=tmp_path, isolation="chroot")
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    for cached in (sandbox._probe, sandbox.choose_isolation):
        cached.cache_clear()
    try:
        with pytest.raises(SandboxError, match="not installed"):
            choose_isolation("bubblewrap")
        assert choose_isolation("auto") == "limits"
    finally:
        for cached in (sandbox._probe, sandbox.choose_isolation):
            cached.cache_clear()


@needs_bubblewrap
@pytest.mark.skipif(os.geteuid() != 0, reason="dropping root needs root")
def test_as_root_the_box_runs_as_nobody_without_capabilities(tmp_path):
    code = "import os; print(os.getuid()); print(open('/proc/self/status').read())"
    output = run_isolated(python(code), output_dir=tmp_path, isolation="bubblewrap").output
    assert output.startswith(str(sandbox.NOBODY))
    assert "CapEff:\t0000000000000000" in output and "NoNewPrivs:\t1" in output


@needs_bubblewrap
def test_a_fork_bomb_stays_in_the_box(tmp_path):
    code = """
import os, time
n = 0
try:
    while n < 200:
        if os.fork() == 0:
            time.sleep(30); os._exit(0)
        n += 1
except OSError:
    pass
print(n, flush=True)
os._exit(0)
"""
    result = run_isolated(python(code), output_dir=tmp_path, isolation="bubblewrap", processes=50, timeout=40)
    assert result.returncode == 0
    if os.geteuid() == 0:
        assert int(result.output) < 50
    assert gone(lambda p: "while n < 200" in " ".join(p.info["cmdline"] or ()))


def gone(is_left, seconds=10.0):
    """Whether no such process is left; the kernel may need a moment to end those of a box."""
    end = time.monotonic() + seconds
    while any(is_left(p) for p in psutil.process_iter(["cmdline"])):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_the_ladder_names_the_strongest_rung_first():
    assert LADDER[0] == "bubblewrap" and LADDER[-1] == "limits"
