"""First code in a box: a keeper, limits, no privileges, Landlock, no system calls that reach out; then the program.

    python -I -S enter.py '{"argv": [...], "limits": {...}, "uid": 65534, ...}'

Stands alone on the standard library: its source is passed on the command line, for the box may not show this file.
"""

import base64
import ctypes
import json
import os
import resource
import signal
import struct
import sys
from typing import Any

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 36, 38
SECCOMP = {"x86_64": 317, "aarch64": 277}  # the number of the call
SET_MODE_FILTER, SPECULATION_AS_IT_WAS = 1, 4
# include/uapi/linux/landlock.h; the numbers of the calls are the same on every architecture
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # ABI version -> number of access rights to files; from 5 on 16
LIST = 0b1000  # list a folder
READ = 0b1101  # execute, read a file, list a folder
FILE_RIGHTS = 0b111 | (1 << 14) | (1 << 15)  # execute, write, read, truncate, ioctl: those a file can have
NET_RIGHTS = 0b11  # bind and connect by TCP
SCOPES = 0b11  # abstract sockets and signals

libc = ctypes.CDLL(None, use_errno=True)


def enter(spec: dict[str, Any]) -> None:
    """Follow `spec` (`backends.enter`) and never return."""
    # A failure anywhere is an error that ends this process: no program is started in half a box.
    if sys.platform == "linux":
        leave_a_keeper()
    for name, value in spec["limits"].items():
        # Not every system knows every limit, and none can be raised above the one in force.
        kind = getattr(resource, name, None)
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            if hard != resource.RLIM_INFINITY:
                value = min(value, hard)
            resource.setrlimit(kind, (value, value))
    for folder in spec["open"]:
        os.chmod(folder, 0o1777)
    if sys.platform == "linux":
        drop_privileges(spec["uid"])
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after it: another user forgets the signal
    if spec["landlock"]:
        restrict(**spec["landlock"])
    os.chdir(spec["cwd"])
    os.makedirs(os.environ["HOME"], exist_ok=True)
    if spec["refused_calls"]:
        refuse_calls(base64.b64decode(spec["refused_calls"]))
    os.execve(spec["argv"][0], spec["argv"], dict(os.environ))


def call(result: int, what: str) -> int:
    """The result of a call of the C library; OSError where it failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def leave_a_keeper() -> None:
    """Go on in a child; what stays waits for it and ends what it leaves behind, which becomes a child of the keeper."""
    call(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "subreaper")
    # The keeper has nothing to take: its files lead nowhere, and nobody of its user may look into it. In a process
    # namespace it is process 1, with whose end the kernel ends all others.
    call(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")
    # A box whose evaluation was killed would go on, and write beside the box of the next one.
    call(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "death signal")
    program = os.fork()
    if program == 0:
        return
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    pid, status = os.wait()
    while pid != program:
        pid, status = os.wait()
    # The children of what is killed here come next.
    for orphans in iter(children, []):
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def children() -> list[int]:
    """The process ids of this process's children."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                parent = file.read().rpartition(")")[2].split()[1]
        except OSError:
            continue  # it has just ended
        if int(parent) == os.getpid():
            found.append(int(name))
    return found


def refuse_calls(program: bytes) -> None:
    """Seccomp: from here on the kernel refuses what tools/seccomp_filter.py lists, to all that descends from this."""
    instructions = ctypes.create_string_buffer(program, len(program))
    fields = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(instructions))  # struct sock_fprog
    # Before Linux 5.16 a filter also turned the processor's speculation off, which made Python slower.
    number = SECCOMP[os.uname().machine]
    call(libc.syscall(number, SET_MODE_FILTER, SPECULATION_AS_IT_WAS, fields), "seccomp")


def drop_privileges(uid: int | None) -> None:
    """Become `uid` (None: stay) with no capability, in a way that no setuid program can undo."""
    if os.geteuid() == 0:
        # Unknown numbers are refused, which does no harm.
        for capability in range(64):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = struct.pack("II", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    call(libc.capset(header, bytes(24)), "capset")
    call(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def restrict(list: list[str], read: list[str], write: list[str]) -> None:
    """Landlock: names below `list`, read and execute below `read`, everything below `write`; no TCP, no signals out."""
    abi = call(libc.syscall(CREATE_RULESET, None, 0, 1), "landlock")
    rights = (1 << FS_RIGHTS.get(abi, 16)) - 1
    attributes = struct.pack("Q", rights)
    # An older kernel refuses the fields it does not know.
    if abi >= 4:
        attributes += struct.pack("Q", NET_RIGHTS)
    if abi >= 6:
        attributes += struct.pack("Q", SCOPES)
    ruleset = call(libc.syscall(CREATE_RULESET, attributes, len(attributes), 0), "landlock ruleset")
    for paths, wanted in ((list, LIST), (read, READ), (write, rights)):
        for path in filter(os.path.exists, paths):
            allowed = wanted if os.path.isdir(path) else wanted & FILE_RIGHTS
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", allowed, handle)
            call(libc.syscall(ADD_RULE, ruleset, 1, rule, 0), f"landlock rule for {path}")
            os.close(handle)
    call(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    call(libc.syscall(RESTRICT_SELF, ruleset, 0), "landlock restrict")
    os.close(ruleset)


if __name__ == "__main__":
    enter(json.loads(sys.argv[1]))
