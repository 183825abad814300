"""Cost ledger: what embedding, scoring, training and evaluation took, and after how many trainings selection pays."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from codeact_lib.measure import number
from codeact_lib.tables.cells import seconds_cell
from codeact_lib.tables.render import Table, values, words
from codeact_lib.tables.results import (
    BASELINE,
    RunRecord,
    arm_label,
    arm_of,
    average,
    by_arm,
    hardware_notes,
    is_missing,
    run_ids,
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


def cost_table(metrics: Sequence[RunRecord]) -> Table:
    """Cost ledger: seconds of embedding, IFD scoring, training and evaluation of each arm, and when selection pays.

    Means over seeds. GPU hours (GPUs x hours, all steps) stand there where a run had a GPU. Break-even: the number of
    trainings on the same selection after which the time saved exceeds the time of selecting.
    """
    arms = by_arm(metrics)
    headings = ["data_set", "arm", *STEPS, "total", "gpu_hours", "break_even_trainings", "n_seeds", "run_id"]
    frame = pd.DataFrame([_ledger_row(runs, arms) for runs in arms], columns=headings)
    columns = [words("Arm", frame["arm"])]
    for step in (*STEPS, "total"):
        heading = step.capitalize() if step.islower() else step
        columns.append(values(heading, frame[step].map(seconds_cell), frame["run_id"]))
    if frame["gpu_hours"].notna().any():
        hours = ["-" if is_missing(value) else number(value) for value in frame["gpu_hours"]]
        columns.append(values("GPU hours", hours, frame["run_id"]))
    columns.append(values("Pays after", map(_break_even_words, frame["break_even_trainings"]), frame["run_id"]))
    several = ["Means over seeds."] if any(len(runs) > 1 for runs in arms) else []
    notes = [*NOTES, *several, *hardware_notes(metrics)]
    return Table("costs", "Cost ledger", frame, columns, frame["data_set"].tolist(), notes, run_sources(metrics))


def _ledger_row(runs: list[RunRecord], arms: list[list[RunRecord]]) -> dict[str, Any]:
    seconds = step_seconds(runs)
    total = round(float(np.nansum(list(seconds.values()))), 3)
    gpu_hours = math.nan
    gpus = re.match(r"(\d+) x ", runs[0]["provenance"]["environment"].get("gpu") or "")  # "8 x NVIDIA H100"
    if gpus:
        gpu_hours = round(total * int(gpus[1]) / 3600, 6)
    return {
        "data_set": setting(runs[0]),
        "arm": arm_label(runs[0]),
        **seconds,
        "total": total,
        "gpu_hours": gpu_hours,
        "break_even_trainings": _break_even(runs, arms),
        "n_seeds": len(runs),
        "run_id": run_ids(runs),
    }


def step_seconds(runs: Sequence[RunRecord]) -> dict[str, float]:
    """Seconds of each of `STEPS` of an arm, means over its seeds; NaN for a step that its policy does not need."""
    return {step: average([_seconds(run)[step] for run in runs], digits=3).mean for step in STEPS}


def _seconds(record: RunRecord) -> dict[str, float]:
    seconds = dict.fromkeys(STEPS, math.nan)
    cost = record.get("selection_cost") or {}
    if record["policy"] in ("cdas", "stratified"):
        seconds["embedding"] = cost.get("embedding_seconds", math.nan)
    if record["policy"] in ("cdas", "ifd"):
        seconds["IFD scoring"] = cost.get("ifd_seconds", math.nan)
    if record["train"]:
        seconds["training"] = record["train"]["seconds"]
    seconds["evaluation"] = 0.0
    for judged in record["benchmarks"].values():
        seconds["evaluation"] += sum(filter(None, judged["seconds"].values()))
    return seconds


def selection_seconds(runs: Sequence[RunRecord]) -> float:
    """What selecting took: embedding and IFD scoring, as far as the policy needs them."""
    seconds = step_seconds(runs)
    return float(np.nansum([seconds["embedding"], seconds["IFD scoring"]]))


def _break_even(runs: list[RunRecord], arms: list[list[RunRecord]]) -> float:
    """Trainings until selection pays; infinite if it never does, NaN where the question does not arise."""
    first = runs[0]
    spent = selection_seconds(runs)
    if first["policy"] in (None, "full") or not first["train"] or not spent:
        return math.nan
    place = (first["model"]["name"], first["dataset"])
    for other in arms:
        same = (other[0]["model"]["name"], other[0]["dataset"]) == place
        if same and arm_of(other[0]) == BASELINE and other[0]["train"]:
            saved = step_seconds(other)["training"] - step_seconds(runs)["training"]
            return math.ceil(spent / saved) if saved > 0 else math.inf
    return math.nan


def _break_even_words(trainings: float) -> str:
    if is_missing(trainings):
        return "-"
    return "never" if math.isinf(trainings) else f"{int(trainings)} training{'s' if trainings > 1 else ''}"
