"""Who works on what: several processes, on one machine or on many, share one artifacts folder without clashes.

    claims = Claims(paths.claims_dir)
    with claims.take("04_train_dynamic_pack__RUN_ID") as claim:     # None: another living process holds it
        ...

A claim is a file that is created exclusively: the step that every shared file system makes atomic (NFS from version 3).
The claims of one stage are numbered, ``.claims/<stage>/000001.json`` and up, and only the last one counts: it names its
holder, or says that it was given back. Whoever takes a stage over creates the next number, so of several that try just
one succeeds, and nothing that a slower process may still look at is ever moved or deleted.

A claim is dead when its process on this machine is gone: at once. On another machine nobody can look; there the holder
touches its file every ``Claims.beat`` seconds, and whoever has watched it for ``Claims.silence`` seconds without a
change, on a clock of its own, may take over. A holder that was away for so long finds the next number and is told.

Why not a library: filelock's SoftFileLease exchanges two names to take over, which NFS refuses, and its
SoftReadWriteLock looks at the age alone, so that a run started again after a kill would wait; neither says who holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from codeact_lib.artifacts import utc_now
from codeact_lib.errors import ArtifactError

VARIABLE = "CODEACT_CLAIM"  # tells a kernel which claim it works under


@dataclass(frozen=True)
class Holder:
    """The process that holds, or held, a stage: host, process id, and since when (UTC, ISO 8601)."""

    host: str
    pid: int
    since: str

    def __str__(self):
        return f"{self.host}:{self.pid} since {self.since}"


class Claims:
    """The claims in one folder, which all processes that share the work must name. Made when first needed."""

    beat = 15.0  # seconds between two signs of life
    silence = 120.0  # seconds without one that end a claim of another machine; NFS shows a change within 60

    def __init__(self, folder, clock=time.monotonic):
        self.folder, self._clock = Path(folder), clock
        self._seen = {}  # what was last seen of foreign claims: {path: (mtime_ns, own clock)}

    def take(self, name, on_lost=None):
        """A ``Claim`` on ``name``, free to be used with ``with``; a context of ``None`` when a living process has it.

        ``on_lost()`` is called from a thread when this process was away for so long that another one took over.
        ``ArtifactError`` when the folder cannot be written.
        """
        number, record = self._last(name)
        if record is not None and self._is_alive(self._path(name, number), record):
            return contextlib.nullcontext()
        path = self._path(name, number + 1)
        if not _create(path, {**_here(), "pid": os.getpid(), "started": _started(os.getpid()), "since": utc_now()}):
            return contextlib.nullcontext()  # another one was faster
        return Claim(path, self.beat, on_lost, taken_from=_holder(record))

    def holder(self, name):
        """The living ``Holder`` of ``name``, or None when it is free or its holder is gone."""
        number, record = self._last(name)
        held = record is not None and self._is_alive(self._path(name, number), record)
        return _holder(record) if held else None

    def working_here(self):
        """How many stages living processes of this machine hold at this moment."""
        records = (self._last(path.name)[1] for path in self.folder.glob("*"))
        return sum(_is_here(record) and _is_running(record) for record in records if record)

    def _path(self, name, number):
        return self.folder / name / f"{number:06}.json"

    def _last(self, name):
        """(number, record) of the last claim; the record is None when there is none or it was given back."""
        number = max((int(path.stem) for path in (self.folder / name).glob("*.json")), default=0)
        while self._path(name, number + 1).exists():  # a listing may be older than the files
            number += 1
        record = _read(self._path(name, number)) if number else {"free": True}
        return number, None if "free" in record else record

    def _is_alive(self, path, record):
        return _is_running(record) if _is_here(record) else self._silence_of(path) < self.silence

    def _silence_of(self, path):
        """Seconds since a foreign claim was last seen to change. The clocks of two machines are never compared."""
        with open(path, "rb") as file:  # opening makes NFS ask the server
            touched = os.fstat(file.fileno()).st_mtime_ns
        before, seen = self._seen.get(path, (None, 0.0))
        if touched != before:
            self._seen[path] = touched, self._clock()
            return 0.0
        return self._clock() - seen


class Claim:
    """A stage that this process holds until ``close()`` or the end of the ``with`` block."""

    def __init__(self, path, beat, on_lost, taken_from):
        self.path, self.taken_from, self.lost = path, taken_from, False
        self._beat, self._on_lost, self._over = beat, on_lost, threading.Event()
        self._thread = threading.Thread(target=self._show_life, daemon=True, name=f"claim {path.parent.name}")
        self._thread.start()

    def _show_life(self):
        while not self._over.wait(self._beat):
            if was_taken_over(self.path):
                self.lost = True
                if self._on_lost:
                    self._on_lost()
                return
            with contextlib.suppress(OSError):  # a file system that is away for a moment is no reason to stop
                os.utime(self.path)

    def close(self):
        """Give the stage back. A claim that was lost belongs to another process and stays as it is."""
        self._over.set()
        self._thread.join()
        _create(_next(self.path), {"free": True})

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def was_taken_over(path):
    """Whether a claim is not the last of its stage any more."""
    return _next(path).exists()


def works_under_a_claim(name):
    """The file of the claim that the process which started this one holds on ``name``; None without one."""
    path = Path(os.environ.get(VARIABLE, ""))
    return path if path.parent.name == name else None


def _next(path):
    return path.with_name(f"{int(path.stem) + 1:06}.json")


def _create(path, record):
    """Create ``path``; False when it exists. Its content may come a moment later: what is unreadable counts as held."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(json.dumps(record))
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    except OSError as error:
        raise ArtifactError(f"Cannot write {path}: {error.strerror}. Make the folder writable for all jobs.") from error
    return True


def _read(path):
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}  # just being written, or by a process that died over it: the age decides


def _holder(record):
    if record is None:
        return None
    return Holder(record.get("host", "an unknown host"), record.get("pid", 0), record.get("since", "just now"))


# ---------------------------------------------------------------------------------------------- this machine


def _here():
    """What two processes must have in common for the one to see whether the other lives."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # two containers of one machine may share its name, but not its process ids
        return {"host": socket.gethostname(), "boot": boot, "pids": os.readlink("/proc/self/ns/pid")}
    return {"host": socket.gethostname(), "boot": "", "pids": ""}


def _is_here(record):
    return all(record.get(name) == value for name, value in _here().items())


def _is_running(record):
    return _started(record["pid"]) in (record["started"], "hidden")


def _started(pid):
    """When a process started, on a clock that nobody sets: process ids are used again. None when it is gone, "hidden"
    when it is there but another user's, and the system shows nothing of those."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        stat = Path(f"/proc/{pid}/stat")
        # the 22nd field, in ticks since the machine started; the second is a name in brackets
        return int(stat.read_text().rpartition(")")[2].split()[19]) if stat.exists() else process.create_time()
    except (psutil.Error, OSError):
        return "hidden" if psutil.pid_exists(pid) else None
