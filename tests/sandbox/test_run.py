"""What a box keeps out, what it lets through, and that it ends."""

import os
import subprocess
import sys
import time

import psutil
import pytest
from conftest import REPO

from codeact_lib.errors import SandboxError
from codeact_lib.sandbox import backends
from codeact_lib.sandbox.backends import LADDER
from codeact_lib.sandbox.run import (
    CONNECT,
    KILL,
    MOST_ERRORS,
    READ,
    WRITE,
    BackendReport,
    choose_isolation,
    probe,
    probe_isolation,
    run_isolated,
)

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
    another_user = backends.unprivileged_user("limits", []) is not None
    assert stops[READ] == stops[KILL] == another_user and stops[CONNECT] == bool(backends.refused_calls())


@pytest.mark.skipif("landlock" not in AVAILABLE, reason="Landlock does not work on this machine")
def test_landlock_closes_files_and_refused_calls_close_the_network():
    stops = probe("landlock").stops
    assert stops[READ] and stops[WRITE] and stops[CONNECT]


def test_what_is_in_force_is_said_in_plain_words():
    weak = BackendReport("limits", True, "", {READ: False, WRITE: True, CONNECT: False})
    assert weak.sentence().startswith("isolation: limits only: generated code can read files, use the network;")
    assert "apt-get install bubblewrap" in weak.sentence()
    assert BackendReport("bubblewrap", True, "", {READ: True}).sentence() == "isolation: bubblewrap"


def test_no_isolation_at_all_is_to_be_had_by_name_only(tmp_path, monkeypatch):
    assert run_isolated(python("print(1)"), isolation="none").stdout == "1\n"
    gone = {rung: BackendReport(rung, False, f"{rung} is missing") for rung in LADDER}
    monkeypatch.setattr(sys.modules["codeact_lib.sandbox.run"], "probe", gone.__getitem__)
    choose_isolation.cache_clear()
    try:
        with pytest.raises(SandboxError, match="landlock is missing.*isolation: none does without"):
            choose_isolation("auto")
    finally:
        choose_isolation.cache_clear()


@each_rung
def test_no_variable_of_the_caller_reaches_the_box(rung, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "canary-token")
    monkeypatch.setenv("EVALPLUS_TIMEOUT_PER_TASK", "10")
    result = run_isolated(python("import os; print(dict(os.environ))"), isolation=rung)
    assert result.returncode == 0 and result.isolation == rung
    assert "canary-token" not in result.stdout and "EVALPLUS" not in result.stdout


@each_rung
def test_readable_folders_are_readable(rung, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data.txt").write_text("seen")
    argv = python("import sys; print(open(sys.argv[1]).read())", tmp_path / "in" / "data.txt")
    result = run_isolated(argv, readable=[tmp_path / "in"], isolation=rung)
    assert result.stdout.strip() == "seen"


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
    result = run_isolated(argv, readable=[tmp_path / "in"], isolation="bubblewrap")
    assert "opened" not in result.stdout
    assert result.stdout.strip() != "0"
    assert (tmp_path / "in" / "data.txt").read_text() == "kept"


@each_rung
def test_a_box_that_does_not_end_is_ended_with_its_children(rung, tmp_path):
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(60)"
    mark = f"import time; time.sleep(61)  # {tmp_path.name}-{rung}"
    start = time.monotonic()
    result = run_isolated(python(code, mark), isolation=rung, timeout=1.5)
    assert result.stopped == "timeout" and result.returncode is None
    assert time.monotonic() - start < 30
    assert gone(lambda p: mark in (p.info["cmdline"] or ()))


@each_rung
def test_a_box_with_a_stopped_process_is_ended(rung):
    code = "import os, signal, time\nif os.fork() == 0: os.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(60)"
    assert run_isolated(python(code), isolation=rung, timeout=50).stopped == "stopped"


@each_rung
def test_a_box_without_progress_is_ended_early(rung):
    code = "import time\nfor _ in range(3):\n print('x', flush=True); time.sleep(0.3)\ntime.sleep(60)"
    result = run_isolated(python(code), isolation=rung, timeout=50, stall_seconds=1.5)
    assert result.stopped == "stalled" and result.stdout == "x\nx\nx\n"


@each_rung
def test_what_goes_in_is_read_and_what_comes_out_is_whole(rung):
    code = "import sys; text = sys.stdin.read(); print(text * 2); print('aside', file=sys.stderr)"
    result = run_isolated(python(code), stdin=b"ab" * 100_000, isolation=rung)
    assert result.stdout == "ab" * 200_000 + "\n" and result.stderr == "aside\n"


@each_rung
def test_the_size_of_a_file_is_limited(rung):
    code = "import os, tempfile; f = tempfile.TemporaryFile(); f.truncate(1 << 40)"
    assert "Error" in run_isolated(python(code), isolation=rung).stderr


FORKS = """
import os, time
for _ in range(int({n})):
    if os.fork() == 0:
        block = bytearray({size})
        block[::4096] = b"x" * len(block[::4096])
        time.sleep(30)
        os._exit(0)
time.sleep(30)
"""


@each_rung
def test_the_memory_of_all_processes_together_is_watched(rung):
    code = FORKS.format(n=6, size=100 << 20)
    assert run_isolated(python(code), isolation=rung, total_memory=400 << 20).stopped == "memory"


@each_rung
def test_too_many_processes_end_the_box_or_cannot_begin(rung):
    result = run_isolated(python(FORKS.format(n=60, size=1)), isolation=rung, processes=40, timeout=60)
    assert result.stopped == "processes" or "BlockingIOError" in result.stderr


@each_rung
def test_too_much_written_to_disk_ends_the_box_or_fails(rung):
    code = """
import os, tempfile, time
for _ in range(10):
    handle, _ = tempfile.mkstemp()
    os.posix_fallocate(handle, 0, 60 << 20)
time.sleep(30)
"""
    result = run_isolated(python(code), isolation=rung, timeout=60)
    assert result.stopped == "disk" or "No space left" in result.stderr


def test_of_a_flood_of_errors_the_end_is_taken_back():
    result = run_isolated(python("import sys; sys.stderr.write('x' * 100_000 + 'end')"))
    assert len(result.stderr) == MOST_ERRORS and result.stderr.endswith("xend")


def test_an_unknown_or_missing_rung_is_refused_with_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(SandboxError, match="auto, bubblewrap, landlock, limits or none"):
        run_isolated(python("1"), isolation="chroot")
    monkeypatch.setattr(backends.shutil, "which", lambda name: None)
    for cached in (probe, choose_isolation):
        cached.cache_clear()
    try:
        with pytest.raises(SandboxError, match="not installed"):
            choose_isolation("bubblewrap")
        assert choose_isolation("auto") in ("landlock", "limits")
    finally:
        for cached in (probe, choose_isolation):
            cached.cache_clear()


@needs_bubblewrap
@pytest.mark.skipif(os.geteuid() != 0, reason="dropping root needs root")
def test_as_root_each_box_runs_as_a_user_of_its_own_without_capabilities(tmp_path):
    code = "import os; print(os.getuid()); print(open('/proc/self/status').read())"
    output = run_isolated(python(code), isolation="bubblewrap").stdout
    assert int(output.splitlines()[0]) in backends.PASSING_USERS
    assert "CapEff:\t0000000000000000" in output and "NoNewPrivs:\t1" in output


@needs_bubblewrap
def test_a_root_without_other_users_has_a_rung_too():
    """In a namespace of an ordinary user root is the only user there is; it cannot become another one."""
    code = """
import sys
from codeact_lib.sandbox.run import probe_isolation, run_isolated
for report in probe_isolation():
    if report.available:
        print(report.name, run_isolated([sys.executable, "-c", "print(6 * 7)"], isolation=report.name).stdout.strip())
"""
    namespace = ["unshare", "--user", "--map-root-user"]
    found = subprocess.run([*namespace, *python(code)], capture_output=True, text=True, cwd=REPO).stdout
    assert "limits 42" in found.splitlines()
    assert "landlock" not in AVAILABLE or "landlock 42" in found.splitlines()


@each_rung
def test_what_a_program_leaves_behind_ends_with_its_box(rung, tmp_path):
    mark = f"left-by-{rung}-{tmp_path.name}"
    code = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(50)", sys.argv[1]])
    os._exit(0)
time.sleep(0.5)
"""
    assert run_isolated(python(code, mark), isolation=rung).returncode == 0
    assert gone(lambda p: mark in (p.info["cmdline"] or ()))


@each_rung
def test_the_exit_code_comes_back(rung):
    assert run_isolated(python("raise SystemExit(7)"), isolation=rung).returncode == 7


def gone(is_left, seconds=10.0):
    """Whether no such process is left; the kernel may need a moment to end those of a box."""
    end = time.monotonic() + seconds
    while any(is_left(p) for p in psutil.process_iter(["cmdline"])):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_the_ladder_names_the_strongest_rung_first():
    assert LADDER == ("bubblewrap", "landlock", "limits")
