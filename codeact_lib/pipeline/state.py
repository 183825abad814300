"""Whether a stage is done, and if not, why: its manifest against its key, its outputs and its code."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from codeact_lib.artifacts import PACKAGE_DIR, StageManifest, sha256_file, sha256_json, stage_key
from codeact_lib.errors import ArtifactError
from codeact_lib.hub import COMMITS_FILE, Commits
from codeact_lib.pipeline.stages import Stage, maker_of

# The parts of the package whose code makes a stage's numbers. Plumbing (pipeline, artifacts, config) makes none, and
# what only draws or prints (figures, tables) counts where it is the result.
CODE = {
    "01_cluster": ("data", "mini", "embedding.py", "evaluation/benchmarks.py"),
    "02_ifd": ("ifd", "modeling", "prompts.py"),
    "03_sample": ("data", "sampling.py", "evaluation/benchmarks.py"),
    "04_train_dynamic_pack": ("training", "packing", "modeling", "prompts.py", "measure.py"),
    "05_eval": ("evaluation", "sandbox", "modeling", "mini", "prompts.py", "statistics.py"),
    "06_tables": ("tables", "figures", "templates", "statistics.py"),
}


class State(NamedTuple):
    """`name`: done, stale code, missing, changed or damaged. The first two count as done."""

    name: str
    reason: str

    @property
    def is_done(self) -> bool:
        return self.name in ("done", "stale code")


class Look:
    """One look at a stage. What it hashed is kept: take another one when a notebook has written since."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.hashes = stage.paths.hash_cache
        self.commits = Commits(stage.paths.artifacts / COMMITS_FILE)

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Hashes of the inputs, and commits of the hub's repositories as far as they are known."""
        stage = self.stage
        hashes = {}
        for name, path in stage.inputs.items():
            if path.exists() or name not in stage.optional:
                hashes[name] = self.hashes(path)
        self.hashes.save()
        return hashes | self.commits.known(stage.sources)

    @cached_property
    def key(self) -> str:
        """sha256 of stage name, parameters and input hashes."""
        return stage_key(self.stage.stage, self.stage.parameters, self.inputs)

    def hash(self, path: Path) -> str:
        digest = self.hashes(path)
        self.hashes.save()
        return digest

    def state(self) -> State:
        stage = self.stage
        if missing := stage.missing_inputs():
            return State("missing", f"waits for {maker_of(next(iter(missing)))}")
        try:
            manifest = StageManifest.read(stage.manifest_path)
        except ArtifactError:
            return State("missing", "its manifest is damaged" if stage.manifest_path.exists() else "not run yet")
        if manifest.key != self.key:
            names = _differing(manifest.parameters, stage.parameters) + _differing(manifest.inputs, self.inputs)
            return State("changed", f"another {', '.join(names[:4])}" if names else "its key differs")
        # a cached hash costs a `stat`, so all of a finished mini is looked at in half a second
        for name, digest in manifest.outputs.items():
            path = stage.paths.absolute(name)
            if not path.exists() or self.hash(path) != digest:
                return State("damaged", f"{name} is missing or not what was written")
        day = manifest.started[:10]
        if manifest.code_sha256 != code_sha256(stage.notebook):
            return State("stale code", f"made by older code on {day}")
        return State("done", f"{clock(manifest.seconds)} on {day}")


def _differing(old: dict, new: dict) -> list[str]:
    return [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]


def code_sha256(notebook: Path) -> str:
    """Hash of the code of a stage: the code cells of its notebook and the parts of the package in `CODE`.

    Outputs and prose do not count. A changed hash is reported as stale code and makes nothing anew by itself.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"] if notebook.exists() else []
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    digests = {}
    for part in CODE.get(notebook.stem, ()):
        path = PACKAGE_DIR / part
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.suffix in (".py", ".yaml", ".j2", ".css", ".mplstyle"):
                digests[file.relative_to(PACKAGE_DIR).as_posix()] = sha256_file(file)
    return sha256_json({"notebook": sources, "modules": digests})


def clock(seconds: float) -> str:
    """`45 s`, `2:05 min`, `3:07 h`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"
