"""The tables of what the paper leaves open: selection against packing, other ways to choose 40%, how much to choose.

All of them are means over the seeds of an arm, with the spread (sample standard deviation) where there is more than
one seed. They are empty where the profile's grid has no such arms: `codeact run --grid full` has all of them.
"""

from collections.abc import Sequence

import pandas as pd

from codeact_lib.evaluation.records import RunRecord
from codeact_lib.tables import cells, results
from codeact_lib.tables.render import Table, values, words
from codeact_lib.tables.results import AVERAGES, BASELINE, CODEACT, EFFICIENCY, NOT_RUN, SCORES, TEXTS, Line

# arm -> its data and its batching in words
SPLIT: dict[results.Arm, tuple[str, str]] = {
    BASELINE: ("all", "dynamic padding"),
    ("full", 1.0, "dynamic_pack"): ("all", "Dynamic Pack"),
    ("cdas", 0.4, "dynamic"): ("CDAS 40%", "dynamic padding"),
    CODEACT: ("CDAS 40%", "Dynamic Pack"),
}
SPREAD = [f"{column}{part}" for column in (*AVERAGES, *SCORES) for part in ("", "_sd")]
COUNTS = [f"{column}{part}" for column in SCORES for part in ("_k", "_n", "_low", "_high")]
LAST = ["marks", "seeds", "run_id"]
MEANS = ["setting", "arm", "policy", "ratio", "strategy", "n_seeds", "n_train", *SPREAD, *COUNTS, *LAST, "source"]


def split_table(metrics: Sequence[RunRecord]) -> Table:
    """{full, 40%} x {dynamic padding, Dynamic Pack}: how much of the saving is fewer samples, how much is packing.

    `time_ratio` and `memory_ratio` are relative to full data with dynamic padding, the paper's baseline.
    """
    lines: list[Line] = []
    for name, arms in _by_setting(metrics).items():
        found = {results.arm_of(line.record): line for line in arms}
        baseline = found.get(BASELINE, Line())
        for arm, (data, batching) in SPLIT.items():
            line = found.get(arm, Line())
            time, memory = (line.averages[column].mean / baseline.averages[column].mean for column in EFFICIENCY)
            ratios = {"time_ratio": round(time, 4), "memory_ratio": round(memory, 4)}
            lines.append(line.named(setting=name, data=data, batching=batching, **ratios))
    names = ["setting", "data", "batching", "n_seeds"]
    frame = cells.flat_frame(lines, [*names, *SPREAD, "time_ratio", "memory_ratio", *COUNTS, *LAST])
    # an arm that was not run has no marks, not even none of them
    frame["marks"] = frame["marks"].where(frame["run_id"].notna())
    blocks = frame["setting"].tolist()
    columns = [
        words("Data", frame["data"]),
        words("Batching", frame["batching"]),
        *cells.efficiency_columns(lines, blocks),
        values("Padding", cells.texts(frame["padding_pct"], "{:.1f}%".format, NOT_RUN), frame["run_id"]),
        *cells.score_columns(lines),
    ]
    notes = [
        TEXTS["notes"]["split"],
        "×: against the first line.",
        *_notes(lines),
        *results.hardware_notes(metrics),
    ]
    return Table("split", frame, columns, blocks, notes, metrics)


def policy_table(metrics: Sequence[RunRecord]) -> Table:
    """All ways of choosing the same budget, trained alike (40% + Dynamic Pack), as means over seeds."""
    lines = []
    for arms in _by_setting(metrics).values():
        lines += [line for line in arms if results.arm_of(line.record)[1:] == CODEACT[1:]]
    frame = cells.flat_frame(lines, MEANS)
    blocks = frame["setting"].tolist()
    columns = [
        words("Arm", frame["arm"]),
        words("Seeds", frame["n_seeds"], "center"),
        words("Rows", cells.texts(frame["n_train"], "{:,.0f}".format), "center"),
        *cells.score_columns(lines, cells.bold_marks(frame, blocks, SCORES)),
    ]
    return Table("policies", frame, columns, blocks, [TEXTS["notes"]["policies"], *_notes(lines)], metrics)


def rate_frame(metrics: Sequence[RunRecord]) -> pd.DataFrame:
    """CDAS + Dynamic Pack at every sampling rate that was run, and full data as 100%: for the sampling-rate curve.

    One line an arm, columns as in the CSV of `rate_table`. Full data is the packed run where there is one.
    """
    return cells.flat_frame(_rate_lines(metrics), MEANS)


def rate_table(metrics: Sequence[RunRecord], followup: pd.DataFrame | None = None) -> Table:
    """pass@1 against the sampling rate (10% to 60%), and below it what the authors' follow-up reports (30% and 40%)."""
    lines = _rate_lines(metrics)
    if followup is not None:
        reported = []
        scores = followup[followup["table"] == "pass_at_one"].sort_values("ratio", kind="stable")
        for (model, size, dataset), rows in scores.groupby(["model", "size", "dataset"], sort=False):
            name = f"Reported in arXiv 2504.12687: {model} {size}, {dataset}"
            for row in rows.to_dict("records"):
                reported.append(results.reported_line(row, "follow-up").named(setting=name, ratio=row["ratio"]))
        lines += cells.marked(reported)
    frame = cells.flat_frame(lines, MEANS)
    columns = [
        words("Sampling rate", frame["ratio"].map("{:.0%}".format), "center"),
        words("Rows", cells.texts(frame["n_train"], "{:,.0f}".format), "center"),
        words("Seeds", cells.texts(frame["n_seeds"], "{:,.0f}".format), "center"),
        *cells.score_columns(lines),
    ]
    padded = ", trained with dynamic padding where it was not packed" if "dynamic" in set(frame["strategy"]) else ""
    notes = [f"CDAS + Dynamic Pack; 100% is all data{padded}.", *_notes(lines)]
    return Table("sampling_rates", frame, columns, frame["setting"].tolist(), notes, metrics)


def _rate_lines(metrics: Sequence[RunRecord]) -> list[Line]:
    lines = []
    for arms in _by_setting(metrics).values():
        rates = [line for line in arms if (line.names["policy"], line.names["strategy"]) == ("cdas", "dynamic_pack")]
        full = [line for line in arms if line.names["policy"] == "full"]
        full.sort(key=lambda line: line.names["strategy"] != "dynamic_pack")  # the packed one first
        lines += sorted([*rates, *full[:1]], key=lambda line: line.names["ratio"])
    return lines


def _by_setting(metrics: Sequence[RunRecord]) -> dict[str, list[Line]]:
    # base models have no arm and are left out
    lines = cells.marked([line for line in results.measured_lines(metrics) if line.names["policy"] is not None])
    settings: dict[str, list[Line]] = {}
    for line in lines:
        settings.setdefault(line.names["setting"], []).append(line)
    return settings


def _notes(lines: Sequence[Line]) -> list[str]:
    most = max((len(line.runs) for line in lines), default=0)
    seeds = TEXTS["seeds"]["several" if most > 1 else "one"].format(most=most)
    if most == 0:
        seeds = "Nothing was measured."
    return [seeds, *cells.mark_notes(lines)]
