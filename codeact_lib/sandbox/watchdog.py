"""Watches a box from outside while it runs: time, progress, total memory, processes and disk; ends it with all in it.

Resource limits hold for one process each. Ten processes of 4 GiB keep every limit and take 40 GiB, so somebody has to
add up: here, ten times a second.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

PAUSE = 0.1  # seconds between two looks; a box that ends meanwhile is noticed at once


@dataclass
class Watchdog:
    """Why a box has to be ended, asked again and again.

    A process that was stopped (SIGSTOP) ends it too: no program here stops, and a stopped one would be waited for.

    Attributes:
        process: the `subprocess.Popen` of the box.
        progress: a function that gives a number which grows while the box works.
        seconds, stall_seconds: time in all, and without progress.
        memory: bytes of resident memory of all processes together.
        processes: how many there may be.
        folders, disk: bytes that may be written below ``folders``.
    """

    process: subprocess.Popen
    progress: Callable[[], int]
    seconds: float
    stall_seconds: float | None = None
    memory: int | None = None
    processes: int | None = None
    folders: tuple = ()
    disk: int | None = None
    start: float = field(default_factory=time.monotonic)

    def wait(self) -> str:
        """Wait until the box ends; "" or why it must be ended: timeout, stalled, stopped, memory, processes or disk."""
        size, grown = self.progress(), self.start
        while self.process.poll() is None:
            self._sleep()
            now = time.monotonic()
            if (current := self.progress()) != size:
                size, grown = current, now
            if now - self.start > self.seconds:
                return "timeout"
            if self.stall_seconds and now - grown > self.stall_seconds:
                return "stalled"
            if excess := self._excess():
                return excess
        return ""

    def _sleep(self):
        """Up to `PAUSE`; `Popen.wait` itself looks every few milliseconds at first, and less and less often."""
        end, pause = time.monotonic() + PAUSE, 0.002
        while self.process.poll() is None and time.monotonic() < end:
            time.sleep(pause)
            pause = min(0.02, 2 * pause)

    def _excess(self):
        if self.memory or self.processes:
            boxed = family(self.process.pid)
            if self.processes and len(boxed) > self.processes:
                return "processes"
            if self.memory and sum(map(resident, boxed)) > self.memory:
                return "memory"
            if any(map(is_stopped, boxed)):
                return "stopped"
        return "disk" if self.disk and written(self.folders) > self.disk else ""


def family(pid) -> list[psutil.Process]:
    """The living descendants of a process."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def is_stopped(process):
    try:
        return process.status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def resident(process):
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def written(folders):
    """Bytes in the files below ``folders``; 4 KiB at least for each entry, for names take room too."""
    total, waiting = 0, list(folders)
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


def end_box(process) -> None:
    """Kill everything that descends from the box and then the box. The keeper goes last: orphans come to it."""
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
    _end_session(process.pid)


def _end_session(session):
    """What is left where the keeper itself was killed: the processes of the box's session (macOS: all of it)."""
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == session:
                os.kill(pid, 9)
        except (ProcessLookupError, PermissionError):
            continue  # gone already, or not ours: then it is not of this session
