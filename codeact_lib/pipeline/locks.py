"""Who works on what: each process locks what it writes, by a lock of the operating system (`filelock`)."""

import contextlib
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from codeact_lib.artifacts import utc_now
from codeact_lib.errors import ArtifactError

# The files lie in `.locks` of the artifacts folder; beside each stands who holds it, for people and `stages_at_work`.
# A kernel, or a notebook run by hand, holds the folder of its stage from `begin` to `finish`. A runner holds the
# executed copy of the notebook while papermill writes it, so of several runs one starts the kernel. Nothing is handed
# from a runner to its kernel: when a runner is killed, the kernel that outlives it by a second keeps its folder for so
# long. The system gives a lock back however its process ends, so no stage is ever taken over.
FOLDER = ".lock"
COPY = ".run"


class Lock:
    """One lock file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._note = path.with_name(f"{path.name}-holder")
        # all objects on one path are one lock in a process, so that a cell may be run twice
        self._lock = FileLock(path, is_singleton=True, thread_local=False)

    def acquire(self, patience: float = 0.0) -> bool:
        """Hold the lock; False when another process has it for all of `patience` seconds.

        `ArtifactError` when the folder cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=patience, poll_interval=0.2)
            self._note.write_text(f"{socket.gethostname()}:{os.getpid()} since {utc_now()}", encoding="utf-8")
        except Timeout:
            return False
        except OSError as error:
            reason = f"Cannot write {self.path}: {error.strerror}. Make the folder writable for all jobs."
            raise ArtifactError(reason) from error
        return True

    def release(self) -> None:
        """Give the lock back, however often it was acquired."""
        self._lock.release(force=True)

    def holder(self) -> str:
        """`host:process since time` of who holds it, empty when it is free."""
        if not self.path.exists():
            return ""
        if not self._lock.is_locked:
            # nothing tells who holds a flock but trying it; for that moment it looks held to others, who try again
            with contextlib.suppress(Timeout), self._lock.acquire(timeout=0):
                return ""
        try:
            return self._note.read_text(encoding="utf-8")
        except OSError:  # acquired a moment ago
            return "another process"


def stages_at_work(folder: Path) -> int:
    """How many stages processes of this machine work on at this moment, with their locks in `folder`."""
    stages = set()
    for path in folder.glob("*"):
        if path.suffix in (FOLDER, COPY) and Lock(path).holder().startswith(f"{socket.gethostname()}:"):
            stages.add(path.stem)
    return len(stages)
