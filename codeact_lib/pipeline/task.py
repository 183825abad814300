"""One stage of the grid as notebooks use it: opened, begun, finished.

stage = open_stage("02_ifd", profile, dataset=dataset, model=model)
stage.begin()                                         # inputs are there, and nobody else works on it
...                                                   # writes into stage.folder
stage.finish(outputs=[...], facts={...})              # the manifest, last
"""

import json
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from codeact_lib.artifacts import (
    PATIENCE_SECONDS,
    HashCache,
    RunPaths,
    StageManifest,
    make_folder,
    read_json,
    sha256_json,
    utc_now,
    write_json,
)
from codeact_lib.config import Profile, load_profile, parse_overrides
from codeact_lib.errors import ArtifactError, ProfileError
from codeact_lib.hub import COMMITS_FILE, known_commits, label, resolve_commits, split_revision
from codeact_lib.measure import clock, environment_facts
from codeact_lib.pipeline.locks import COPY, FOLDER, Lock, stages_at_work
from codeact_lib.pipeline.stages import RULES, STAGES, Rule, code_sha256, maker_of, picked

MANY_FILES = 10  # of one folder: more are told as one line


class State(NamedTuple):
    """How far a stage is, and why."""

    name: str  # done, stale code (these two count as done), missing, changed or damaged
    reason: str

    @property
    def is_done(self) -> bool:
        return self.name in ("done", "stale code")


class Project:
    """A profile in the folders it works in: what the stages of a plan have in common."""

    def __init__(
        self, profile: str = "mini", overrides: str | dict = "", artifacts_dir: str = "", results_dir: str = ""
    ) -> None:
        self.profile = load_profile(profile, overrides)
        self.paths = RunPaths(self.profile.name, artifacts_dir, results_dir)
        # the notebook parameters that say so, without those that are left at their defaults
        self.call = {"profile": str(profile)}
        for name, value in (("overrides", overrides), ("artifacts_dir", artifacts_dir), ("results_dir", results_dir)):
            if value:
                self.call[name] = json.dumps(value) if isinstance(value, dict) else str(value)


class StageTask(Rule):
    """One execution of one notebook: what it reads, depends on and writes, and whether that is done."""

    def __init__(self, project: Project, stage: str, identity: dict[str, Any]) -> None:
        rule = RULES[stage](project.profile, project.paths, **identity)
        told = identity | picked(project.profile, stage) | rule.parameters
        super().__init__(**vars(rule) | {"parameters": told})
        self.stage = stage
        self.identity = identity  # the notebook parameters that say which execution it is
        self.profile = project.profile  # after `begin` it names commits of the hub, not branches
        self.paths = paths = project.paths
        self.call = project.call
        self.notebook = paths.root / "notebooks" / f"{stage}.ipynb"
        self.manifest_path = self.folder / "manifest.json"
        # half-finished work and its marker lie here: never among the kept results
        self.work_folder = self.folder if stage != "06_tables" else paths.artifacts / "tables"
        parts = [str(value) for value in identity.values()]
        if stage == "03_sample":  # of policy, ratio and seed the name of the selection, which says what matters of them
            parts[2:] = [self.folder.name]
        # how people are told about it, and what its executed notebook and its locks are called
        self.title = f"{stage} {'/'.join(parts)}".strip()
        self.name = "__".join([stage, *parts])
        self.executed_notebook = paths.notebooks_dir / f"{self.name}.ipynb"
        # held by the process that works in the folder, and by the runner that executes the notebook
        self.lock = Lock(paths.locks_dir / f"{self.name}{FOLDER}")
        self.copy_lock = Lock(paths.locks_dir / f"{self.name}{COPY}")
        # of `begin`: when, by both clocks, and how many stages were at work on this machine
        self._started = ""
        self._clock = 0.0
        self._beside = 1
        self.look_again()

    # ---- is it done

    def look_again(self) -> None:
        """Forget the hashes seen so far: another process (a notebook) has written since."""
        self._hashes = HashCache(self.paths.artifacts / ".hashes.json")
        self._input_hashes: dict[str, str] = {}

    @property
    def input_hashes(self) -> dict[str, str]:
        """Hashes of the inputs, and commits of the hub's repositories as far as they are known."""
        if not self._input_hashes:
            hashes = known_commits(self.paths.artifacts / COMMITS_FILE, self.sources)
            for name, path in self.inputs.items():
                if path.exists() or name not in self.optional:
                    hashes[name] = self._hashes(path)
            self._input_hashes = hashes
        return self._input_hashes

    @property
    def key(self) -> str:
        """sha256 of what the stage is called, what it is told and what it reads."""
        return sha256_json({"stage": self.stage, "parameters": self.parameters, "inputs": self.input_hashes})

    def missing_inputs(self) -> dict[str, Path]:
        """The inputs that are not there although the stage cannot do without."""
        return {name: path for name, path in self.inputs.items() if name not in self.optional and not path.exists()}

    def state(self) -> State:
        """Whether the stage is done, and if not, what is in the way."""
        # Done is what has a manifest whose key (stage name, parameters, input hashes) still matches. Changed code is
        # reported and never retrains anything by itself: a comment in a module is not worth hours of a GPU.
        for name in self.missing_inputs():
            return State("missing", f"waits for {maker_of(name)}")
        try:
            manifest = StageManifest.read(self.manifest_path)
        except ArtifactError:
            return State("missing", "its manifest is damaged" if self.manifest_path.exists() else "not run yet")
        if manifest.key != self.key:
            names = []
            for old, new in ((manifest.parameters, self.parameters), (manifest.inputs, self.input_hashes)):
                names += [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
            return State("changed", f"another {', '.join(names[:4])}" if names else "its key differs")
        # a cached hash costs a `stat`, so all of a finished mini is looked at in half a second
        for name, digest in manifest.outputs.items():
            path = self.paths.absolute(name)
            if not path.exists() or self._hashes(path) != digest:
                return State("damaged", f"{name} is missing or not what was written")
        day = manifest.started[:10]
        if manifest.code_sha256 != code_sha256(self.notebook):
            return State("stale code", f"made by older code on {day}")
        return State("done", f"{clock(manifest.seconds)} on {day}")

    def is_done(self) -> bool:
        """Whether the manifest exists, matches, and everything it lists is there."""
        return self.state().is_done

    def holder(self) -> str:
        """`host:process since time` of who works on it, empty when nobody does."""
        return self.copy_lock.holder() or self.lock.holder()

    # ---- doing it

    def begin(self) -> None:
        """Check the inputs, lock the folder, clear what another set of parameters left in it, start the clock.

        `ArtifactError` names a missing input and the command that makes it, an unwritable folder, or a process that
        works on the same stage. Half-finished work of the same key stays: the stage resumes from it.
        """
        for name, path in self.missing_inputs().items():
            needs = f"{self.title} needs {self.paths.shown(path)}, which"
            maker = maker_of(name)
            if maker is None:
                remedy = " Make it with `codeact mini build-base`." if name == "base_model" else ""
                raise ArtifactError(f"{needs} does not exist.{remedy}")
            command = f"codeact run {run_options(**self.call)} --only {maker[:2]}"
            raise ArtifactError(f"{needs} {maker} makes: run notebooks/{maker}.ipynb first, or `{command}`.")
        if self.sources:  # branches of the hub become commits: `profile` then names these, and the key holds them
            commits = resolve_commits(self.paths.artifacts / COMMITS_FILE, self.sources)
            self.profile = with_commits(self.profile, commits)
        self.look_again()
        for folder in (self.work_folder, self.paths.results):
            make_folder(folder)
        if not self.lock.acquire(PATIENCE_SECONDS):  # the kernel of a killed runner needs a second or two to leave
            holder = self.lock.holder() or "until a moment ago"
            raise ArtifactError(f"Another process is working on {self.title} ({holder}): wait for it, or stop it.")
        self.manifest_path.unlink(missing_ok=True)  # from here on the stage is not done, whatever happens
        marker = self.work_folder / ".stage.json"
        if marker.exists() and read_json(marker).get("key") != self.key:
            for path in self.work_folder.iterdir():  # or the stage would resume from another set of parameters
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_json(marker, {"stage": self.stage, "key": self.key})
        self._started = utc_now()
        self._clock = time.monotonic()
        self._beside = stages_at_work(self.paths.locks_dir)
        print(f"{self.title}: writes to {self.paths.shown(self.folder)}")

    def finish(self, outputs: Sequence[str | Path], facts: Mapping[str, Any] | None = None) -> None:
        """Record `outputs` (files or folders this stage wrote) and `facts` (seconds, counts), manifest last."""
        if not self._started:
            raise ArtifactError(f"{self.title}: finish() without begin(); run the notebook from its first cell.")
        paths = [Path(path) for path in outputs]
        for path in paths:
            if not path.exists():
                raise ArtifactError(f"{self.title} was to write {self.paths.shown(path)}, but it does not exist.")
        environment = environment_facts()
        beside = max(self._beside, stages_at_work(self.paths.locks_dir))
        manifest = StageManifest(
            stage=self.stage,
            key=self.key,
            parameters=self.parameters,
            inputs=self.input_hashes,
            outputs={self.paths.relative(path): self._hashes(path) for path in paths},
            facts={**(facts or {}), "concurrent_jobs": beside},
            versions={"python": environment["python"], **environment["packages"]},
            hardware={name: environment[name] for name in ("cpu", "cores", "gpu", "ram_gib", "platform")},
            code_sha256=code_sha256(self.notebook),
            started=self._started,
            seconds=round(time.monotonic() - self._clock, 3),
        )
        manifest.write(self.manifest_path)  # last: who finds it knows that all it lists is complete
        self.lock.release()  # after the manifest: whoever waited for the stage finds it done
        for line in self._saved_lines(paths):
            print(line)
        print(f"{self.title}: done in {clock(manifest.seconds)}")

    def _saved_lines(self, outputs: list[Path]) -> Iterator[str]:
        """A line for each output, or one for a folder in which many lie."""
        for folder in dict.fromkeys(path.parent for path in outputs):
            together = [path for path in outputs if path.parent == folder]
            if len(together) > MANY_FILES:
                yield f"saved {self.paths.shown(folder)}: {len(together)} files ({_size(*together)})"
                continue
            for path in together:
                yield f"saved {self.paths.shown(path)} ({_size(path)})"

    # ---- how its notebook is called

    def papermill_line(self) -> str:
        """The shell line that runs this notebook without the runner, from the project root."""
        words = ["papermill", self.paths.shown(self.notebook), self.paths.shown(self.executed_notebook)]
        for name, value in (self.call | self.identity).items():
            words += ["-p", name, str(value)]
        return shlex.join([*words, "-k", "python3", "--cwd", "notebooks", "--no-progress-bar"])


def open_stage(
    stage: str,
    profile: str = "mini",
    overrides: str | dict = "",
    artifacts_dir: str = "",
    results_dir: str = "",
    **identity: Any,
) -> StageTask:
    """The stage of one notebook, with everything it reads, writes and depends on. Nothing is written before `begin()`.

    Args:
        stage: one of `STAGES`.
        profile, overrides: see `load_profile`.
        artifacts_dir, results_dir: other folders than the profile's own.
        identity: `dataset` (01), `dataset, model` (02), `dataset, model, policy, ratio, seed` (03), `run_id` (04, 05),
            nothing (06).
    """
    if stage not in STAGES:
        raise ProfileError(f"No stage is called {stage!r}; the stages are {', '.join(STAGES)}.")
    return StageTask(Project(profile, overrides, artifacts_dir, results_dir), stage, identity)


def run_options(
    profile: str = "mini", overrides: str | dict = "", artifacts_dir: str = "", results_dir: str = ""
) -> str:
    """Notebook parameters as options of `codeact run`."""
    words = ["--profile", profile]
    # `--set` reads YAML: a text stands as it was typed, all else as JSON, which is YAML too
    for key, value in parse_overrides(overrides).items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    for option, folder in (("--artifacts-dir", artifacts_dir), ("--results-dir", results_dir)):
        if folder:
            words += [option, folder]
    return shlex.join(words)


def with_commits(profile: Profile, commits: Mapping[str, str]) -> Profile:
    """The profile with the commit in place of the branch, wherever it names a repository of the hub."""

    def pin(kind: str, spec: Any) -> Any:
        commit = commits.get(label((kind, spec.path, spec.revision)), spec.revision)
        return spec.model_copy(update={"revision": commit})

    changes: dict[str, Any] = {
        "datasets": [pin("dataset", spec) for spec in profile.datasets],
        "models": [pin("model", spec) for spec in profile.models],
    }
    if profile.scorer:
        changes["scorer"] = pin("model", profile.scorer)
    embedder = ("model", *split_revision(profile.embedding_model))
    if label(embedder) in commits:
        changes["embedding_model"] = f"{embedder[1]}@{commits[label(embedder)]}"
    return profile.model_copy(update=changes)


def _size(*paths: Path) -> str:
    total = 0
    for path in paths:
        total += sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if total >= unit:
            return f"{total / unit:.3g} {name}"
    return f"{total} B"
