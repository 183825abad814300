"""The paper's headline, recomputed from every reported and measured pair, and its rows beside the authors' re-run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from codeact_lib.tables.cells import cell_marks, mark_notes, percent_cell
from codeact_lib.tables.costs import selection_seconds
from codeact_lib.tables.render import Table
from codeact_lib.tables.research_questions import arm_pair, own_block
from codeact_lib.tables.results import (
    BASELINE,
    BETWEEN_RUNS,
    CODEACT,
    HEADINGS,
    SCORES,
    by_setting,
    find_arm,
    hardware_notes,
    is_missing,
    measured_row,
    relative_change,
    run_sources,
)

NOTE = (
    "The paper's headline is its row DeepSeek-Coder 6.7B on EVOL-Instruct; its 8.6% are points. The follow-up repeats "
    "that row with a full-data baseline of 67.7 in place of 58.5, and the gain is gone. Time compares 40% of the data "
    "with packing against all data without, and leaves out the cost of selection; the column after it counts it in."
)
SOURCES = {
    "paper": "Reported in arXiv 2408.02193",
    "follow-up": "Reported in arXiv 2504.12687",
    "measured": "Measured",
}
CLAIMS = {
    "HumanEval: +8.6 points": "gain_points",
    "Training time: -78%": "time_change_pct",
    "The same, selection counted": "time_with_selection_pct",
    "Peak memory: -27%": "memory_change_pct",
}
COLUMNS = [
    *("source", "dataset", "model", "full", "codeact", "gain_points", "time_change_pct", "time_with_selection_pct"),
    *("memory_change_pct", "run_id"),
]


def derived_claims_table(metrics: list[dict], reported: dict[str, pd.DataFrame]) -> Table:
    """The paper's headline (+8.6 points, -78% time, -27% memory) recomputed from every reported and measured pair.

    Measured pairs are means over the seeds of an arm.
    """
    rows = _pairs_of(reported["rq1"], "paper") + _pairs_of(_followup_pairs(reported["followup"]), "follow-up")
    rows += [row for arms in by_setting(metrics) for row in _measured_pair(arms)]
    frame = pd.DataFrame(rows).reindex(columns=COLUMNS)
    pairs = [_pair_cell(row) for row in frame.to_dict("records")]
    cells = pd.DataFrame({"Data set": frame["dataset"], "Model": frame["model"]})
    cells["HumanEval, full → 40%"] = [cell for cell, _ in pairs]
    cells["Gain"] = [f"{gain:+.1f} points" for gain in frame["gain_points"]]
    cells["Time"] = frame["time_change_pct"].map(percent_cell)
    cells["Time, selection counted"] = frame["time_with_selection_pct"].map(percent_cell)
    cells["Peak memory"] = frame["memory_change_pct"].map(percent_cell)
    links = [None if is_missing(runs) else runs for runs in frame["run_id"]]
    more: dict[str, Any] = {
        "blocks": [SOURCES[source] for source in frame["source"]],
        "links": links,
        "sources": run_sources(metrics),
    }
    notes = [NOTE, *mark_notes([side for _, marks in pairs for side in marks]), *hardware_notes(metrics)]
    return Table("derived_claims", "The headline claims, recomputed", frame, cells, notes=notes, **more)


def _pair_cell(row: dict) -> tuple[str, list[dict[str, str]]]:
    """Both arms as text, e.g. "58.5 → 67.1" with the marks of reported numbers, and these marks."""
    sides = [{"humaneval": row[arm]} for arm in ("full", "codeact")]
    marks = cell_marks(sides) if row["source"] != "measured" else [{}, {}]
    return " → ".join(_marked(*pair, "humaneval") for pair in zip(sides, marks, strict=True)), marks


def _marked(row: dict, marks: dict[str, str], column: str) -> str:
    return f"{row[column]:.1f} {marks.get(column, '')}".strip()


def headline_table(metrics: list[dict], reported: dict[str, pd.DataFrame]) -> Table:
    """The paper's three claims side by side: as its own table, its follow-up and each measured setting have them."""
    pairs = derived_claims_table(metrics, reported).frame
    ours = pairs[pairs["source"] == "measured"]
    theirs = pairs[(pairs["dataset"] == "EVOL-Instruct") & (pairs["model"] == "DeepSeek-Coder 6.7B")]
    shown = pd.concat([theirs, ours])
    words = {"paper": "Paper", "follow-up": "Follow-up", "measured": "Measured"}
    names = [words[r.source] + (f", {r.dataset}" if r.source == "measured" else "") for r in shown.itertuples()]
    frame = pd.DataFrame({"claim": list(CLAIMS)})
    for name, row in zip(names, shown.to_dict("records"), strict=True):
        frame[name] = [row[column] for column in CLAIMS.values()]
    frame["run_id"] = BETWEEN_RUNS.join(ours["run_id"])
    cells = pd.DataFrame({"Claim": frame["claim"]})
    for name in names:
        points, *changes = frame[name]
        cells[name] = [f"{points:+.1f} points", *map(percent_cell, changes)]
    runs = {name: run for name, run in zip(names, shown["run_id"], strict=True) if not is_missing(run)}
    links: list[Any] = [runs] * len(CLAIMS)
    note = "Paper and follow-up: DeepSeek-Coder 6.7B on EVOL-Instruct, CodeACT against all data with dynamic padding."
    notes = [note, *hardware_notes(metrics)]
    title = "The paper's three claims, side by side"
    return Table("headline", title, frame, cells, notes=notes, links=links, sources=run_sources(metrics))


def _followup_pairs(followup: pd.DataFrame) -> pd.DataFrame:
    scores = followup[(followup["table"] == "pass_at_one") & followup["ratio"].isin([1.0, 0.4])]
    return scores.assign(codeact=scores["ratio"] < 1, training_time_min=math.nan, peak_memory_gb=math.nan)


def _pairs_of(frame: pd.DataFrame, source: str) -> list[dict]:
    """Differences between the two arms of each model on each data set; pairs with a gap are left out."""
    if "humaneval" not in frame:
        return []
    rows = []
    for (dataset, model, size), pair in frame.groupby(["dataset", "model", "size"], sort=False):
        full, ours = (pair[pair["codeact"].astype(bool) == arm].iloc[0] for arm in (False, True))
        if not (is_missing(full["humaneval"]) or is_missing(ours["humaneval"])):
            rows.append({"source": source, "dataset": dataset, "model": f"{model} {size}"} | _differences(full, ours))
    return rows


def _differences(full: pd.Series, ours: pd.Series) -> dict:
    return {
        "full": full["humaneval"],
        "codeact": ours["humaneval"],
        "gain_points": round(ours["humaneval"] - full["humaneval"], 3),
        "time_change_pct": relative_change(full["training_time_min"], ours["training_time_min"]),
        "memory_change_pct": relative_change(full["peak_memory_gb"], ours["peak_memory_gb"]),
    }


def _measured_pair(arms: list[list[dict]]) -> list[dict]:
    pairs = _pairs_of(pd.DataFrame(arm_pair(arms, own_block(arms[0][0]))), "measured")
    if not pairs:
        return []
    full, ours = find_arm(arms, BASELINE), find_arm(arms, CODEACT)
    before, after = measured_row(full), measured_row(ours)
    counted = after["training_time_min"] + selection_seconds(ours) / 60
    with_selection = {"time_with_selection_pct": relative_change(before["training_time_min"], counted)}
    return [pairs[0] | with_selection | {"run_id": BETWEEN_RUNS.join([after["run_id"], before["run_id"]])}]


def followup_table(reported: dict[str, pd.DataFrame]) -> Table:
    """The paper's scores beside the authors' own later re-run of the same rows, with the difference."""
    paper = reported["rq1"].assign(ratio=np.where(reported["rq1"]["codeact"], 0.4, 1.0))
    again = reported["followup"][reported["followup"]["table"] == "pass_at_one"]
    again = again.assign(model=again["model"].str.replace("-Python", ""))
    frame = paper.merge(again, on=["dataset", "model", "size", "ratio"], suffixes=("_paper", "_followup"))
    both = [f"{column}{suffix}" for column in SCORES for suffix in ("_paper", "_followup")]
    frame = frame[["dataset", "model", "size", "ratio", *both]]
    cells = pd.DataFrame({"Model": frame["model"] + " " + frame["size"], "Data": frame["ratio"].map("{:.0%}".format)})
    sides = [frame[[f"{c}_{source}" for c in SCORES]].set_axis(SCORES, axis=1) for source in ("paper", "followup")]
    old, new = (side.to_dict("records") for side in sides)
    marks = [cell_marks(rows) for rows in (old, new)]
    for column in SCORES:
        cells[HEADINGS[column]] = [
            f"{_marked(a, marked_a, column)} → {_marked(b, marked_b, column)}\n{b[column] - a[column]:+.1f}"
            for a, b, marked_a, marked_b in zip(old, new, *marks, strict=True)
        ]
    note = "By the same authors: arXiv 2408.02193 (left), arXiv 2504.12687 (right). Neither is a target to be hit."
    notes = [note, *mark_notes([*marks[0], *marks[1]])]
    title = "Reported twice: paper → follow-up"
    return Table("followup", title, frame, cells, blocks=list(frame["dataset"]), notes=notes)
