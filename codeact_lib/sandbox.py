"""Where generated code runs: a box with as much isolation as this machine offers, proved before it is trusted.

Generated code is hostile until shown otherwise. `run_isolated` starts a program in a fresh process with a clean
environment, resource limits and an outer timeout, and, by the rung of the ladder, more:

| rung | files outside | network | processes outside | what it needs |
|---|---|---|---|---|
| ``bubblewrap`` | unseen | none | unseen | the program ``bwrap`` (Debian and Ubuntu: package ``bubblewrap``) |
| ``limits`` | readable and writable | open | reachable | nothing |

``auto`` takes the first rung that runs here. `probe_isolation` says what each rung stops, not by what it promises but
by four canaries that are looked at from outside: a file read, a write into the home, a loopback connection, a process
killed.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from codeact_lib.errors import SandboxError

LADDER = ("bubblewrap", "limits")  # strongest first
NOBODY = 65534
MIB = 1 << 20
DISK_BYTES = 512 * MIB  # size of each in-memory folder and of the largest file a boxed program may write
_SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/alternatives",
)


@dataclass(frozen=True)
class BoxResult:
    """How a boxed program ended. ``returncode`` is None when it was stopped from outside (``stopped`` says why)."""

    returncode: int | None
    output: str  # the end of its stdout and stderr together
    isolation: str
    seconds: float
    stopped: str = ""  # "", "timeout" or "stalled"


@dataclass(frozen=True)
class RungReport:
    """One rung of the ladder on this machine: does it run, and which canaries did it stop."""

    name: str
    available: bool
    reason: str = ""
    stops: dict[str, bool] = field(default_factory=dict)  # canary -> stopped


# ------------------------------------------------------------------------------------------------ running


def run_isolated(
    argv, *, output_dir, readable=(), isolation="auto", timeout=600.0, memory_bytes=None, processes=512, watch=None
) -> BoxResult:
    """Run ``argv`` in a box; it may write only into ``output_dir``, which is also its working directory.

    Args:
        argv: program and arguments; the Python installation, ``readable`` and ``output_dir`` have the same paths inside
            as outside.
        output_dir: made if missing. Where a rung drops root, its files come back owned by the caller.
        readable: further files and folders the program may read.
        isolation: "auto" or a rung of `LADDER`.
        timeout: seconds until everything in the box is killed.
        memory_bytes: address space of one process, None for no limit. EvalPlus sets its own 4 GiB per solution and
            fails every task, without a word, if it meets a lower hard limit.
        processes: how many processes may exist in the box (only where root is dropped to nobody: elsewhere the limit
            would count all processes of the user).
        watch: (path, seconds): stop the box when this file has not grown for so long.

    Raises:
        SandboxError: the rung asked for does not work here.
    """
    rung = choose_isolation(isolation)
    return _run_on(rung, argv, output_dir, readable, timeout, memory_bytes, processes, watch)


def _run_on(rung, argv, output_dir, readable, timeout, memory_bytes=None, processes=512, watch=None) -> BoxResult:
    output_dir = Path(output_dir).resolve()
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="codeact-box-", ignore_cleanup_errors=True) as scratch:
        drop_root = rung == "bubblewrap" and os.geteuid() == 0
        limits = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": DISK_BYTES, "RLIMIT_NOFILE": 1024, "RLIMIT_AS": memory_bytes}
        limits["RLIMIT_NPROC"] = processes if drop_root else None
        spec = {"limits": limits, "uid": NOBODY if drop_root else None, "argv": [str(a) for a in argv]}
        enter = [sys.executable, "-I", "-S", "-c", _ENTER_SOURCE, json.dumps(spec)]
        command = _bubblewrap(output_dir, readable, drop_root) + enter if rung == "bubblewrap" else enter
        if drop_root:
            _give(output_dir, NOBODY)
        try:
            return _supervise(
                rung, command, _clean_environment(rung, scratch), output_dir, Path(scratch), timeout, watch
            )
        finally:
            if drop_root:
                _give(output_dir, 0)


def _supervise(rung, command, env, cwd, scratch, timeout, watch) -> BoxResult:
    """Wait for the box, and stop it with everything in it when its time is over or it makes no progress."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            stopped = _wait(process, start + timeout, watch)
        finally:
            _kill_session(process)
        seconds = time.monotonic() - start
        returncode = None if stopped else process.returncode
        return BoxResult(returncode, _tail(output), rung, seconds, stopped)


def _wait(process, deadline, watch):
    size, grown = -1, time.monotonic()
    pause = 0.005
    while True:
        try:
            process.wait(timeout=pause)
            return ""
        except subprocess.TimeoutExpired:
            pause = min(0.1, pause * 1.5)
        now = time.monotonic()
        if watch and (current := _size(watch[0])) != size:
            size, grown = current, now
        if now > deadline:
            return "timeout"
        if watch and now - grown > watch[1]:
            return "stalled"


def _size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def _kill_session(process):
    """Kill every process of the box's session; under bubblewrap the death of its first one ends all others too."""
    import psutil

    for pid in psutil.pids():
        try:
            if os.getsid(pid) == process.pid:
                os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue  # gone already, or not ours: then it is not of this session
    process.wait()


def _tail(file, n=4000):
    file.seek(max(0, file.seek(0, os.SEEK_END) - n))
    return file.read().decode(errors="replace")


# ------------------------------------------------------------------------------------------------ the rungs


def _clean_environment(rung, scratch):
    """No variable of the caller passes: no token, no proxy, nothing that changes what EvalPlus does.

    The hash seed is fixed, so that a solution which depends on the order of a set gets the same verdict twice.
    """
    home = "/tmp/home" if rung == "bubblewrap" else str(scratch)
    tmp = "/tmp" if rung == "bubblewrap" else str(scratch)
    places = {"HOME": home, "TMPDIR": tmp, "XDG_CACHE_HOME": f"{home}/cache", "PATH": os.defpath}
    fixed = {"LANG": "C.UTF-8", "USER": "nobody", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**places, **fixed, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _bubblewrap(output_dir, readable, drop_root):
    """The bwrap command: read-only system and Python, fresh /tmp, no network, own process tree, one writable folder."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxError("bubblewrap is not installed: `apt-get install bubblewrap`, or set isolation: limits.")
    command = [
        bwrap,
        "--die-with-parent",
        "--new-session",
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-uts",
    ]
    if drop_root:
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]  # given up again before argv starts
    for path in _SYSTEM:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    command += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/tmp", "/dev/shm"):
        command += ["--size", str(DISK_BYTES), "--tmpfs", folder] if _knows_size(bwrap) else ["--tmpfs", folder]
    binds = [("--ro-bind", path) for path in _uncovered([*_python_paths(), *map(str, readable)])]
    binds.append(("--bind", str(output_dir)))
    for parent in _parents([path for _, path in binds]):
        command += ["--dir", parent]  # made by a bind they would be closed to nobody (mode 0700)
    for option, path in binds:
        command += [option, path, path]
    return [*command, "--remount-ro", "/", "--chdir", str(output_dir)]


def _parents(paths):
    """Folders above ``paths`` that the box has to make, outermost first."""
    above = {str(parent) for path in paths for parent in Path(path).parents}
    bound = (*_SYSTEM, *paths)
    inside = {p for p in above for top in bound if p == top or p.startswith(top + "/")}
    return sorted(above - inside - {"/", "/tmp", "/dev", "/proc"}, key=len)


@functools.lru_cache
def _knows_size(bwrap):
    """--size came with bubblewrap 0.7."""
    return "--size" in subprocess.run([bwrap, "--help"], capture_output=True, text=True).stdout


def _python_paths():
    """What Python and its packages need: the environment, the installation below it, further package folders."""
    places = [sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.path.realpath(sys.executable))]
    places += [sysconfig.get_path("stdlib"), *(p for p in sys.path if p.endswith(("site-packages", "dist-packages")))]
    return [p for place in places for p in (os.path.abspath(place), os.path.realpath(place))]


def _uncovered(paths):
    """The paths that exist, without repeats and without those that lie inside another or in a system folder."""
    chosen = []
    for path in sorted({os.path.abspath(p) for p in paths if os.path.exists(p)}, key=len):
        if not any(path == top or path.startswith(top + "/") for top in (*_SYSTEM, *chosen)):
            chosen.append(path)
    return chosen


def _give(folder, uid):
    """Hand a folder and what is in it to ``uid``; links are not followed."""
    for root, folders, files in os.walk(folder):
        for path in (root, *(os.path.join(root, name) for name in (*folders, *files))):
            os.chown(path, uid, uid, follow_symlinks=False)


def _enter_box():
    """First code in the box: set the limits, give up root, become the program. Stands alone: its source is passed."""
    import json
    import os
    import resource
    import sys

    spec = json.loads(sys.argv[1])
    for name, value in spec["limits"].items():
        if value is not None and hasattr(resource, name):
            hard = resource.getrlimit(getattr(resource, name))[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(getattr(resource, name), (value, value))
    if spec["uid"] is not None:
        for folder in ("/tmp", "/dev/shm"):
            os.chmod(folder, 0o1777)
        os.setgroups([])
        os.setresgid(spec["uid"], spec["uid"], spec["uid"])
        os.setresuid(spec["uid"], spec["uid"], spec["uid"])
    os.makedirs(os.environ["HOME"], exist_ok=True)
    os.execve(spec["argv"][0], spec["argv"], dict(os.environ))


_ENTER_SOURCE = inspect.getsource(_enter_box) + "\n_enter_box()"


# ------------------------------------------------------------------------------------------------ proving a rung

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
open("canary.txt", "w").write(text or "nothing")
"""


def probe_isolation(rungs=LADDER) -> list[RungReport]:
    """Try each rung with canaries; what got through is seen from outside, not reported by the boxed program."""
    return [_probe(rung) for rung in rungs]


@functools.lru_cache
def choose_isolation(isolation="auto") -> str:
    """The rung that will be used; asked once per process.

    Raises:
        SandboxError: unknown name, or the rung asked for does not run here or does not stop what it must.
    """
    if isolation not in ("auto", *LADDER):
        raise SandboxError(f"isolation: {isolation!r} is not known; use auto, {' or '.join(LADDER)}.")
    for rung in LADDER if isolation == "auto" else (isolation,):
        report = _probe(rung)
        if report.available:
            return rung
    raise SandboxError(f"isolation: {isolation} does not work here: {report.reason}. Set isolation: auto or limits.")


@functools.lru_cache
def _probe(rung) -> RungReport:
    with tempfile.TemporaryDirectory(prefix="codeact-canary-", dir=_probe_folder()) as folder:
        folder = Path(folder)
        secret = folder / "secret.txt"
        secret.write_text("canary")
        home = Path.home() / f".{folder.name}"
        bystander = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
        try:
            with socket.create_server(("127.0.0.1", 0)) as server:
                server.settimeout(0)
                argv = [sys.executable, "-I", "-S", "-c", _CANARY, secret, home, server.getsockname()[1], bystander.pid]
                result = _run_on(rung, argv, folder / "out", (), timeout=20)
                return _read_canaries(rung, result, folder / "out" / "canary.txt", home, server, bystander)
        except (OSError, SandboxError) as error:
            return RungReport(rung, False, str(error))
        finally:
            bystander.kill()
            bystander.wait()
            home.unlink(missing_ok=True)


def _probe_folder():
    """Not in /tmp, which is hidden in a box for another reason; but the home is not writable everywhere."""
    home = Path.home()
    return home if os.access(home, os.W_OK) else None


def _read_canaries(rung, result, written, home, server, bystander):
    if result.returncode != 0 or not written.exists():
        last = (result.output.strip().splitlines() or [result.stopped or "no output"])[-1]
        return RungReport(rung, False, f"{rung} does not start ({last})")
    stops = {
        "read a file outside": written.read_text() != "canary",
        "write into the home": not home.exists(),
        "connect to loopback": not _was_reached(server),
        "kill a process outside": bystander.poll() is None,
    }
    passed = [name for name, stopped in stops.items() if not stopped]
    if rung == "bubblewrap" and passed:
        return RungReport(rung, False, f"{rung} does not stop: {', '.join(passed)}", stops)
    return RungReport(rung, True, "", stops)


def _was_reached(server):
    try:
        server.accept()[0].close()
        return True
    except BlockingIOError:
        return False
