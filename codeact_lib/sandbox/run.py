"""Where generated code runs: a box with as much isolation as this machine offers, proved before it is trusted.

Generated code is hostile until shown otherwise. `run_isolated` starts a program in a fresh process with a clean
environment, resource limits, an outer timeout and a watch over its total memory, and, by its backend, more:

| isolation | files outside | network | processes outside | what it needs |
|---|---|---|---|---|
| `bubblewrap` | unseen | none | unseen | the program `bwrap` (Debian and Ubuntu: package `bubblewrap`) |
| `landlock` | closed by Landlock | none | unseen; no signals (Linux 6.12) | Linux 5.13 |
| `limits` | readable and writable | none | signals and what /proc shows | nothing |
| `none` | | | | asked for by name only: no limits either |

`auto` takes the first backend that runs here. `probe_isolation` says what each stops, not by what it promises but by
four canaries that are looked at from outside. The network is closed by a filter of system calls, on x86_64 and aarch64
under Linux (`backends.refused_calls`). docs/isolation.md has the table of more than a hundred attacks.
"""

import contextlib
import functools
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from codeact_lib.errors import SandboxError
from codeact_lib.sandbox.backends import BACKENDS, CONNECT, KILL, LADDER, READ, WRITE, Backend, Box, unprivileged_user
from codeact_lib.sandbox.watchdog import FILE_BYTES, PROCESSES, Limits, end_box, watch

MOST_OUTPUT = 1 << 30  # bytes of standard output that are taken back
MOST_ERRORS = 4000  # bytes of standard error, from its end
OPEN_FILES = 1024  # of one process


@dataclass(frozen=True)
class BoxResult:
    """How a boxed program ended. `returncode` is None when it was stopped from outside (`stopped` says why)."""

    returncode: int | None
    stdout: str
    stderr: str  # the end of it
    isolation: str
    stopped: str = ""  # "", "timeout", "stalled", "stopped", "memory", "processes" or "disk"


@dataclass(frozen=True)
class BackendReport:
    """One backend on this machine: does it run, and which canaries did it stop."""

    name: str
    available: bool
    reason: str = ""
    stops: dict[str, bool] = field(default_factory=dict)  # canary -> stopped

    def sentence(self) -> str:
        """What is in force, in words for a person who did not read this file."""
        through = [canary for canary, stopped in self.stops.items() if not stopped]
        if not through and self.name != "limits":
            return f"isolation: {self.name}"
        # Even where root has become another user, whom the canaries do not show to anything of the caller's.
        through = through or ["read what every user of this machine can"]
        remedy = "bubblewrap would stop that (Linux: apt-get install bubblewrap)"
        return f"isolation: {self.name} only: generated code can {', '.join(through)}; {remedy}"


def run_isolated(
    argv: Sequence[object],
    *,
    readable: Sequence[Path | str] = (),
    stdin: bytes = b"",
    isolation: str = "auto",
    timeout: float = 600.0,
    stall_seconds: float | None = None,
    total_memory: int | None = None,
    processes: int = PROCESSES,
    log: Path | None = None,
) -> BoxResult:
    """Run `argv` in a box, in a private folder that goes with it, and take back what it writes to standard output.

    Args:
        argv: program and arguments.
        readable: what it may read beside the Python installation. All paths are the same inside as outside.
        stdin: bytes of its standard input.
        isolation: "auto", one of `LADDER`, or "none".
        timeout, stall_seconds, total_memory, processes: see `watchdog.Limits`; a `total_memory` of None is half of the
            machine's.
        log: file that gets the standard output as it is written, behind what it holds, and outlives a kill of the
            caller.

    Raises:
        SandboxError: the isolation asked for does not work here.
    """
    total_memory = total_memory or psutil.virtual_memory().total // 2
    limits = Limits(timeout, stall_seconds, total_memory, processes)
    return _run_behind(BACKENDS[choose_isolation(isolation)], argv, limits, readable, stdin, log)


def _run_behind(
    backend: Backend,
    argv: Sequence[object],
    limits: Limits,
    readable: Sequence[Path | str] = (),
    stdin: bytes = b"",
    log: Path | None = None,
) -> BoxResult:
    # With 14 every solution would fail, and that would look like its own fault.
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= files < OPEN_FILES:  # negative: without a limit
        raise SandboxError(f"A box needs {OPEN_FILES} open files, and this process may have {files}: raise ulimit -n.")
    with _scratch_folder() as scratch:
        uid = unprivileged_user(backend.name, [scratch, *readable])
        resources = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": FILE_BYTES, "RLIMIT_NOFILE": OPEN_FILES}
        resources["RLIMIT_NPROC"] = limits.processes
        if uid is None:
            # It counts the threads of a user, in a box or not: those that run already must stay possible.
            for process in psutil.process_iter(["uids", "num_threads"]):
                if process.info["uids"] and process.info["uids"].real == os.getuid():
                    resources["RLIMIT_NPROC"] += process.info["num_threads"] or 0
        else:
            os.chown(scratch, uid, uid)
        box = Box(list(map(str, argv)), scratch, list(map(str, readable)), resources, uid)
        return _supervise(backend, box, limits, stdin, log)


def _supervise(backend: Backend, box: Box, limits: Limits, stdin: bytes, log: Path | None) -> BoxResult:
    """Start the box, wait for it, and stop it with everything in it when it exceeds what it may."""
    # Files, not pipes: nobody has to read along, and how much was written is the progress of the box.
    with (
        tempfile.TemporaryFile() as source,
        tempfile.TemporaryFile() if log is None else log.open("ab+") as output,
        tempfile.TemporaryFile() as errors,
    ):
        source.write(stdin)
        source.seek(0)
        before = output.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            backend.wrap(backend, box),
            cwd=box.scratch,
            env=backend.environment(box),
            start_new_session=True,
            stdin=source,
            stdout=output,
            stderr=errors,
        )
        try:
            stopped = watch(process, output, limits, box.scratch)
        finally:
            end_box(process)
        output.seek(before)
        text = output.read(MOST_OUTPUT).decode(errors="replace")
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - MOST_ERRORS))
        words = errors.read().decode(errors="replace")
        code = None if stopped else process.returncode
        return BoxResult(code, text, words, backend.name, stopped)


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A private folder of a box, which goes with it whatever the box has put there."""
    scratch = Path(tempfile.mkdtemp(prefix="codeact-box-")).resolve()
    try:
        yield scratch
    finally:
        # rm needs no recursion and no names from the root: 3,000 nested folders are too deep for shutil.rmtree.
        subprocess.run(["rm", "-rf", scratch], stderr=subprocess.DEVNULL)


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


def probe_isolation(names: Sequence[str] = LADDER) -> list[BackendReport]:
    """Try each backend with canaries; what got through is seen from outside, not reported by the boxed program."""
    return list(map(probe, names))


@functools.lru_cache
def choose_isolation(isolation: str = "auto") -> str:
    """The backend that will be used; SandboxError where it is unknown, does not run, or stops less than it must."""
    names: tuple[str, ...] = (isolation,)
    remedy = "isolation: auto takes the best there is"
    if isolation == "auto":
        names = LADDER
        remedy = "isolation: none does without"
    elif isolation not in BACKENDS:
        raise SandboxError(f"isolation: {isolation!r} is not known; use auto, {', '.join(LADDER)} or none.")
    reports = probe_isolation(names)
    for report in reports:
        if report.available:
            return report.name
    reasons = "; ".join(report.reason for report in reports)
    raise SandboxError(f"isolation: {isolation} does not work here: {reasons}. {remedy}.")


@functools.lru_cache
def probe(name: str) -> BackendReport:
    """One backend, tried once per process."""
    backend = BACKENDS[name]
    if backend.program and not shutil.which(backend.program):
        return BackendReport(name, False, backend.absent)
    try:
        result, stops = _release_canaries(backend)
    except (OSError, SandboxError) as error:
        return BackendReport(name, False, str(error).rstrip("."))
    if result.returncode != 0 or not result.stdout.endswith("end\n"):
        lines = result.stderr.strip().splitlines() or [result.stopped or "no output"]
        return BackendReport(name, False, f"{name} does not start ({lines[-1]})")
    passed = [canary for canary in backend.must_stop if not stops[canary]]
    if passed:
        return BackendReport(name, False, f"{name} lets generated code {', '.join(passed)}", stops)
    return BackendReport(name, True, "", stops)


def _release_canaries(backend: Backend) -> tuple[BoxResult, dict[str, bool]]:
    """How the program with the canaries ended, and canary -> whether it was stopped."""
    # Not in /tmp, which is hidden in a box for another reason; but the home is not writable everywhere.
    place = Path.home() if os.access(Path.home(), os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="codeact-canary-", dir=place) as made:
        secret = Path(made) / "secret.txt"
        secret.write_text("canary")
        home = Path.home() / f".{Path(made).name}"
        bystander = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
        try:
            with socket.create_server(("127.0.0.1", 0)) as server:
                argv = [sys.executable, "-I", "-S", "-c", _CANARY, secret, home, server.getsockname()[1], bystander.pid]
                result = _run_behind(backend, argv, Limits(timeout=20))
                stops = {
                    READ: not result.stdout.startswith("canary"),
                    WRITE: not home.exists(),
                    # Nobody waits to be accepted.
                    CONNECT: not select.select([server], [], [], 0)[0],
                    KILL: bystander.poll() is None,
                }
        finally:
            bystander.send_signal(signal.SIGKILL)
            bystander.wait()
            home.unlink(missing_ok=True)
    return result, stops
