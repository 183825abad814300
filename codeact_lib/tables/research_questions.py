"""RQ1 and RQ2 in the paper's layout, with *paper*, *follow-up* and *measured* as sources that never share a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
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
from codeact_lib.tables.render import Column, Table, values, words
from codeact_lib.tables.results import (
    BASELINE,
    CODEACT,
    EFFICIENCY,
    NOT_RUN,
    SCORES,
    ArmResult,
    RunRecord,
    arm_label,
    benchmark_stamp,
    by_arm,
    by_setting,
    find_arm,
    hardware_notes,
    measured_result,
    place,
    reported_result,
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
_COSTS = [f"{column}{part}" for column in EFFICIENCY for part in ("", "_sd")]
_SCORES = [f"{column}{part}" for column in SCORES for part in ("", "_sd", "_k", "_n", "_low", "_high")]
_RUNS = ["n_train", "marks", "benchmark_versions", "hardware", "peak_memory_kind", "n_seeds", "seeds", "run_id"]
FLAT = [*_COSTS, *_SCORES, *_RUNS]  # columns of the CSV after those that say what a row is


# ---- RQ1 -------------------------------------------------------------------------------------------------------------


def rq1_table(metrics: Sequence[RunRecord], reported: pd.DataFrame, followup: pd.DataFrame | None = None) -> Table:
    """RQ1: full data with dynamic padding against CodeACT, per data set and base model (CodeACT, table 1).

    metrics: records of 05_eval. reported: `rq1.csv`. followup: `followup.csv`, whose re-runs of the same rows then
    stand below the paper's as a source of their own. Runs of the paper's own models and data stand under the
    paper's rows, all others in blocks of their own that say what they are. What was not run says "not run".
    """
    lines: list[Line] = []
    others = list(metrics)
    for (dataset, model, size), pair in reported.groupby(["dataset", "model", "size"], sort=False):
        names = {"block": f"Models trained on {dataset}", "dataset": dataset, "model": model, "size": size}
        lines += _reported_lines(names, pair, "paper")
        if followup is not None:
            lines += _reported_lines(names, _followup_pair(followup, dataset, model, size), "follow-up")
        same = [record for record in others if _reported_key(record) == (dataset, model, size)]
        others = [record for record in others if _reported_key(record) != (dataset, model, size)]
        lines += _arm_pair(names, [measured_result(runs) for runs in by_arm(same)])
    for arms in by_setting(others):
        lines += _arm_pair(_own_block(arms[0].first), arms)
    blocks = list(dict.fromkeys(line.names["block"] for line in lines))
    lines.sort(key=lambda line: blocks.index(line.names["block"]))
    return _rq1_layout(marked(lines), metrics)


def _reported_lines(names: dict[str, Any], pair: pd.DataFrame, source: str) -> list[Line]:
    rows = pair.to_dict("records")
    return [Line(names | {"codeact": bool(row["codeact"])}, reported_result(row, source)) for row in rows]


def _followup_pair(followup: pd.DataFrame, dataset: str, model: str, size: str) -> pd.DataFrame:
    """The follow-up's full-data and 40% rows of one setting; it gives no time and memory for them."""
    models = followup["model"].str.replace("-Python", "")  # it says CodeLlama-Python for the paper's CodeLlama
    same = (followup["dataset"] == dataset) & (models == model) & (followup["size"] == size)
    found = followup[same & (followup["table"] == "pass_at_one") & followup["ratio"].isin([1.0, 0.4])]
    found = found[["ratio", *SCORES]].sort_values("ratio", ascending=False)
    return found.drop_duplicates("ratio").assign(codeact=found["ratio"] < 1)


def _reported_key(record: RunRecord) -> tuple[str | None, str | None, str]:
    return record["reported_as"], record["model"]["reported_as"], record["model"]["size"]


def _own_block(record: RunRecord) -> dict[str, Any]:
    """Block, data set, model and size of a measured setting that the paper does not have."""
    model = record["model"]
    block = (
        f"Measured, {record['profile']} profile: a {model['size']}-parameter model on {place(record)}, trained on "
        f"{record['dataset_label']}; not comparable with the paper's absolute numbers"
    )
    return {"block": block, "dataset": record["dataset_label"], "model": model["label"], "size": model["size"]}


def _arm_pair(names: dict[str, Any], arms: Sequence[ArmResult]) -> list[Line]:
    """Baseline and CodeACT of one setting; an arm without a run becomes a "not run" line."""
    missing = ArmResult("measured", NOT_RUN)
    full = find_arm(arms, BASELINE) or missing
    ours = find_arm(arms, CODEACT) or missing
    return [Line(names | {"codeact": False}, full), Line(names | {"codeact": True}, ours)]


def _rq1_layout(lines: Sequence[Line], metrics: Sequence[RunRecord]) -> Table:
    frame = flat_frame(lines, ["block", "dataset", "model", "size", "codeact", "source", "status", *FLAT])
    groups = list(frame[["source", "block", "model", "size"]].itertuples(index=False, name=None))
    best = bold_marks(frame, groups, EFFICIENCY + SCORES, EFFICIENCY)
    # two arms of which neither was run take one line for the reader; the CSV keeps both
    empty = frame["status"] == NOT_RUN
    merged = empty & empty.shift(fill_value=False) & frame["codeact"].astype(bool)
    arms = frame["codeact"].map({True: "✓", False: "✗"}).mask(merged.shift(-1, fill_value=False), "✗ / ✓")
    columns = [
        words("Model", frame["model"]),
        words("Size", frame["size"], "center"),
        words("CodeACT", arms, "center"),
        words("Source", frame["source"]),
        *efficiency_columns(lines, groups, best),
        *score_columns(lines, best),
    ]
    shown = np.flatnonzero(~merged).tolist()
    return Table(
        "rq1",
        "RQ1: how CodeACT performs across data sets and models",
        frame,
        [Column(column.heading, [column.cells[i] for i in shown], column.align) for column in columns],
        frame["block"][shown].tolist(),
        [RQ1_NOTE, *measured_notes(metrics), *mark_notes(lines)],
        run_sources(metrics),
        rows=shown,
    )


# ---- RQ2 -------------------------------------------------------------------------------------------------------------


def rq2_table(metrics: Sequence[RunRecord], reported: pd.DataFrame) -> Table:
    """RQ2: models trained with CodeACT beside others (CodeACT, table 2), and the measured arms in a group of their own.

    Bold is the best of a group. A dagger marks a reported row whose MBPP scores can be k/378 and
    cannot be k/399: it was scored on MBPP+ v0.2.0, most other rows on v0.1.0, and the two are not comparable.
    """
    headings = {
        "model": "Model",
        "size": "Size",
        "base_model": "Base model",
        "data_type": "Data type",
        "data_num": "Data num",
        "source": "Source",
    }
    rows = reported.to_dict("records")
    lines = [Line({"block": GROUP_TITLES[row["group"]]} | row, reported_result(row, "paper")) for row in rows]
    lines += [Line(_rq2_names(runs[0]), measured_result(runs)) for runs in by_arm(metrics)]
    lines = marked(lines)
    frame = flat_frame(lines, ["block", *headings, "status", *FLAT])
    blocks = frame["block"].tolist()
    columns = []
    for name, heading in headings.items():
        columns.append(words(heading, frame[name], "center" if name in ("size", "data_num") else "left"))
    columns += score_columns(lines, bold_marks(frame, blocks, SCORES))
    notes = [RQ2_NOTE, *measured_notes(metrics), *mark_notes(lines)]
    title = "RQ2: models trained with CodeACT beside other models"
    return Table("rq2", title, frame, columns, blocks, notes, run_sources(metrics))


def _rq2_names(record: RunRecord) -> dict[str, Any]:
    model = record["model"]
    comparable = "" if model["reported_as"] else "; not comparable with the paper's absolute numbers"
    what = f"{model['label']}, {model['size']} parameters, on {place(record)}{comparable}"
    names: dict[str, Any] = {"block": f"Measured, {record['profile']} profile: {what}", "model": arm_label(record)}
    names |= {"size": model["size"], "base_model": "-", "data_type": "pre-training only", "data_num": "-"}
    if record["dataset"] is not None:
        names |= {"base_model": model["label"], "data_type": record["dataset_label"]}
        names["data_num"] = f"{record['n_train']:,}"
    return names


# ---- all measured arms -----------------------------------------------------------------------------------------------


def arms_table(metrics: Sequence[RunRecord]) -> Table:
    """Every measured arm with time, memory, padding and scores: the ablation the paper leaves out (a random 40%)."""
    lines = []
    for runs in by_arm(metrics):
        lines.append(Line({"data_set": setting(runs[0]), "arm": arm_label(runs[0])}, measured_result(runs)))
    lines = marked(lines)
    frame = flat_frame(lines, ["data_set", "arm", "source", "status", "padding_pct", *FLAT])
    groups = frame["data_set"].tolist()
    columns = [words("Arm", frame["arm"])]
    if any(len(line.result.runs) > 1 for line in lines):
        columns.append(words("Seeds", frame["n_seeds"], "center"))
    columns.append(words("Rows", map(count_cell, frame["n_train"]), "center"))
    columns += efficiency_columns(lines, groups)
    columns.append(values("Padding", map(padding_cell, frame["padding_pct"]), frame["run_id"]))
    columns += score_columns(lines)
    notes = ["Padding is the share of token slots that hold no token.", *measured_notes(metrics), *mark_notes(lines)]
    return Table("arms", "All measured arms", frame, columns, groups, notes, run_sources(metrics))


def measured_notes(metrics: Sequence[RunRecord]) -> list[str]:
    """What must be known to read the measured cells: counts, seeds, benchmark versions, hardware, kind of memory."""
    if not metrics:
        return ["Nothing was measured."]
    notes = ["Measured cells give pass@1, then tasks solved / tasks, then the 95% interval."]
    if any(len(runs) > 1 for runs in by_arm(metrics)):
        notes = [
            "Measured cells give the mean over seeds ± sample standard deviation, then the tasks that each seed "
            "solved, then the 95% interval of the mean over tasks (bootstrap; Wilson's where there is one seed)."
        ]
    stamps = list(dict.fromkeys(map(benchmark_stamp, metrics)))
    if len(stamps) > 1:
        notes.append("WARNING: the measured rows mix benchmark versions and must not be compared with each other.")
    protocols = {judged.get("protocol") for record in metrics for judged in record["benchmarks"].values()}
    notes.append(f"Benchmarks: {' / '.join(stamps)}; protocol: {', '.join(sorted(filter(None, protocols)))}.")
    return notes + hardware_notes(metrics)
