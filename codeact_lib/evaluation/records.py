"""What one run is known by in the tables: its counts, its costs, and the stages it came from."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

from codeact_lib.artifacts import sha256_json
from codeact_lib.config import Profile, Run
from codeact_lib.evaluation.judge import PassAtOne
from codeact_lib.measure import environment_facts

Side = Literal["base", "plus"]  # which tests of a benchmark


class Judged(TypedDict):
    """What a run scored on one benchmark: the part of `PassAtOne.to_dict` that the tables read."""

    kind: str
    version: str
    n: int
    sha256: str
    base: dict[str, int]  # {"k", "n"}: k of n tasks solved
    plus: dict[str, int]
    verdicts: dict[str, dict[str, Any]]  # task -> side -> "pass" or why not
    protocol: NotRequired[str]
    isolation: NotRequired[str]
    seconds: dict[str, float | None]


class RunRecord(TypedDict):
    """One run, as its metrics file holds it; the fields of the file stand in this order."""

    run_id: str
    profile: str
    model: dict[str, str | None]  # name, label, size, path, revision, reported_as
    dataset: str | None  # None for an untouched base model, as all that speaks of data and training
    dataset_label: str | None
    reported_as: str | None  # the data set's name in results/reported/*.csv
    policy: str | None
    ratio: float | None
    strategy: str | None
    seed: int
    n_train: int | None  # rows trained on
    n_total: int | None  # rows of the data set
    train: Mapping[str, Any] | None  # train_metrics.json without the loss curve
    selection_cost: dict[str, float | None] | None  # {"embedding_seconds", "ifd_seconds"}
    # How many stages at most worked on the machine at once while this run's were measured, its own included: with more
    # than 1 the seconds are not those of a quiet machine.
    concurrent_jobs: NotRequired[int]
    benchmarks: dict[str, Judged]
    provenance: dict[str, Any]
    record_sha256: NotRequired[str]  # of everything above: `seal` sets it
    metrics_sha256: NotRequired[str]  # of the file, once `tables.load_metrics` has read it


def metrics_record(
    profile: Profile,
    run: Run,
    results: Sequence[PassAtOne],
    *,
    train: Mapping[str, Any] | None = None,
    n_train: int | None = None,
    n_total: int | None = None,
    selection_cost: dict[str, float | None] | None = None,
    stages: dict[str, dict[str, Any]] | None = None,
    concurrent_jobs: int = 1,
) -> RunRecord:
    """What one run is known by in the tables, JSON-able and sealed; arguments not named here are as in `RunRecord`.

    results: one for each benchmark. train: content of train_metrics.json, None for an untouched base model. stages:
    stage -> at least {"key": key of its manifest}; see `codeact_lib.pipeline.history.run_history`.
    """
    model = profile.model(run.model)
    dataset = profile.dataset(run.dataset) if run.dataset else None
    stages = stages or {}
    if train is not None:
        train = {name: value for name, value in train.items() if name != "loss_curve"}
    benchmarks: dict[str, Any] = {result.benchmark: result.to_dict() for result in results}
    record: RunRecord = {
        "run_id": run.run_id,
        "profile": profile.name,
        "model": {key: getattr(model, key) for key in ("name", "label", "size", "path", "revision", "reported_as")},
        "dataset": run.dataset,
        "dataset_label": getattr(dataset, "label", None),
        "reported_as": getattr(dataset, "reported_as", None),
        "policy": run.policy,
        "ratio": run.ratio,
        "strategy": run.strategy,
        "seed": run.seed,
        "n_train": n_train,
        "n_total": n_total,
        "train": train,
        "selection_cost": selection_cost,
        "concurrent_jobs": concurrent_jobs,
        "benchmarks": benchmarks,
        "provenance": {
            "environment": environment_facts(),
            "keys": {stage: facts["key"] for stage, facts in stages.items()},
            "stages": stages,
            "seed": profile.seed,
        },
    }
    record["record_sha256"] = seal(record)["record_sha256"]
    return record


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the hash of its content, so that a number changed by hand is found out."""
    content = {name: value for name, value in record.items() if name != "record_sha256"}
    return content | {"record_sha256": sha256_json(content)}


def is_sealed(record: Mapping[str, Any]) -> bool:
    """Whether a record is what `seal` made."""
    return seal(record)["record_sha256"] == record.get("record_sha256")
