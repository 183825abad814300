"""What the figures draw: one row a bar or a point, each arm as the mean over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from codeact_lib.tables.costs import STEPS, step_seconds
from codeact_lib.tables.results import (
    BENCHMARKS,
    CODEACT,
    ArmResult,
    RunRecord,
    arm_label,
    arm_of,
    by_arm,
    by_setting,
    data_words,
    is_missing,
    measured_result,
    setting,
    strategy_words,
)


def pass_at_one_frame(metrics: Sequence[RunRecord]) -> pd.DataFrame:
    """Rows for `figures.pass_at_one_bars`: each measured arm and benchmark with rate and interval (fractions)."""
    results = [measured_result(runs) for runs in by_arm(metrics)]
    rows = []
    for _, _, column, heading in BENCHMARKS:
        for result in results:
            flat = result.columns()
            if is_missing(flat.get(column)):
                continue
            row = {"group": setting(result.first), "label": arm_label(result.first, True), "benchmark": heading}
            row |= {"k": flat[f"{column}_k"], "n": flat[f"{column}_n"], "rate": flat[column] / 100}
            rows.append(row | {part: flat[f"{column}_{part}"] / 100 for part in ("low", "high", "sd")})
    return pd.DataFrame(rows)


def time_memory_frame(metrics: Sequence[RunRecord]) -> pd.DataFrame:
    """Rows for `figures.time_memory_bars` from the measured arms."""
    rows = []
    for result in _trained(metrics):
        seconds = 60 * result.averages["training_time_min"].mean
        memory = 1e9 * result.averages["peak_memory_gb"].mean
        rows.append((setting(result.first), arm_label(result.first, True), seconds, memory))
    return pd.DataFrame(rows, columns=["group", "label", "seconds", "memory_bytes"])


def _trained(metrics: Sequence[RunRecord]) -> list[ArmResult]:
    return [measured_result(runs) for runs in by_arm(record for record in metrics if record["train"])]


def reported_time_memory_frame(reported: pd.DataFrame) -> pd.DataFrame:
    """Rows for `figures.time_memory_bars` from the paper's RQ1."""
    return pd.DataFrame(
        {
            "group": reported["model"] + " " + reported["size"] + ", " + reported["dataset"],
            "label": np.where(reported["codeact"], "CodeACT", "full data"),
            "seconds": reported["training_time_min"] * 60.0,
            "memory_bytes": reported["peak_memory_gb"] * 1e9,
        }
    )


def efficiency_panels(
    metrics: Sequence[RunRecord], reported: pd.DataFrame, column: str = "humaneval"
) -> dict[str, pd.DataFrame]:
    """Panels for `figures.data_efficiency`: the paper's models with a known data size, then each data set."""
    known = reported[reported["data_num"].str.endswith("K")]
    paper = pd.DataFrame({"label": known["model"].str.replace(" (ours)", "") + " " + known["size"]})
    paper["samples"] = known["data_num"].str.rstrip("K").astype(float) * 1000
    paper["pass_at_one"] = known[column]
    paper["ours"] = known["model"].str.contains("CodeACT")
    panels = {"Reported in the paper": paper}
    for arms in by_setting(metrics):
        points = []
        for result in arms:
            score = result.scores.get(column)
            if score is not None and not is_missing(score.rate):
                point: dict[str, Any] = {"label": arm_label(result.first, True), "samples": result.first["n_train"]}
                point |= {"ours": arm_of(result.first) == CODEACT, "pass_at_one": score.rate}
                points.append(point | {"low": score.low, "high": score.high})
        first = arms[0].first
        panels[f"Measured: {first['model']['label']}, {first['dataset_label']}"] = pd.DataFrame(points)
    return {heading: frame for heading, frame in panels.items() if len(frame)}


def cost_frame(metrics: Sequence[RunRecord]) -> pd.DataFrame:
    """Rows for `figures.cost_bars`: one an arm, a column of seconds for each step."""
    rows = []
    for runs in by_arm(record for record in metrics if record["train"]):
        rows.append({"group": setting(runs[0]), "label": arm_label(runs[0], True), **step_seconds(runs)})
    return pd.DataFrame(rows, columns=["group", "label", *STEPS])


def padding_frame(metrics: Sequence[RunRecord], followup: pd.DataFrame | None = None) -> pd.DataFrame:
    """Padding rate of each measured arm, and below them those that the authors' follow-up reports."""
    rows = []
    for result in _trained(metrics):
        percent = result.averages["padding_pct"].mean
        if not is_missing(percent):
            # data and padding strategy: CodeACT's own name would hide both here
            words = f"{data_words(result.first)}, {strategy_words(result.first)}"
            rows.append((setting(result.first), words, percent / 100))
    if followup is not None:
        for line in followup[followup["table"] == "efficiency"].to_dict("records"):
            group = f"reported by the follow-up: {line['model']} {line['size']}, {line['dataset']}"
            rows.append((group, line["strategy"], line["padding_rate_pct"] / 100))
    return pd.DataFrame(rows, columns=["group", "strategy", "padding_rate"])
