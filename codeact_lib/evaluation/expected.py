"""Expected outputs kept between evaluations: they depend on the benchmark alone; MBPP+ takes half a minute for them.

EvalPlus keeps a pickle that holds time limits too, which depend on what else the machine did. Here it is JSON, without
times: a task is kept only where its reference is so fast that the time limit does not depend on it.
"""

from __future__ import annotations

import os
from pathlib import Path

from codeact_lib.artifacts import read_json, write_json
from codeact_lib.errors import ArtifactError

WORTH_KEEPING = 2.0  # seconds that computing them took


def default_cache_dir() -> Path:
    """``codeact`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "codeact"


def load_expected(benchmark, folder) -> dict[str, dict]:
    """Task id -> {"base", "plus"} as JSON text, for the tasks that are known; nothing if the file is not usable."""
    try:
        known = read_json(_path(benchmark, folder))
    except ArtifactError:
        return {}
    ids = {task["task_id"] for task in benchmark.tasks}
    return {task_id: texts for task_id, texts in known.items() if task_id in ids and _is_texts(texts)}


def save_expected(benchmark, folder, prepared, min_time_limit) -> None:
    """Keep what ``prepared`` (task id -> answer of the boxed program `prepare`) computed, where it took long."""
    taken = sum(sum(map(sum, row["seconds"].values())) for row in prepared.values())
    if taken > WORTH_KEEPING:
        kept = {k: row["expected"] for k, row in prepared.items() if _slowest(row) * 8 < min_time_limit}
        write_json(_path(benchmark, folder), kept)


def _slowest(row):
    return max((s for seconds in row["seconds"].values() for s in seconds), default=0.0)


def _path(benchmark, folder):
    return Path(folder) / "expected" / f"{benchmark.sha256}.json"


def _is_texts(texts):
    return isinstance(texts, dict) and all(isinstance(texts.get(tests), str) for tests in ("base", "plus"))
