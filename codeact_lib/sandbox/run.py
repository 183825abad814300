"""Where generated code runs: a box with as much isolation as this machine offers, proved before it is trusted.

Generated code is hostile until shown otherwise. `run_isolated` starts a program in a fresh process with a clean
environment, resource limits, an outer timeout and a watch over its total memory, and, by the rung of the ladder, more:

| rung | files outside | network | processes outside | what it needs |
|---|---|---|---|---|
| ``bubblewrap`` | unseen | none | unseen | the program ``bwrap`` (Debian and Ubuntu: package ``bubblewrap``) |
| ``unshare`` | closed by Landlock | none | unseen | Linux 5.13, namespaces for this user, ``unshare`` |
| ``landlock`` | closed by Landlock | no TCP (Linux 6.7) | seen; no signals (Linux 6.12) | Linux 5.13 |
| ``limits`` | readable and writable | open | reachable | nothing |
| ``none`` | | | | asked for by name only: no limits either |

``auto`` takes the first rung that runs here. `probe_isolation` says what each rung stops, not by what it promises but
by four canaries that are looked at from outside: a file read, a write into the home, a loopback connection, a process
killed. docs/isolation.md has the table of some forty attacks under each rung.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from codeact_lib.errors import SandboxError
from codeact_lib.sandbox.backends import (
    DISK_BYTES,
    LADDER,
    NAMESPACES,
    UNPROTECTED,
    box_command,
    box_environment,
    unprivileged_user,
)
from codeact_lib.sandbox.watchdog import Watchdog, end_box

PROCESSES = 256  # in one box: the judge and its workers need a handful, a solution should need one
MOST_OUTPUT = 1 << 30  # bytes of standard output that are taken back


@dataclass(frozen=True)
class BoxResult:
    """How a boxed program ended. ``returncode`` is None when it was stopped from outside (``stopped`` says why)."""

    returncode: int | None
    stdout: str
    stderr: str  # the end of it
    isolation: str
    seconds: float
    stopped: str = ""  # "", "timeout", "stalled", "stopped", "memory", "processes" or "disk"


@dataclass(frozen=True)
class RungReport:
    """One rung of the ladder on this machine: does it run, and which canaries did it stop."""

    name: str
    available: bool
    reason: str = ""
    stops: dict[str, bool] = field(default_factory=dict)  # canary -> stopped

    def sentence(self) -> str:
        """What is in force, in words for a person who did not read this file."""
        through = [canary for canary, stopped in self.stops.items() if not stopped]
        if not through:
            return f"isolation: {self.name}"
        remedy = "bubblewrap would stop that (Linux: apt-get install bubblewrap)"
        return f"isolation: {self.name} only: generated code can {', '.join(through)}; {remedy}"


# ------------------------------------------------------------------------------------------------ running


def run_isolated(
    argv,
    *,
    output_dir=None,
    readable=(),
    stdin=b"",
    isolation="auto",
    timeout=600.0,
    stall_seconds=None,
    memory_bytes=None,
    total_memory=None,
    processes=PROCESSES,
) -> BoxResult:
    """Run ``argv`` in a box and take back what it writes to standard output, and into ``output_dir``.

    Args:
        argv: program and arguments; the Python installation, ``readable`` and ``output_dir`` have the same paths inside
            as outside.
        output_dir: the one folder of the caller it may write into, and its working folder; made if missing. Where a
            rung drops root, its files come back owned by the caller. None: a private folder that goes with the box.
        readable: further files and folders the program may read.
        stdin: bytes of its standard input.
        isolation: "auto" or a rung of `LADDER`, or "none".
        timeout: seconds until everything in the box is killed.
        stall_seconds: the same after so long without anything new on standard output.
        memory_bytes: address space of one process, None for no limit. EvalPlus sets its own 4 GiB per solution and
            fails every task, without a word, if it meets a lower hard limit.
        total_memory: resident bytes of all processes of the box together; None for half of the machine's memory.
        processes: how many processes may exist in the box.

    Raises:
        SandboxError: the rung asked for does not work here.
    """
    rung = choose_isolation(isolation)
    total_memory = total_memory or psutil.virtual_memory().total // 2
    dogs = {"seconds": timeout, "stall_seconds": stall_seconds, "memory": total_memory, "processes": processes}
    return _run_on(rung, argv, output_dir, readable, stdin, memory_bytes, **dogs)


def _run_on(rung, argv, output_dir=None, readable=(), stdin=b"", memory_bytes=None, **dogs) -> BoxResult:
    with tempfile.TemporaryDirectory(prefix="codeact-box-", ignore_cleanup_errors=True) as made:
        scratch = cwd = Path(made).resolve()
        if output_dir is not None:
            cwd = Path(output_dir).resolve()
            cwd.mkdir(parents=True, exist_ok=True)
        uid = unprivileged_user(rung, [cwd, scratch, *readable])
        limits = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": DISK_BYTES, "RLIMIT_NOFILE": 1024, "RLIMIT_AS": memory_bytes}
        limits["RLIMIT_NPROC"] = _most_processes(dogs.get("processes") or PROCESSES, uid)
        command = box_command(rung, argv, cwd=cwd, scratch=scratch, readable=readable, limits=limits, uid=uid)
        given = [folder for folder in {cwd, scratch} if uid is not None]
        try:
            for folder in given:
                _give(folder, uid)
            return _supervise(rung, command, box_environment(rung, scratch), cwd, scratch, stdin, dogs)
        finally:
            for folder in given:
                _give(folder, 0)


def _most_processes(processes, uid):
    """RLIMIT_NPROC counts the processes of a user, in a box or not: those that run already must stay possible."""
    others = psutil.process_iter() if uid is None else ()  # a passing user has none
    return processes + sum(map(_own_threads, others))


def _own_threads(process):
    try:
        return process.num_threads() if process.uids().real == os.getuid() else 0
    except psutil.Error:  # it has just ended
        return 0


def _supervise(rung, command, env, cwd, scratch, stdin, dogs) -> BoxResult:
    """Wait for the box, and stop it with everything in it when it exceeds what it may."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        source.write(stdin)
        source.seek(0)
        streams: dict[str, Any] = {"stdin": source, "stdout": output, "stderr": errors}
        process = subprocess.Popen(command, cwd=cwd, env=env, start_new_session=True, **streams)
        folders = (scratch,) if rung in NAMESPACES else tuple({scratch, cwd})
        dog = Watchdog(process, lambda: os.fstat(output.fileno()).st_size, folders=folders, disk=DISK_BYTES, **dogs)
        try:
            stopped = dog.wait()
        finally:
            end_box(process)
        output.seek(0)
        text, seconds = output.read(MOST_OUTPUT).decode(errors="replace"), time.monotonic() - start
        return BoxResult(None if stopped else process.returncode, text, _tail(errors), rung, seconds, stopped)


def _tail(file, n=4000):
    file.seek(max(0, file.seek(0, os.SEEK_END) - n))
    return file.read().decode(errors="replace")


def _give(folder, uid):
    """Hand a folder and what is in it to ``uid``; links are not followed."""
    for root, folders, files in os.walk(folder):
        for path in (root, *(os.path.join(root, name) for name in (*folders, *files))):
            os.chown(path, uid, uid, follow_symlinks=False)


# ------------------------------------------------------------------------------------------------ proving a rung

READ, WRITE, CONNECT, KILL = "read files", "write into the home", "use the network", "kill other processes"
# What a rung must stop, or it is not that rung. Landlock learnt of networks and signals later.
MUST_STOP: dict[str, tuple[str, ...]] = {
    "bubblewrap": (READ, WRITE, CONNECT, KILL),
    "unshare": (READ, WRITE, CONNECT, KILL),
}
MUST_STOP |= {"landlock": (READ, WRITE), "limits": (), UNPROTECTED: ()}
_CANARY = """
import os, signal, socket, sys
def attempt(action):
    try:
        return action()
    except OSError:
        return None
secret, home, port, pid = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
text = attempt(lambda: open(secret).read())
attempt(lambda: open(home, "w").close())
attempt(lambda: socket.create_connection(("127.0.0.1", port), timeout=1).close())
attempt(lambda: os.kill(pid, signal.SIGKILL))
print(text or "nothing", "end")
"""


def probe_isolation(rungs=LADDER) -> list[RungReport]:
    """Try each rung with canaries; what got through is seen from outside, not reported by the boxed program."""
    return [probe(rung) for rung in rungs]


@functools.lru_cache
def choose_isolation(isolation="auto") -> str:
    """The rung that will be used; asked once per process.

    Raises:
        SandboxError: unknown name, or the rung asked for does not run here or does not stop what it must.
    """
    if isolation not in ("auto", *LADDER, UNPROTECTED):
        raise SandboxError(f"isolation: {isolation!r} is not known; use auto, {', '.join(LADDER)} or {UNPROTECTED}.")
    reports = probe_isolation(LADDER if isolation == "auto" else (isolation,))
    chosen = next((report.name for report in reports if report.available), None)
    if chosen is None:
        reasons = "; ".join(report.reason for report in reports)
        remedy = "isolation: auto takes the best there is" if isolation != "auto" else "isolation: none does without"
        raise SandboxError(f"isolation: {isolation} does not work here: {reasons}. {remedy}.")
    return chosen


@functools.lru_cache
def probe(rung) -> RungReport:
    """One rung, tried once per process."""
    with tempfile.TemporaryDirectory(prefix="codeact-canary-", dir=_probe_folder()) as made:
        folder = Path(made)
        secret = folder / "secret.txt"
        secret.write_text("canary")
        home = Path.home() / f".{folder.name}"
        bystander = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
        try:
            with socket.create_server(("127.0.0.1", 0)) as server:
                server.settimeout(0)
                argv = [sys.executable, "-I", "-S", "-c", _CANARY, secret, home, server.getsockname()[1], bystander.pid]
                result = _run_on(rung, argv, seconds=20)
                return _read_canaries(rung, result, home, server, bystander)
        except (OSError, SandboxError) as error:
            return RungReport(rung, False, str(error).rstrip("."))
        finally:
            bystander.send_signal(signal.SIGKILL)
            bystander.wait()
            home.unlink(missing_ok=True)


def _probe_folder():
    """Not in /tmp, which is hidden in a box for another reason; but the home is not writable everywhere."""
    home = Path.home()
    return home if os.access(home, os.W_OK) else None


def _read_canaries(rung, result, home, server, bystander):
    if result.returncode != 0 or not result.stdout.endswith("end\n"):
        last = (result.stderr.strip().splitlines() or [result.stopped or "no output"])[-1]
        return RungReport(rung, False, f"{rung} does not start ({last})")
    stops = {
        READ: not result.stdout.startswith("canary"),
        WRITE: not home.exists(),
        CONNECT: not _was_reached(server),
        KILL: bystander.poll() is None,
    }
    passed = [name for name in MUST_STOP[rung] if not stops[name]]
    if passed:
        return RungReport(rung, False, f"{rung} lets generated code {', '.join(passed)}", stops)
    return RungReport(rung, True, "", stops)


def _was_reached(server):
    try:
        server.accept()[0].close()
        return True
    except BlockingIOError:
        return False
