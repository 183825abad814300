"""Cost ledger: what embedding, scoring, training and evaluation took, and after how many trainings selection pays."""

import math
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from codeact_lib.evaluation.records import RunRecord
from codeact_lib.measure import number
from codeact_lib.tables import results
from codeact_lib.tables.cells import seconds_text, texts
from codeact_lib.tables.render import Table, values, words
from codeact_lib.tables.results import BASELINE, TEXTS, Line

STEPS = ("embedding", "IFD scoring", "training", "evaluation")


def cost_table(metrics: Sequence[RunRecord]) -> Table:
    """Cost ledger: seconds of embedding, IFD scoring, training and evaluation of each arm, and when selection pays."""
    lines = results.measured_lines(metrics)
    rows = []
    for line in lines:
        seconds = step_seconds(line)
        row = line.columns() | seconds
        row["total"] = round(float(np.nansum(list(seconds.values()))), 3)
        # GPUs x hours of all steps, e.g. of "8 x NVIDIA H100": all of them are taken, also in a step that uses one
        gpus = re.match(r"(\d+) x ", line.record["provenance"]["environment"].get("gpu") or "")
        row["gpu_hours"] = math.nan
        if gpus:
            row["gpu_hours"] = round(row["total"] * int(gpus[1]) / 3600, 6)
        row["break_even_trainings"] = _break_even(line, lines)
        rows.append(row)
    headings = ["data_set", "arm", *STEPS, "total", "gpu_hours", "break_even_trainings", "n_seeds", "run_id"]
    frame = pd.DataFrame(rows, columns=headings)
    columns = [words("Arm", frame["arm"])]
    for step in (*STEPS, "total"):
        heading = step[0].upper() + step[1:]
        columns.append(values(heading, texts(frame[step], seconds_text), frame["run_id"]))
    if frame["gpu_hours"].notna().any():
        columns.append(values("GPU hours", texts(frame["gpu_hours"], number), frame["run_id"]))
    pays = pd.Series(texts(frame["break_even_trainings"], "{:.0f} trainings".format), dtype=object)
    pays = pays.replace({"1 trainings": "1 training", "inf trainings": "never"})
    columns.append(values("Pays after", pays, frame["run_id"]))
    notes = list(TEXTS["notes"]["costs"])
    if (frame["n_seeds"] > 1).any():
        notes.append("Means over seeds.")
    notes += results.hardware_notes(metrics)
    return Table("costs", frame, columns, frame["data_set"].tolist(), notes, metrics)


def step_seconds(line: Line) -> dict[str, float]:
    """Seconds of each of `STEPS` of an arm, means over its seeds; NaN for a step that its policy does not need."""
    seconds: dict[str, list[float | None]] = {step: [] for step in STEPS}
    for record in line.runs:
        cost = record.get("selection_cost") or {}
        # CDAS ranks within clusters, stratified sampling only draws from them, the IFD policy has none
        if record["policy"] in ("cdas", "stratified"):
            seconds["embedding"].append(cost.get("embedding_seconds"))
        if record["policy"] in ("cdas", "ifd"):
            seconds["IFD scoring"].append(cost.get("ifd_seconds"))
        if record["train"]:
            seconds["training"].append(record["train"]["seconds"])
        evaluation = 0.0
        for judged in record["benchmarks"].values():
            evaluation += sum(filter(None, judged["seconds"].values()))
        seconds["evaluation"].append(evaluation)
    return {step: results.average(found, digits=3).mean for step, found in seconds.items()}


def selection_seconds(line: Line) -> float:
    """What selecting took: embedding and IFD scoring, as far as the policy needs them."""
    seconds = step_seconds(line)
    return float(np.nansum([seconds["embedding"], seconds["IFD scoring"]]))


def _break_even(line: Line, arms: Sequence[Line]) -> float:
    # Trainings until selection pays; infinite if it never does, NaN where the question does not arise. What the paper
    # saves leaves out the time of selecting, which is spent once for all trainings on one selection.
    spent = selection_seconds(line)
    if line.names["policy"] in (None, "full") or not line.record["train"] or not spent:
        return math.nan
    for other in arms:
        same = other.names["data_set"] == line.names["data_set"]
        if same and results.arm_of(other.record) == BASELINE and other.record["train"]:
            saved = step_seconds(other)["training"] - step_seconds(line)["training"]
            return math.ceil(spent / saved) if saved > 0 else math.inf
    return math.nan
