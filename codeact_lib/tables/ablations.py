"""The tables of what the paper leaves open: selection against packing, other ways to choose 40%, how much to choose.

All of them are means over the seeds of an arm, with the spread (sample standard deviation) where there is more than
one seed. They are empty where the profile's grid has no such arms: `codeact run --grid full` has all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from codeact_lib.tables.cells import (
    Line,
    bold_marks,
    count_cell,
    efficiency_columns,
    flat_frame,
    mark_notes,
    marked,
    padding_cell,
    score_columns,
)
from codeact_lib.tables.render import Cell, Column, Table, values, words
from codeact_lib.tables.results import (
    AVERAGES,
    BASELINE,
    CODEACT,
    EFFICIENCY,
    NOT_RUN,
    SCORES,
    Arm,
    ArmResult,
    RunRecord,
    arm_label,
    arm_of,
    by_arm,
    hardware_notes,
    is_missing,
    measured_result,
    reported_result,
    run_sources,
    setting,
)

# arm -> its data and its batching in words
SPLIT: dict[Arm, tuple[str, str]] = {
    BASELINE: ("all", "dynamic padding"),
    ("full", 1.0, "dynamic_pack"): ("all", "Dynamic Pack"),
    ("cdas", 0.4, "dynamic"): ("CDAS 40%", "dynamic padding"),
    CODEACT: ("CDAS 40%", "Dynamic Pack"),
}
SPLIT_NOTE = (
    "The paper's saving compares the last line with the first and so mixes two things: 40% of the samples (third line "
    "against the first) and Dynamic Pack (second line against the first). The cost of selection is not in it."
)
SPREAD = [f"{column}{part}" for column in (*AVERAGES, *SCORES) for part in ("", "_sd")]
COUNTS = [f"{column}{part}" for column in SCORES for part in ("_k", "_n", "_low", "_high")]
LAST = ["marks", "seeds", "run_id"]
MEANS = ["setting", "arm", "policy", "ratio", "strategy", "n_seeds", "n_train", *SPREAD, *COUNTS, *LAST, "source"]


def arm_means(metrics: Sequence[RunRecord]) -> pd.DataFrame:
    """One line an arm of a setting: mean and sample standard deviation over its seeds.

    Columns: `setting, arm, policy, ratio, strategy, n_seeds, n_train, seeds, run_id`, and for each score (pass@1 in
    %), `training_time_min`, `peak_memory_gb` and `padding_pct` the mean under its name and `<name>_sd` (NaN
    for a single seed), with counts and interval of the scores. Base models have no arm and are left out.
    """
    return flat_frame(_arm_lines(metrics), MEANS)


def _arm_lines(metrics: Sequence[RunRecord]) -> list[Line]:
    lines = []
    for runs in by_arm(record for record in metrics if record["policy"] is not None):
        policy, ratio, strategy = arm_of(runs[0])
        names = {"setting": setting(runs[0]), "arm": arm_label(runs[0])}
        lines.append(Line(names | {"policy": policy, "ratio": ratio, "strategy": strategy}, measured_result(runs)))
    return marked(lines)


# ---- fewer samples or better packed ----------------------------------------------------------------------------------


def split_table(metrics: Sequence[RunRecord]) -> Table:
    """{full, 40%} x {dynamic padding, Dynamic Pack}: how much of the saving is fewer samples, how much is packing.

    `time_ratio` and `memory_ratio` are relative to full data with dynamic padding, the paper's baseline.
    """
    arms = _arm_lines(metrics)
    lines = []
    for name in dict.fromkeys(line.names["setting"] for line in arms):
        lines += _split_lines(name, [line for line in arms if line.names["setting"] == name])
    names = ["setting", "data", "batching", "n_seeds"]
    frame = flat_frame(lines, [*names, *SPREAD, "time_ratio", "memory_ratio", *COUNTS, *LAST])
    # an arm that was not run has no marks, not even none of them
    frame["marks"] = frame["marks"].where(frame["run_id"].notna())
    blocks = frame["setting"].tolist()
    time, memory = efficiency_columns(lines, blocks)
    padding = frame["padding_pct"].map(lambda rate: NOT_RUN if is_missing(rate) else padding_cell(rate))
    columns = [
        words("Data", frame["data"]),
        words("Batching", frame["batching"]),
        _with_ratio(time, frame["time_ratio"]),
        _with_ratio(memory, frame["memory_ratio"]),
        values("Padding", padding, [line.result.run_id for line in lines]),
        *score_columns(lines),
    ]
    notes = [SPLIT_NOTE, "×: against the first line.", *_notes(arms), *hardware_notes(metrics)]
    return Table("split", "Fewer samples or better packed?", frame, columns, blocks, notes, run_sources(metrics))


def _split_lines(name: str, arms: Sequence[Line]) -> list[Line]:
    """The four arms of `SPLIT` in one setting, those that were not run among them."""
    missing = Line({}, ArmResult("measured", NOT_RUN))
    found = {arm_of(line.result.first): line for line in arms}
    baseline = found.get(BASELINE, missing).result.averages
    lines = []
    for arm, (data, batching) in SPLIT.items():
        line = found.get(arm, missing)
        time, memory = (line.result.averages[column].mean / baseline[column].mean for column in EFFICIENCY)
        names: dict[str, Any] = {"setting": name, "data": data, "batching": batching}
        names |= {"time_ratio": round(time, 4), "memory_ratio": round(memory, 4)}
        lines.append(line._replace(names=names))
    return lines


def _with_ratio(column: Column, ratios: pd.Series) -> Column:
    cells: list[Cell] = []
    for cell, ratio in zip(column.cells, ratios, strict=True):
        cells.append(cell if is_missing(ratio) else replace(cell, small=(f"× {ratio:.2f}",)))
    return Column(column.heading, cells)


# ---- other ways to choose, and how much ------------------------------------------------------------------------------


def policy_table(metrics: Sequence[RunRecord]) -> Table:
    """All ways of choosing the same budget, trained alike (40% + Dynamic Pack), as means over seeds."""
    lines = _arm_lines(metrics)
    lines = [line for line in lines if (line.names["ratio"], line.names["strategy"]) == (0.4, "dynamic_pack")]
    frame = flat_frame(lines, MEANS)
    blocks = frame["setting"].tolist()
    columns = [
        words("Arm", frame["arm"]),
        words("Seeds", frame["n_seeds"], "center"),
        words("Rows", map(count_cell, frame["n_train"]), "center"),
        *score_columns(lines, bold_marks(frame, blocks, SCORES)),
    ]
    notes = ["pass@1 in %; bold: the best mean of a data set, which need not mean a difference.", *_notes(lines)]
    return Table("policies", "Other ways to choose 40%", frame, columns, blocks, notes, run_sources(metrics))


def rate_frame(metrics: Sequence[RunRecord]) -> pd.DataFrame:
    """CDAS + Dynamic Pack at every sampling rate that was run, and full data as 100%: for the sampling-rate curve.

    Columns as in `arm_means`. Full data is the packed run where there is one.
    """
    return flat_frame(_rate_lines(metrics), MEANS)


def _rate_lines(metrics: Sequence[RunRecord]) -> list[Line]:
    lines = _arm_lines(metrics)
    packed_first = sorted(lines, key=lambda line: line.names["strategy"] != "dynamic_pack")
    full: dict[str, Line] = {}
    for line in packed_first:
        if line.names["policy"] == "full":
            full.setdefault(line.names["setting"], line)
    rates = [line for line in lines if (line.names["policy"], line.names["strategy"]) == ("cdas", "dynamic_pack")]
    settings = list(dict.fromkeys(line.names["setting"] for line in lines))
    return sorted(
        [*rates, *full.values()], key=lambda line: (settings.index(line.names["setting"]), line.names["ratio"])
    )


def rate_table(metrics: Sequence[RunRecord], followup: pd.DataFrame | None = None) -> Table:
    """pass@1 against the sampling rate (10% to 60%), and below it what the authors' follow-up reports (30% and 40%)."""
    lines = _rate_lines(metrics)
    if followup is not None:
        lines += _reported_rates(followup)
    frame = flat_frame(lines, MEANS)
    columns = [
        words("Sampling rate", frame["ratio"].map("{:.0%}".format), "center"),
        words("Rows", map(count_cell, frame["n_train"]), "center"),
        words("Seeds", map(count_cell, frame["n_seeds"]), "center"),
        *score_columns(lines),
    ]
    padded = ", trained with dynamic padding where it was not packed" if "dynamic" in set(frame["strategy"]) else ""
    notes = [f"CDAS + Dynamic Pack; 100% is all data{padded}.", *_notes(lines)]
    blocks = frame["setting"].tolist()
    return Table("sampling_rates", "How much to choose", frame, columns, blocks, notes, run_sources(metrics))


def _reported_rates(followup: pd.DataFrame) -> list[Line]:
    """The follow-up's scores at each rate, by setting."""
    scores = followup[followup["table"] == "pass_at_one"].sort_values("ratio", kind="stable")
    lines = []
    for (model, size, dataset), rows in scores.groupby(["model", "size", "dataset"], sort=False):
        name = f"Reported in arXiv 2504.12687: {model} {size}, {dataset}"
        for row in rows.to_dict("records"):
            lines.append(Line(row | {"setting": name}, reported_result(row, "follow-up")))
    return marked(lines)


# ---- shared ----------------------------------------------------------------------------------------------------------


def _notes(lines: Sequence[Line]) -> list[str]:
    most = max((len(line.result.runs) for line in lines), default=0)
    seeds = "One seed an arm; below each score solved tasks / tasks and the 95% interval."
    if most == 0:
        seeds = "Nothing was measured."
    if most > 1:
        seeds = (
            f"Means over up to {most} seeds ± sample standard deviation; below, the tasks that each seed solved and "
            "the 95% interval."
        )
    return [seeds, *mark_notes(lines)]
