"""The tables of what the paper leaves open: selection against packing, other ways to choose 40%, how much to choose.

All of them are means over the seeds of an arm, with the spread (sample standard deviation) where there is more than
one seed. They are empty where the profile's grid has no such arms: `codeact run --grid full` has all of them.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from .figures import memory_unit, number, time_unit
from .report import NOT_RUN, Table
from .tables import HEADINGS, SCORES, arm_label, measured_row, run_sources, setting

SPLIT = (
    ("full", 1.0, "dynamic"),
    ("full", 1.0, "dynamic_pack"),
    ("cdas", 0.4, "dynamic"),
    ("cdas", 0.4, "dynamic_pack"),
)
COSTS = ("training_time_min", "peak_memory_gb", "padding_pct")


def arm_means(metrics: list[dict]) -> pd.DataFrame:
    """One line an arm of a setting: mean and sample standard deviation over its seeds.

    Columns: ``setting, arm, policy, ratio, strategy, n_seeds, n_train, run_ids``, and for each score (pass@1 in %),
    ``training_time_min``, ``peak_memory_gb`` and ``padding_pct`` the mean under its name and ``<name>_sd`` (NaN for a
    single seed). Base models have no arm and are left out.
    """
    trained = [record for record in metrics if record["policy"] is not None]
    if not trained:
        return pd.DataFrame(columns=["setting", "arm", "policy", "ratio", "strategy", "n_seeds", "n_train", "run_ids"])
    rows = pd.DataFrame([_flat(record) for record in trained])
    values = [column for column in (*SCORES, *COSTS) if column in rows]
    grouped = rows.groupby(["setting", "policy", "ratio", "strategy"], sort=False)
    means = grouped[values].mean().join(grouped[values].std(ddof=1).add_suffix("_sd"))
    facts = grouped.agg(
        arm=("arm", "first"), n_seeds=("seed", "nunique"), n_train=("n_train", "mean"), run_ids=("run_id", "; ".join)
    )
    return facts.join(means).reset_index()


def _flat(record: dict) -> dict:
    padding = (record["train"] or {}).get("padding_rate", math.nan)
    arm = {key: record[key] for key in ("policy", "ratio", "strategy")}
    return (
        measured_row(record)
        | arm
        | {
            "setting": setting(record),
            "arm": arm_label(record | {"seed": 0}),
            "padding_pct": 100 * padding,
        }
    )


def split_table(metrics: list[dict]) -> Table:
    """{full, 40%} x {dynamic padding, Dynamic Pack}: how much of the saving is fewer samples, how much is packing.

    `time_ratio` and `memory_ratio` are relative to full data with dynamic padding, the paper's baseline.
    """
    means = arm_means(metrics)
    rows = [_split_row(name, arm, part) for name, part in means.groupby("setting", sort=False) for arm in SPLIT]
    columns = ["setting", "data", "batching", "n_seeds", *COSTS, "time_ratio", "memory_ratio", *SCORES, "run_ids"]
    frame = pd.DataFrame(rows, columns=columns)
    cells = pd.DataFrame({"Data": frame["data"], "Batching": frame["batching"]})
    cells["Training time"] = [_cost(row, "training_time_min", time_unit, 60) for row in rows]
    cells["of baseline"] = [_times(row["time_ratio"]) for row in rows]
    cells["Peak memory"] = [_cost(row, "peak_memory_gb", memory_unit, 1e9) for row in rows]
    cells["of baseline "] = [_times(row["memory_ratio"]) for row in rows]
    cells["Padding"] = [NOT_RUN if _nan(row["padding_pct"]) else f"{row['padding_pct']:.1f}%" for row in rows]
    notes = [
        "The paper's saving compares the last line with the first and so mixes two things: 40% of the samples (third "
        "line against the first) and Dynamic Pack (second line against the first). The cost of selection is not in it.",
        _seeds_note(means),
    ]
    more: dict[str, Any] = {"blocks": list(frame["setting"]), "notes": notes, "sources": run_sources(metrics)}
    return Table("split", "Fewer samples or better packed?", frame, cells, left=("Data", "Batching"), **more)


def _split_row(name: str, arm: tuple, part: pd.DataFrame) -> dict:
    policy, ratio, strategy = arm
    row = {
        "setting": name,
        "data": "all" if policy == "full" else f"CDAS {ratio:.0%}",
        "batching": "dynamic padding" if strategy == "dynamic" else "Dynamic Pack",
    }
    base, found = _pick(part, SPLIT[0]), _pick(part, arm)
    row |= {column: found.get(column, math.nan) for column in ("n_seeds", *COSTS, *SCORES)}
    row["run_ids"] = found.get("run_ids", "")
    for target, column in (("time_ratio", "training_time_min"), ("memory_ratio", "peak_memory_gb")):
        row[target] = round(found.get(column, math.nan) / base.get(column, math.nan), 4)
    return row


def _pick(part: pd.DataFrame, arm: tuple) -> dict:
    policy, ratio, strategy = arm
    found = part[(part["policy"] == policy) & (part["ratio"] == ratio) & (part["strategy"] == strategy)]
    return found.iloc[0].to_dict() if len(found) else {}


def policy_table(metrics: list[dict]) -> Table:
    """All ways of choosing the same budget, trained alike (40% + Dynamic Pack), as means over seeds."""
    means = arm_means(metrics)
    same = means[(means["ratio"] == 0.4) & (means["strategy"] == "dynamic_pack")].reset_index(drop=True)
    cells = pd.DataFrame({"Arm": same["arm"], "Seeds": same["n_seeds"].map(str)})
    cells["Rows"] = [f"{n:,.0f}" for n in same["n_train"]]
    bold = pd.DataFrame(False, index=same.index, columns=[*cells.columns, *HEADINGS.values()])
    for column in SCORES:
        values = same.get(column, pd.Series(math.nan, same.index))
        cells[HEADINGS[column]] = [_mean(*pair) for pair in zip(values, same.get(f"{column}_sd", values), strict=True)]
        best = values.groupby(same["setting"]).transform("max")
        bold[HEADINGS[column]] = (values == best) & (same.groupby("setting")["arm"].transform("size") > 1)
    notes = ["pass@1 in %; bold: the best mean of a data set, which need not mean a difference.", _seeds_note(means)]
    title = "Other ways to choose 40%"
    return Table("policies", title, same, cells, bold, list(same["setting"]), notes, sources=run_sources(metrics))


def rate_frame(metrics: list[dict]) -> pd.DataFrame:
    """CDAS + Dynamic Pack at every sampling rate that was run, and full data as 100%: for the sampling-rate curve.

    Columns ``setting, ratio, n_seeds`` and each score with its ``_sd``. Full data is the packed run where there is one.
    """
    means = arm_means(metrics)
    packed = means["strategy"] == "dynamic_pack"
    rates = means[(means["policy"] == "cdas") & packed]
    full = means[means["policy"] == "full"].sort_values("strategy", key=lambda s: s != "dynamic_pack", kind="stable")
    full = full.drop_duplicates("setting")
    columns = [
        "setting",
        "ratio",
        "strategy",
        "n_seeds",
        "n_train",
        "run_ids",
        *(c for c in means if c.removesuffix("_sd") in SCORES),
    ]
    return pd.concat([rates, full])[columns].sort_values(["setting", "ratio"], kind="stable").reset_index(drop=True)


def rate_table(metrics: list[dict]) -> Table:
    """pass@1 against the sampling rate, the sweep of the authors' follow-up (10% to 60%)."""
    frame = rate_frame(metrics)
    cells = pd.DataFrame({"Sampling rate": [f"{ratio:.0%}" for ratio in frame["ratio"]]})
    cells["Rows"] = [f"{n:,.0f}" for n in frame["n_train"]]
    cells["Seeds"] = frame["n_seeds"].map(str)
    for column in SCORES:
        if column in frame:
            sds = frame[f"{column}_sd"]
            cells[HEADINGS[column]] = [_mean(*pair) for pair in zip(frame[column], sds, strict=True)]
    notes = ["CDAS + Dynamic Pack; 100% is all data.", _seeds_note(frame)]
    more: dict[str, Any] = {"blocks": list(frame["setting"]), "notes": notes, "sources": run_sources(metrics)}
    return Table("sampling_rates", "How much to choose", frame, cells, **more)


def _mean(value: float, sd: float) -> str:
    if _nan(value):
        return "-"
    return f"{value:.1f}" if _nan(sd) else f"{value:.1f} ± {sd:.1f}"


def _cost(row: dict, column: str, unit_of, scale: float) -> str:
    if _nan(row[column]):
        return NOT_RUN
    divisor, unit = unit_of(scale * row[column])
    return f"{number(scale * row[column] / divisor)} {unit}"


def _times(ratio: float) -> str:
    return "-" if _nan(ratio) else f"× {ratio:.2f}"


def _nan(value) -> bool:
    return value is None or bool(np.isnan(value))


def _seeds_note(frame: pd.DataFrame) -> str:
    if not len(frame):
        return "Nothing was measured."
    most = int(frame["n_seeds"].max())
    return f"Means over up to {most} seeds ± sample standard deviation." if most > 1 else "One seed an arm."
