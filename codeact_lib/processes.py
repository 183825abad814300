"""Child processes and progress: start one on this package, pass its lines on, let none outlive who asked for it."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import NoReturn, Self, TextIO

import psutil
from tqdm import tqdm

from codeact_lib.artifacts import PACKAGE_DIR
from codeact_lib.measure import clock

SECONDS_BETWEEN_LINES = 5.0  # of progress in a log; the last line comes when all is done


def child_environment() -> dict[str, str]:
    """This process's environment, in which the package is found from every working directory."""
    found = [str(PACKAGE_DIR.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, found))}


def start(
    command: Sequence[str], *, env: dict[str, str], stderr: TextIO | int = subprocess.STDOUT, cwd: Path | None = None
) -> "subprocess.Popen[str]":
    """Start `python COMMAND...`, with its standard output as a pipe of text."""
    words = [sys.executable, *command]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, env=env, cwd=cwd, text=True, encoding="utf-8")


def pass_lines_on(child: "subprocess.Popen[str]", say: Callable[[str], object]) -> int:
    """Hand each line that a child prints to `say`, until it ends; its exit code."""
    try:
        for line in child.stdout or ():
            say(line.rstrip("\n"))
        return child.wait()
    except BaseException:  # an interrupted cell must not leave its child behind
        child.terminate()
        raise


def end_with(pid: int) -> None:
    """End this process when that one is gone, or it would go on in a folder that someone else resumes."""
    # launchers in between (accelerate, torchrun) do not pass a kill on, so the process itself has to look
    try:
        parent = psutil.Process(pid)
    except psutil.NoSuchProcess:
        os._exit(1)

    def watch() -> None:
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def exit_fast(status: int) -> NoReturn:
    """Leave without taking the interpreter apart: with torch in it that takes 2 s, when all is on disk already."""
    # of several processes each has a group to take leave of, so these end as usual
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.exit(status)
    sys.stdout.flush()
    os._exit(status)


@dataclass(eq=False)
class Progress:
    """How far a loop is: a tqdm bar on a terminal, else (a log, a notebook, a pipe) a line every few seconds.

    with Progress("IFD", len(rows), "rows") as progress:
        for row in rows:
            ...
            progress.advance()          # IFD 812/2,400 rows, 130.4/s, 12 s left
    """

    what: str  # the word in front, may be empty
    total: int  # how many there are, those of `initial` among them
    unit: str  # what is counted, in the plural
    say: Callable[[str], object] | None = print  # takes each line; None for silence; only `print` gives way to the bar
    _: KW_ONLY
    initial: int = 0  # how many were done before; they do not count in the rate
    note: Callable[[], str] | None = None  # asked when a line is due; it replaces the rate (the bar shows both)

    def __post_init__(self) -> None:
        self.done = self.initial
        self.started = self.said = time.monotonic()
        self.bar: tqdm | None = None
        if self.say is print and sys.stderr.isatty():
            self.bar = tqdm(desc=self.what or None, total=self.total, unit=f" {self.unit}", initial=self.initial)

    def advance(self, n: int = 1) -> None:
        """Count `n` more, and say so when a line is due."""
        self.done += n
        if self.bar is not None:
            self.bar.update(n)
        now = time.monotonic()
        if now - self.said < SECONDS_BETWEEN_LINES and self.done < self.total:
            return
        self.said = now
        if self.bar is not None and self.note is not None:
            self.bar.set_postfix_str(self.note())
        elif self.bar is None and self.say is not None:
            rate = f"{self.rate:.1f}/s"
            if self.note is not None:
                rate = self.note()
            count = f"{self.what} {self.done:,}/{self.total:,} {self.unit}".strip()
            self.say(f"{count}, {rate}, {clock((self.total - self.done) / max(self.rate, 1e-9))} left")
            sys.stdout.flush()  # into a pipe, a line would wait until the buffer is full

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return (self.done - self.initial) / max(time.monotonic() - self.started, 1e-9)

    def close(self) -> None:
        """End the bar, if there is one."""
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
