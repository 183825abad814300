"""Files of a run: where they lie, how they are written so that a kill leaves no half file, what proves a stage done."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from codeact_lib.errors import ArtifactError

if TYPE_CHECKING:  # at run time pandas is imported by those who read a frame: 0.3 s
    import pandas as pd

PACKAGE_DIR = Path(__file__).resolve().parent
MINI_BASE_DIR = PACKAGE_DIR / "mini" / "mini-base"  # the base model that ships with the package
PATIENCE_SECONDS = 20.0  # with a lock: the processes of a killed run need a second or two to notice


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[Any]:
    """Yield a file object on a temporary file that becomes `path` only when the block ends without an error.

    Parent folders are made. Text is UTF-8 with `\\n` line ends. On an error what stood at `path` before is untouched.
    `ArtifactError` if the folder cannot be written.
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


def _unwritable(folder: str | Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"Cannot write in the folder {folder}: {error.strerror or error}. "
        "Make it writable, or choose other folders with --artifacts-dir and --results-dir."
    )


def make_folder(path: str | Path) -> Path:
    """Make `path` and its parents, return it; `ArtifactError` naming the folder when that is not possible."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _unwritable(path, error) from error
    return Path(path)


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as indented JSON in the order given (NaN is refused: a missing number is `null`)."""
    with atomic_write(path) as file:
        json.dump(obj, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_cache(path: Path) -> dict[str, Any]:
    """What a small JSON file keeps that may be lost: unreadable means empty."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def read_json(path: str | Path) -> Any:
    """Read a JSON file; `ArtifactError` naming the file when it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing.") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not readable JSON ({error}). Delete it and run the stage again.") from error


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Write one JSON object a line; returns the path."""
    with atomic_write(path) as file:
        file.writelines(_json_line(record) for record in records)
    return Path(path)


def append_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add records to a file that a killed job resumes from (`resume_jsonl`); the system has them when this returns."""
    text = "".join(_json_line(record) for record in records)
    try:
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write(text)  # one write: a kill can cut the last line only
    except OSError as error:
        raise _unwritable(Path(path).parent, error) from error


def resume_jsonl(path: str | Path, fields: Iterable[str]) -> list[dict[str, Any]]:
    """The records of a file of `append_jsonl` that have all `fields`; what a damaged line held is made again.

    Half a line at the end is cut off the file, so that the next record starts on a line of its own.
    """
    content = Path(path).read_bytes() if Path(path).exists() else b""
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        print(f"{Path(path).name}: cut off {len(content) - complete} bytes of a line that a kill left half-written")
        os.truncate(path, complete)
    records = []
    for line in content[:complete].splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.keys() >= set(fields):
            records.append(record)
    return records


def _json_line(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    # half a surrogate pair, which UTF-8 cannot hold, is replaced by what is JSON's own escape of it
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def write_frame(path: str | Path, df: pd.DataFrame) -> None:
    """Write a pandas frame without its index, as `.parquet` or `.csv` by the suffix."""
    suffix = Path(path).suffix
    if suffix == ".parquet":
        with atomic_write(path, "wb") as file:
            df.to_parquet(file, index=False)
    elif suffix == ".csv":
        with atomic_write(path) as file:
            df.to_csv(file, index=False, lineterminator="\n")
    else:
        raise ArtifactError(f"{path}: no table format for the suffix {suffix!r}; use .parquet or .csv.")


def read_frame(path: str | Path) -> pd.DataFrame:
    """Read a frame written by `write_frame`; `ArtifactError` naming the file when it is missing or damaged."""
    import pandas as pd

    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"{path} is missing.")
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). Delete it and run the stage again.") from error


@contextmanager
def locked(path: str | Path, busy: str) -> Iterator[None]:
    """Hold the lock file `path`, in an existing folder, inside the block; it is given back however the process ends.

    Waits `PATIENCE_SECONDS` for another process that has it, then raises `ArtifactError(busy)`.
    """
    try:
        held = FileLock(path).acquire(timeout=PATIENCE_SECONDS, poll_interval=0.2)
    except Timeout as error:
        raise ArtifactError(busy) from error
    with held:
        yield


# ---- hashes ----------------------------------------------------------------------------------------------------------


def sha256_file(path: str | Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(obj: Any) -> str:
    """sha256 of an object's canonical JSON (sorted keys, no blanks): the same for equal content, whatever the order."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class HashCache:
    """Hashes of files and folders, remembered by size and modification time in one small JSON file."""

    # A 13 GB checkpoint is read once; asking again costs a `stat`. The file is written only when something new was
    # learnt, so looking at a finished run changes nothing. Losing it costs time, never correctness.

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.known: dict[str, list] | None = None  # name -> [size, mtime_ns, sha256]

    def __call__(self, path: str | Path) -> str:
        """Hash of a file, or of a folder as that of {name: file hash}; hidden files and README.md do not count."""
        path = Path(path)
        if self.known is None:
            self.known = read_cache(self.path)
        files = {".": path}
        if path.is_dir():
            files = {}
            for file in sorted(path.rglob("*")):
                parts = file.relative_to(path).parts
                hidden = any(part.startswith((".", "__pycache__")) for part in parts)
                if file.is_file() and not hidden and file.name != "README.md":
                    files["/".join(parts)] = file
        digests: dict[str, str] = {}
        learnt: dict[str, list] = {}
        for name, file in files.items():
            key = Path(os.path.relpath(file, self.path.parent)).as_posix()
            stamp = [file.stat().st_size, file.stat().st_mtime_ns]
            if self.known.get(key, [])[:2] != stamp:
                learnt[key] = [*stamp, sha256_file(file)]
                self.known[key] = learnt[key]
            digests[name] = self.known[key][2]
        if learnt:  # on top of what another process may have learnt in between
            write_json(self.path, read_cache(self.path) | learnt)
        return sha256_json(digests) if path.is_dir() else digests["."]


# ---- places ----------------------------------------------------------------------------------------------------------


def project_root() -> Path:
    """The nearest folder upwards of the working directory (else of the package) with notebooks/ and codeact_lib/."""
    here = Path.cwd().resolve()
    for folder in (here, *here.parents, PACKAGE_DIR.parent):
        if (folder / "notebooks").is_dir() and (folder / "codeact_lib").is_dir():
            return folder
    return here


class RunPaths:
    """Every place a run reads or writes, from two roots: `artifacts` (can be rebuilt) and `results` (small, kept)."""

    def __init__(
        self, profile_name: str, artifacts_dir: str | Path | None = None, results_dir: str | Path | None = None
    ) -> None:
        # Relative roots count from the project root, not from the working directory: a notebook opened in JupyterLab,
        # one run by papermill and a script started elsewhere mean the same files.
        self.root = project_root()
        self.artifacts = self.root / (artifacts_dir or f"artifacts/{profile_name}")
        self.results = self.root / (results_dir or f"results/{profile_name}")
        self.locks_dir = self.artifacts / ".locks"  # see `codeact_lib.pipeline.locks`
        self.tables_dir = self.results / "tables"
        self.figures_dir = self.results / "figures"
        self.notebooks_dir = self.results / "notebooks"  # executed copies; the sources stay untouched
        self.report = self.results / "report.html"

    def data_dir(self, dataset: str) -> Path:
        return self.artifacts / "data" / dataset

    def examples(self, dataset: str) -> Path:
        return self.data_dir(dataset) / "examples.parquet"

    def cluster_dir(self, dataset: str) -> Path:
        return self.artifacts / "cluster" / dataset

    def ifd_dir(self, dataset: str, model: str) -> Path:
        return self.artifacts / "ifd" / dataset / model

    def selection_dir(self, dataset: str, model: str, selection: str) -> Path:
        """`selection` is the tag of a selection: `cdas-0.4`, `random-0.4`, `full`."""
        return self.artifacts / "selection" / dataset / model / selection

    def train_dir(self, run_id: str) -> Path:
        return self.artifacts / "train" / run_id

    def eval_dir(self, run_id: str) -> Path:
        return self.artifacts / "eval" / run_id

    def metrics(self, run_id: str) -> Path:
        return self.results / "metrics" / f"{run_id}.json"

    def shown(self, path: Path) -> str:
        """A path as typed from the project root."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def relative(self, path: str | Path) -> str:
        """`artifacts/...` or `results/...`: how a manifest names a file, free of this machine's folders."""
        path = self.root / path
        for name, root in (("artifacts", self.artifacts), ("results", self.results)):
            if path.is_relative_to(root):
                return f"{name}/{path.relative_to(root).as_posix()}"
        raise ArtifactError(f"{path} lies outside {self.artifacts} and {self.results}: a stage writes only there.")

    def absolute(self, relative: str) -> Path:
        """The inverse of `relative`."""
        name, _, rest = relative.partition("/")
        return {"artifacts": self.artifacts, "results": self.results}[name] / rest


@dataclass
class StageManifest:
    """What one execution of a stage read, wrote and was told; its key decides whether to run again."""

    # Outputs are written by rename, the manifest last: who finds it knows that everything it lists was complete. Paths
    # in it are relative, so a finished run survives being moved to another clone or another machine.

    stage: str
    key: str  # `StageTask.key`; the code is beside it, not in it: changed code never retrains anything by itself
    parameters: dict
    inputs: dict  # {name: sha256}
    outputs: dict  # {"artifacts/..." or "results/...": sha256}
    facts: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)
    hardware: dict = field(default_factory=dict)
    code_sha256: str = ""
    started: str = ""  # UTC, ISO 8601
    seconds: float = 0.0

    def write(self, path: str | Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: str | Path) -> StageManifest:
        """The manifest at `path`; `ArtifactError` when it is missing or damaged."""
        try:
            return cls(**read_json(path))
        except TypeError as error:
            reason = f"{path} is not a stage manifest ({error}). Delete it and run the stage again."
            raise ArtifactError(reason) from error


def utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
