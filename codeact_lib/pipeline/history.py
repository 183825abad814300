"""What the manifests of the stages before tell about a run."""

from __future__ import annotations

from codeact_lib.artifacts import StageManifest
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
