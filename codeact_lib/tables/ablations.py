"""The tables of what the paper leaves open: selection against packing, other ways to choose 40%, how much to choose.

All of them are means over the seeds of an arm, with the spread (sample standard deviation) where there is more than
one seed. They are empty where the profile's grid has no such arms: `codeact run --grid full` has all of them.
"""

from collections.abc import Sequence
from operator import itemgetter

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
SPREAD = results.with_endings([*AVERAGES, *SCORES], "", "_sd")
COUNTS = results.with_endings(SCORES, "_k", "_n", "_low", "_high")
LAST = ["marks", "seeds", "run_id"]
MEANS = ["setting", "arm", "policy", "ratio", "strategy", "n_seeds", "n_train", *SPREAD, *COUNTS, *LAST, "source"]


def split_table(metrics: Sequence[RunRecord]) -> Table:
    """{full, 40%} x {dynamic padding, Dynamic Pack}: how much of the saving is fewer samples, how much is packing."""
    lines: list[Line] = []
    for record, arms in _by_setting(metrics):
        # The paper compares CodeACT with this one alone, which changes two things at once: here each of the four has
        # its ratio, and an arm that was not run keeps its place.
        baseline = arms.get(BASELINE, Line())
        for arm, (data, batching) in SPLIT.items():
            line = arms.get(arm, Line())
            time, memory = (line.averages[column].mean / baseline.averages[column].mean for column in EFFICIENCY)
            ratios = {"time_ratio": round(time, 4), "memory_ratio": round(memory, 4)}
            lines.append(line.named(setting=results.setting(record), data=data, batching=batching, **ratios))
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
    for _, arms in _by_setting(metrics):
        lines += [line for arm, line in arms.items() if arm[1:] == CODEACT[1:]]
    frame = cells.flat_frame(lines, MEANS)
    blocks = frame["setting"].tolist()
    columns = [
        words("Arm", frame["arm"]),
        words("Seeds", frame["n_seeds"], "center"),
        words("Rows", cells.texts(frame["n_train"], "{:,.0f}".format), "center"),
        *cells.score_columns(lines, cells.bold_marks(frame, blocks, SCORES)),
    ]
    return Table("policies", frame, columns, blocks, [TEXTS["notes"]["policies"], *_notes(lines)], metrics)


def rate_table(metrics: Sequence[RunRecord], followup: pd.DataFrame | None = None) -> Table:
    """pass@1 against the sampling rate (10% to 60%), and below it what the authors' follow-up reports (30% and 40%)."""
    lines = []
    for _, arms in _by_setting(metrics):
        rates = [line for (policy, _, strategy), line in arms.items() if (policy, strategy) == ("cdas", "dynamic_pack")]
        # of full data the packed run where there is one
        full = [line for arm, line in arms.items() if arm[0] == "full"]
        full.sort(key=lambda line: line.names["strategy"] != "dynamic_pack")
        lines += sorted([*rates, *full[:1]], key=lambda line: line.names["ratio"])
    if followup is not None:
        reported = []
        scores = followup[followup["table"] == "pass_at_one"].sort_values("ratio", kind="stable")
        for (model, size, dataset), rows in scores.groupby(["model", "size", "dataset"], sort=False):
            name = f"Reported in arXiv 2504.12687: {model} {size}, {dataset}"
            for line in results.reported_lines(rows, "follow-up"):
                reported.append(line.named(setting=name, ratio=line.names["ratio"]))
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


def _by_setting(metrics: Sequence[RunRecord]) -> list[tuple[RunRecord, dict[results.Arm, Line]]]:
    # base models have no arm: they do not count for what most lines were scored on
    return results.by_setting(cells.marked(results.measured_lines(filter(itemgetter("dataset"), metrics))))


def _notes(lines: Sequence[Line]) -> list[str]:
    most = max((len(line.runs) for line in lines), default=0)
    seeds = TEXTS["seeds"]["several" if most > 1 else "one"].format(most=most)
    if most == 0:
        seeds = "Nothing was measured."
    return [seeds, *cells.mark_notes(lines)]
