"""Benchmarks in EvalPlus's schema: the mini ones, HumanEval+ and MBPP+ in a version that is said, or a file.

load_benchmark("mini-humaneval")
load_benchmark("mbpp@v0.1.0")          # the 399 tasks of the paper; plain "mbpp" is v0.2.0 with 378
load_benchmark("my_tasks.jsonl")
"""

import gzip
import hashlib
import http.client
import json
import os
import sys
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codeact_lib.artifacts import atomic_write
from codeact_lib.errors import EvaluationError
from codeact_lib.mini import build_benchmark
from codeact_lib.prompts import task_kind

# name -> (file stem of EvalPlus, {version: tasks in it}, the default first). MBPP+ v0.1.0 is the paper's; the change to
# v0.2.0 is worth about 4 points: the version is part of every record.
EVALPLUS = {
    "humaneval": ("HumanEvalPlus", {"v0.1.10": 164, "v0.1.9": 164}),
    "mbpp": ("MbppPlus", {"v0.2.0": 378, "v0.1.0": 399}),
}
EVALPLUS_URL = "https://github.com/evalplus/{repo}_release/releases/download/{version}/{stem}.jsonl.gz"
FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")

Task = dict[str, Any]  # with `FIELDS`; EvalPlus's files have further ones


@dataclass(frozen=True)
class Benchmark:
    """Tasks in EvalPlus's schema, all of one kind, with what identifies them."""

    name: str
    kind: str  # "humaneval" or "mbpp"
    version: str
    sha256: str  # of the tasks' content, whatever file they came from
    tasks: list[Task]


def load_benchmark(name_or_path: Path | str, limit: int | None = None) -> Benchmark:
    """A benchmark by name or from a JSONL file in EvalPlus's schema.

    Args:
        name_or_path: "mini-humaneval", "mini-mbpp", "humaneval", "mbpp" (also "mbpp@v0.1.0"), or a path. The real ones
            are taken from EvalPlus's cache folder and fetched into it when they are not there.
        limit: only the first so many tasks; the hash is of those.

    Raises:
        EvaluationError: unknown name, missing or damaged file, a task without a needed field.
    """
    name, _, wanted = str(name_or_path).partition("@")
    if name in EVALPLUS:
        tasks, version = _evalplus_tasks(name, wanted)
    elif str(name_or_path).startswith("mini-"):
        name = str(name_or_path)
        tasks = build_benchmark(name)
        version = "mini"
    else:
        path = Path(name_or_path)
        if not path.is_file():
            names = ", ".join(("mini-humaneval", "mini-mbpp", *EVALPLUS))
            raise EvaluationError(f"{path} is neither a benchmark ({names}) nor a file.")
        name = path.stem
        tasks = list(read_jsonl(path).values())
        version = f"file {path.name}"
    tasks = tasks[:limit]
    kind = _check_tasks(tasks, name)
    # The content counts, so that a file and its copy are one benchmark. Inputs of MBPP+ hold NaN and infinity, which
    # strict JSON has no word for.
    text = json.dumps(tasks, sort_keys=True, separators=(",", ":"))
    return Benchmark(name, kind, version, hashlib.sha256(text.encode()).hexdigest(), tasks)


def user_caches() -> Path:
    """The user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _evalplus_tasks(name: str, version: str) -> tuple[list[Task], str]:
    """(tasks, version) of a benchmark where EvalPlus keeps it; fetched from its release page if not there."""
    stem, versions = EVALPLUS[name]
    version = version or next(iter(versions))
    if version not in versions:
        raise EvaluationError(f"{name}: version {version} is not known; use {' or '.join(versions)}.")
    # EvalPlus's own folder (appdirs.user_cache_dir), so that a benchmark is fetched once for both.
    caches = Path.home() / "Library/Caches" if sys.platform == "darwin" else user_caches()
    path = caches / "evalplus" / f"{stem}-{version}.jsonl"
    if not path.exists():
        url = EVALPLUS_URL.format(repo=stem.lower(), version=version, stem=stem)
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                data = gzip.decompress(response.read())
        except (OSError, http.client.HTTPException, EOFError, zlib.error) as error:  # no network, or half of a file
            raise EvaluationError(
                f"{path} is missing and {url} cannot be fetched ({error}). Fetch it elsewhere, unpack it with gunzip "
                f"and put it at {path}; or name a JSONL file of your own, or the benchmarks mini-humaneval and "
                "mini-mbpp."
            ) from error
        with atomic_write(path, "wb") as file:
            file.write(data)
    tasks = list(read_jsonl(path).values())
    if len(tasks) != versions[version]:
        raise EvaluationError(
            f"{path} holds {len(tasks)} tasks, {stem} {version} has {versions[version]}: it is another version, or not "
            "whole. Remove it to fetch it again, or name the file itself as a benchmark."
        )
    return tasks, f"{stem} {version}"


def read_jsonl(path: Path, repair: bool = False) -> dict[int, Any]:
    """Line number -> object; with `repair` a damaged last line (of a writer that was killed) is left out."""
    rows = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows[number] = json.loads(line)
        except ValueError as error:
            if repair and number == len(lines):
                break
            raise EvaluationError(f"{path}, line {number}: not JSON ({error}). Correct or remove the line.") from error
    return rows


def _check_tasks(tasks: list[Task], name: str) -> str:
    """The kind of the tasks; every task must be complete, known once, and of that kind."""
    if not tasks:
        raise EvaluationError(f"Benchmark {name} holds no task.")
    kind = ""
    known = set()
    for number, task in enumerate(tasks, 1):
        for key in FIELDS:
            if not isinstance(task, dict) or key not in task:
                raise EvaluationError(f"Benchmark {name}, task {number}: no field {key!r}; EvalPlus's schema has it.")
        task_id = task["task_id"]
        kind = kind or task_kind(task)
        if task_kind(task) != kind:
            raise EvaluationError(f"Benchmark {name}: {task_id} is not of kind {kind}; one file holds one kind.")
        if kind == "mbpp" and not str(task_id).rpartition("/")[2].isdigit():
            raise EvaluationError(f"Benchmark {name}: {task_id} must end in /<number>; EvalPlus reads it.")
        if task_id in known:
            raise EvaluationError(f"Benchmark {name}: {task_id} stands in it twice.")
        known.add(task_id)
    return kind
