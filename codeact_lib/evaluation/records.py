"""What one run is known by in the tables: its counts, its costs, and the stages it came from."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from codeact_lib.artifacts import sha256_json
from codeact_lib.config import Profile, Run
from codeact_lib.evaluation.judge import PassAtOne
from codeact_lib.measure import environment_facts


@dataclass(frozen=True)
class RunRecord:
    """One run, as its metrics file holds it; the fields of the file stand in this order."""

    run_id: str
    profile: str
    model: dict[str, str | None]
    dataset: str | None  # None for an untouched base model, as all that speaks of data and training
    dataset_label: str | None
    reported_as: str | None  # the data set's name in results/reported/*.csv
    policy: str | None
    ratio: float | None
    strategy: str | None
    seed: int
    n_train: int | None
    n_total: int | None
    train: dict[str, Any] | None  # train_metrics.json without the loss curve
    selection_cost: dict[str, float] | None
    concurrent_jobs: int
    benchmarks: dict[str, dict[str, Any]]  # name -> `PassAtOne.to_dict`
    provenance: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The content of the metrics file, sealed."""
        return seal(asdict(self))


def metrics_record(
    profile: Profile,
    run: Run,
    results: Sequence[PassAtOne],
    *,
    train: Mapping[str, Any] | None = None,
    n_train: int | None = None,
    n_total: int | None = None,
    selection_cost: dict[str, float] | None = None,
    stages: dict[str, dict[str, Any]] | None = None,
    concurrent_jobs: int = 1,
) -> dict[str, Any]:
    """What one run is known by in the tables, as a JSON-able dict (`RunRecord`).

    Args:
        profile, run: what was asked for.
        results: one for each benchmark.
        train: content of train_metrics.json, None for an untouched base model; the loss curve is left out.
        n_train, n_total: rows trained on, rows of the data set.
        selection_cost: {"embedding_seconds", "ifd_seconds"} or None.
        stages: stage -> at least {"key": key of its manifest}; see `codeact_lib.pipeline.history.run_history`.
        concurrent_jobs: how many stages at most worked on the machine at once while this run's were measured, its own
            included. With more than 1 the seconds are not those of a quiet machine.

    `record_sha256` is the hash of everything else in it: `seal` sets it, `is_sealed` looks whether it still fits.
    """
    model = profile.model(run.model)
    dataset = profile.dataset(run.dataset) if run.dataset else None
    stages = stages or {}
    if train is not None:
        train = {name: value for name, value in train.items() if name != "loss_curve"}
    record = RunRecord(
        run_id=run.run_id,
        profile=profile.name,
        model={
            "name": model.name,
            "label": model.label,
            "size": model.size,
            "path": model.path,
            "revision": model.revision,
            "reported_as": model.reported_as,
        },
        dataset=run.dataset,
        dataset_label=dataset.label if dataset else None,
        reported_as=dataset.reported_as if dataset else None,
        policy=run.policy,
        ratio=run.ratio,
        strategy=run.strategy,
        seed=run.seed,
        n_train=n_train,
        n_total=n_total,
        train=train,
        selection_cost=selection_cost,
        concurrent_jobs=concurrent_jobs,
        benchmarks={result.benchmark: result.to_dict() for result in results},
        provenance={
            "environment": environment_facts(),
            "keys": {stage: facts["key"] for stage, facts in stages.items()},
            "stages": stages,
            "seed": profile.seed,
        },
    )
    return record.to_dict()


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the hash of its content, so that a number changed by hand is found out."""
    content = {name: value for name, value in record.items() if name != "record_sha256"}
    return content | {"record_sha256": sha256_json(content)}


def is_sealed(record: dict[str, Any]) -> bool:
    """Whether a record is what `seal` made."""
    return seal(record)["record_sha256"] == record.get("record_sha256")
