"""What the figures draw: one row a bar or a point, each arm as the mean over its seeds."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd

from codeact_lib.evaluation.records import RunRecord
from codeact_lib.tables import results
from codeact_lib.tables.costs import STEPS, step_seconds
from codeact_lib.tables.results import CODEACT, HEADINGS, Line


def pass_at_one_frame(metrics: Sequence[RunRecord]) -> pd.DataFrame:
    """Rows for `figures.pass_at_one_bars`: each measured arm and benchmark with rate and interval (fractions)."""
    lines = results.measured_lines(metrics)
    rows = []
    for column, heading in HEADINGS.items():
        for line in lines:
            if not pd.isna(line.rate(column)):
                row = _bar(line) | {"benchmark": heading}
                flat = line.columns()
                row |= {"k": flat[f"{column}_k"], "n": flat[f"{column}_n"], "rate": flat[column] / 100}
                rows.append(row | {part: flat[f"{column}_{part}"] / 100 for part in ("low", "high", "sd")})
    return pd.DataFrame(rows)


def _bar(line: Line) -> dict[str, Any]:
    return {"group": line.names["setting"], "label": line.names["short"]}


def time_memory_frame(metrics: Sequence[RunRecord]) -> pd.DataFrame:
    """Rows for `figures.time_memory_bars` from the measured arms."""
    rows = []
    for line in results.measured_lines(filter(itemgetter("train"), metrics)):
        seconds = 60 * line.averages["training_time_min"].mean
        rows.append(_bar(line) | {"seconds": seconds, "memory_bytes": 2**30 * line.averages["peak_memory_gib"].mean})
    return pd.DataFrame(rows, columns=["group", "label", "seconds", "memory_bytes"])


def reported_time_memory_frame(reported: pd.DataFrame) -> pd.DataFrame:
    """Rows for `figures.time_memory_bars` from the paper's RQ1."""
    return pd.DataFrame(
        {
            "group": reported["model"] + " " + reported["size"] + ", " + reported["dataset"],
            "label": np.where(reported["codeact"], "CodeACT", "full data"),
            "seconds": reported["training_time_min"] * 60.0,
            "memory_bytes": reported["peak_memory_gib"] * 2**30,
        }
    )


def efficiency_panels(metrics: Sequence[RunRecord], reported: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Panels for `figures.data_efficiency`: the paper's models with a known data size, then each data set."""
    # of the others nobody has said how many samples they were trained on
    known = reported[reported["data_num"].str.endswith("K")]
    paper = pd.DataFrame({"label": known["model"].str.replace(" (ours)", "") + " " + known["size"]})
    paper["samples"] = known["data_num"].str.rstrip("K").astype(float) * 1000
    paper["pass_at_one"] = known["humaneval"]
    paper["ours"] = known["model"].str.contains("CodeACT")
    panels = {"Reported in the paper": paper}
    for record, arms in results.by_setting(results.measured_lines(metrics)):
        points = []
        for arm, line in arms.items():
            if not pd.isna(line.rate("humaneval")):
                score = line.scores["humaneval"]
                point = {"label": line.names["short"], "samples": line.record["n_train"]}
                point |= {"ours": arm == CODEACT, "pass_at_one": score.rate, "low": score.low, "high": score.high}
                points.append(point)
        panels[f"Measured: {record['model']['label']}, {record['dataset_label']}"] = pd.DataFrame(points)
    return {heading: frame for heading, frame in panels.items() if len(frame)}


def cost_frame(metrics: Sequence[RunRecord]) -> pd.DataFrame:
    """Rows for `figures.cost_bars`: one an arm, a column of seconds for each step."""
    rows = [_bar(line) | step_seconds(line) for line in results.measured_lines(filter(itemgetter("train"), metrics))]
    return pd.DataFrame(rows, columns=["group", "label", *STEPS])


def padding_frame(metrics: Sequence[RunRecord], followup: pd.DataFrame | None = None) -> pd.DataFrame:
    """Padding rate of each measured arm, and below them those that the authors' follow-up reports."""
    rows = []
    for line in results.measured_lines(filter(itemgetter("train"), metrics)):
        percent = line.averages["padding_pct"].mean
        if not pd.isna(percent):
            # data and padding strategy: CodeACT's own name would hide both here
            words = ", ".join(results.arm_words(line.record))
            rows.append((line.names["setting"], words, percent / 100))
    # the paper itself gives no padding rates
    if followup is not None:
        for row in followup[followup["table"] == "efficiency"].to_dict("records"):
            group = f"reported by the follow-up: {row['model']} {row['size']}, {row['dataset']}"
            rows.append((group, row["strategy"], row["padding_rate_pct"] / 100))
    return pd.DataFrame(rows, columns=["group", "strategy", "padding_rate"])
