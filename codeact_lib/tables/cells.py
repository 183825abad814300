"""Numbers as the reader sees them: text with units, bold for the best, a mark where a cell must not be trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from codeact_lib.figures.style import memory_unit, number, time_unit
from codeact_lib.mini.benchmark import N_TASKS
from codeact_lib.tables.render import NOT_RUN
from codeact_lib.tables.results import BENCHMARKS, EFFICIENCY, HEADINGS, KINDS, SCORES, is_missing

# EvalPlus's numbers of tasks; MBPP+ v0.1.0 has 399, v0.2.0 has 378
TASKS = {"humaneval": (164,), "mbpp": (399, 378)}
OLDER, NEWER = TASKS["mbpp"]
ONLY_NEWER, NO_COUNT, ODD_BENCHMARK = "†", "‡", "§"
MARKS = {
    ONLY_NEWER: "† fits only 378 tasks (MBPP+ v0.2.0), most other rows only 399 (v0.1.0), which is worth about 4 "
    "points: these cells are not comparable with their neighbours.",
    NO_COUNT: "‡ is not k/n: no number of solved tasks gives this percentage of the benchmark's tasks "
    "(164; 399 or 378), or the count does not agree with the verdicts.",
    ODD_BENCHMARK: "§ was measured on a part of its benchmark, or on another version or number of tasks than the other "
    "measured rows, or its seeds were: not comparable with its neighbours.",
}


# Marks


def fits(value: float, n: int) -> bool:
    """Whether a percentage printed with one decimal can be k of n tasks."""
    k = round(value * n / 100)
    return any(abs(100 * j / n - value) <= 0.05 + 1e-9 for j in (k - 1, k, k + 1))


def mbpp_task_counts(mbpp: float, mbpp_plus: float) -> list[int]:
    """Which of EvalPlus's MBPP task counts (399 in v0.1.0, 378 in v0.2.0) both scores of a row can come from."""
    return [n for n in TASKS["mbpp"] if fits(mbpp, n) and fits(mbpp_plus, n)]


def cell_marks(rows: Sequence[dict]) -> list[dict[str, str]]:
    """Per row: score column -> mark (keys of ``MARKS``), for the cells that are not k/n or mix versions.

    rows: reported rows, and measured ones as ``measured_row`` makes them. What most measured rows were scored on is
    taken as the rule.
    """
    common = {
        kind: Counter(row["benchmarks_used"].get(kind) for row in rows if _is_measured(row)).most_common(1)
        for kind in TASKS
    }
    rule = {kind: found[0][0] for kind, found in common.items() if found}
    return [_measured_marks(row, rule) if _is_measured(row) else _reported_marks(row) for row in rows]


def _is_measured(row: dict) -> bool:
    return isinstance(row.get("benchmarks_used"), dict)


def _measured_marks(row: dict, rule: dict) -> dict[str, str]:
    odd = {kind for kind, used in row["benchmarks_used"].items() if used is None or used != rule[kind]}
    odd |= {kind for kind, used in row["benchmarks_used"].items() if used and not _is_whole(kind, *used)}
    marks = {column: ODD_BENCHMARK for column in SCORES if KINDS[column] in odd}
    return marks | dict.fromkeys(row["miscounted"], NO_COUNT)


def _is_whole(kind: str, name: str, version: str, n: int) -> bool:
    """Whether all tasks of a benchmark were judged; of a user's own nobody knows how many there are."""
    whole = {kind: TASKS[kind], f"mini-{kind}": (N_TASKS,)}
    return n in whole.get(name.split("@")[0], (n,))


def _reported_marks(row: dict) -> dict[str, str]:
    scores: dict[str, float] = {column: row[column] for column in SCORES if not is_missing(row.get(column))}
    marks = {
        column: NO_COUNT for column, value in scores.items() if not any(fits(value, n) for n in TASKS[KINDS[column]])
    }
    pair = [column for column in scores if KINDS[column] == "mbpp"]
    if len(pair) == 2 and not set(pair) & set(marks):
        counts = mbpp_task_counts(*(scores[column] for column in pair))
        marks |= dict.fromkeys(pair, {(): NO_COUNT, (NEWER,): ONLY_NEWER}.get(tuple(counts), ""))
    return {column: mark for column, mark in marks.items() if mark}


def marks_text(marks: dict[str, str]) -> str:
    """The marks of a row for its CSV, e.g. "mbpp †; mbpp_plus †"."""
    return "; ".join(f"{column} {mark}" for column, mark in marks.items())


def mark_notes(marks: Sequence[dict[str, str]]) -> list[str]:
    """A note for each mark that occurs."""
    found = {mark for row in marks for mark in row.values()}
    return [note for mark, note in MARKS.items() if mark in found]


# Bold


def bold_marks(
    frame: pd.DataFrame, groups: list, columns: Sequence[str], lower_is_better: Sequence[str] = ()
) -> pd.DataFrame:
    """Mask of the best value of each group and column, all of them when tied, none in a group with one value or none.

    groups: one key a row. The rule of CodeACT's tables: the better of two arms in RQ1, the best
    of a size in RQ2.
    """
    marks = pd.DataFrame(False, index=frame.index, columns=list(columns))
    for rows in frame.groupby(pd.Series(groups, index=frame.index).map(str), sort=False).groups.values():
        for column in columns:
            values = frame.loc[rows, column].astype(float).dropna()
            if len(values) > 1:
                best = values.min() if column in lower_is_better else values.max()
                marks.loc[values.index[values == best], column] = True
    return marks


# Cells


def score_cells(rows: Sequence[dict], marks: Sequence[dict[str, str]] | None = None) -> dict[str, list[str]]:
    """Heading -> cells: pass@1 in %, its spread over seeds and its mark; below, tasks solved / tasks, 95% interval."""
    marks = [{}] * len(rows) if marks is None else marks
    return {
        HEADINGS[column]: [
            _score_cell(row, column, mark.get(column, "")) for row, mark in zip(rows, marks, strict=True)
        ]
        for _, _, column, _ in BENCHMARKS
    }


def _score_cell(row: dict, column: str, mark: str) -> str:
    mark = f" {mark}" if mark else ""
    if is_missing(row.get(column)):
        return (NOT_RUN if row.get("status") == NOT_RUN else "-") + mark
    text = f"{row[column]:.1f}" + spread(row, column) + mark
    if is_missing(row.get(f"{column}_k")):
        return text
    counts, n, low, high = (row[f"{column}_{part}"] for part in ("k", "n", "low", "high"))
    solved = f"{counts} of {int(n)}" if isinstance(counts, str) else f"{int(counts)}/{int(n)}"
    return f"{text}\n{solved}, {low:.1f}–{high:.1f}"


def spread(row: dict, column: str, factor: float = 1.0) -> str:
    """`` ± sd`` over seeds in the unit of the cell, nothing for a single seed."""
    sd = row.get(f"{column}_sd")
    if sd is None or is_missing(sd):
        return ""
    if column in SCORES:
        return f" ± {sd:.1f}"
    mean = factor * row[column]
    return f" ± {factor * sd:.{0 if mean >= 100 else 1 if mean >= 10 else 2}f}"  # decimals as ``number`` gives the mean


def time_cell(row: dict, largest: float) -> str:
    """Minutes as the paper prints them, or in the unit that fits the largest value of the group."""
    minutes = row["training_time_min"]
    if is_missing(minutes):
        return NOT_RUN if row.get("status") == NOT_RUN else "-"
    if row.get("source") in ("paper", "follow-up"):
        return f"{minutes:.0f} min"
    divisor, unit = time_unit(60 * largest)
    return f"{number(60 * minutes / divisor)}{spread(row, 'training_time_min', 60 / divisor)} {unit}"


def memory_cell(row: dict, largest: float) -> str:
    """Gigabytes as the paper prints them, or in the unit that fits the largest value of the group."""
    gigabytes = row["peak_memory_gb"]
    if is_missing(gigabytes):
        return NOT_RUN if row.get("status") == NOT_RUN else "-"
    if row.get("source") in ("paper", "follow-up"):
        return f"{gigabytes:.2f} GB"
    divisor, unit = memory_unit(1e9 * largest)
    return f"{number(1e9 * gigabytes / divisor)}{spread(row, 'peak_memory_gb', 1e9 / divisor)} {unit}"


def efficiency_cells(frame: pd.DataFrame, groups: list) -> dict[str, list[str]]:
    """``Training time`` and ``Peak memory`` of each row, in one unit within each group."""
    largest = frame[EFFICIENCY].groupby(pd.Series(groups, index=frame.index).map(str)).transform("max")
    rows = frame.to_dict("records")
    return {
        "Training time": [time_cell(*pair) for pair in zip(rows, largest["training_time_min"], strict=True)],
        "Peak memory": [memory_cell(*pair) for pair in zip(rows, largest["peak_memory_gb"], strict=True)],
    }


def seconds_cell(seconds: float) -> str:
    """Seconds in the unit that fits, "-" where they are unknown."""
    if is_missing(seconds):
        return "-"
    divisor, unit = time_unit(seconds)
    return f"{number(seconds / divisor)} {unit}"


def percent_cell(value: float) -> str:
    """A change in percent with its sign; one that rounds to nothing is +0%."""
    return "not stated" if is_missing(value) else f"{value:+z.0f}%"
