"""Numbers as the reader sees them: text with units, bold for the best, a mark where a cell must not be trusted."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from codeact_lib.measure import decimals, memory_unit, number, time_unit
from codeact_lib.mini.benchmark import N_TASKS
from codeact_lib.tables import results
from codeact_lib.tables.render import Cell, Column
from codeact_lib.tables.results import BENCHMARKS, BETWEEN_RUNS, HEADINGS, KINDS, NOT_RUN, SCORES, TEXTS, Line

# Tasks of a whole benchmark, EvalPlus's by its kind: MBPP+ v0.1.0 has 399, v0.2.0 has 378.
TASKS = {"humaneval": (164,), "mbpp": (399, 378), "mini-humaneval": (N_TASKS,), "mini-mbpp": (N_TASKS,)}
ONLY_NEWER, NO_COUNT, ODD_BENCHMARK = TEXTS["marks"]


def fits(value: float, n: int) -> bool:
    """Whether a percentage printed with one decimal can be k of n tasks."""
    # 53.3% is no k/164: 87 tasks are 53.0% and 88 are 53.7%
    k = round(value * n / 100)
    return any(abs(100 * j / n - value) <= 0.05 + 1e-9 for j in (k - 1, k, k + 1))


def marked(lines: Sequence[Line]) -> list[Line]:
    """The lines of a table with the marks (of `TEXTS["marks"]`) that they get beside each other."""
    # What most measured lines were scored on is taken as the rule. From MBPP+ v0.1.0 to v0.2.0 alone scores move by
    # about 4 points.
    used = [results.benchmarks_used(line.runs) for line in lines if line.runs]
    rule = {}
    if used:
        for kind in KINDS:
            rule[kind] = statistics.mode(stamps.get(kind) for stamps in used)
    found = []
    for line in lines:
        marks = _measured_marks(line, rule) if line.runs else _reported_marks(line)
        found.append(replace(line, marks=marks))
    return found


def _measured_marks(line: Line, rule: Mapping[str, results.Stamp | None]) -> dict[str, str]:
    marks = {}
    used = results.benchmarks_used(line.runs)
    for column, (kind, _) in BENCHMARKS.items():
        if kind in used:
            stamp = used[kind]
            name, _, n = stamp or ("", "", 0)
            # of a user's own benchmark nobody knows how many tasks are all
            whole = n in TASKS.get(name.split("@")[0], (n,))
            if stamp is None or stamp != rule[kind] or not whole:
                marks[column] = ODD_BENCHMARK
    for column, score in line.scores.items():
        if not score.agrees:
            marks[column] = NO_COUNT
    return marks


def _reported_marks(line: Line) -> dict[str, str]:
    marks = {}
    for column, score in line.scores.items():
        kind, _ = BENCHMARKS[column]
        if not any(fits(score.rate, n) for n in TASKS[kind]):
            marks[column] = NO_COUNT
    pair = ("mbpp", "mbpp_plus")
    if line.scores.keys() >= set(pair) and not marks.keys() & set(pair):
        # which of the two versions both scores of a row can come from
        older, newer = (fits(line.rate("mbpp"), n) and fits(line.rate("mbpp_plus"), n) for n in TASKS["mbpp"])
        if not older:
            marks |= dict.fromkeys(pair, ONLY_NEWER if newer else NO_COUNT)
    return marks


def mark_notes(lines: Iterable[Line]) -> list[str]:
    """A note for each mark that occurs."""
    found: set[str] = set()
    for line in lines:
        found.update(line.marks.values())
    return [note for mark, note in TEXTS["marks"].items() if mark in found]


def bold_marks(
    frame: pd.DataFrame, groups: Sequence[object], columns: Sequence[str], lower_is_better: Sequence[str] = ()
) -> pd.DataFrame:
    """Mask of the best value of each group (one key a row) and column; none in a group with one value or none."""
    # the rule of CodeACT's tables: the better of two arms in RQ1, the best of a size in RQ2, all of them when tied
    values = frame[list(columns)].astype(float)
    values[list(lower_is_better)] *= -1
    of_group = values.groupby(pd.Series(groups, index=frame.index).map(str), sort=False)
    return values.eq(of_group.transform("max")) & (of_group.transform("count") > 1)


def flat_frame(lines: Sequence[Line], columns: Sequence[str]) -> pd.DataFrame:
    """The lines as rows of numbers, for the CSV: the same columns whether or not anything was measured."""
    return pd.DataFrame(map(Line.columns, lines)).reindex(columns=list(columns))


def score_columns(lines: Sequence[Line], bold: pd.DataFrame | None = None) -> list[Column]:
    """A column a benchmark: pass@1 in %, its spread over seeds and its mark; below, tasks solved, 95% interval."""
    if bold is None:
        bold = pd.DataFrame(False, range(len(lines)), SCORES)
    columns = []
    for column, heading in HEADINGS.items():
        cells = []
        for line, is_best in zip(lines, bold[column], strict=True):
            small: tuple[str, ...] = ()
            text = _nothing(line)
            if not pd.isna(line.rate(column)):
                score = line.scores[column]
                # one seed has no spread
                text = f"{score.rate:.1f} ± {score.sd:.1f}".removesuffix(" ± nan")
                if score.k:
                    solved = BETWEEN_RUNS.join(map(str, score.k))
                    between = "/" if len(score.k) == 1 else " of "
                    small = (f"{solved}{between}{score.n[0]}", f"{score.low:.1f}–{score.high:.1f}")
            text = f"{text} {line.marks.get(column, '')}".strip()
            cells.append(Cell(text, small, bool(is_best), line.run_id))
        columns.append(Column(heading, cells))
    return columns


def _nothing(line: Line) -> str:
    return NOT_RUN if line.status == NOT_RUN else "-"


def efficiency_columns(lines: Sequence[Line], groups: Sequence[Any], bold: pd.DataFrame | None = None) -> list[Column]:
    """`Training time` and `Peak memory` of each line: as the paper prints them, else in one unit within each group."""
    # the last: a name under which a line may have a ratio, which stands below
    measures = (
        ("Training time", "training_time_min", "{:.0f} min", 60, time_unit, "time_ratio"),
        ("Peak memory", "peak_memory_gib", "{:.2f} GB", 2**30, memory_unit, "memory_ratio"),
    )
    columns = []
    for heading, column, as_printed, factor, unit_of, ratio in measures:
        largest: dict[Any, float] = {}
        for line, group in zip(lines, groups, strict=True):
            # of a number and NaN the number
            largest[group] = max(largest.get(group, 0.0), line.averages[column].mean)
        cells = []
        for i, (line, group) in enumerate(zip(lines, groups, strict=True)):
            average = line.averages[column]
            text = in_unit(average, factor, *unit_of(factor * largest[group]))
            if pd.isna(average.mean):
                text = _nothing(line)
            elif line.status == "reported":
                text = as_printed.format(average.mean)
            small = texts([line.names.get(ratio)], "× {:.2f}".format, "")
            is_best = bold is not None and bool(bold[column].iloc[i])
            cells.append(Cell(text, tuple(filter(None, small)), is_best, line.run_id))
        columns.append(Column(heading, cells))
    return columns


def in_unit(average: results.Average, factor: float, divisor: float, unit: str) -> str:
    """An average in a unit, e.g. "35.3 ± 5.5 s"; the spread with the decimals of the mean."""
    mean = factor * average.mean / divisor
    spread = "" if pd.isna(average.sd) else f" ± {factor / divisor * average.sd:.{decimals(mean)}f}"
    return f"{number(mean)}{spread} {unit}"


def texts(numbers: Iterable[Any], form: Callable[[float], str], nothing: str = "-") -> list[str]:
    """Numbers as text, `nothing` where one is unknown."""
    return [nothing if pd.isna(value) else form(value) for value in numbers]


def seconds_text(seconds: float) -> str:
    """Seconds in the unit that fits."""
    return in_unit(results.Average(seconds), 1, *time_unit(seconds))


def percent_cell(value: float) -> str:
    """A change in percent with its sign; one that rounds to nothing is +0%."""
    return "not stated" if pd.isna(value) else f"{value:+z.0f}%"
