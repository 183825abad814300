"""The six stages as rules: where each writes (folder), what it reads (inputs), and what it depends on (parameters).

A rule takes a profile and the names that tell one execution from another (`dataset`, `model`, `run_id`). Inputs and
parameters make the key of a stage: a change in either makes the stage again, and what reads from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codeact_lib.artifacts import MINI_BASE_DIR, RunPaths
from codeact_lib.config import MINI_MODEL, DatasetSpec, ModelSpec, Profile, Run, ScorerSpec, is_hub_id, is_seeded
from codeact_lib.errors import ProfileError
from codeact_lib.extensions import own_files
from codeact_lib.hub import Source, split_revision

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


@dataclass(frozen=True, eq=False, kw_only=True)
class Rule:
    """What one stage reads, depends on and writes.

    Attributes:
        folder: where its results and `manifest.json` go.
        inputs: files and folders by name; their hashes enter the key.
        parameters: plain values; they enter the key.
        run: of 04 and 05, the run that is trained or evaluated.
        optional: inputs that may be absent; their absence enters the key too.
        sources: repositories of the hub it loads; the commits they are resolved to enter the key.
    """

    folder: Path
    inputs: dict[str, Path]
    parameters: dict[str, Any]
    run: Run | None = None
    optional: frozenset[str] = frozenset()
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Stage(Rule):
    """A rule under its name and in its place. `identity`: the notebook parameters that say which execution it is."""

    stage: str
    paths: RunPaths
    identity: dict[str, Any]

    @property
    def title(self) -> str:
        """`04_train_dynamic_pack mini-base__mini-evol__cdas-0.4__dynamic-pack`: how people are told about it."""
        return " ".join([self.stage, "/".join(self._label_parts())]).strip()

    @property
    def name(self) -> str:
        """What its executed notebook and its locks are called."""
        return "__".join([self.stage, *self._label_parts()])

    def _label_parts(self) -> list[str]:
        if self.stage == "03_sample":
            return [self.identity["dataset"], self.identity["model"], self.folder.name]
        return [str(value) for value in self.identity.values()]

    @property
    def notebook(self) -> Path:
        return self.paths.root / "notebooks" / f"{self.stage}.ipynb"

    @property
    def executed_notebook(self) -> Path:
        return self.paths.notebooks_dir / f"{self.name}.ipynb"

    @property
    def manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def work_folder(self) -> Path:
        """Where half-finished work and its marker lie: never among the kept results."""
        return self.paths.artifacts / "tables" if self.stage == "06_tables" else self.folder

    @property
    def makes(self) -> list[Path]:
        """Files and folders that later stages read."""
        if self.stage == "01_cluster":
            return [self.folder, self.paths.data_dir(self.identity["dataset"])]
        if self.stage == "05_eval":
            return [self.folder, self.paths.metrics(self.identity["run_id"])]
        return [self.folder]

    def missing_inputs(self) -> dict[str, Path]:
        return {name: path for name, path in self.inputs.items() if name not in self.optional and not path.exists()}


def maker_of(name: str) -> str | None:
    """The stage that makes an input; None for what comes from outside."""
    return MAKER.get(name.split()[0])


# ---- the six rules ---------------------------------------------------------------------------------------------------


def cluster(profile: Profile, paths: RunPaths, *, dataset: str) -> Rule:
    """01 reads the instruction set and the embedding model where these are files."""
    spec = profile.dataset(dataset)
    columns = {"instruction_column": spec.instruction_column, "response_column": spec.response_column}
    # only where they are named: a set of two columns keeps the key it had before others were read
    for name in ("input_column", "messages_column"):
        if column := getattr(spec, name):
            columns[name] = column
    return Rule(
        folder=paths.cluster_dir(dataset),
        inputs=_local("instructions", spec.path) | _local("embedding_model", profile.embedding_model),
        parameters={"dataset": dataset, **_identified(spec), **columns, **_picked(profile, "01_cluster")},
        sources=_from_hub(("dataset", spec.path, spec.revision), ("model", *split_revision(profile.embedding_model))),
    )


def ifd(profile: Profile, paths: RunPaths, *, dataset: str, model: str) -> Rule:
    """02 reads the examples of 01 and the models that score them."""
    spec, scorer = profile.model(model), profile.scorer
    profile.dataset(dataset)
    inputs = {"examples": paths.examples(dataset), **_base_model(spec)}
    sources: list[Source] = [("model", spec.path, spec.revision)]
    parameters = {"dataset": dataset, "model": model, **_identified(spec), "template": spec.template}
    parameters |= _picked(profile, "02_ifd") | _four_bits(profile)
    if scorer:
        inputs |= {f"scorer {name}": path for name, path in _base_model(scorer).items()}
        sources += [("model", scorer.path, scorer.revision)]
        parameters["scorer"] = portable(scorer.model_dump())
    return Rule(
        folder=paths.ifd_dir(dataset, model),
        inputs=inputs | own_files(spec.template),
        parameters=parameters,
        sources=_from_hub(*sources),
    )


def sample(
    profile: Profile, paths: RunPaths, *, dataset: str, model: str, policy: str, ratio: float, seed: int
) -> Rule:
    """03 reads the clusters of 01 and the scores of 02."""
    profile.dataset(dataset)
    profile.model(model)
    # one selection serves all seeds where the policy draws no lots
    selection = {"policy": policy, "ratio": ratio, "seed": seed if is_seeded(policy) else None}
    return Rule(
        folder=paths.selection_dir(dataset, model, profile.selection(policy, ratio, seed)),
        inputs={
            "examples": paths.examples(dataset),
            "clusters": paths.cluster_dir(dataset) / "clusters.parquet",
            "ifd": paths.ifd_dir(dataset, model) / "ifd.parquet",
            **own_files(policy),
        },
        parameters={"dataset": dataset, "model": model, **selection, **_picked(profile, "03_sample")},
    )


def train(profile: Profile, paths: RunPaths, *, run_id: str) -> Rule:
    """04 reads the rows chosen by 03 and the base model."""
    run = profile.run(run_id)
    if run.dataset is None or run.selection is None:
        raise ProfileError(
            f"{run_id} is an untouched base model: there is nothing to train, 05_eval scores it as it is."
        )
    spec = profile.model(run.model)
    selection = paths.selection_dir(run.dataset, run.model, run.selection)
    parameters = {"run_id": run_id, **_identified(spec), "template": spec.template}
    parameters |= {"strategy": run.strategy, "seed": run.seed, **_picked(profile, "04_train_dynamic_pack")}
    if profile.tuning != "full":
        parameters |= {key: getattr(profile, key) for key in LORA_KEYS}
    return Rule(
        run=run,
        folder=paths.train_dir(run_id),
        inputs={
            "train_jsonl": selection / "train.jsonl",
            **_base_model(spec),
            **own_files(run.strategy, spec.template),
        },
        parameters=parameters,
        sources=_from_hub(("model", spec.path, spec.revision)),
    )


def evaluate(profile: Profile, paths: RunPaths, *, run_id: str) -> Rule:
    """05 reads the model of 04, or an untouched base model."""
    run = profile.run(run_id)
    spec = profile.model(run.model)
    labels = [[spec.label, spec.reported_as]]  # they are printed in the metrics
    if run.dataset is not None:
        dataset = profile.dataset(run.dataset)
        labels.insert(0, [dataset.label, dataset.reported_as])
    inputs: dict[str, Path] = {}
    if run.is_base or profile.tuning != "full":  # an adapter is judged on top of its base model, so that one counts
        inputs |= _base_model(spec)
    if not run.is_base:
        inputs["model"] = paths.train_dir(run_id) / "model"
        inputs["train_metrics"] = paths.train_dir(run_id) / "train_metrics.json"
    for benchmark in map(Path, profile.benchmarks):
        inputs |= _local(f"benchmark {benchmark.stem}", str(benchmark))
    parameters = {"run_id": run_id, **_identified(spec), "template": spec.template, "labels": labels}
    parameters |= _picked(profile, "05_eval")
    if run.is_base:
        parameters |= _four_bits(profile)
    return Rule(
        run=run,
        folder=paths.eval_dir(run_id),
        inputs=inputs | own_files(spec.template),
        parameters=parameters,
        sources=_from_hub(("model", spec.path, spec.revision)),
    )


def tables(profile: Profile, paths: RunPaths) -> Rule:
    """06 reads the metrics of all runs and the reported numbers."""
    run_ids = [run.run_id for run in profile.runs()]
    reported = sorted((paths.root / "results" / "reported").glob("*.csv"))
    metrics = {f"metrics {run_id}": paths.metrics(run_id) for run_id in run_ids}
    return Rule(
        folder=paths.results,
        inputs=metrics | {f"reported {path.stem}": path for path in reported},
        optional=frozenset(metrics),  # a run without a record is "not run" in the tables
        # the report prints the whole profile, and making it again takes seconds
        parameters={"runs": run_ids, "profile": portable(profile.model_dump())},
    )


RULES: dict[str, Callable[..., Rule]] = dict(zip(STAGES, (cluster, ifd, sample, train, evaluate, tables), strict=True))

# ---- what the rules have in common -----------------------------------------------------------------------------------


def _picked(profile: Profile, stage: str) -> dict[str, Any]:
    return {key: portable(getattr(profile, key)) for key in KEYS[stage]}


def portable(value: Any) -> Any:
    """Local files by name only: the same profile means the same in another clone."""
    if isinstance(value, dict):
        return {key: portable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [portable(entry) for entry in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value


def _four_bits(profile: Profile) -> dict[str, Any]:
    """Where an adapter is trained on a base in 4 bits, that base is what is scored and what it is compared with."""
    return {"four_bits": True} if profile.tuning == "qlora" else {}


def _identified(spec: DatasetSpec | ModelSpec) -> dict[str, Any]:
    """What identifies a data set or model that is no local file (a local one is identified by its content)."""
    return {} if Path(spec.path).is_absolute() else {"path": spec.path, "revision": spec.revision}


def _local(name: str, path: str) -> dict[str, Path]:
    return {name: Path(path)} if Path(path).is_absolute() else {}


def _base_model(spec: ModelSpec | ScorerSpec) -> dict[str, Path]:
    return {"base_model": MINI_BASE_DIR} if spec.path == MINI_MODEL else _local("base_model", spec.path)


def _from_hub(*sources: Source) -> tuple[Source, ...]:
    """Those that are repositories of the hub, each once: folders and built-in names have no commits."""
    return tuple(dict.fromkeys(source for source in sources if is_hub_id(source[1])))
