"""One stage of the grid as notebooks use it: opened, begun, finished.

    stage = open_stage("02_ifd", profile=profile, dataset=dataset, model=model)
    stage.begin()                                         # inputs are there, and nobody else works on it
    ...                                                   # writes into stage.folder
    stage.finish(outputs=[...], facts={...})              # the manifest, last

A stage is done when its manifest is there and its key (stage name, parameters, input hashes) still matches. Changed
code is reported as stale and never retrains anything by itself.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codeact_lib.artifacts import PATIENCE_SECONDS, RunPaths, StageManifest, make_folder, read_json, utc_now, write_json
from codeact_lib.config import Profile, load_profile, parse_overrides
from codeact_lib.errors import ArtifactError, ProfileError
from codeact_lib.hub import label, split_revision
from codeact_lib.measure import environment_facts
from codeact_lib.pipeline.locks import COPY, FOLDER, Lock, stages_at_work
from codeact_lib.pipeline.stages import RULES, STAGES, Stage, maker_of
from codeact_lib.pipeline.state import Look, State, clock, code_sha256

MANY_FILES = 10  # of one folder: more are told as one line


@dataclass
class Session:
    """What `begin` starts and `finish` records: the lock, when, and how many stages were at work on this machine."""

    lock: Lock
    started: str
    clock: float
    beside: int


class StageTask(Stage):
    """One execution of one notebook. `profile`: its settings; `call`: the notebook parameters common to all stages."""

    def __init__(self, profile: Profile, call: dict[str, str], **stage: Any) -> None:
        super().__init__(**stage)
        self.profile = profile
        self.call = call
        self._look = Look(self)
        self._session: Session | None = None

    # ---- is it done

    @property
    def key(self) -> str:
        """sha256 of stage name, parameters and input hashes."""
        return self._look.key

    def state(self) -> State:
        """`(state, reason)`: done, stale code, missing, changed or damaged; the first two count as done."""
        return self._look.state()

    def is_done(self) -> bool:
        """Whether the manifest exists, matches, and everything it lists is there."""
        return self.state().is_done

    def look_again(self) -> None:
        """Forget the hashes seen so far: another process (a notebook) has written since."""
        self._look = Look(self)

    # ---- who works on it

    @property
    def lock(self) -> Lock:
        """Held by the process that works in the folder."""
        return Lock(self.paths.locks_dir / f"{self.name}{FOLDER}")

    @property
    def copy_lock(self) -> Lock:
        """Held by the runner that executes the notebook."""
        return Lock(self.paths.locks_dir / f"{self.name}{COPY}")

    def holder(self) -> str:
        """`host:process since time` of who works on it, empty when nobody does."""
        return self.copy_lock.holder() or self.lock.holder()

    # ---- doing it

    def begin(self) -> None:
        """Check the inputs, lock the folder, clear what another set of parameters left in it, start the clock.

        `ArtifactError` names a missing input and the command that makes it, an unwritable folder, or a process that
        works on the same stage. Half-finished work of the same key stays: the stage resumes from it.
        """
        self._require_inputs()
        if self.sources:  # branches of the hub become commits: `profile` then names these, and the key holds them
            self.profile = with_commits(self.profile, self._look.commits.resolve(self.sources))
        self.look_again()
        for folder in (self.work_folder, self.paths.results):
            make_folder(folder)
        lock = self.lock
        if not lock.acquire(PATIENCE_SECONDS):  # the kernel of a killed runner needs a second or two to leave
            holder = lock.holder() or "until a moment ago"
            raise ArtifactError(f"Another process is working on {self.title} ({holder}): wait for it, or stop it.")
        self.manifest_path.unlink(missing_ok=True)  # from here on the stage is not done, whatever happens
        marker = self.work_folder / ".stage.json"
        if marker.exists() and read_json(marker).get("key") != self.key:
            for path in self.work_folder.iterdir():  # or the stage would resume from another set of parameters
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_json(marker, {"stage": self.stage, "key": self.key})
        self._session = Session(lock, utc_now(), time.monotonic(), stages_at_work(self.paths.locks_dir))
        print(f"{self.title}: writes to {self.paths.shown(self.folder)}")

    def _require_inputs(self) -> None:
        for name, path in self.missing_inputs().items():
            maker = maker_of(name)
            where = self.paths.shown(path)
            if maker is None:
                remedy = " Make it with `codeact mini build-base`." if name == "base_model" else ""
                raise ArtifactError(f"{self.title} needs {where}, which does not exist.{remedy}")
            raise ArtifactError(
                f"{self.title} needs {where}, which {maker} makes: run notebooks/{maker}.ipynb first, "
                f"or `codeact run {run_options(self.call)} --only {maker[:2]}`."
            )

    def finish(self, outputs: Sequence[str | Path], facts: Mapping[str, Any] | None = None) -> None:
        """Record `outputs` (files or folders this stage wrote) and `facts` (seconds, counts), manifest last."""
        if self._session is None:
            raise ArtifactError(f"{self.title}: finish() without begin(); run the notebook from its first cell.")
        paths = [Path(path) for path in outputs]
        absent = [path for path in paths if not path.exists()]
        if absent:
            raise ArtifactError(f"{self.title} was to write {self.paths.shown(absent[0])}, but it does not exist.")
        environment = environment_facts()
        beside = max(self._session.beside, stages_at_work(self.paths.locks_dir))
        manifest = StageManifest(
            stage=self.stage,
            key=self.key,
            parameters=self.parameters,
            inputs=self._look.inputs,
            outputs={self.paths.relative(path): self._look.hash(path) for path in paths},
            facts={**(facts or {}), "concurrent_jobs": beside},
            versions={"python": environment["python"], **environment["packages"]},
            hardware={name: environment[name] for name in ("cpu", "cores", "gpu", "ram_gib", "platform")},
            code_sha256=code_sha256(self.notebook),
            started=self._session.started,
            seconds=round(time.monotonic() - self._session.clock, 3),
        )
        manifest.write(self.manifest_path)  # last: who finds it knows that all it lists is complete
        self._session.lock.release()
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

    @property
    def notebook_parameters(self) -> dict[str, Any]:
        """What papermill injects: the common parameters that differ from the defaults, then the identity."""
        return {**self.call, **self.identity}

    def papermill_line(self) -> str:
        """The shell line that runs this notebook without the runner, from the project root."""
        words = ["papermill", self.paths.shown(self.notebook), self.paths.shown(self.executed_notebook)]
        for name, value in self.notebook_parameters.items():
            words += ["-p", name, str(value)]
        return shlex.join([*words, "-k", "python3", "--cwd", "notebooks", "--no-progress-bar"])


def open_stage(
    stage: str,
    *,
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
    loaded = load_profile(profile, overrides)
    paths = RunPaths(loaded.name, artifacts_dir or None, results_dir or None)
    call = {"profile": str(profile)}
    if overrides:
        call["overrides"] = json.dumps(overrides) if isinstance(overrides, dict) else str(overrides)
    for name, folder in (("artifacts_dir", artifacts_dir), ("results_dir", results_dir)):
        if folder:
            call[name] = str(folder)
    rule = RULES[stage](loaded, paths, **identity)
    return StageTask(loaded, call, stage=stage, paths=paths, identity=identity, **vars(rule))


def run_options(call: Mapping[str, str]) -> str:
    """Notebook parameters as options of `codeact run`."""
    words = ["--profile", call.get("profile", "mini")]
    for key, value in parse_overrides(call.get("overrides")).items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    for name in ("artifacts_dir", "results_dir"):
        if name in call:
            words += [f"--{name.replace('_', '-')}", call[name]]
    return shlex.join(words)


def with_commits(profile: Profile, commits: Mapping[str, str]) -> Profile:
    """The profile with the commit in place of the branch, wherever it names a repository of the hub."""

    def pin(kind: str, spec: Any) -> Any:
        commit = commits.get(label((kind, spec.path, spec.revision)))
        return spec.model_copy(update={"revision": commit}) if commit else spec

    changes: dict[str, Any] = {
        "datasets": [pin("dataset", spec) for spec in profile.datasets],
        "models": [pin("model", spec) for spec in profile.models],
    }
    if profile.scorer:
        changes["scorer"] = pin("model", profile.scorer)
    name, revision = split_revision(profile.embedding_model)
    if commit := commits.get(label(("model", name, revision))):
        changes["embedding_model"] = f"{name}@{commit}"
    return profile.model_copy(update=changes)


def _size(*paths: Path) -> str:
    total = 0
    for path in paths:
        total += sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if total >= unit:
            return f"{total / unit:.3g} {name}"
    return f"{total} B"
