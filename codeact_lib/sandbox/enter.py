"""First code in a box: limits, private folders, no privileges, Landlock; then it becomes the program.

    python -I -S enter.py '{"argv": [...], "limits": {...}, "uid": 65534, ...}'

Stands alone on the standard library: its source is passed on the command line, for the box may not show this file.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 24, 36, 38
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
# include/uapi/linux/landlock.h; the numbers of the calls are the same on every architecture
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # ABI version -> number of access rights to files; from 5 on 16
READ = 0b1101  # execute, read a file, list a folder
FILE_RIGHTS = 0b111 | (1 << 14) | (1 << 15)  # execute, write, read, truncate, ioctl: those a file can have
NET_RIGHTS, SCOPES = 0b11, 0b11  # bind and connect by TCP; abstract sockets and signals

libc = ctypes.CDLL(None, use_errno=True)


def enter(spec):
    """Follow ``spec`` and never return. A failure is an error: no program is started in half a box."""
    if spec["keep"]:
        keep_children()
    if spec["private"]:
        mount_private(spec["private"], spec["private_bytes"])
    for name, value in spec["limits"].items():
        limit(name, value)
    for folder in spec["open"]:
        os.chmod(folder, 0o1777)
    if sys.platform == "linux":
        drop_privileges(spec["uid"])
    if spec["landlock"]:
        restrict(**spec["landlock"])
    os.chdir(spec["cwd"])  # again: a private folder may lie over it now
    os.makedirs(os.environ["HOME"], exist_ok=True)
    os.execve(spec["argv"][0], spec["argv"], dict(os.environ))


def limit(name, value):
    """Set a resource limit, never above the one in force."""
    if value is not None and hasattr(resource, name):
        hard = resource.getrlimit(getattr(resource, name))[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(getattr(resource, name), (value, value))


def call(result, what):
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


# ------------------------------------------------------------------------------------------------ nobody escapes


def keep_children():
    """Stay outside as the keeper: whatever the program leaves behind comes to the keeper, which ends it.

    Only where there is no process namespace, whose end would do the same. The child goes on with `enter`.
    """
    if sys.platform != "linux":
        return
    call(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "subreaper")
    program = os.fork()
    if program == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        return
    _, status = os.waitpid(program, 0)
    while orphans := [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent(pid) == os.getpid()]:
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def parent(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None


def mount_private(folders, size):
    """A fresh in-memory folder of ``size`` bytes over each of ``folders`` (needs a mount namespace)."""
    for folder in folders:
        flags, options = MS_NOSUID | MS_NODEV | MS_NOEXEC, f"size={size},mode=1777".encode()
        call(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", flags, options), f"tmpfs on {folder}")


def drop_privileges(uid):
    """Become ``uid`` (None: stay) with no capability, in a way that no setuid program can undo."""
    if os.geteuid() == 0:
        for capability in range(64):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # unknown numbers are refused, which does no harm
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header, none = struct.pack("II", 0x20080522, 0), bytes(24)
    call(libc.capset(header, none), "capset")
    call(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


# ------------------------------------------------------------------------------------------------ landlock


def restrict(read, write):
    """Landlock: read and execute below ``read``, everything below ``write``, nothing else; no TCP, no signals out."""
    abi = call(libc.syscall(CREATE_RULESET, None, 0, 1), "landlock")
    rights = (1 << FS_RIGHTS.get(abi, 16)) - 1
    attributes = struct.pack("QQQ", rights, NET_RIGHTS if abi >= 4 else 0, SCOPES if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = call(libc.syscall(CREATE_RULESET, attributes, size, 0), "landlock ruleset")
    for paths, allowed in ((read, READ), (write, rights)):
        for path in filter(os.path.exists, paths):
            allow(ruleset, path, allowed & rights)
    call(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    call(libc.syscall(RESTRICT_SELF, ruleset, 0), "landlock restrict")
    os.close(ruleset)


def allow(ruleset, path, rights):
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    if not os.path.isdir(path):
        rights &= FILE_RIGHTS
    rule = struct.pack("=Qi", rights, handle)
    call(libc.syscall(ADD_RULE, ruleset, 1, rule, 0), f"landlock rule for {path}")
    os.close(handle)


if __name__ == "__main__":
    enter(json.loads(sys.argv[1]))
