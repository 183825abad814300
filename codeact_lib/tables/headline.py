"""The paper's headline, recomputed from every reported and measured pair, and its rows beside the authors' re-run."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from codeact_lib.evaluation.records import RunRecord
from codeact_lib.tables import results
from codeact_lib.tables.cells import mark_notes, marked, percent_cell
from codeact_lib.tables.costs import selection_seconds
from codeact_lib.tables.render import Cell, Column, Table, values, words
from codeact_lib.tables.results import BASELINE, BETWEEN_RUNS, CODEACT, HEADINGS, SCORES, TEXTS, Line

CLAIMS = {
    "HumanEval: +8.6 points": "gain_points",
    "Training time: -78%": "time_change_pct",
    "The same, selection counted": "time_with_selection_pct",
    "Peak memory: -27%": "memory_change_pct",
}
SETTING = ["dataset", "model", "size"]
COLUMNS = ["source", "dataset", "model", "full", "codeact", *CLAIMS.values(), "run_id"]
Pair = tuple[Line, Line]  # full data and CodeACT of one model on one data set from one source


def derived_claims_table(metrics: Sequence[RunRecord], reported: Mapping[str, pd.DataFrame]) -> Table:
    """The paper's headline (+8.6 points, -78% time, -27% memory) recomputed from every reported and measured pair."""
    pairs = _pairs(metrics, reported)
    frame = pd.DataFrame([_claims(*pair) for pair in pairs]).reindex(columns=COLUMNS)
    runs = frame["run_id"]
    scores = [f"{_score_words(full, 'humaneval')} → {_score_words(ours, 'humaneval')}" for full, ours in pairs]
    columns = [
        words("Data set", frame["dataset"]),
        words("Model", frame["model"]),
        values("HumanEval, full → 40%", scores, runs),
        values("Gain", frame["gain_points"].map("{:+.1f} points".format), runs),
        values("Time", frame["time_change_pct"].map(percent_cell), runs),
        values("Time, selection counted", frame["time_with_selection_pct"].map(percent_cell), runs),
        values("Peak memory", frame["memory_change_pct"].map(percent_cell), runs),
    ]
    blocks = frame["source"].map(TEXTS["sources"]).tolist()
    notes = [TEXTS["notes"]["derived_claims"], *mark_notes(sum(pairs, ())), *results.hardware_notes(metrics)]
    return Table("derived_claims", frame, columns, blocks, notes, metrics)


def _pairs(metrics: Sequence[RunRecord], reported: Mapping[str, pd.DataFrame]) -> list[Pair]:
    # Both arms of each model on each data set, reported and measured, where HumanEval is known of both.
    pairs: list[Pair] = []
    for source, frame in (("paper", reported["rq1"]), ("follow-up", results.followup_pairs(reported["followup"]))):
        # HumanEval is what the claims are about: marks of other scores have no place here
        for (dataset, model, size), rows in frame.drop(columns=SCORES[1:]).groupby(SETTING, sort=False):
            full, ours = marked(results.reported_lines(rows.sort_values("codeact"), source))
            pairs.append((full.named(dataset=dataset, model=f"{model} {size}"), ours))
    for record, measured in results.by_setting(results.measured_lines(metrics)):
        if BASELINE in measured and CODEACT in measured:
            model = f"{record['model']['label']} {record['model']['size']}"
            full = measured[BASELINE].named(dataset=record["dataset_label"], model=model)
            pairs.append((full, measured[CODEACT]))
    return [(full, ours) for full, ours in pairs if pd.notna(full.rate("humaneval") + ours.rate("humaneval"))]


def _claims(full: Line, ours: Line) -> dict[str, Any]:
    # What the claims are about, as one row of the CSV.
    row = {**full.names, "source": full.source, "full": full.rate("humaneval"), "codeact": ours.rate("humaneval")}
    row["gain_points"] = round(row["codeact"] - row["full"], 3)
    row["time_change_pct"] = results.relative_change(full, ours, "training_time_min")
    row["memory_change_pct"] = results.relative_change(full, ours, "peak_memory_gb")
    if ours.runs:
        minutes = selection_seconds(ours) / 60
        row["time_with_selection_pct"] = results.relative_change(full, ours, "training_time_min", minutes)
        row["run_id"] = f"{ours.run_id}{BETWEEN_RUNS}{full.run_id}"
    return row


def headline_table(metrics: Sequence[RunRecord], reported: Mapping[str, pd.DataFrame]) -> Table:
    """The paper's three claims side by side: as its own table, its follow-up and each measured setting have them."""
    pairs = derived_claims_table(metrics, reported).frame
    ours = pairs[pairs["source"] == "measured"]
    theirs = pairs[(pairs["dataset"] == "EVOL-Instruct") & (pairs["model"] == "DeepSeek-Coder 6.7B")]
    frame = pd.DataFrame({"claim": list(CLAIMS)})
    columns = [words("Claim", CLAIMS)]
    for row in pd.concat([theirs, ours]).to_dict("records"):
        name = {"paper": "Paper", "follow-up": "Follow-up"}.get(row["source"], f"Measured, {row['dataset']}")
        frame[name] = [row[column] for column in CLAIMS.values()]
        points, *changes = frame[name]
        texts = [f"{points:+.1f} points", *map(percent_cell, changes)]
        columns.append(values(name, texts, [row["run_id"]] * len(texts)))
    frame["run_id"] = BETWEEN_RUNS.join(ours["run_id"])
    notes = [TEXTS["notes"]["headline"], *results.hardware_notes(metrics)]
    return Table("headline", frame, columns, notes=notes, metrics=metrics)


def followup_table(reported: Mapping[str, pd.DataFrame]) -> Table:
    """The paper's scores beside the authors' own later re-run of the same rows, with the difference."""
    again = results.followup_pairs(reported["followup"]).drop(columns="model").rename(columns={"paper_model": "model"})
    frame = reported["rq1"].merge(again, on=[*SETTING, "codeact"], suffixes=("_paper", "_followup"))
    both = results.with_endings(SCORES, "_paper", "_followup")
    frame = frame[[*SETTING, "ratio", *both]]
    sides = []
    for source in ("paper", "followup"):
        rows = frame.rename(columns=lambda name, source=source: name.removesuffix(f"_{source}"))
        sides.append(marked(results.reported_lines(rows, source)))
    columns = [
        words("Model", frame["model"] + " " + frame["size"]),
        words("Data", frame["ratio"].map("{:.0%}".format), "center"),
    ]
    for column, heading in HEADINGS.items():
        cells = []
        for before, after in zip(*sides, strict=True):
            change = after.rate(column) - before.rate(column)
            cells.append(Cell(f"{_score_words(before, column)} → {_score_words(after, column)}", (f"{change:+.1f}",)))
        columns.append(Column(heading, cells))
    notes = [TEXTS["notes"]["followup"], *mark_notes(sum(sides, []))]
    return Table("followup", frame, columns, frame["dataset"].tolist(), notes)


def _score_words(line: Line, column: str) -> str:
    return f"{line.rate(column):.1f} {line.marks.get(column, '')}".strip()
