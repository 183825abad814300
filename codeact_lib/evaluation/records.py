"""What one run is known by in the tables: its counts, its costs, and the stages it came from."""

from __future__ import annotations

from codeact_lib.artifacts import sha256_json
from codeact_lib.measure import environment_facts


def metrics_record(
    profile,
    run,
    results,
    *,
    train=None,
    n_train=None,
    n_total=None,
    selection_cost=None,
    stages=None,
    concurrent_jobs=1,
):
    """What one run is known by in the tables, as a JSON-able dict.

    Args:
        profile, run: `codeact_lib.config.Profile` and `Run`.
        results: list of `PassAtOne`.
        train: content of train_metrics.json, None for an untouched base model; the loss curve is left out.
        n_train, n_total: rows trained on, rows of the data set.
        selection_cost: {"embedding_seconds", "ifd_seconds"} or None.
        stages: stage -> at least {"key": key of its manifest}; see `run_history`.
        concurrent_jobs: how many stages at most worked on the machine at once while this run's were measured, its own
            included. With more than 1 the seconds are not those of a quiet machine.

    ``record_sha256`` is the hash of everything else in it: `seal` sets it, `is_sealed` looks whether it still fits.
    """
    model = profile.model(run.model)
    dataset = profile.dataset(run.dataset) if run.dataset else None
    stages = stages or {}
    return seal(
        {
            "run_id": run.run_id,
            "profile": profile.name,
            "model": {k: getattr(model, k) for k in ("name", "label", "size", "path", "revision", "reported_as")},
            "dataset": run.dataset,
            "dataset_label": dataset and dataset.label,
            "reported_as": dataset and dataset.reported_as,
            **{k: getattr(run, k) for k in ("policy", "ratio", "strategy", "seed")},
            "n_train": n_train,
            "n_total": n_total,
            "train": train and {k: v for k, v in train.items() if k != "loss_curve"},
            "selection_cost": selection_cost,
            "concurrent_jobs": concurrent_jobs,
            "benchmarks": {result.benchmark: result.to_dict() for result in results},
            "provenance": {
                "environment": environment_facts(),
                "keys": {stage: facts["key"] for stage, facts in stages.items()},
                "stages": stages,
                "seed": profile.seed,
            },
        }
    )


def seal(record: dict) -> dict:
    """The record with the hash of its content, so that a number changed by hand is found out."""
    content = {name: value for name, value in record.items() if name != "record_sha256"}
    return content | {"record_sha256": sha256_json(content)}


def is_sealed(record: dict) -> bool:
    """Whether a record is what `seal` made."""
    return seal(record)["record_sha256"] == record.get("record_sha256")
