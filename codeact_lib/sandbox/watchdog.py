"""Watches a box from outside while it runs (time, progress, memory, processes, disk), and ends it with all in it."""

import contextlib
import os
import stat
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

DEEPEST = 3800  # characters of a folder's path: the system takes 4,096
PAUSE = 0.1  # seconds between two looks
PROCESSES = 256  # in one box: the judge and its workers need a handful, a solution should need one
DISK_BYTES = 512 << 20  # size of each in-memory folder, and of all that a box writes
FILE_BYTES = 64 << 20  # of the largest file


@dataclass(frozen=True)
class Limits:
    """What a box may use; None where there is no such limit."""

    timeout: float  # seconds until everything in the box is killed
    stall_seconds: float | None = None  # the same after so long without anything new on standard output
    total_memory: int | None = None  # resident bytes of all processes together
    processes: int = PROCESSES  # how many may exist at a time


def watch(process: subprocess.Popen[bytes], output: IO[bytes], limits: Limits, folder: Path) -> str:
    """Wait until a box ends; "" or why it must be ended: timeout, stalled, stopped, memory, processes or disk.

    `output` is where it writes, `folder` what of the disk it may fill.
    """
    start = time.monotonic()
    grown = start
    size = 0
    while process.poll() is None:
        # Returns within 40 ms of the end of the box.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PAUSE)
        now = time.monotonic()
        current = os.fstat(output.fileno()).st_size
        if current != size:
            size = current
            grown = now
        if now - start > limits.timeout:
            return "timeout"
        if limits.stall_seconds and now - grown > limits.stall_seconds:
            return "stalled"
        excess = _excess(family(process.pid), limits, folder)
        if excess:
            return excess
    return ""


def _excess(boxed: list[psutil.Process], limits: Limits, folder: Path) -> str:
    """Which limit all processes of the box together exceed, "" for none."""
    # Resource limits hold for one process each. Ten processes of 4 GiB keep every limit and take 40 GiB, so somebody
    # has to add up.
    if len(boxed) > limits.processes:
        return "processes"
    resident = 0
    stopped = False
    nameless: dict[int, int] = {}  # number of a file that was deleted but is still open -> its bytes
    for process in boxed:
        with contextlib.suppress(psutil.Error):  # it has just ended
            resident += process.memory_info().rss
            stopped = stopped or process.status() == psutil.STATUS_STOPPED
        nameless |= deleted_files(process.pid)
    if limits.total_memory and resident > limits.total_memory:
        return "memory"
    # No program here stops itself (SIGSTOP), and a stopped one would be waited for until the time is over.
    if stopped:
        return "stopped"
    if written(folder) + sum(nameless.values()) > DISK_BYTES:
        return "disk"
    return ""


def deleted_files(pid: int) -> dict[int, int]:
    """Bytes of the regular files without a name that a process has open; none where one may not look."""
    found = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            file = os.stat(entry.path)
            if stat.S_ISREG(file.st_mode) and file.st_nlink == 0:
                found[file.st_ino] = file.st_blocks * 512
    return found


def family(pid: int) -> list[psutil.Process]:
    """The living descendants of a process."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def written(folder: Path) -> int:
    """Bytes in the files below `folder`; 4 KiB at least for each entry, for names take room too."""
    total = 0
    waiting = [str(folder)]
    while waiting:
        path = waiting.pop()
        if len(path) > DEEPEST:  # nothing below it could be looked at by name
            return DISK_BYTES + 1
        # A folder that went away, or into which nobody may look.
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            for entry in entries:
                total += max(4096, entry.stat(follow_symlinks=False).st_blocks * 512)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return total


def end_box(process: subprocess.Popen[bytes]) -> None:
    """Kill everything that descends from the box and then the box."""
    # The process of the box itself goes last: it may be the reaper, which orphans come to.
    for _ in range(100):
        boxed = family(process.pid)
        for descendant in boxed:
            with contextlib.suppress(psutil.Error):  # gone already
                descendant.kill()
        if not boxed:
            break
    process.kill()
    process.wait()
    # What is left where the reaper was killed: the processes of the box's session (on macOS, without a reaper, all).
    for pid in psutil.pids():
        # Gone already, or not ours: then it is not of this session.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == process.pid:
                os.kill(pid, 9)
