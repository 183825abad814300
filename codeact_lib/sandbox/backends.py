"""The rungs of the isolation ladder as command lines: what each puts around a program, and as whom it runs."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

from codeact_lib.errors import SandboxError

LADDER = ("bubblewrap", "unshare", "landlock", "limits")  # strongest first
UNPROTECTED = "none"  # only by name
NAMESPACES, LANDLOCK = ("bubblewrap", "unshare"), ("unshare", "landlock")
# Root drops to a user of the box's own, from the range that systemd keeps for passing users: the kernel limits how many
# processes a user has, so two boxes of one user could starve each other.
PASSING_USERS = range(61184, 65520)
DISK_BYTES = 512 << 20  # size of each in-memory folder, of all that a box writes, of the largest file in it
ENTER = Path(__file__).with_name("enter.py")
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
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def box_command(rung, argv, *, cwd, scratch, readable, limits, uid) -> list[str]:
    """``argv`` inside what ``rung`` puts around it.

    Args:
        cwd: working folder, writable; ``scratch`` itself where nothing is to come back.
        scratch: a private folder of this box; bubblewrap shows an empty /tmp instead.
        readable: further files and folders the program may read.
        limits: name of a resource limit -> value or None.
        uid: what `unprivileged_user` said.

    Raises:
        SandboxError: the program that makes the rung is not installed.
    """
    argv = [str(part) for part in argv]
    if rung == UNPROTECTED:
        return argv
    spec = {"argv": argv, "limits": limits, "uid": uid, "keep": rung not in NAMESPACES, "cwd": str(cwd)}
    spec |= {"private": [], "private_bytes": DISK_BYTES, "open": [], "landlock": None}
    if rung == "bubblewrap":
        spec |= {"open": ["/tmp", "/dev/shm"] if uid else [], "cwd": "/tmp" if cwd == scratch else str(cwd)}
    if rung == "unshare":
        spec["private"] = [str(scratch), "/dev/shm"]
    if rung in LANDLOCK:
        spec["landlock"] = {
            "read": [*_SYSTEM, *_DEVICES, *_python_paths(), *map(str, readable)],
            "write": [str(cwd), str(scratch), "/dev/null", *spec["private"]],
        }
    enter = [sys.executable, "-I", "-S", "-c", _enter_source(), json.dumps(spec)]
    around = {"bubblewrap": _bubblewrap, "unshare": _unshare}.get(rung, lambda *_: [])
    return around(cwd if cwd != scratch else None, readable, uid) + enter


@functools.lru_cache
def _enter_source():
    return ENTER.read_text(encoding="utf-8")


def box_environment(rung, scratch) -> dict[str, str]:
    """No variable of the caller passes: no token, no proxy, nothing that changes what EvalPlus does.

    The hash seed is fixed, so that a solution which depends on the order of a set gets the same verdict twice.
    """
    tmp = "/tmp" if rung == "bubblewrap" else str(scratch)
    places = {"HOME": f"{tmp}/home", "TMPDIR": tmp, "XDG_CACHE_HOME": f"{tmp}/home/cache", "PATH": os.defpath}
    fixed = {"LANG": "C.UTF-8", "USER": "nobody", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**places, **fixed, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def unprivileged_user(rung, paths) -> int | None:
    """The user to become: a passing one where root asks and anybody can reach Python and ``paths``, else None (stay).

    Also None for the root of a container without other users.

    bubblewrap makes its own folders above the paths; elsewhere they are those of the machine.
    """
    if os.geteuid() != 0 or rung == UNPROTECTED or not all(map(_has_passing_users, ("uid_map", "gid_map"))):
        return None
    reached = rung == "bubblewrap" or all(map(_everyone_may_enter, [*_python_paths(), *map(str, paths)]))
    return random.choice(PASSING_USERS) if reached else None


def _has_passing_users(table):
    """Whether root is root of more than itself: in a namespace that an ordinary user made there is nobody to become."""
    try:
        ranges = [list(map(int, line.split())) for line in Path("/proc/self", table).read_text().splitlines()]
    except OSError:
        return True  # no such namespaces here
    return any(first <= PASSING_USERS[0] and PASSING_USERS[-1] < first + count for first, _, count in ranges)


def _everyone_may_enter(path):
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in Path(os.path.realpath(path)).parents)


# ------------------------------------------------------------------------------------------------ with namespaces


def _unshare(_cwd, _readable, _uid):
    """Own network (none), process tree, mounts; without root in a user namespace, where it counts as root."""
    unshare = shutil.which("unshare")
    if unshare is None:
        raise SandboxError("unshare is not installed (package util-linux).")
    users = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return [unshare, *users, "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]


def _bubblewrap(output_dir, readable, uid):
    """Read-only system and Python, fresh /tmp, no network, own process tree, at most one writable folder."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxError("bubblewrap is not installed: `apt-get install bubblewrap`.")
    apart = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    command = [bwrap, "--die-with-parent", "--new-session", *apart]
    if uid is not None:  # given up again before the program starts
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
    for path in _SYSTEM:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    command += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/tmp", "/dev/shm"):
        command += ["--size", str(DISK_BYTES), "--tmpfs", folder] if _knows_size(bwrap) else ["--tmpfs", folder]
    return command + _binds(output_dir, readable) + ["--remount-ro", "/"]


def _binds(output_dir, readable):
    binds = [("--ro-bind", path) for path in _uncovered([*_python_paths(), *map(str, readable)])]
    if output_dir is not None:
        binds.append(("--bind", str(output_dir)))
    command = []
    for parent in _parents([path for _, path in binds]):
        command += ["--dir", parent]  # made by a bind they would be closed to others (mode 0700)
    for option, path in binds:
        command += [option, path, path]
    return command


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


@functools.lru_cache
def _python_paths():
    """What Python and its packages need: the environment, the installation below it, further package folders."""
    places = [sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.path.realpath(sys.executable))]
    places += [sysconfig.get_path("stdlib"), *(p for p in sys.path if p.endswith(("site-packages", "dist-packages")))]
    return [p for place in places for p in (os.path.abspath(place), os.path.realpath(place))]


def _uncovered(paths):
    """The paths that exist, without repeats and without those that lie inside another or in a system folder."""
    chosen: list[str] = []
    for path in sorted({os.path.abspath(p) for p in paths if os.path.exists(p)}, key=len):
        if not any(path == top or path.startswith(top + "/") for top in (*_SYSTEM, *chosen)):
            chosen.append(path)
    return chosen
