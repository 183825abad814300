"""Numbers as the reader sees them: text with units, bold for the best, a mark where a cell must not be trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from codeact_lib.measure import decimals, memory_unit, number, time_unit
from codeact_lib.mini.benchmark import N_TASKS
from codeact_lib.tables.render import Cell, Column
from codeact_lib.tables.results import (
    BETWEEN_RUNS,
    EFFICIENCY,
    HEADINGS,
    KINDS,
    NOT_RUN,
    ArmResult,
    Average,
    Score,
    Stamp,
    benchmarks_used,
    is_missing,
)

# EvalPlus's numbers of tasks; MBPP+ v0.1.0 has 399, v0.2.0 has 378
TASKS = {"humaneval": (164,), "mbpp": (399, 378)}
ONLY_NEWER, NO_COUNT, ODD_BENCHMARK = MARKS = ("†", "‡", "§")
MARK_NOTES = {
    ONLY_NEWER: "† fits only 378 tasks (MBPP+ v0.2.0), most other rows only 399 (v0.1.0), which is worth about 4 "
    "points: these cells are not comparable with their neighbours.",
    NO_COUNT: "‡ is not k/n: no number of solved tasks gives this percentage of the benchmark's tasks "
    "(164; 399 or 378), or the count does not agree with the verdicts.",
    ODD_BENCHMARK: "§ was measured on a part of its benchmark, or on another version or number of tasks than the other "
    "measured rows, or its seeds were: not comparable with its neighbours.",
}
Marks = Mapping[str, str]  # score column -> mark, of one row


class Line(NamedTuple):
    """One row of a table: what it is (by column of its CSV), its results, and the marks of its scores."""

    names: dict[str, Any]
    result: ArmResult
    marks: Marks = {}


# ---- marks -----------------------------------------------------------------------------------------------------------


def fits(value: float, n: int) -> bool:
    """Whether a percentage printed with one decimal can be k of n tasks."""
    k = round(value * n / 100)
    return any(abs(100 * j / n - value) <= 0.05 + 1e-9 for j in (k - 1, k, k + 1))


def mbpp_task_counts(mbpp: float, mbpp_plus: float) -> list[int]:
    """Which of EvalPlus's MBPP task counts (399 in v0.1.0, 378 in v0.2.0) both scores of a row can come from."""
    return [n for n in TASKS["mbpp"] if fits(mbpp, n) and fits(mbpp_plus, n)]


def cell_marks(results: Sequence[ArmResult]) -> list[Marks]:
    """Per line: score column -> mark (of `MARKS`), for the cells that are not k/n or mix versions.

    What most measured lines were scored on is taken as the rule.
    """
    rule: dict[str, Stamp | None] = {}
    used = [benchmarks_used(result.runs) for result in results if result.runs]
    if used:
        for kind in TASKS:
            rule[kind] = Counter(stamps.get(kind) for stamps in used).most_common(1)[0][0]
    marks = []
    for result in results:
        marks.append(_measured_marks(result, rule) if result.runs else _reported_marks(result.scores))
    return marks


def marked(lines: Sequence[Line]) -> list[Line]:
    """The lines of a table with the marks that they get beside each other."""
    marks = cell_marks([line.result for line in lines])
    return [line._replace(marks=mark) for line, mark in zip(lines, marks, strict=True)]


def _measured_marks(result: ArmResult, rule: Mapping[str, Stamp | None]) -> Marks:
    marks = {}
    used = benchmarks_used(result.runs)
    for column, kind in KINDS.items():
        stamp = used.get(kind)
        if kind in used and (stamp is None or stamp != rule[kind] or not _is_whole(kind, *stamp)):
            marks[column] = ODD_BENCHMARK
    return marks | {column: NO_COUNT for column, score in result.scores.items() if not score.agrees}


def _is_whole(kind: str, name: str, version: str, n: int) -> bool:
    """Whether all tasks of a benchmark were judged; of a user's own nobody knows how many there are."""
    whole = {kind: TASKS[kind], f"mini-{kind}": (N_TASKS,)}
    return n in whole.get(name.split("@")[0], (n,))


def _reported_marks(scores: Mapping[str, Score]) -> Marks:
    marks = {}
    for column, score in scores.items():
        if not any(fits(score.rate, n) for n in TASKS[KINDS[column]]):
            marks[column] = NO_COUNT
    pair = [column for column in scores if KINDS[column] == "mbpp"]
    if len(pair) == 2 and not set(pair) & set(marks):
        older, newer = TASKS["mbpp"]
        counts = mbpp_task_counts(*(scores[column].rate for column in pair))
        if older not in counts:
            marks |= dict.fromkeys(pair, ONLY_NEWER if counts else NO_COUNT)
    return marks


def marks_text(marks: Marks) -> str:
    """The marks of a row for its CSV, e.g. "mbpp †; mbpp_plus †"."""
    return "; ".join(f"{column} {mark}" for column, mark in marks.items())


def mark_notes(lines: Iterable[Line]) -> list[str]:
    """A note for each mark that occurs."""
    found = {mark for line in lines for mark in line.marks.values()}
    return [note for mark, note in MARK_NOTES.items() if mark in found]


# ---- bold ------------------------------------------------------------------------------------------------------------


def bold_marks(
    frame: pd.DataFrame, groups: Sequence[object], columns: Sequence[str], lower_is_better: Sequence[str] = ()
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


# ---- columns ---------------------------------------------------------------------------------------------------------


def flat_frame(lines: Sequence[Line], columns: Sequence[str]) -> pd.DataFrame:
    """The lines as rows of numbers, for the CSV: the same columns whether or not anything was measured."""
    rows = [{**line.names, **line.result.columns(), "marks": marks_text(line.marks)} for line in lines]
    return pd.DataFrame(rows).reindex(columns=list(columns))


def score_columns(lines: Sequence[Line], bold: pd.DataFrame | None = None) -> list[Column]:
    """A column a benchmark: pass@1 in %, its spread over seeds and its mark; below, tasks solved, 95% interval."""
    columns = []
    for column, heading in HEADINGS.items():
        best = [False] * len(lines) if bold is None else bold[column].tolist()
        cells = []
        for line, is_best in zip(lines, best, strict=True):
            text, small = _score_words(line.result, column)
            text = f"{text} {line.marks.get(column, '')}".strip()
            cells.append(Cell(text, small, is_best, line.result.run_id))
        columns.append(Column(heading, cells))
    return columns


def _score_words(result: ArmResult, column: str) -> tuple[str, Sequence[str]]:
    score = result.scores.get(column)
    if score is None or is_missing(score.rate):
        return _nothing(result), ()
    text = f"{score.rate:.1f}" if is_missing(score.sd) else f"{score.rate:.1f} ± {score.sd:.1f}"
    if not score.k:
        return text, ()
    n = score.n[0]
    solved = f"{score.k[0]}/{n}" if len(score.k) == 1 else f"{BETWEEN_RUNS.join(map(str, score.k))} of {n}"
    return text, (solved, f"{score.low:.1f}–{score.high:.1f}")


def _nothing(result: ArmResult) -> str:
    """What a cell without a value says."""
    return NOT_RUN if result.status == NOT_RUN else "-"


def efficiency_columns(
    lines: Sequence[Line], groups: Sequence[object], bold: pd.DataFrame | None = None
) -> list[Column]:
    """`Training time` and `Peak memory` of each line: as the paper prints them, else in one unit within each group."""
    bold = pd.DataFrame(False, index=range(len(lines)), columns=EFFICIENCY) if bold is None else bold
    measures = (
        ("Training time", "training_time_min", "{:.0f} min", 60, time_unit),
        ("Peak memory", "peak_memory_gb", "{:.2f} GB", 1e9, memory_unit),
    )
    columns = []
    for heading, column, as_printed, factor, unit_of in measures:
        averages = [line.result.averages[column] for line in lines]
        largest: dict[object, float] = {}
        for group, average in zip(groups, averages, strict=True):
            largest[group] = max(largest.get(group, 0.0), average.mean)  # of a number and NaN the number
        cells = []
        for line, group, average, is_best in zip(lines, groups, averages, bold[column].tolist(), strict=True):
            if is_missing(average.mean):
                text = _nothing(line.result)
            elif line.result.status == "reported":
                text = as_printed.format(average.mean)
            else:
                text = in_unit(average, factor, *unit_of(factor * largest[group]))
            cells.append(Cell(text, bold=is_best, run=line.result.run_id))
        columns.append(Column(heading, cells))
    return columns


def in_unit(average: Average, factor: float, divisor: float, unit: str) -> str:
    """An average in a unit, e.g. "35.3 ± 5.5 s"; the spread with the decimals of the mean."""
    mean = factor * average.mean / divisor
    sd = factor / divisor * average.sd
    spread = "" if is_missing(sd) else f" ± {sd:.{decimals(mean)}f}"
    return f"{number(mean)}{spread} {unit}"


def count_cell(n: float) -> str:
    """A number of rows, "-" where there is none."""
    return "-" if is_missing(n) else f"{n:,.0f}"


def padding_cell(rate: float) -> str:
    """A padding rate, given in percent, "-" where there is none."""
    return "-" if is_missing(rate) else f"{rate:.1f}%"


def seconds_cell(seconds: float) -> str:
    """Seconds in the unit that fits, "-" where they are unknown."""
    return "-" if is_missing(seconds) else in_unit(Average(seconds), 1, *time_unit(seconds))


def percent_cell(value: float) -> str:
    """A change in percent with its sign; one that rounds to nothing is +0%."""
    return "not stated" if is_missing(value) else f"{value:+z.0f}%"
