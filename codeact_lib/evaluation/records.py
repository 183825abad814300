"""What one run is known by in the tables: its counts, its costs, and the stages it came from."""

from __future__ import annotations

from codeact_lib.artifacts import StageManifest, sha256_json
from codeact_lib.measure import environment_facts
from codeact_lib.pipeline.claims import Claims

# What a record keeps of each manifest, so that a number can be followed where the artifacts were not kept.
KEPT = ("key", "parameters", "inputs", "code_sha256", "started", "seconds")


def run_history(paths, run) -> dict:
    """What the manifests of the stages before tell about a run: keyword arguments for `metrics_record`.

    Args:
        paths: `codeact_lib.artifacts.RunPaths`.
        run: `codeact_lib.config.Run`.

    The cost of selection counts only what the policy needs: CDAS both steps, ``ifd`` no embedding, others nothing.
    """
    beside = Claims(paths.claims_dir).working_here()
    if run.dataset is None:
        none = {"n_train": None, "n_total": None, "selection_cost": None}
        return {"stages": {}, **none, "concurrent_jobs": max(1, beside)}
    selection = paths.selection_dir(run.dataset, run.model, run.selection)
    folders = {"01_cluster": paths.cluster_dir(run.dataset), "02_ifd": paths.ifd_dir(run.dataset, run.model)}
    folders |= {"03_sample": selection, "04_train_dynamic_pack": paths.train_dir(run.run_id)}
    manifests = {
        s: StageManifest.read(f / "manifest.json") for s, f in folders.items() if (f / "manifest.json").exists()
    }
    return {
        "stages": {stage: {name: getattr(manifest, name) for name in KEPT} for stage, manifest in manifests.items()},
        "n_train": _count_lines(selection / "train.jsonl"),
        "n_total": _count_rows(paths.examples(run.dataset)),
        "selection_cost": _selection_cost(run.policy, manifests),
        "concurrent_jobs": max([1, beside, *(m.facts.get("concurrent_jobs", 1) for m in manifests.values())]),
    }


def _selection_cost(policy, manifests):
    parts = {"embedding_seconds": "01_cluster", "ifd_seconds": "02_ifd"}
    needed = {"cdas": tuple(parts), "ifd": ("ifd_seconds",), "stratified": ("embedding_seconds",)}.get(policy, ())
    cost = {}
    for name in needed:
        manifest = manifests.get(parts[name])
        # the measured step where the stage says it, else the whole stage
        cost[name] = manifest and manifest.facts.get(name, manifest.seconds)
    return {name: cost.get(name, 0.0) for name in parts} if needed else None


def _count_lines(path):
    return sum(1 for line in path.open(encoding="utf-8") if line.strip()) if path.exists() else None


def _count_rows(path):
    import pyarrow.parquet

    return pyarrow.parquet.read_metadata(path).num_rows if path.exists() else None


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
