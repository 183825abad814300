"""The isolation backends as command lines: what each puts around a program, and as whom the program runs."""

import base64
import functools
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from codeact_lib.artifacts import PACKAGE_DIR
from codeact_lib.sandbox.watchdog import DISK_BYTES

# What a backend may be asked to stop; the wording is that of reports and tables.
READ = "read files"
WRITE = "write into the home"
CONNECT = "use the network"
KILL = "kill other processes"

# Root drops to a user of the box's own, from the range that systemd keeps for passing users: the kernel limits how many
# processes a user has, so two boxes of one user could starve each other.
PASSING_USERS = range(61184, 65520)
ENTER = Path(__file__).with_name("enter.py")
HIDDEN = PACKAGE_DIR  # mini's benchmark holds its solutions: where this package lies among the others, no box shows it
_LINKER = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/alternatives")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", *_LINKER)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True)
class Box:
    """One program and what it may use."""

    argv: list[str]
    scratch: Path  # its working folder, private and writable; bubblewrap shows an empty /tmp instead
    readable: list[str]  # further files and folders the program may read
    limits: dict[str, int]  # name of a resource limit -> value
    uid: int | None  # what `unprivileged_user` said


@dataclass(frozen=True)
class Backend:
    """One way to keep a program apart; one without anything further knows resource limits only."""

    name: str
    wrap: "Callable[[Backend, Box], list[str]]"  # gives the command line that runs the program of a box behind it
    program: str = ""  # what has to be installed for it
    absent: str = ""  # what to say where that is not
    must_stop: tuple[str, ...] = ()
    landlock: bool = False  # whether the kernel closes the files of others
    fresh_tmp: bool = False  # whether /tmp is the box's own

    def folder(self, box: Box) -> str:
        """The folder that a box may write into."""
        return "/tmp" if self.fresh_tmp else str(box.scratch)

    def environment(self, box: Box) -> dict[str, str]:
        """The variables of the program; none of the caller's: no token, no proxy, nothing that changes EvalPlus."""
        tmp = self.folder(box)
        places = {"HOME": f"{tmp}/home", "TMPDIR": tmp, "XDG_CACHE_HOME": f"{tmp}/home/cache", "PATH": os.defpath}
        # The hash seed is fixed, so that a solution which depends on the order of a set gets the same verdict twice.
        fixed = {"LANG": "C.UTF-8", "USER": "nobody", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        return {**places, **fixed, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def refused_calls() -> bytes:
    """The seccomp program of this machine, which tools/seccomp_filter.py made; empty where there is none."""
    path = ENTER.parent / "seccomp" / f"{os.uname().machine}.bpf"
    return path.read_bytes() if sys.platform == "linux" and path.exists() else b""


def enter(backend: Backend, box: Box, shared: Sequence[str] = ()) -> list[str]:
    """The command that completes a box from within (`enter.py`), then becomes its program.

    Everybody may write into `shared`.
    """
    rules = None
    if backend.landlock:
        folders, read = _around(HIDDEN, [*_SYSTEM, *_DEVICES, *_python_paths(), *box.readable])
        rules = {"list": folders, "read": read, "write": [backend.folder(box), "/dev/null"]}
    entry = {
        "argv": box.argv,
        "cwd": backend.folder(box),
        "limits": box.limits,
        "uid": box.uid,
        "open": shared,
        "landlock": rules,
        "refused_calls": base64.b64encode(refused_calls()).decode(),
    }
    return [sys.executable, "-I", "-S", "-c", ENTER.read_text(encoding="utf-8"), json.dumps(entry)]


@functools.cache  # each suspect gets a box of its own, and would ask again
def _options_of(bwrap: str) -> str:
    return subprocess.run([bwrap, "--help"], capture_output=True, text=True).stdout


def _bubblewrap(backend: Backend, box: Box) -> list[str]:
    """Read-only system and Python, an empty /tmp, no network, a process tree of its own."""
    bwrap = shutil.which(backend.program) or backend.program
    command = [bwrap, "--die-with-parent", "--new-session", "--as-pid-1"]
    command += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    # Given up again before the program starts.
    if box.uid is not None:
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
    for path in _SYSTEM:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    command += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/tmp", "/dev/shm"):
        # --size came with bubblewrap 0.7.
        if "--size" in _options_of(bwrap):
            command += ["--size", str(DISK_BYTES)]
        command += ["--tmpfs", folder]
    shown = _outermost([*_python_paths(), *box.readable])
    # A folder that a bind makes would be closed to others (mode 0700), one of --dir is not.
    parents = {str(folder) for path in shown for folder in Path(path).parents}
    for folder in sorted(parents, key=len):
        command += ["--dir", folder]
    for path in shown:
        command += ["--ro-bind", path, path]
    if any(map(HIDDEN.is_relative_to, shown)):
        command += ["--tmpfs", str(HIDDEN)]
    shared = ["/tmp", "/dev/shm"] if box.uid is not None else []
    return [*command, "--remount-ro", "/", *enter(backend, box, shared=shared)]


_NO_BWRAP = "bubblewrap is not installed: `apt-get install bubblewrap`"
_ALL = (READ, WRITE, CONNECT, KILL)
_BACKENDS = (
    Backend("bubblewrap", _bubblewrap, "bwrap", _NO_BWRAP, _ALL, fresh_tmp=True),
    # From Linux 5.13 on; it learnt of networks (6.7) and signals (6.12) later.
    Backend("landlock", enter, must_stop=(READ, WRITE), landlock=True),
    Backend("limits", enter),
    # No limits either: to be had by name only.
    Backend("none", lambda _, box: box.argv),
)
BACKENDS = {backend.name: backend for backend in _BACKENDS}
LADDER = ("bubblewrap", "landlock", "limits")  # what "auto" tries in this order, the strongest first


def unprivileged_user(name: str, paths: Iterable[Path | str]) -> int | None:
    """The user to become behind the backend `name`: a passing one, or None to stay.

    A passing one where root asks and anybody can reach Python and `paths`. Also None for the root of a container that
    has no other users.
    """
    if os.geteuid() != 0 or name == "none":
        return None
    if not (_has_passing_users("uid_map") and _has_passing_users("gid_map")):
        return None
    # bubblewrap makes its own folders above the paths; elsewhere they are those of the machine.
    if name != "bubblewrap":
        for path in [*_python_paths(), *map(str, paths)]:
            for folder in Path(os.path.realpath(path)).parents:
                if not folder.stat().st_mode & stat.S_IXOTH:
                    return None
    return random.choice(PASSING_USERS)


def _has_passing_users(table: str) -> bool:
    """Whether root is root of more than itself: in a namespace that an ordinary user made there is nobody to become."""
    try:
        lines = Path("/proc/self", table).read_text().splitlines()
    except OSError:
        return True  # no such namespaces here
    for line in lines:
        first, _, count = map(int, line.split())
        if first <= PASSING_USERS[0] and PASSING_USERS[-1] < first + count:
            return True
    return False


def _python_paths() -> list[str]:
    """What Python and its packages need: the environment, the installation below it, further package folders."""
    places = [sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.path.realpath(sys.executable))]
    places.append(sysconfig.get_path("stdlib"))
    places += [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    return [*map(os.path.abspath, places), *map(os.path.realpath, places)]


def _around(hidden: Path, paths: Iterable[str]) -> tuple[list[str], list[str]]:
    """(folders that may be listed only, paths that may be read) so that all of `paths` may be read but `hidden`."""
    listed = []
    read = []
    waiting = list(paths)
    while waiting:
        path = Path(waiting.pop())
        if not hidden.is_relative_to(path):
            read.append(str(path))
        elif path != hidden:
            # Landlock only ever allows, and a folder with all below it: what is beside `hidden` is named one by one.
            listed.append(str(path))
            waiting += [str(path / name) for name in os.listdir(path)]
    return listed, read


def _outermost(paths: Iterable[str]) -> list[str]:
    """The paths that exist, without repeats and without those that lie inside another or in a system folder."""
    chosen: list[str] = []
    for path in sorted(map(os.path.abspath, filter(os.path.exists, paths)), key=len):
        if not any(Path(path).is_relative_to(folder) for folder in (*_SYSTEM, *chosen)):
            chosen.append(path)
    return chosen
