"""RQ1 and RQ2 in the paper's layout, with *paper*, *follow-up* and *measured* as sources that never share a row."""

from __future__ import annotations

from typing import Any

import pandas as pd

from codeact_lib.tables.cells import (
    bold_marks,
    cell_marks,
    efficiency_cells,
    mark_notes,
    marks_text,
    score_cells,
)
from codeact_lib.tables.render import NOT_RUN, Table
from codeact_lib.tables.results import (
    BASELINE,
    CODEACT,
    EFFICIENCY,
    HEADINGS,
    SCORES,
    arm_label,
    benchmark_stamp,
    by_arm,
    by_setting,
    find_arm,
    hardware_notes,
    is_missing,
    measured_row,
    place,
    run_sources,
    setting,
)

RQ1_NOTE = (
    "CodeACT ✓: 40% of the data chosen by CDAS, trained with Dynamic Pack; ✗: all data, dynamic padding. Scores are "
    "pass@1 in %. Bold: the better of the two arms of one base model on one data set within one source, both when tied."
)
RQ2_NOTE = "Scores are pass@1 in %. Bold: the best of a group, all when tied."
GROUP_TITLES = {
    "closed-source": "Closed-source models",
    "34B": "Open-source models, 34B",
    "13-15B": "Open-source models, 13B to 15B",
    "6.7-7B": "Open-source models, 6.7B to 7B",
}


# RQ1


def rq1_table(metrics: list[dict], reported: pd.DataFrame, followup: pd.DataFrame | None = None) -> Table:
    """RQ1: full data with dynamic padding against CodeACT, per data set and base model (CodeACT, table 1).

    metrics: records of 05_eval. reported: ``rq1.csv``. followup: ``followup.csv``, whose re-runs of the same rows then
    stand below the paper's as a source of their own. Runs of the paper's own models and data stand under the
    paper's rows, all others in blocks of their own that say what they are. What was not run says "not run".
    """
    rows, used = [], set()
    for (dataset, model, size), pair in reported.groupby(["dataset", "model", "size"], sort=False):
        block = f"Models trained on {dataset}"
        identity = {"block": block, "dataset": dataset, "model": model, "size": size}
        rows += [identity | {"source": "paper", "status": "reported"} | row for row in pair.to_dict("records")]
        rows += [identity | row for row in _followup_arms(followup, dataset, model, size)]
        found = [r for r in metrics if _reported_key(r) == (dataset, model, size)]
        used |= {r["run_id"] for r in found}
        rows += arm_pair(by_arm(found), identity)
    for arms in by_setting([r for r in metrics if r["run_id"] not in used]):
        rows += arm_pair(arms, own_block(arms[0][0]))
    order = {block: i for i, block in enumerate(dict.fromkeys(row["block"] for row in rows))}
    return _rq1_cells(sorted(rows, key=lambda row: order[row["block"]]), metrics)


def _followup_arms(followup: pd.DataFrame | None, dataset: str, model: str, size: str) -> list[dict]:
    """The follow-up's full-data and 40% rows of one setting; it gives no time and memory for them."""
    if followup is None:
        return []
    same = followup[
        (followup["table"] == "pass_at_one") & (followup["dataset"] == dataset) & (followup["size"] == size)
    ]
    same = same[same["model"].str.replace("-Python", "") == model]
    arms = [(ratio, same[same["ratio"] == ratio]) for ratio in (1.0, 0.4)]
    return [
        {"source": "follow-up", "status": "reported", "codeact": ratio < 1} | found.iloc[0][SCORES].to_dict()
        for ratio, found in arms
        if len(found)
    ]


def _reported_key(record: dict) -> tuple:
    return record["reported_as"], record["model"]["reported_as"], record["model"]["size"]


def own_block(record: dict) -> dict:
    """Block, data set, model and size of a measured setting that the paper does not have."""
    model = record["model"]
    block = (
        f"Measured, {record['profile']} profile: a {model['size']}-parameter model on {place(record)}, trained on "
        f"{record['dataset_label']}; not comparable with the paper's absolute numbers"
    )
    return {"block": block, "dataset": record["dataset_label"], "model": model["label"], "size": model["size"]}


def arm_pair(arms: list[list[dict]], identity: dict) -> list[dict]:
    """Baseline and CodeACT of one setting; an arm without a run becomes a "not run" row."""
    rows = []
    for codeact, arm in ((False, BASELINE), (True, CODEACT)):
        runs = find_arm(arms, arm)
        row = measured_row(runs) if runs else {"source": "measured", "status": NOT_RUN}
        rows.append(identity | {"codeact": codeact} | row)
    return rows


def _rq1_cells(rows: list[dict], metrics: list[dict]) -> Table:
    marks = cell_marks(rows)
    frame = as_frame(rows, ["block", "dataset", "model", "size", "codeact", "source", "status"], marks)
    groups = list(frame[["source", "block", "model", "size"]].itertuples(index=False, name=None))
    best = bold_marks(frame, groups, EFFICIENCY + SCORES, EFFICIENCY)
    cells = pd.DataFrame({"Model": frame["model"], "Size": frame["size"]})
    cells["CodeACT"] = ["✓" if c else "✗" for c in frame["codeact"]]
    cells["Source"] = frame["source"]
    cells = cells.assign(**efficiency_cells(frame, groups), **score_cells(frame.to_dict("records"), marks))
    bold = pd.DataFrame(False, index=cells.index, columns=cells.columns)
    bold[["Training time", "Peak memory", *HEADINGS.values()]] = best[EFFICIENCY + SCORES].to_numpy()
    keep = _collapse_not_run(frame, cells)
    more: dict[str, Any] = {"links": run_links(frame["run_id"][keep]), "sources": run_sources(metrics)}
    more["notes"] = [RQ1_NOTE, *measured_notes(metrics), *mark_notes(marks)]
    title = "RQ1: how CodeACT performs across data sets and models"
    return Table("rq1", title, frame, cells[keep], bold[keep], list(frame["block"][keep]), **more)


def _collapse_not_run(frame: pd.DataFrame, cells: pd.DataFrame) -> list[bool]:
    """Two arms of which neither was run take one line for the reader; the CSV keeps both."""
    empty = list(frame["status"] == NOT_RUN)
    drop = [i > 0 and empty[i] and empty[i - 1] and bool(frame["codeact"][i]) for i in range(len(frame))]
    for i in range(1, len(frame)):
        if drop[i]:
            cells.loc[i - 1, "CodeACT"] = "✗ / ✓"
    return [not gone for gone in drop]


# RQ2


def rq2_table(metrics: list[dict], reported: pd.DataFrame) -> Table:
    """RQ2: models trained with CodeACT beside others (CodeACT, table 2), and the measured arms in a group of their own.

    Bold is the best of a group. A dagger marks a reported row whose MBPP scores can be k/378 and
    cannot be k/399: it was scored on MBPP+ v0.2.0, most other rows on v0.1.0, and the two are not comparable.
    """
    rows = [
        {"block": GROUP_TITLES[row["group"]], "source": "paper", "status": "reported"} | row
        for row in reported.to_dict("records")
    ]
    rows += [_rq2_identity(runs[0]) | measured_row(runs) for runs in by_arm(metrics)]
    marks = cell_marks(rows)
    frame = as_frame(rows, ["block", "model", "size", "base_model", "data_type", "data_num", "source", "status"], marks)
    cells = frame[["model", "size", "base_model", "data_type", "data_num", "source"]].copy()
    cells.columns = ["Model", "Size", "Base model", "Data type", "Data num", "Source"]
    cells = cells.assign(**score_cells(frame.to_dict("records"), marks))
    bold = pd.DataFrame(False, index=cells.index, columns=cells.columns)
    bold[list(HEADINGS.values())] = bold_marks(frame, list(frame["block"]), SCORES)[SCORES].to_numpy()
    more: dict[str, Any] = {"links": run_links(frame["run_id"]), "sources": run_sources(metrics)}
    more["notes"] = [RQ2_NOTE, *measured_notes(metrics), *mark_notes(marks)]
    title = "RQ2: models trained with CodeACT beside other models"
    return Table("rq2", title, frame, cells, bold, list(frame["block"]), **more)


def _rq2_identity(record: dict) -> dict:
    model, trained = record["model"], record["dataset"] is not None
    return {
        "block": _rq2_block(record),
        "model": arm_label(record),
        "size": model["size"],
        "base_model": model["label"] if trained else "-",
        "data_type": record["dataset_label"] if trained else "pre-training only",
        "data_num": f"{record['n_train']:,}" if trained else "-",
    }


def _rq2_block(record: dict) -> str:
    model = record["model"]
    comparable = "" if model["reported_as"] else "; not comparable with the paper's absolute numbers"
    what = f"{model['label']}, {model['size']} parameters, on {place(record)}"
    return f"Measured, {record['profile']} profile: {what}{comparable}"


# All measured arms


def arms_table(metrics: list[dict]) -> Table:
    """Every measured arm with time, memory, padding and scores: the ablation the paper leaves out (a random 40%)."""
    arms = by_arm(metrics)
    rows = [{"data_set": setting(runs[0]), "arm": arm_label(runs[0])} | measured_row(runs) for runs in arms]
    marks = cell_marks(rows)
    frame = as_frame(rows, ["data_set", "arm", "source", "status", "padding_pct"], marks)
    records = frame.to_dict("records")
    cells = pd.DataFrame({"Arm": frame["arm"]})
    if len(frame) and frame["n_seeds"].max() > 1:
        cells["Seeds"] = frame["n_seeds"].map(str)
    cells["Rows"] = ["-" if is_missing(n) else f"{int(n):,}" for n in frame["n_train"]]
    cells = cells.assign(**efficiency_cells(frame, list(frame["data_set"])))
    cells["Padding"] = ["-" if is_missing(rate) else f"{rate:.1f}%" for rate in frame["padding_pct"]]
    cells = cells.assign(**score_cells(records, marks))
    notes = ["Padding is the share of token slots that hold no token.", *measured_notes(metrics), *mark_notes(marks)]
    more: dict[str, Any] = {"notes": notes, "links": run_links(frame["run_id"]), "sources": run_sources(metrics)}
    return Table("arms", "All measured arms", frame, cells, blocks=list(frame["data_set"]), **more)


# Shared by the tables


def as_frame(rows: list[dict], first: list[str], marks: list[dict[str, str]]) -> pd.DataFrame:
    """Rows in the stable column order of a table's CSV, the same whether or not anything was measured."""
    scores = [f"{column}{part}" for column in SCORES for part in ("", "_sd", "_k", "_n", "_low", "_high")]
    costs = [f"{column}{part}" for column in EFFICIENCY for part in ("", "_sd")]
    last = ["n_train", "marks", "benchmark_versions", "hardware", "peak_memory_kind", "n_seeds", "seeds", "run_id"]
    frame = pd.DataFrame([row | {"marks": marks_text(mark)} for row, mark in zip(rows, marks, strict=True)])
    return frame.reindex(columns=[*first, *costs, *scores, *last])


def run_links(run_ids) -> list[str | None]:
    """Runs of each row for its links, None for reported ones."""
    return [None if is_missing(run) else run for run in run_ids]


def measured_notes(metrics: list[dict]) -> list[str]:
    """What must be known to read the measured cells: counts, seeds, benchmark versions, hardware, kind of memory."""
    if not metrics:
        return ["Nothing was measured."]
    notes = ["Measured cells give pass@1, then tasks solved / tasks, then the 95% interval."]
    if any(len(runs) > 1 for runs in by_arm(metrics)):
        notes = [
            "Measured cells give the mean over seeds ± sample standard deviation, then the tasks that each seed "
            "solved, then the 95% interval of the mean over tasks (bootstrap; Wilson's where there is one seed)."
        ]
    stamps = list(dict.fromkeys(benchmark_stamp(r) for r in metrics))
    if len(stamps) > 1:
        notes.append("WARNING: the measured rows mix benchmark versions and must not be compared with each other.")
    protocols = {b.get("protocol") for r in metrics for b in r["benchmarks"].values()}
    notes.append(f"Benchmarks: {' / '.join(stamps)}; protocol: {', '.join(sorted(filter(None, protocols)))}.")
    return notes + hardware_notes(metrics)
