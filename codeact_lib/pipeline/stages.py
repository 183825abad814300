"""The six stages: what each reads, writes and depends on, and when it is done.

A notebook says ``stage = open_stage("02_ifd", profile=profile, ..., dataset=dataset, model=model)``, then
``stage.begin()``, does its work, and ends with ``stage.finish(outputs=[...], facts={...})``. A stage is done when the
manifest that ``finish`` writes last exists and its key (stage name, resolved parameters, input hashes) still matches.
Changed code is reported as stale and never retrains anything by itself.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from codeact_lib.artifacts import (
    PACKAGE_DIR,
    HashCache,
    RunPaths,
    StageManifest,
    make_folder,
    read_json,
    sha256_file,
    sha256_json,
    stage_key,
    utc_now,
    write_json,
)
from codeact_lib.config import (
    MINI_MODEL,
    Profile,
    Run,
    is_hub_id,
    is_seeded,
    load_profile,
    parse_overrides,
)
from codeact_lib.errors import ArtifactError, ProfileError
from codeact_lib.extensions import own_files
from codeact_lib.hub import COMMITS_FILE, Commits, label, split_revision
from codeact_lib.measure import environment_facts
from codeact_lib.pipeline.claims import Claims, was_taken_over, works_under_a_claim

STAGES = ("01_cluster", "02_ifd", "03_sample", "04_train_dynamic_pack", "05_eval", "06_tables")

# The profile keys that can change a stage's result. Keys left out change its speed only (batch sizes of scoring and
# generation, threads, how often a checkpoint is written), so turning them repeats nothing.
KEYS = {
    "01_cluster": ("invalid_rows", "n_rows_limit", "embedding_model", "n_clusters", "cluster_random_state"),
    "02_ifd": ("preset", "max_length", "ifd_dtype"),
    "03_sample": ("preset",),
    "04_train_dynamic_pack": (
        *("preset", "tuning", "max_length", "num_train_epochs", "per_device_train_batch_size"),
        *("gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay"),
        *("max_grad_norm", "bf16", "fp16", "gradient_checkpointing", "attn_implementation", "isolate", "logging_steps"),
        *("packing_scope", "overlong", "training_arguments"),
    ),
    "05_eval": ("benchmarks", "benchmark_limit", "protocol", "max_new_tokens", "min_time_limit"),
}
LORA_KEYS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
MANY_FILES = 10  # of one folder: more are told as one line
# Which stage makes an input: the first thing a user needs to know when it is missing.
MAKER = {
    "examples": "01_cluster",
    "clusters": "01_cluster",
    "ifd": "02_ifd",
    "train_jsonl": "03_sample",
    "model": "04_train_dynamic_pack",
    "train_metrics": "04_train_dynamic_pack",
    "metrics": "05_eval",
}

# ---------------------------------------------------------------------------------------------- what a stage is


@dataclass
class StageTask:
    """One execution of one notebook: its identity (which data set, model, run), inputs, parameters and folder."""

    stage: str
    profile: Profile
    paths: RunPaths
    identity: dict  # the notebook parameters that say which one, e.g. {"dataset": "mini-evol"}
    folder: Path  # where manifest.json goes
    inputs: dict  # {name: Path}
    parameters: dict  # enters the key
    run: Run | None = None
    optional: frozenset = frozenset()  # inputs that may be absent: their absence enters the key
    sources: tuple = ()  # repositories of the hub it loads: (kind, name, revision)
    call: dict = field(default_factory=dict)  # the notebook parameters common to all stages
    _key: str | None = None
    _input_hashes: dict = field(default_factory=dict)
    _began: tuple | None = None
    _beside: int = 1  # jobs at work on this machine, this one included, when it began
    _hashes: HashCache | None = None

    @property
    def title(self):
        """``04_train_dynamic_pack mini-base__mini-evol__cdas-0.4__dynamic-pack``: how people are told about it."""
        return " ".join([self.stage, *(["/".join(self._label_parts())] if self.identity else [])])

    @property
    def notebook(self):
        return self.paths.root / "notebooks" / f"{self.stage}.ipynb"

    @property
    def name(self):
        """What its executed notebook and its claim are called."""
        return "__".join([self.stage, *self._label_parts()])

    @property
    def executed_notebook(self):
        return self.paths.notebooks_dir / f"{self.name}.ipynb"

    @property
    def claims(self):
        """Who works on what in the artifacts folder of this stage."""
        return Claims(self.paths.claims_dir)

    @property
    def makes(self):
        """Files and folders that later stages read."""
        if self.stage == "01_cluster":
            return [self.folder, self.paths.data_dir(self.identity["dataset"])]
        return [self.folder, *([self.paths.metrics(self.run.run_id)] if self.run and self.stage == "05_eval" else [])]

    @property
    def manifest_path(self):
        return self.folder / "manifest.json"

    @property
    def work_folder(self):
        """Where the lock and the marker of half-finished work lie: never among the kept results."""
        return self.paths.artifacts / "tables" if self.stage == "06_tables" else self.folder

    @property
    def notebook_parameters(self):
        """What papermill injects: the common parameters that differ from the defaults, then the identity."""
        return {**self.call, **self.identity}

    def _label_parts(self):
        if self.stage == "03_sample":
            return [self.identity["dataset"], self.identity["model"], self.folder.name]
        return [str(value) for value in self.identity.values()]

    def missing_inputs(self):
        return {n: path for n, path in self.inputs.items() if n not in self.optional and not path.exists()}

    def state(self):
        """``(state, reason)``: done, stale code, missing, changed or damaged; the first two count as done."""
        missing = self.missing_inputs()
        if missing:
            return "missing", f"waits for {maker_of(next(iter(missing)))}"
        try:
            manifest = StageManifest.read(self.manifest_path)
        except ArtifactError:
            return "missing", "not run yet" if not self.manifest_path.exists() else "its manifest is damaged"
        if manifest.key != self.key:
            return "changed", self._what_changed(manifest)
        damaged = [name for name, digest in manifest.outputs.items() if not self._output_is(name, digest)]
        if damaged:
            return "damaged", f"{damaged[0]} is missing or not what was written"
        if manifest.code_sha256 != code_sha256(self.notebook):
            return "stale code", f"made by older code on {manifest.started[:10]}"
        return "done", f"{clock(manifest.seconds)} on {manifest.started[:10]}"

    def look_again(self):
        """Forget the hashes seen so far: another process (a notebook) has written since."""
        self._key = self._hashes = None

    def is_done(self):
        """Whether the manifest exists, matches, and everything it lists is there."""
        return self.state()[0] in ("done", "stale code")

    @property
    def key(self):
        """sha256 of stage name, parameters and input hashes."""
        if self._key is None:
            present = {name: path for name, path in self.inputs.items() if path.exists() or name not in self.optional}
            self._input_hashes = {name: self._hash(path) for name, path in present.items()}
            self._input_hashes |= self.commits.known(self.sources)
            self._hashes_saved()
            self._key = stage_key(self.stage, self.parameters, self._input_hashes)
        return self._key

    @property
    def commits(self):
        """Which commits the hub's branches meant when this run first loaded them."""
        return Commits(self.paths.artifacts / COMMITS_FILE)

    def _resolve_sources(self):
        """Turn branches of the hub into commits: `profile` then names these, and the key holds them."""
        if self.sources:
            self.profile = _with_commits(self.profile, self.commits.resolve(self.sources))
            self._key = None

    def _output_is(self, name, digest):
        path = self.paths.absolute(name)
        same = path.exists() and self._hash(path) == digest
        self._hashes_saved()
        return same

    def _hash(self, path):
        self._hashes = self._hashes or self.paths.hash_cache
        return self._hashes(path)

    def _hashes_saved(self):
        if self._hashes:
            self._hashes.save()

    def _what_changed(self, manifest):
        names = [
            name
            for old, new in ((manifest.parameters, self.parameters), (manifest.inputs, self._input_hashes))
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
        return f"another {', '.join(names[:4])}" if names else "its key differs"

    def begin(self):
        """Check the inputs, claim the folder, clear what another set of parameters left in it, start the clock.

        ``ArtifactError`` names a missing input and the command that makes it, an unwritable folder, or a process that
        works on the same stage. Half-finished work of the same key stays: the stage resumes from it.
        """
        self._require_inputs()
        self._resolve_sources()
        for folder in (self.work_folder, self.paths.results):
            make_folder(folder)
        self._claim()
        self._lock()
        self._beside = self.claims.working_here()
        self.manifest_path.unlink(missing_ok=True)
        marker = self.work_folder / ".stage.json"
        if marker.exists() and read_json(marker).get("key") != self.key:
            _empty(self.work_folder)
        write_json(marker, {"stage": self.stage, "key": self.key})
        self._began = utc_now(), time.monotonic()
        print(f"{self.title}: writes to {self._shown(self.folder)}")

    def _claim(self):
        """Make sure that the stage is claimed: by the runner that started this notebook, else by this process."""
        if works_under_a_claim(self.name) or self.work_folder in _own_claims:
            return
        claim = self.claims.take(self.name).__enter__()
        if claim is None:
            holder = self.claims.holder(self.name)
            raise ArtifactError(f"Another process is working on {self.title} ({holder}): wait for it, or stop it.")
        _own_claims[self.work_folder] = claim

    def _lock(self):
        """Wait for a kernel that has lost its runner, and is about to notice, to leave the folder."""
        if not _lock(self.work_folder):
            self._release()
            raise ArtifactError(f"Another process is working on {self.title}: wait for it, or stop it.")

    def _require_claim(self):
        """A process that was asleep for minutes must not write over what another one has done in its place."""
        own = _own_claims.get(self.work_folder)
        path = own.path if own else works_under_a_claim(self.name)
        if path and was_taken_over(path):
            raise ArtifactError(
                f"{self.title} was taken over by {self.claims.holder(self.name)}: nothing was recorded."
            )

    def _release(self):
        for held in (_locks.pop(self.work_folder, None), _own_claims.pop(self.work_folder, None)):
            if held:
                held.close()

    def _require_inputs(self):
        for name, path in self.missing_inputs().items():
            maker = maker_of(name)
            where = self._shown(path)
            if maker is None:
                remedy = " Make it with `codeact mini build-base`." if name == "base_model" else ""
                raise ArtifactError(f"{self.title} needs {where}, which does not exist.{remedy}")
            raise ArtifactError(
                f"{self.title} needs {where}, which {maker} makes: run notebooks/{maker}.ipynb first, "
                f"or `codeact run {run_options(self.call)} --only {maker[:2]}`."
            )

    def finish(self, outputs, facts=None):
        """Record ``outputs`` (files or folders this stage wrote) and ``facts`` (seconds, counts), manifest last."""
        if self._began is None:
            raise ArtifactError(f"{self.title}: finish() without begin(); run the notebook from its first cell.")
        self._require_claim()
        outputs = [Path(path) for path in outputs]
        absent = [path for path in outputs if not path.exists()]
        if absent:
            raise ArtifactError(f"{self.title} was to write {self._shown(absent[0])}, but it does not exist.")
        environment = environment_facts()
        manifest = StageManifest(
            stage=self.stage,
            key=self.key,
            parameters=self.parameters,
            inputs=self._input_hashes,
            outputs={self.paths.relative(path): self._hash(path) for path in outputs},
            facts={**(facts or {}), "concurrent_jobs": max(self._beside, self.claims.working_here())},
            versions={"python": environment["python"], **environment["packages"]},
            hardware={name: environment[name] for name in ("cpu", "cores", "gpu", "ram_gib", "platform")},
            code_sha256=code_sha256(self.notebook),
            started=self._began[0],
            seconds=round(time.monotonic() - self._began[1], 3),
        )
        self._hashes_saved()
        manifest.write(self.manifest_path)
        self._release()
        print(*self._saved_lines(outputs), sep="\n")
        print(f"{self.title}: done in {clock(manifest.seconds)}")

    def _saved_lines(self, outputs):
        """A line for each output, or one for a folder in which many lie."""
        for folder in dict.fromkeys(path.parent for path in outputs):
            together = [path for path in outputs if path.parent == folder]
            if len(together) > MANY_FILES:
                yield f"saved {self._shown(folder)}: {len(together)} files ({_size(*together)})"
            else:
                yield from (f"saved {self._shown(path)} ({_size(path)})" for path in together)

    def _shown(self, path):
        return short_path(path, self.paths.root)

    def papermill_line(self):
        """The shell line that runs this notebook without the runner, from the project root."""
        words = [
            "papermill",
            short_path(self.notebook, self.paths.root),
            short_path(self.executed_notebook, self.paths.root),
        ]
        for name, value in self.notebook_parameters.items():
            words += ["-p", name, str(value)]
        return shlex.join([*words, "-k", "python3", "--cwd", "notebooks", "--no-progress-bar"])


def open_stage(stage, *, profile="mini", overrides="", artifacts_dir="", results_dir="", **identity):
    """The stage of one notebook, with everything it reads, writes and depends on.

    ``stage``: one of ``STAGES``. ``identity``: ``dataset`` (01), ``dataset, model`` (02), ``dataset, model, policy,
    ratio, seed`` (03), ``run_id`` (04, 05), nothing (06). Nothing is written before ``begin()``.
    """
    if stage not in STAGES:
        raise ProfileError(f"No stage is called {stage!r}; the stages are {', '.join(STAGES)}.")
    loaded = load_profile(profile, overrides)
    paths = RunPaths(loaded.name, artifacts_dir or None, results_dir or None)
    places = _PLACES[stage](loaded, paths, **identity)
    sources = _hub_sources(stage, loaded, places.get("run"), **identity)
    common = {
        "profile": str(profile),
        "overrides": overrides,
        "artifacts_dir": artifacts_dir,
        "results_dir": results_dir,
    }
    call = {name: _plain(value) for name, value in common.items() if value}
    return StageTask(stage=stage, profile=loaded, paths=paths, identity=identity, call=call, sources=sources, **places)


def _plain(value):
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _pick(profile, stage):
    return {key: _without_folders(getattr(profile, key)) for key in KEYS[stage]}


def _cluster(profile, paths, *, dataset):
    spec = profile.dataset(dataset)
    columns = {"instruction_column": spec.instruction_column, "response_column": spec.response_column}
    optional = {"input_column": spec.input_column, "messages_column": spec.messages_column}
    columns |= {name: column for name, column in optional.items() if column}
    return {
        "folder": paths.cluster_dir(dataset),
        "inputs": _local_input("instructions", spec.path) | _local_input("embedding_model", profile.embedding_model),
        "parameters": {
            "dataset": dataset,
            **_source(spec),
            **columns,
            **_pick(profile, "01_cluster"),
        },
    }


def _ifd(profile, paths, *, dataset, model):
    spec = profile.model(model)
    profile.dataset(dataset)
    return {
        "folder": paths.ifd_dir(dataset, model),
        "inputs": {"examples": paths.examples(dataset), **_base_model(spec), **_scorer_input(profile.scorer)}
        | own_files(spec.template),
        "parameters": {
            "dataset": dataset,
            "model": model,
            **_source(spec),
            "template": spec.template,
            **_pick(profile, "02_ifd"),
            **_four_bits(profile),
            **({"scorer": _without_folders(profile.scorer.model_dump())} if profile.scorer else {}),
        },
    }


def _four_bits(profile):
    """Where an adapter is trained on a base in 4 bits, that base is what is scored and what it is compared with."""
    return {"four_bits": True} if profile.tuning == "qlora" else {}


def _sample(profile, paths, *, dataset, model, policy, ratio, seed):
    profile.dataset(dataset)
    profile.model(model)
    selection = {"policy": policy, "ratio": ratio, "seed": seed if is_seeded(policy) else None}
    return {
        "folder": paths.selection_dir(dataset, model, profile.selection(policy, ratio, seed)),
        "inputs": {
            "examples": paths.examples(dataset),
            "clusters": paths.cluster_dir(dataset) / "clusters.parquet",
            "ifd": paths.ifd_dir(dataset, model) / "ifd.parquet",
            **own_files(policy),
        },
        "parameters": {"dataset": dataset, "model": model, **selection, **_pick(profile, "03_sample")},
    }


def _train(profile, paths, *, run_id):
    run = profile.run(run_id)
    if run.is_base:
        raise ProfileError(
            f"{run_id} is an untouched base model: there is nothing to train, 05_eval scores it as it is."
        )
    spec = profile.model(run.model)
    lora = {key: getattr(profile, key) for key in LORA_KEYS} if profile.tuning != "full" else {}
    selection = paths.selection_dir(run.dataset, run.model, run.selection)
    return {
        "run": run,
        "folder": paths.train_dir(run_id),
        "inputs": {"train_jsonl": selection / "train.jsonl", **_base_model(spec)}
        | own_files(run.strategy, spec.template),
        "parameters": {
            "run_id": run_id,
            **_source(spec),
            "template": spec.template,
            "strategy": run.strategy,
            "seed": run.seed,
            **_pick(profile, "04_train_dynamic_pack"),
            **lora,
        },
    }


def _eval(profile, paths, *, run_id):
    run = profile.run(run_id)
    spec = profile.model(run.model)
    trained = {
        "model": paths.train_dir(run_id) / "model",
        "train_metrics": paths.train_dir(run_id) / "train_metrics.json",
    }
    benchmarks = {f"benchmark {Path(b).stem}": Path(b) for b in profile.benchmarks if Path(b).is_absolute()}
    labels = [profile.dataset(run.dataset), spec] if run.dataset else [spec]
    return {
        "run": run,
        "folder": paths.eval_dir(run_id),
        # An adapter is judged on top of its base model, so that one counts too.
        "inputs": {**(_base_model(spec) if run.is_base or profile.tuning != "full" else {})}
        | ({} if run.is_base else trained)
        | benchmarks
        | own_files(spec.template),
        "parameters": {
            "run_id": run_id,
            **_source(spec),
            "template": spec.template,
            "labels": [[s.label, s.reported_as] for s in labels],  # they are printed in the metrics
            **_pick(profile, "05_eval"),
            **(_four_bits(profile) if run.is_base else {}),
        },
    }


def _tables(profile, paths):
    runs = profile.runs()
    reported = sorted((paths.root / "results" / "reported").glob("*.csv"))
    metrics = {f"metrics {run.run_id}": paths.metrics(run.run_id) for run in runs}
    return {
        "folder": paths.results,
        "inputs": metrics | {f"reported {path.stem}": path for path in reported},
        "optional": frozenset(metrics),  # a run without a record is "not run" in the tables
        # The report prints the whole profile, and making it again takes seconds.
        "parameters": {"runs": [run.run_id for run in runs], "profile": _without_folders(profile.model_dump())},
    }


_PLACES: dict[str, Callable[..., dict]] = dict(
    zip(STAGES, (_cluster, _ifd, _sample, _train, _eval, _tables), strict=True)
)


def _without_folders(value):
    """Local files by name only: the same profile means the same in another clone."""
    if isinstance(value, dict):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_folders(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _source(spec):
    """What identifies a data set or model that is no local file (a local one is identified by its content)."""
    return {} if Path(spec.path).is_absolute() else {"path": spec.path, "revision": spec.revision}


def _local_input(name, path):
    return {name: Path(path)} if Path(path).is_absolute() else {}


def _base_model(spec):
    if spec.path == MINI_MODEL:
        from codeact_lib.mini import base_model_dir

        return {"base_model": Path(base_model_dir())}
    return _local_input("base_model", spec.path)


def _hub_sources(stage, profile, run, *, dataset=None, model=None, **_):
    """The repositories of the hub that a stage loads, as (kind, name, revision)."""
    found = []
    if stage == "01_cluster":
        spec = profile.dataset(dataset)
        found = [("dataset", spec.path, spec.revision), ("model", *split_revision(profile.embedding_model))]
    elif stage in ("02_ifd", "04_train_dynamic_pack", "05_eval"):
        specs = [profile.model(run.model if run else model), *([profile.scorer] if stage == "02_ifd" else [])]
        found = [("model", spec.path, spec.revision) for spec in specs if spec]
    return tuple(dict.fromkeys(source for source in found if is_hub_id(source[1])))


def _with_commits(profile, commits):
    """The profile with the commit in place of the branch, wherever it names a repository of the hub."""

    def pin(kind, spec):
        commit = commits.get(label((kind, spec.path, spec.revision)))
        return spec.model_copy(update={"revision": commit}) if commit else spec

    name, revision = split_revision(profile.embedding_model)
    commit = commits.get(label(("model", name, revision)))
    changes = {
        "datasets": [pin("dataset", spec) for spec in profile.datasets],
        "models": [pin("model", spec) for spec in profile.models],
        "scorer": profile.scorer and pin("model", profile.scorer),
        "embedding_model": f"{name}@{commit}" if commit else profile.embedding_model,
    }
    return profile.model_copy(update=changes)


def _scorer_input(spec):
    return {f"scorer {name}": path for name, path in (_base_model(spec) if spec else {}).items()}


def maker_of(name):
    return MAKER.get(name.split()[0])


def code_sha256(notebook):
    """Hash of the code a notebook runs: its code cells and every module of the package it names, directly or not.

    Outputs, Markdown and the plumbing (this module, pipeline, claims, artifacts, config) change no number and do not
    count.
    """
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"] if Path(notebook).exists() else []
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    seen, queue = {}, set().union(*map(_named_modules, sources))
    while queue:
        path = queue.pop()
        if path not in seen:
            seen[path], imports = _read_module(path, path.stat().st_mtime_ns)
            queue |= imports
    modules = {path.relative_to(PACKAGE_DIR).as_posix(): digest for path, digest in seen.items()}
    return sha256_json({"notebook": sources, "modules": modules})


@lru_cache(maxsize=256)
def _read_module(path, mtime_ns):
    return sha256_file(path), _named_modules(path.read_text(encoding="utf-8"))


def _named_modules(source):
    """Files of the ``codeact_lib`` modules that ``source`` imports or starts with ``python -m``."""
    names = re.findall(r"codeact_lib(?:\.\w+)+", source)
    names += [f"codeact_lib.{name}" for name in re.findall(r"from \.(\w+) import", source)]
    for package, imported in re.findall(r"from (codeact_lib[\w.]*) import \(?([\w, \n]+)", source):
        names += [f"{package}.{name}" for name in re.split(r"[,\s]+", imported)]
    return {path for name in names for path in _module_files(name)}


def _module_files(name):
    parts = name.split(".")[1:]
    if not parts or parts[0] in ("pipeline", "artifacts", "config", "errors", "cli", "processes"):
        return []
    path = PACKAGE_DIR / parts[0]  # a sub-package counts as a whole
    if path.is_dir():
        return sorted(path.rglob("*.py"))
    return [path.with_suffix(".py")] if path.with_suffix(".py").exists() else []


# ---------------------------------------------------------------------------------------------- one writer per folder

# A claim (claims.py) says who may work on a stage. The lock is for the kernel of a runner that was killed: it needs a
# second or two to notice, and somebody may have taken the stage over by then.
PATIENCE_SECONDS = 20.0
_locks, _own_claims = {}, {}  # by the folder of the stage


def _lock(folder):
    """Hold the folder until this process ends, however it ends; False when another one has it all the time."""
    try:
        import fcntl
    except ImportError:
        return True  # no such locks on this platform
    if folder in _locks:
        return True
    file = open(folder / ".lock", "w")  # noqa: SIM115 - held open on purpose
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                return False
            time.sleep(0.5)
            continue
        except OSError:
            file.close()
            return True  # nor on this file system
        _locks[folder] = file
        return True


def _empty(folder):
    """Remove what a run with other parameters left behind, so that nothing resumes from it."""
    for path in folder.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# ---------------------------------------------------------------------------------------------- small words


def clock(seconds):
    """``45 s``, ``2:05 min``, ``3:07 h``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d} h"


def _size(*paths):
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    total = sum(file.stat().st_size for file in files)
    unit, name = next(((u, n) for u, n in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")) if total >= u), (1, "B"))
    return f"{total / unit:.3g} {name}"


def short_path(path, root):
    """A path as typed from the project root."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def run_options(call):
    """Notebook parameters as options of ``codeact run``."""
    words = ["--profile", call.get("profile", "mini")]
    for key, value in parse_overrides(call.get("overrides")).items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    for name in ("artifacts_dir", "results_dir"):
        words += [f"--{name.replace('_', '-')}", call[name]] if name in call else []
    return shlex.join(words)
