"""What the manifests of the stages before tell about a run."""

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
    """Keyword arguments for `metrics_record`: `stages`, `n_train`, `n_total`, `selection_cost`, `concurrent_jobs`."""
    import pyarrow.parquet

    jobs = max(1, stages_at_work(paths.locks_dir))
    history: dict[str, Any] = {"stages": {}, "n_train": None, "n_total": None, "selection_cost": None}
    if run.dataset is None or run.selection is None:
        return history | {"concurrent_jobs": jobs}
    selection = paths.selection_dir(run.dataset, run.model, run.selection)
    folders = {
        "01_cluster": paths.cluster_dir(run.dataset),
        "02_ifd": paths.ifd_dir(run.dataset, run.model),
        "03_sample": selection,
        "04_train_dynamic_pack": paths.train_dir(run.run_id),
    }
    manifests: dict[str, StageManifest] = {}
    for stage, folder in folders.items():
        if (folder / "manifest.json").exists():
            manifest = StageManifest.read(folder / "manifest.json")
            manifests[stage] = manifest
            history["stages"][stage] = {name: getattr(manifest, name) for name in KEPT}
            jobs = max(jobs, manifest.facts.get("concurrent_jobs", 1))
    if (selection / "train.jsonl").exists():
        with (selection / "train.jsonl").open("rb") as file:
            history["n_train"] = sum(1 for line in file if line.strip())
    if paths.examples(run.dataset).exists():
        history["n_total"] = pyarrow.parquet.read_metadata(paths.examples(run.dataset)).num_rows
    # seconds of each step that the policy needs, 0.0 of the other, None of a step whose manifest is not there
    if run.policy in NEEDED:
        history["selection_cost"] = dict.fromkeys(COSTS, 0.0)
        for name in NEEDED[run.policy]:
            step = manifests.get(COSTS[name])
            # the measured step where the stage says it, else the whole stage
            history["selection_cost"][name] = step and step.facts.get(name, step.seconds)
    return history | {"concurrent_jobs": jobs}
