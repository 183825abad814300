"""What the figures draw: one row a bar or a point, each arm as the mean over its seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd

from codeact_lib.tables.costs import STEPS, cost_row
from codeact_lib.tables.results import (
    BENCHMARKS,
    CODEACT,
    arm_label,
    arm_of,
    by_arm,
    by_setting,
    data_words,
    is_missing,
    measured_row,
    setting,
    strategy_words,
)


def _trained(metrics: list[dict]) -> list[tuple[dict, dict]]:
    """First run and flat row of each fine-tuned arm."""
    return [(runs[0], measured_row(runs)) for runs in by_arm([record for record in metrics if record["train"]])]


def pass_at_one_frame(metrics: list[dict]) -> pd.DataFrame:
    """Rows for ``figures.pass_at_one_bars``: each measured arm and benchmark with rate and interval (fractions)."""
    measured = [(runs[0], measured_row(runs)) for runs in by_arm(metrics)]
    rows = []
    for _, _, column, heading in BENCHMARKS:
        for record, row in measured:
            if not is_missing(row.get(column)):
                names = {"group": setting(record), "label": arm_label(record, True), "benchmark": heading}
                rate, low, high, sd = (row[f"{column}{part}"] / 100 for part in ("", "_low", "_high", "_sd"))
                counts = {"k": row[f"{column}_k"], "n": row[f"{column}_n"]}
                rows.append(names | counts | {"rate": rate, "low": low, "high": high, "sd": sd})
    return pd.DataFrame(rows)


def time_memory_frame(metrics: list[dict]) -> pd.DataFrame:
    """Rows for ``figures.time_memory_bars`` from the measured arms."""
    trained = _trained(metrics)
    return pd.DataFrame(
        {
            "group": [setting(r) for r, _ in trained],
            "label": [arm_label(r, True) for r, _ in trained],
            "seconds": [60 * row["training_time_min"] for _, row in trained],
            "memory_bytes": [1e9 * row["peak_memory_gb"] for _, row in trained],
        }
    )


def reported_time_memory_frame(reported: pd.DataFrame) -> pd.DataFrame:
    """Rows for ``figures.time_memory_bars`` from the paper's RQ1."""
    return pd.DataFrame(
        {
            "group": reported["model"] + " " + reported["size"] + ", " + reported["dataset"],
            "label": np.where(reported["codeact"], "CodeACT", "full data"),
            "seconds": reported["training_time_min"] * 60.0,
            "memory_bytes": reported["peak_memory_gb"] * 1e9,
        }
    )


def efficiency_panels(
    metrics: list[dict], reported: pd.DataFrame, column: str = "humaneval"
) -> dict[str, pd.DataFrame]:
    """Panels for ``figures.data_efficiency``: the paper's models with a known data size, then each data set."""
    known = reported[reported["data_num"].str.endswith("K")]
    samples = known["data_num"].str.rstrip("K").astype(float) * 1000
    paper = pd.DataFrame({"label": known["model"].str.replace(" (ours)", "") + " " + known["size"], "samples": samples})
    paper["pass_at_one"], paper["ours"] = known[column], known["model"].str.contains("CodeACT")
    panels = {"Reported in the paper": paper}
    for arms in by_setting(metrics):
        rows = [(runs[0], measured_row(runs)) for runs in arms]
        points = [_point(record, row, column) for record, row in rows if not is_missing(row.get(column))]
        panels[f"Measured: {arms[0][0]['model']['label']}, {arms[0][0]['dataset_label']}"] = pd.DataFrame(points)
    return {heading: frame for heading, frame in panels.items() if len(frame)}


def _point(record: dict, row: dict, column: str) -> dict:
    values = {"pass_at_one": row[column], "low": row[f"{column}_low"], "high": row[f"{column}_high"]}
    return {"label": arm_label(record, True), "samples": record["n_train"], "ours": arm_of(record) == CODEACT} | values


def cost_frame(metrics: list[dict]) -> pd.DataFrame:
    """Rows for ``figures.cost_bars``: one an arm, a column of seconds for each step."""
    arms = by_arm([record for record in metrics if record["train"]])
    rows = [cost_row(runs) | {"group": setting(runs[0]), "label": arm_label(runs[0], True)} for runs in arms]
    return pd.DataFrame(rows, columns=["group", "label", *STEPS])


def padding_frame(metrics: list[dict], followup: pd.DataFrame | None = None) -> pd.DataFrame:
    """Padding rate of each measured arm, and below them those that the authors' follow-up reports."""
    rows = [
        {"group": setting(record), "strategy": _batched(record), "padding_rate": row["padding_pct"] / 100}
        for record, row in _trained(metrics)
        if not is_missing(row["padding_pct"])
    ]
    if followup is not None:
        for line in followup[followup["table"] == "efficiency"].to_dict("records"):
            group = f"reported by the follow-up: {line['model']} {line['size']}, {line['dataset']}"
            rate = line["padding_rate_pct"] / 100
            rows.append({"group": group, "strategy": line["strategy"], "padding_rate": rate})
    return pd.DataFrame(rows, columns=["group", "strategy", "padding_rate"])


def _batched(record: dict) -> str:
    """Data and padding strategy, e.g. "CDAS 40%, Dynamic Pack": here CodeACT's own name would hide both."""
    return f"{data_words(record)}, {strategy_words(record)}"
