"""RQ1 and RQ2 in the paper's layout, with *paper*, *follow-up* and *measured* as sources that never share a row."""

from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np
import pandas as pd

from codeact_lib.evaluation.records import RunRecord
from codeact_lib.tables import cells, results
from codeact_lib.tables.render import Align, Table, values, words
from codeact_lib.tables.results import BASELINE, CODEACT, EFFICIENCY, NOT_RUN, SCORES, TEXTS, Line

# columns of the CSV after those that say what a row is
FLAT = [
    *results.with_endings(EFFICIENCY, "", "_sd"),
    *results.with_endings(SCORES, "", "_sd", "_k", "_n", "_low", "_high"),
    *("n_train", "marks", "benchmark_versions", "hardware", "peak_memory_kind", "n_seeds", "seeds", "run_id"),
]


def rq1_table(metrics: Sequence[RunRecord], reported: pd.DataFrame, followup: pd.DataFrame | None = None) -> Table:
    """RQ1: full data with dynamic padding against CodeACT, per data set and base model (CodeACT, table 1).

    metrics: records of 05_eval. reported: `rq1.csv`. followup: `followup.csv`, whose re-runs of the same rows then
    stand below the paper's as a source of their own. Runs of the paper's own models and data stand under the
    paper's rows, all others in blocks of their own that say what they are. What was not run says "not run".
    """
    again = {}
    if followup is not None:
        again = dict(list(results.followup_pairs(followup).groupby(["dataset", "paper_model", "size"])))
    settings = results.by_setting(results.measured_lines(metrics))
    known = []
    lines: list[Line] = []
    for key, pair in reported.groupby(["dataset", "model", "size"], sort=False):
        known.append(key)
        names = dict(zip(("dataset", "model", "size"), key, strict=True), block=f"Models trained on {key[0]}")
        sources = {"paper": pair}
        if key in again:
            sources["follow-up"] = again[key].sort_values("codeact")
        for source, rows in sources.items():
            for line in results.reported_lines(rows, source):
                lines.append(line.named(**names, codeact=bool(line.names["codeact"])))
        # a run of the paper's own model and data stands under the paper's rows; where there is none "not run" does
        same = [arms for record, arms in settings if _reported_key(record) == key]
        for arms in same or [{}]:
            lines += _arm_pair(names, arms)
    for record, arms in settings:
        if _reported_key(record) not in known:
            lines += _arm_pair(_own_block(record), arms)
    return _rq1_layout(cells.marked(lines), metrics)


def _reported_key(record: RunRecord) -> tuple[str | None, str | None, str | None]:
    # the size too: in the paper one model name stands for several
    return record["reported_as"], record["model"]["reported_as"], record["model"]["size"]


def _own_block(record: RunRecord) -> dict[str, Any]:
    # Block, data set, model and size of a measured setting that the paper does not have.
    model = record["model"]
    block = (
        f"Measured, {record['profile']} profile: a {model['size']}-parameter model on {_place(record)}, trained on "
        f"{record['dataset_label']}; not comparable with the paper's absolute numbers"
    )
    return {"block": block, "dataset": record["dataset_label"], "model": model["label"], "size": model["size"]}


def _place(record: RunRecord) -> str:
    return "GPU" if record["provenance"]["environment"].get("gpu") else "CPU"


def _arm_pair(names: dict[str, Any], arms: dict[results.Arm, Line]) -> list[Line]:
    """Baseline and CodeACT of one setting; an arm without a run becomes a "not run" line."""
    full = arms.get(BASELINE, Line())
    ours = arms.get(CODEACT, Line())
    return [full.named(**names, codeact=False), ours.named(**names, codeact=True)]


def _rq1_layout(lines: Sequence[Line], metrics: Sequence[RunRecord]) -> Table:
    frame = cells.flat_frame(lines, ["block", "dataset", "model", "size", "codeact", "source", "status", *FLAT])
    groups = list(frame[["source", "block", "model", "size"]].itertuples(index=False, name=None))
    best = cells.bold_marks(frame, groups, EFFICIENCY + SCORES, EFFICIENCY)
    # two arms of which neither was run take one line for the reader; the CSV keeps both
    empty = frame["status"] == NOT_RUN
    merged = empty & empty.shift(fill_value=False) & frame["codeact"].astype(bool)
    arms = frame["codeact"].map({True: "✓", False: "✗"}).mask(merged.shift(-1, fill_value=False), "✗ / ✓")
    columns = [
        words("Model", frame["model"]),
        words("Size", frame["size"], "center"),
        words("CodeACT", arms, "center"),
        words("Source", frame["source"]),
        *cells.efficiency_columns(lines, groups, best),
        *cells.score_columns(lines, best),
    ]
    rows = np.flatnonzero(~merged).tolist()
    shown = [column._replace(cells=list(compress(column.cells, ~merged))) for column in columns]
    notes = [*TEXTS["notes"]["rq1"], *measured_notes(metrics), *cells.mark_notes(lines)]
    return Table("rq1", frame, shown, frame["block"][rows].tolist(), notes, metrics, rows)


def rq2_table(metrics: Sequence[RunRecord], reported: pd.DataFrame) -> Table:
    """RQ2: models trained with CodeACT beside others (CodeACT, table 2); measured arms in a group of their own."""
    lines = []
    for line in results.reported_lines(reported, "paper"):
        lines.append(line.named(**line.names, block=TEXTS["groups"][line.names["group"]]))
    for line in results.measured_lines(metrics):
        lines.append(line.named(**_rq2_names(line.record)))
    # A dagger marks a reported row whose MBPP scores can be k/378 and cannot be k/399: it was scored on MBPP+ v0.2.0,
    # most other rows on v0.1.0, and the two are not comparable.
    lines = cells.marked(lines)
    alignment: dict[str, Align] = {"size": "center", "data_num": "center"}
    names = ["model", "size", "base_model", "data_type", "data_num", "source"]
    frame = cells.flat_frame(lines, ["block", *names, "status", *FLAT])
    blocks = frame["block"].tolist()
    columns = []
    for name in names:
        columns.append(words(name.replace("_", " ").capitalize(), frame[name], alignment.get(name, "left")))
    columns += cells.score_columns(lines, cells.bold_marks(frame, blocks, SCORES))
    notes = [TEXTS["notes"]["rq2"], *measured_notes(metrics), *cells.mark_notes(lines)]
    return Table("rq2", frame, columns, blocks, notes, metrics)


def _rq2_names(record: RunRecord) -> dict[str, Any]:
    model = record["model"]
    comparable = "" if model["reported_as"] else "; not comparable with the paper's absolute numbers"
    what = f"{model['label']}, {model['size']} parameters, on {_place(record)}{comparable}"
    block = f"Measured, {record['profile']} profile: {what}"
    data: dict[str, str | None] = {"base_model": "-", "data_type": "pre-training only", "data_num": "-"}
    if record["dataset"] is not None:
        data = {"base_model": model["label"], "data_type": record["dataset_label"]}
        data["data_num"] = f"{record['n_train']:,}"
    return {"block": block, "model": results.arm_label(record), "size": model["size"], **data}


def arms_table(metrics: Sequence[RunRecord]) -> Table:
    """Every measured arm with time, memory, padding and scores: the ablation the paper leaves out (a random 40%)."""
    lines = cells.marked(results.measured_lines(metrics))
    frame = cells.flat_frame(lines, ["data_set", "arm", "source", "status", "padding_pct", *FLAT])
    groups = frame["data_set"].tolist()
    columns = [words("Arm", frame["arm"])]
    if (frame["n_seeds"] > 1).any():
        columns.append(words("Seeds", frame["n_seeds"], "center"))
    columns.append(words("Rows", cells.texts(frame["n_train"], "{:,.0f}".format), "center"))
    columns += cells.efficiency_columns(lines, groups)
    columns.append(values("Padding", cells.texts(frame["padding_pct"], "{:.1f}%".format), frame["run_id"]))
    columns += cells.score_columns(lines)
    notes = [TEXTS["notes"]["arms"], *measured_notes(metrics), *cells.mark_notes(lines)]
    return Table("arms", frame, columns, groups, notes, metrics)


def measured_notes(metrics: Sequence[RunRecord]) -> list[str]:
    """What must be known to read the measured cells: counts, seeds, benchmark versions, hardware, kind of memory."""
    if not metrics:
        return ["Nothing was measured."]
    several = any(len(line.runs) > 1 for line in results.measured_lines(metrics))
    notes = [TEXTS["measured"]["several" if several else "one"]]
    stamps = list(dict.fromkeys(map(results.benchmark_stamp, metrics)))
    if len(stamps) > 1:
        notes.append(TEXTS["measured"]["mixed"])
    protocols: set[str] = set()
    for record in metrics:
        protocols.update(judged.get("protocol") or "" for judged in record["benchmarks"].values())
    notes.append(f"Benchmarks: {' / '.join(stamps)}; protocol: {', '.join(sorted(filter(None, protocols)))}.")
    return notes + results.hardware_notes(metrics)
