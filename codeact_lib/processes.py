"""Child processes: start one on this package, pass its lines on, and let none outlive the process that asked for it."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

import psutil

from codeact_lib.artifacts import PACKAGE_DIR


def child_environment(**changes: str) -> dict[str, str]:
    """This process's environment, in which the package is found from every working directory, and `changes`."""
    found = [str(PACKAGE_DIR.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, found)), **changes}


def start(
    command: Sequence[str], *, env: dict[str, str], stderr: TextIO | int = subprocess.STDOUT, cwd: Path | None = None
):
    """Start `python COMMAND...`, with its standard output as a pipe of text; a `subprocess.Popen`."""
    words = [sys.executable, *command]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, env=env, cwd=cwd, text=True, encoding="utf-8")


def pass_lines_on(child: "subprocess.Popen[str]", say: Callable[[str], object]) -> int:
    """Hand each line that a child prints to `say`, until it ends; its exit code.

    An interrupted cell must not leave its child behind: whatever ends this loop early ends the child too.
    """
    try:
        for line in child.stdout or ():
            say(line.rstrip("\n"))
        return child.wait()
    except BaseException:
        child.terminate()
        raise


def end_with(pid: int) -> None:
    """End this process when that one is gone, or it would go on in a folder that someone else resumes.

    Launchers in between (accelerate, torchrun) do not pass a kill on, so the process itself has to look.
    """
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
    """Leave without taking the interpreter apart: with torch in it that takes 2 s, when all is on disk already.

    Of several processes each has a group to take leave of, so these end as usual.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.exit(status)
    sys.stdout.flush()
    os._exit(status)
