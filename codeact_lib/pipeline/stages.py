"""The six stages as rules: each takes a profile and the names that tell one execution from another."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from codeact_lib.artifacts import MINI_BASE_DIR, PACKAGE_DIR, RunPaths, sha256_file, sha256_json
from codeact_lib.config import MINI_MODEL, DatasetSpec, ModelSpec, Profile, Run, ScorerSpec, is_hub_id, is_seeded
from codeact_lib.errors import ProfileError
from codeact_lib.extensions import own_files
from codeact_lib.hub import Source, split_revision

# What the stages make, the profile keys they depend on and the code they run, in the order they run.
TABLE: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
STAGES = tuple(TABLE)


@dataclass(frozen=True, eq=False, kw_only=True)
class Rule:
    """What one stage reads, depends on and writes."""

    # where its results and `manifest.json` go, and what it writes for later stages elsewhere
    folder: Path
    elsewhere: Path | None = None
    # Files and folders by name, and plain values. Hashes of the former and the latter make the key: a change in either
    # makes the stage again, and what reads from it. The absence of an input that may be absent enters the key too.
    # To the plain values `StageTask` adds the names of its execution and its profile keys in `stages.yaml`.
    inputs: dict[str, Path]
    optional: frozenset[str] = frozenset()
    parameters: dict[str, Any]
    # repositories of the hub it loads; the commits they are resolved to enter the key
    sources: tuple[Source, ...] = ()
    # of 04 and 05, the run that is trained or evaluated
    run: Run | None = None


def maker_of(name: str) -> str | None:
    """The stage that makes an input (`metrics RUN_ID`: 05_eval); None for what comes from outside."""
    for stage, row in TABLE.items():
        if name.split()[0] in row["makes"]:
            return stage
    return None


def code_sha256(notebook: Path) -> str:
    """Hash of the code of a stage: the code cells of its notebook and its parts of the package (`stages.yaml`)."""
    # outputs and prose do not count
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"] if notebook.exists() else []
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    digests = {}
    for part in TABLE[notebook.stem]["code"]:
        path = PACKAGE_DIR / part
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.suffix in (".py", ".yaml", ".j2", ".css", ".mplstyle"):
                digests[file.relative_to(PACKAGE_DIR).as_posix()] = sha256_file(file)
    return sha256_json({"notebook": sources, "modules": digests})


# ---- the six rules ---------------------------------------------------------------------------------------------------
def cluster(profile: Profile, paths: RunPaths, *, dataset: str) -> Rule:
    """01 reads the instruction set and the embedding model where these are files."""
    spec = profile.dataset(dataset)
    parameters = _identified(spec)
    for name in ("instruction_column", "response_column", "input_column", "messages_column"):
        # only where they are named: a set of two columns keeps the key it had before others were read
        if getattr(spec, name):
            parameters[name] = getattr(spec, name)
    return Rule(
        folder=paths.cluster_dir(dataset),
        elsewhere=paths.data_dir(dataset),
        inputs=_files(instructions=spec.path, embedding_model=profile.embedding_model),
        parameters=parameters,
        sources=_from_hub(("dataset", spec.path, spec.revision), ("model", *split_revision(profile.embedding_model))),
    )


def ifd(profile: Profile, paths: RunPaths, *, dataset: str, model: str) -> Rule:
    """02 reads the examples of 01 and the models that score them."""
    spec = profile.model(model)
    scorer = profile.scorer
    inputs = {"examples": paths.examples(profile.dataset(dataset).name), **_base_model(spec)}
    sources: list[Source] = [("model", spec.path, spec.revision)]
    parameters: dict[str, Any] = {**_identified(spec), "template": spec.template}
    # where an adapter is trained on a base in 4 bits, that base scores, and 05 compares with it
    if profile.tuning == "qlora":
        parameters["four_bits"] = True
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
    inputs = {
        "examples": paths.examples(profile.dataset(dataset).name),
        "clusters": paths.cluster_dir(dataset) / "clusters.parquet",
        "ifd": paths.ifd_dir(dataset, profile.model(model).name) / "ifd.parquet",
    }
    lots = seed if is_seeded(policy) else None  # one selection serves all seeds where the policy draws no lots
    return Rule(
        folder=paths.selection_dir(dataset, model, profile.selection(policy, ratio, seed)),
        inputs=inputs | own_files(policy),
        parameters={"seed": lots},
    )


def train(profile: Profile, paths: RunPaths, *, run_id: str) -> Rule:
    """04 reads the rows chosen by 03 and the base model."""
    run = profile.run(run_id)
    if run.dataset is None or run.selection is None:
        raise ProfileError(f"{run_id} is an untouched base model: there is nothing to train, 05_eval scores it as is.")
    spec = profile.model(run.model)
    selection = paths.selection_dir(run.dataset, run.model, run.selection)
    inputs = {"train_jsonl": selection / "train.jsonl", **_base_model(spec)}
    parameters = {**_identified(spec), "template": spec.template, "strategy": run.strategy, "seed": run.seed}
    if profile.tuning != "full":
        parameters |= picked(profile, "04_train_dynamic_pack", "adapter_keys")
    return Rule(
        run=run,
        folder=paths.train_dir(run_id),
        inputs=inputs | own_files(run.strategy, spec.template),
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
    inputs = _files(**{f"benchmark {Path(name).stem}": name for name in profile.benchmarks})
    if run.is_base or profile.tuning != "full":  # an adapter is judged on top of its base model, so that one counts
        inputs |= _base_model(spec)
    if not run.is_base:
        inputs["model"] = paths.train_dir(run_id) / "model"
        inputs["train_metrics"] = paths.train_dir(run_id) / "train_metrics.json"
    parameters = {**_identified(spec), "template": spec.template, "labels": labels}
    parameters["protocol"] = profile.protocol_of(run)
    if run.is_base and profile.tuning == "qlora":
        parameters["four_bits"] = True
    return Rule(
        run=run,
        folder=paths.eval_dir(run_id),
        elsewhere=paths.metrics(run_id),
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
        parameters={"runs": run_ids, "profile": portable(profile.model_dump())},
    )


RULES: dict[str, Callable[..., Rule]] = dict(zip(STAGES, (cluster, ifd, sample, train, evaluate, tables), strict=True))


# ---- what the rules have in common -----------------------------------------------------------------------------------
def picked(profile: Profile, stage: str, keys: str = "keys") -> dict[str, Any]:
    """The profile keys that `stages.yaml` names for a stage, with their values."""
    return {key: portable(getattr(profile, key)) for key in TABLE[stage][keys]}


def portable(value: Any) -> Any:
    """Local files by name only: the same profile means the same in another clone."""
    if isinstance(value, dict):
        return {key: portable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [portable(entry) for entry in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value


def _identified(spec: DatasetSpec | ModelSpec) -> dict[str, Any]:
    # a local one is identified by its content, which is an input
    return {} if Path(spec.path).is_absolute() else spec.model_dump(include={"path", "revision"})


def _files(**paths: str) -> dict[str, Path]:
    # those of local files and folders: what is built in, installed or on the hub is no input but a parameter
    return {name: Path(path) for name, path in paths.items() if Path(path).is_absolute()}


def _base_model(spec: ModelSpec | ScorerSpec) -> dict[str, Path]:
    if spec.path == MINI_MODEL:  # it may be built anew (`codeact mini build-base`), so its content counts
        return {"base_model": MINI_BASE_DIR}
    return _files(base_model=spec.path)


def _from_hub(*sources: Source) -> tuple[Source, ...]:
    """Those that are repositories of the hub, each once: folders and built-in names have no commits."""
    return tuple(dict.fromkeys(source for source in sources if is_hub_id(source[1])))
