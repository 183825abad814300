"""Cost ledger: what embedding, scoring, training and evaluation took, and after how many trainings selection pays."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pandas as pd

from codeact_lib.figures.style import number
from codeact_lib.tables.cells import seconds_cell
from codeact_lib.tables.render import Table
from codeact_lib.tables.results import (
    BASELINE,
    arm_label,
    arm_of,
    by_arm,
    hardware_notes,
    is_missing,
    mean_and_spread,
    measured_row,
    run_sources,
    setting,
)

STEPS = ("embedding", "IFD scoring", "training", "evaluation")
NOTES = [
    "Embedding and IFD scoring are done once for a data set and base model; each arm that needs them carries them.",
    "Pays after: trainings on one selection until the time saved against all data with dynamic padding is more "
    "than the time of selecting. "
    "A random 40% saves that time for nothing: what selection costs it must earn in accuracy.",
]


def cost_table(metrics: list[dict]) -> Table:
    """Cost ledger: seconds of embedding, IFD scoring, training and evaluation of each arm, and when selection pays.

    Means over seeds. GPU hours (GPUs x hours, all steps) stand there where a run had a GPU. Break-even: the number of
    trainings on the same selection after which the time saved exceeds the time of selecting.
    """
    arms = by_arm(metrics)
    rows = [cost_row(runs) | _break_even(runs, arms) for runs in arms]
    columns = ["data_set", "arm", *STEPS, "total", "gpu_hours", "break_even_trainings", "n_seeds", "run_id"]
    frame = pd.DataFrame(rows, columns=columns)
    cells = pd.DataFrame({"Arm": frame["arm"]})
    for step in (*STEPS, "total"):
        cells[step.capitalize() if step.islower() else step] = frame[step].map(seconds_cell)
    if frame["gpu_hours"].notna().any():
        cells["GPU hours"] = ["-" if is_missing(hours) else number(hours) for hours in frame["gpu_hours"]]
    cells["Pays after"] = [_break_even_words(value) for value in frame["break_even_trainings"]]
    several = ["Means over seeds."] if len(frame) and frame["n_seeds"].max() > 1 else []
    more: dict[str, Any] = {
        "blocks": list(frame["data_set"]),
        "links": list(frame["run_id"]),
        "sources": run_sources(metrics),
    }
    return Table("costs", "Cost ledger", frame, cells, notes=[*NOTES, *several, *hardware_notes(metrics)], **more)


def cost_row(runs: list[dict]) -> dict:
    """Seconds of each step of an arm (means over its seeds), their total, GPU hours, and the runs."""
    row: dict[str, Any] = {"data_set": setting(runs[0]), "arm": arm_label(runs[0])}
    ledgers = [_seconds(run) for run in runs]
    row |= {step: mean_and_spread(step, [ledger[step] for ledger in ledgers], digits=3)[step] for step in STEPS}
    total = round(float(np.nansum([row[step] for step in STEPS])), 3)
    row |= {"total": total, "gpu_hours": round(total * _gpus(runs[0]) / 3600, 6) or math.nan}
    return row | {key: measured_row(runs)[key] for key in ("n_seeds", "run_id")}


def _seconds(record: dict) -> dict[str, float]:
    cost, policy = record.get("selection_cost") or {}, record["policy"]
    judged = [s for b in record["benchmarks"].values() for s in b["seconds"].values() if s is not None]
    return {
        "embedding": cost.get("embedding_seconds", math.nan) if policy in ("cdas", "stratified") else math.nan,
        "IFD scoring": cost.get("ifd_seconds", math.nan) if policy in ("cdas", "ifd") else math.nan,
        "training": record["train"]["seconds"] if record["train"] else math.nan,
        "evaluation": float(sum(judged)),
    }


def _gpus(record: dict) -> int:
    """How many GPUs a run saw ("8 x NVIDIA H100"), 0 without one."""
    found = re.match(r"(\d+) x ", record["provenance"]["environment"].get("gpu") or "")
    return int(found.group(1)) if found else 0


def selection_seconds(runs: list[dict]) -> float:
    """What selecting took: embedding and IFD scoring, as far as the policy needs them."""
    row = cost_row(runs)
    return float(np.nansum([row["embedding"], row["IFD scoring"]]))


def _break_even(runs: list[dict], arms: list[list[dict]]) -> dict:
    """Trainings until selection pays; infinite if it never does, NaN where the question does not arise."""
    first = runs[0]
    same = [a for a in arms if (a[0]["model"]["name"], a[0]["dataset"]) == (first["model"]["name"], first["dataset"])]
    full = next((a for a in same if arm_of(a[0]) == BASELINE), None)
    spent = selection_seconds(runs)
    if first["policy"] in (None, "full") or not full or not first["train"] or not full[0]["train"] or not spent:
        return {"break_even_trainings": math.nan}
    saved = cost_row(full)["training"] - cost_row(runs)["training"]
    return {"break_even_trainings": math.ceil(spent / saved) if saved > 0 else math.inf}


def _break_even_words(value: float) -> str:
    if is_missing(value):
        return "-"
    return "never" if math.isinf(value) else f"{int(value)} training{'s' if value > 1 else ''}"
