"""The tables of what the paper leaves open: selection against packing, other ways to choose 40%, how much to choose.

All of them are means over the seeds of an arm, with the spread (sample standard deviation) where there is more than
one seed. They are empty where the profile's grid has no such arms: `codeact run --grid full` has all of them.
"""

from __future__ import annotations

import math

import pandas as pd

from codeact_lib.tables.cells import bold_marks, cell_marks, efficiency_cells, mark_notes, marks_text, score_cells
from codeact_lib.tables.render import NOT_RUN, Table
from codeact_lib.tables.results import (
    BASELINE,
    CODEACT,
    EFFICIENCY,
    HEADINGS,
    SCORES,
    arm_label,
    arm_of,
    by_arm,
    hardware_notes,
    is_missing,
    measured_row,
    run_sources,
    setting,
)

SPLIT = (BASELINE, ("full", 1.0, "dynamic_pack"), ("cdas", 0.4, "dynamic"), CODEACT)
SPLIT_NOTE = (
    "The paper's saving compares the last line with the first and so mixes two things: 40% of the samples (third line "
    "against the first) and Dynamic Pack (second line against the first). The cost of selection is not in it."
)
ARM = ["setting", "arm", "policy", "ratio", "strategy", "n_seeds", "n_train"]
VALUES = [*EFFICIENCY, "padding_pct", *SCORES]
SPREAD = [f"{column}{part}" for column in VALUES for part in ("", "_sd")]
COUNTS = [f"{column}{part}" for column in SCORES for part in ("_k", "_n", "_low", "_high")]
LAST = ["marks", "seeds", "run_id"]
MEANS = [*ARM, *SPREAD, *COUNTS, *LAST, "cell_marks", "status", "source"]


def arm_means(metrics: list[dict]) -> pd.DataFrame:
    """One line an arm of a setting: mean and sample standard deviation over its seeds.

    Columns: ``setting, arm, policy, ratio, strategy, n_seeds, n_train, seeds, run_id``, and for each score (pass@1 in
    %), ``training_time_min``, ``peak_memory_gb`` and ``padding_pct`` the mean under its name and ``<name>_sd`` (NaN
    for a single seed), with counts and interval of the scores. Base models have no arm and are left out.
    """
    rows = []
    for runs in by_arm([record for record in metrics if record["policy"] is not None]):
        arm = dict(zip(("policy", "ratio", "strategy"), arm_of(runs[0]), strict=True))
        rows.append({"setting": setting(runs[0]), "arm": arm_label(runs[0])} | arm | measured_row(runs))
    marks = cell_marks(rows)
    rows = [row | {"marks": marks_text(mark), "cell_marks": mark} for row, mark in zip(rows, marks, strict=True)]
    return pd.DataFrame(rows).reindex(columns=MEANS)


def split_table(metrics: list[dict]) -> Table:
    """{full, 40%} x {dynamic padding, Dynamic Pack}: how much of the saving is fewer samples, how much is packing.

    `time_ratio` and `memory_ratio` are relative to full data with dynamic padding, the paper's baseline.
    """
    means = arm_means(metrics)
    rows = [row for name, part in means.groupby("setting", sort=False) for row in _split_rows(name, part)]
    frame = pd.DataFrame(rows).reindex(
        columns=[
            "setting",
            "data",
            "batching",
            "n_seeds",
            *SPREAD,
            "time_ratio",
            "memory_ratio",
            *COUNTS,
            *LAST,
            "status",
        ]
    )
    efficiency = efficiency_cells(frame.astype({column: float for column in EFFICIENCY}), list(frame["setting"]))
    cells = pd.DataFrame({"Data": frame["data"], "Batching": frame["batching"]})
    cells["Training time"] = _with_ratio(efficiency["Training time"], frame["time_ratio"])
    cells["Peak memory"] = _with_ratio(efficiency["Peak memory"], frame["memory_ratio"])
    cells["Padding"] = [NOT_RUN if is_missing(rate) else f"{rate:.1f}%" for rate in frame["padding_pct"]]
    cells = cells.assign(**score_cells(frame.to_dict("records"), [row.get("cell_marks") or {} for row in rows]))
    notes = [SPLIT_NOTE, "×: against the first line.", *_notes(means), *hardware_notes(metrics)]
    return _table("split", "Fewer samples or better packed?", frame, cells, metrics, notes, left=("Data", "Batching"))


def _split_rows(name: str, part: pd.DataFrame) -> list[dict]:
    found = {arm: _pick(part, arm) for arm in SPLIT}
    rows = []
    for (policy, ratio, strategy), row in found.items():
        row = row or {"status": NOT_RUN, "run_id": None, "cell_marks": {}} | dict.fromkeys(VALUES, math.nan)
        row |= {"setting": name, "data": "all" if policy == "full" else f"CDAS {ratio:.0%}"}
        row |= {"batching": "dynamic padding" if strategy == "dynamic" else "Dynamic Pack"}
        for target, column in (("time_ratio", "training_time_min"), ("memory_ratio", "peak_memory_gb")):
            row[target] = round(row[column] / found[BASELINE].get(column, math.nan), 4)
        rows.append(row)
    return rows


def _pick(part: pd.DataFrame, arm: tuple) -> dict:
    policy, ratio, strategy = arm
    found = part[(part["policy"] == policy) & (part["ratio"] == ratio) & (part["strategy"] == strategy)]
    return found.iloc[0].to_dict() if len(found) else {}


def _with_ratio(cells: list[str], ratios: pd.Series) -> list[str]:
    return [c if is_missing(ratio) else f"{c}\n× {ratio:.2f}" for c, ratio in zip(cells, ratios, strict=True)]


def policy_table(metrics: list[dict]) -> Table:
    """All ways of choosing the same budget, trained alike (40% + Dynamic Pack), as means over seeds."""
    means = arm_means(metrics)
    same = means[(means["ratio"] == 0.4) & (means["strategy"] == "dynamic_pack")].reset_index(drop=True)
    cells = pd.DataFrame({"Arm": same["arm"], "Seeds": same["n_seeds"].map(str)})
    cells["Rows"] = [f"{n:,.0f}" for n in same["n_train"]]
    cells = cells.assign(**score_cells(same.to_dict("records"), list(same["cell_marks"])))
    bold = pd.DataFrame(False, index=cells.index, columns=cells.columns)
    bold[list(HEADINGS.values())] = bold_marks(same, list(same["setting"]), SCORES)[SCORES].to_numpy()
    notes = ["pass@1 in %; bold: the best mean of a data set, which need not mean a difference.", *_notes(same)]
    return _table("policies", "Other ways to choose 40%", same, cells, metrics, notes, bold=bold)


def rate_frame(metrics: list[dict]) -> pd.DataFrame:
    """CDAS + Dynamic Pack at every sampling rate that was run, and full data as 100%: for the sampling-rate curve.

    Columns as in ``arm_means``. Full data is the packed run where there is one.
    """
    means = arm_means(metrics)
    rates = means[(means["policy"] == "cdas") & (means["strategy"] == "dynamic_pack")]
    full = means[means["policy"] == "full"].sort_values("strategy", key=lambda s: s != "dynamic_pack", kind="stable")
    full = full.drop_duplicates("setting")
    order = {name: i for i, name in enumerate(dict.fromkeys(means["setting"]))}
    both = pd.concat([rates, full])
    return both.sort_values(
        ["setting", "ratio"], key=lambda c: c.map(order) if c.name == "setting" else c, kind="stable"
    )


def rate_table(metrics: list[dict], followup: pd.DataFrame | None = None) -> Table:
    """pass@1 against the sampling rate (10% to 60%), and below it what the authors' follow-up reports (30% and 40%)."""
    measured = rate_frame(metrics)
    frame = pd.concat([measured, _reported_rates(followup)], ignore_index=True) if followup is not None else measured
    frame = frame.reset_index(drop=True)
    cells = pd.DataFrame({"Sampling rate": [f"{ratio:.0%}" for ratio in frame["ratio"]]})
    for heading, column in (("Rows", "n_train"), ("Seeds", "n_seeds")):
        cells[heading] = ["-" if is_missing(value) else f"{value:,.0f}" for value in frame[column]]
    cells = cells.assign(**score_cells(frame.to_dict("records"), list(frame["cell_marks"])))
    padded = ", trained with dynamic padding where it was not packed" if "dynamic" in set(frame["strategy"]) else ""
    notes = [f"CDAS + Dynamic Pack; 100% is all data{padded}.", *_notes(frame)]
    return _table("sampling_rates", "How much to choose", frame, cells, metrics, notes)


def _reported_rates(followup: pd.DataFrame) -> pd.DataFrame:
    """The follow-up's scores at each rate in the columns of ``arm_means``."""
    scores = followup[followup["table"] == "pass_at_one"].sort_values("ratio", kind="stable")
    marks = cell_marks(scores[SCORES].to_dict("records"))
    names = "Reported in arXiv 2504.12687: " + scores["model"] + " " + scores["size"] + ", " + scores["dataset"]
    rows = scores.assign(setting=names, status="reported", source="follow-up", cell_marks=marks)
    rows = rows.assign(marks=[marks_text(mark) for mark in marks])
    return pd.concat([part for _, part in rows.groupby("setting", sort=False)]).reindex(columns=MEANS)


def _table(name, title, frame, cells, metrics, notes, bold=None, **more) -> Table:
    links = [None if is_missing(run) else run for run in frame["run_id"]]
    blocks, shown = list(frame["setting"]), frame.drop(columns=["cell_marks", "status"], errors="ignore")
    return Table(name, title, shown, cells, bold, blocks, notes, links, sources=run_sources(metrics), **more)


def _notes(frame: pd.DataFrame) -> list[str]:
    marks = mark_notes(list(frame["cell_marks"]))
    if not frame["n_seeds"].notna().any():
        return ["Nothing was measured.", *marks]
    most = int(frame["n_seeds"].max())
    seeds = (
        f"Means over up to {most} seeds ± sample standard deviation; below, the tasks that each seed solved and "
        f"the 95% "
        "interval."
    )
    one = "One seed an arm; below each score solved tasks / tasks and the 95% interval."
    return [seeds if most > 1 else one, *marks]
