"""What the manifests of the stages before tell about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codeact_lib.artifacts import RunPaths, StageManifest
from codeact_lib.config import Run
from codeact_lib.pipeline.locks import stages_at_work

# What a record keeps of each manifest, so that a number can be followed where the artifacts were not kept.
KEPT = ("key", "parameters", "inputs", "code_sha256", "started", "seconds")
# The seconds a policy needs before it can choose, and the stage that measured them: CDAS clusters and scores, `ifd`
# scores only, `stratified` clusters only. The others need neither.
COSTS = {"embedding_seconds": "01_cluster", "ifd_seconds": "02_ifd"}
NEEDED = {"cdas": tuple(COSTS), "ifd": ("ifd_seconds",), "stratified": ("embedding_seconds",)}


def run_history(paths: RunPaths, run: Run) -> dict[str, Any]:
    """What the manifests of the stages before tell about a run: keyword arguments for `metrics_record`.

    The cost of selection counts only what the policy needs.
    """
    jobs = [1, stages_at_work(paths.locks_dir)]
    if run.dataset is None or run.selection is None:
        none = {"n_train": None, "n_total": None, "selection_cost": None}
        return {"stages": {}, **none, "concurrent_jobs": max(jobs)}
    selection = paths.selection_dir(run.dataset, run.model, run.selection)
    folders = {
        "01_cluster": paths.cluster_dir(run.dataset),
        "02_ifd": paths.ifd_dir(run.dataset, run.model),
        "03_sample": selection,
        "04_train_dynamic_pack": paths.train_dir(run.run_id),
    }
    manifests: dict[str, StageManifest] = {}
    kept: dict[str, dict[str, Any]] = {}
    for stage, folder in folders.items():
        if (folder / "manifest.json").exists():
            manifest = manifests[stage] = StageManifest.read(folder / "manifest.json")
            kept[stage] = {name: getattr(manifest, name) for name in KEPT}
            jobs.append(manifest.facts.get("concurrent_jobs", 1))
    return {
        "stages": kept,
        "n_train": _count_lines(selection / "train.jsonl"),
        "n_total": _count_rows(paths.examples(run.dataset)),
        "selection_cost": _selection_cost(run.policy, manifests),
        "concurrent_jobs": max(jobs),
    }


def _selection_cost(policy: str | None, manifests: dict[str, StageManifest]) -> dict[str, float | None] | None:
    """Seconds of each step the policy needs, 0.0 of the other; None of a step whose manifest is not there."""
    if policy not in NEEDED:
        return None
    cost: dict[str, float | None] = dict.fromkeys(COSTS, 0.0)
    for name in NEEDED[policy]:
        manifest = manifests.get(COSTS[name])
        # the measured step where the stage says it, else the whole stage
        cost[name] = manifest.facts.get(name, manifest.seconds) if manifest else None
    return cost


def _count_lines(path: Path) -> int | None:
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as file:
        return sum(1 for line in file if line.strip())


def _count_rows(path: Path) -> int | None:
    import pyarrow.parquet

    return pyarrow.parquet.read_metadata(path).num_rows if path.exists() else None
