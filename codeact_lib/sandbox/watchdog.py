"""Watches a box from outside while it runs (time, progress, memory, processes, disk), and ends it with all in it."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

PAUSE = 0.1  # seconds between two looks
PROCESSES = 256  # in one box: the judge and its workers need a handful, a solution should need one
DISK_BYTES = 512 << 20  # size of each in-memory folder, of all that a box writes, of the largest file in it


@dataclass(frozen=True)
class Limits:
    """What a box may use; None where there is no such limit."""

    seconds: float = 600.0  # until everything in the box is killed
    stall_seconds: float | None = None  # the same after so long without progress
    process_memory: int | None = None  # bytes of address space of one process
    total_memory: int | None = None  # resident bytes of all processes together
    processes: int = PROCESSES  # how many may exist at a time
    disk: int = DISK_BYTES  # bytes that may be written


@dataclass
class Monitor:
    """Waits for a box and says why it has to be ended early, if it has."""

    process: subprocess.Popen[bytes]
    progress: Callable[[], int]  # gives a number that grows while the box works
    limits: Limits
    folders: Collection[Path] = ()  # where it may write

    def wait(self) -> str:
        """Wait until the box ends; "" or why it must be ended: timeout, stalled, stopped, memory, processes or disk."""
        start = time.monotonic()
        size = self.progress()
        grown = start
        while self.process.poll() is None:
            # Returns within 40 ms of the end of the box.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PAUSE)
            now = time.monotonic()
            current = self.progress()
            if current != size:
                size = current
                grown = now
            if now - start > self.limits.seconds:
                return "timeout"
            if self.limits.stall_seconds and now - grown > self.limits.stall_seconds:
                return "stalled"
            excess = self._excess()
            if excess:
                return excess
        return ""

    def _excess(self) -> str:
        """Which limit all processes of the box together exceed, "" for none."""
        # Resource limits hold for one process each. Ten processes of 4 GiB keep every limit and take 40 GiB, so
        # somebody has to add up.
        boxed = family(self.process.pid)
        if len(boxed) > self.limits.processes:
            return "processes"
        resident = 0
        stopped = False
        for process in boxed:
            try:
                resident += process.memory_info().rss
                stopped = stopped or process.status() == psutil.STATUS_STOPPED
            except psutil.Error:
                continue  # it has just ended
        if self.limits.total_memory and resident > self.limits.total_memory:
            return "memory"
        # No program here stops itself (SIGSTOP), and a stopped one would be waited for until the time is over.
        if stopped:
            return "stopped"
        if written(self.folders) > self.limits.disk:
            return "disk"
        return ""


def family(pid: int) -> list[psutil.Process]:
    """The living descendants of a process."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def written(folders: Collection[Path]) -> int:
    """Bytes in the files below `folders`; 4 KiB at least for each entry, for names take room too."""
    total = 0
    waiting = [str(folder) for folder in folders]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    total += max(4096, entry.stat(follow_symlinks=False).st_blocks * 512)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:
            continue  # it went away, or nobody may look
    return total


def end_box(process: subprocess.Popen[bytes]) -> None:
    """Kill everything that descends from the box and then the box."""
    # The process of the box itself goes last: it may be the reaper, which orphans come to.
    for _ in range(100):
        boxed = family(process.pid)
        for descendant in boxed:
            try:
                descendant.kill()
            except psutil.Error:
                continue  # gone already
        if not boxed:
            break
    process.kill()
    process.wait()
    # What is left where the reaper was killed: the processes of the box's session (on macOS, without a reaper, all).
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == process.pid:
                os.kill(pid, 9)
        except (ProcessLookupError, PermissionError):
            continue  # gone already, or not ours: then it is not of this session
