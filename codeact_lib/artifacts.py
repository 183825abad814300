"""Files of a run: where they lie, how they are written so that a kill leaves no half file, what proves a stage done.

A stage writes its outputs by rename, then its manifest, last. Whoever finds the manifest knows that everything it lists
was complete when it was written. Paths inside a manifest are relative (``artifacts/...`` or ``results/...``), so a
finished run survives being moved to another clone or another machine.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from codeact_lib.errors import ArtifactError

PACKAGE_DIR = Path(__file__).resolve().parent
MINI_BASE_DIR = PACKAGE_DIR / "mini" / "mini-base"  # the base model that ships with the package
# Packages whose version can change a number of a table; stored with each manifest.


# ---------------------------------------------------------------------------------------------- writing and reading


@contextmanager
def atomic_write(path, mode="w"):
    """Yield a file object on a temporary file that becomes ``path`` only when the block ends without an error.

    Parent folders are made. Text is UTF-8 with ``\\n`` line ends, whatever the platform. On an error the temporary file
    is removed and what stood at ``path`` before is untouched. ``ArtifactError`` if the folder cannot be written.
    """
    path = Path(path)
    # not the process id: jobs on two machines may share it and the folder
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(temporary, mode) if "b" in mode else open(temporary, mode, encoding="utf-8", newline="\n")
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _unwritable(folder, error):
    return ArtifactError(
        f"Cannot write in the folder {folder}: {error.strerror or error}. "
        "Make it writable, or choose other folders with --artifacts-dir and --results-dir."
    )


def make_folder(path):
    """Make ``path`` and its parents, return it; ``ArtifactError`` naming the folder when that is not possible."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _unwritable(path, error) from error
    return Path(path)


def write_json(path, obj):
    """Write ``obj`` as indented JSON in the order given (NaN is refused: a missing number is ``null``)."""
    with atomic_write(path) as file:
        json.dump(obj, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_json(path):
    """Read a JSON file; ``ArtifactError`` naming the file when it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing.") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not readable JSON ({error}). Delete it and run the stage again.") from error


def write_frame(path, df):
    """Write a pandas frame without its index, as ``.parquet`` or ``.csv`` by the suffix."""
    path = Path(path)
    if path.suffix == ".parquet":
        with atomic_write(path, "wb") as file:
            df.to_parquet(file, index=False)
    elif path.suffix == ".csv":
        with atomic_write(path) as file:
            df.to_csv(file, index=False, lineterminator="\n")
    else:
        raise ArtifactError(f"{path}: no table format for the suffix {path.suffix!r}; use .parquet or .csv.")


def read_frame(path):
    """Read a frame written by ``write_frame``; ``ArtifactError`` naming the file when it is missing or damaged."""
    import pandas as pd

    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"{path} is missing.")
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). Delete it and run the stage again.") from error


# ---------------------------------------------------------------------------------------------- one writer per folder

PATIENCE_SECONDS = 20.0  # the processes of a killed run need a second or two to notice


@contextmanager
def locked(path, busy):
    """Hold the lock file ``path``, in an existing folder, inside the block; it is given back however the process ends.

    Waits ``PATIENCE_SECONDS`` for another process that has it, then raises ``ArtifactError(busy)``.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE_SECONDS, poll_interval=0.2)
    except Timeout as error:
        raise ArtifactError(busy) from error
    try:
        yield
    finally:
        lock.release()


# ---------------------------------------------------------------------------------------------- hashes


def sha256_file(path):
    """sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(obj):
    """sha256 of an object's canonical JSON (sorted keys, no blanks): the same for equal content, whatever the order."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class HashCache:
    """Hashes of files and folders, remembered by size and modification time in one small JSON file.

    A 13 GB checkpoint is read once; asking again costs a ``stat``. The file is written only when something new was
    learnt, so looking at a finished run changes nothing. Losing it costs time, never correctness.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.known = None
        self.learnt = {}

    def __call__(self, path):
        """Hash of a file, or of a folder as that of {name: file hash}; hidden files and README.md do not count."""
        path = Path(path)
        if path.is_dir():
            files = (p for p in sorted(path.rglob("*")) if p.is_file())
            visible = ((p.relative_to(path), p) for p in files)
            return sha256_json({n.as_posix(): self._file(p) for n, p in visible if not _is_hidden(n)})
        return self._file(path)

    def _file(self, path):
        if self.known is None:
            self.known = _read_cache(self.path)
        stat = path.stat()
        name = Path(os.path.relpath(path, self.path.parent)).as_posix()
        stamp = [stat.st_size, stat.st_mtime_ns]
        entry = self.known.get(name)
        if not entry or entry[:2] != stamp:
            entry = self.known[name] = self.learnt[name] = [*stamp, sha256_file(path)]
        return entry[2]

    def save(self):
        """Write what was learnt, on top of what another process may have written in between."""
        if self.learnt:
            write_json(self.path, {**_read_cache(self.path), **self.learnt})
            self.learnt = {}


def _is_hidden(relative):
    return relative.name == "README.md" or any(part.startswith((".", "__pycache__")) for part in relative.parts)


def _read_cache(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # only a cache: unreadable means empty


# ---------------------------------------------------------------------------------------------- places


def project_root():
    """The nearest folder upwards of the working directory (else of the package) with notebooks/ and codeact_lib/."""
    here = Path.cwd().resolve()
    for folder in (here, *here.parents, PACKAGE_DIR.parent):
        if (folder / "notebooks").is_dir() and (folder / "codeact_lib").is_dir():
            return folder
    return here


class RunPaths:
    """Every place a run reads or writes, from two roots: ``artifacts`` (can be rebuilt) and ``results`` (small, kept).

    Relative roots count from the project root, not from the working directory: a notebook opened in JupyterLab, one run
    by papermill and a script started elsewhere mean the same files.
    """

    def __init__(self, profile_name, artifacts_dir=None, results_dir=None):
        self.root = project_root()
        self.artifacts = self.root / (artifacts_dir or f"artifacts/{profile_name}")
        self.results = self.root / (results_dir or f"results/{profile_name}")

    def data_dir(self, dataset):
        return self.artifacts / "data" / dataset

    def examples(self, dataset):
        return self.data_dir(dataset) / "examples.parquet"

    def cluster_dir(self, dataset):
        return self.artifacts / "cluster" / dataset

    def ifd_dir(self, dataset, model):
        return self.artifacts / "ifd" / dataset / model

    def selection_dir(self, dataset, model, selection):
        """``selection`` is the tag of a selection: ``cdas-0.4``, ``random-0.4``, ``full``."""
        return self.artifacts / "selection" / dataset / model / selection

    def train_dir(self, run_id):
        return self.artifacts / "train" / run_id

    def eval_dir(self, run_id, benchmark=None):
        """Folder of one run's evaluation, or of one benchmark inside it."""
        folder = self.artifacts / "eval" / run_id
        return folder / benchmark if benchmark else folder

    def metrics(self, run_id):
        return self.results / "metrics" / f"{run_id}.json"

    @property
    def tables_dir(self):
        return self.results / "tables"

    @property
    def figures_dir(self):
        return self.results / "figures"

    @property
    def notebooks_dir(self):
        """Where the executed copies of the notebooks go (the sources stay untouched)."""
        return self.results / "notebooks"

    @property
    def report(self):
        return self.results / "report.html"

    @property
    def claims_dir(self):
        """Where processes that share the artifacts say what they work on (``codeact_lib.pipeline.claims``)."""
        return self.artifacts / ".claims"

    @property
    def hash_cache(self):
        return HashCache(self.artifacts / ".hashes.json")

    def relative(self, path):
        """``artifacts/...`` or ``results/...``: how a manifest names a file, free of this machine's folders."""
        path = self.root / path
        for name, root in (("artifacts", self.artifacts), ("results", self.results)):
            if path.is_relative_to(root):
                return f"{name}/{path.relative_to(root).as_posix()}"
        raise ArtifactError(f"{path} lies outside {self.artifacts} and {self.results}: a stage writes only there.")

    def absolute(self, relative):
        """The inverse of ``relative``."""
        name, _, rest = relative.partition("/")
        return {"artifacts": self.artifacts, "results": self.results}[name] / rest


# ---------------------------------------------------------------------------------------------- manifests


@dataclass
class StageManifest:
    """What one execution of a stage read, wrote and was told. Written last; its key decides whether to run again.

    ``key`` = sha256 of stage name, resolved parameters and input hashes. ``code_sha256`` is kept beside it, not in it:
    changed code is reported as stale and never retrains anything by itself.
    """

    stage: str
    key: str
    parameters: dict
    inputs: dict  # {name: sha256}
    outputs: dict  # {"artifacts/..." or "results/...": sha256}
    facts: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)
    hardware: dict = field(default_factory=dict)
    code_sha256: str = ""
    started: str = ""  # UTC, ISO 8601
    seconds: float = 0.0

    def write(self, path):
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path):
        """The manifest at ``path``; ``ArtifactError`` when it is missing or damaged."""
        record = read_json(path)
        try:
            return cls(**record)
        except TypeError as error:
            raise ArtifactError(
                f"{path} is not a stage manifest ({error}). Delete it and run the stage again."
            ) from error


def stage_key(stage, parameters, inputs):
    """The identity of a stage's result: what it is called, what it was told, what it read."""
    return sha256_json({"stage": stage, "parameters": parameters, "inputs": inputs})


def utc_now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
