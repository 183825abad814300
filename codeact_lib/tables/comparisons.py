"""CodeACT against full data and against a random selection: paired tests, and what they mean in words."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from codeact_lib.evaluation.records import RunRecord, Side
from codeact_lib.statistics import paired_bootstrap, sign_flip_test
from codeact_lib.tables import results
from codeact_lib.tables.cells import percent_cell
from codeact_lib.tables.render import Cell, Column, Table, values, words
from codeact_lib.tables.results import BASELINE, BENCHMARKS, CODEACT, EFFICIENCY, HEADINGS, KINDS, RANDOM, TEXTS, Line

COLUMNS = [
    *("data_set", "compared_with", "tests", "n", "n_seeds", "codeact_k", "other_k", "difference_points", "low", "high"),
    *("only_codeact", "only_other", "p_value", "p_holm", "finding", "run_id", "other_run_id"),
]


def comparison_table(metrics: Sequence[RunRecord]) -> Table:
    """Paired tests of CodeACT against full data and against a random 40%, per benchmark and pooled."""
    from statsmodels.stats.multitest import multipletests

    rows: list[dict[str, Any]] = []
    for _, arms in results.by_setting(results.measured_lines(metrics)):
        for arm in (BASELINE, RANDOM):
            if CODEACT in arms and arm in arms:
                rows += _tests(arms[CODEACT], arms[arm])
    frame = pd.DataFrame(rows, columns=COLUMNS)
    if rows:
        frame["p_holm"] = multipletests(frame["p_value"], method="holm")[1].round(6)
    runs = frame["run_id"]
    differences = []
    for row in rows:
        interval = f"{row['low']:+.1f} to {row['high']:+.1f}"
        differences.append(Cell(f"{row['difference_points']:+.1f} points", (interval,), run=row["run_id"]))
    columns = [
        words("Compared with", frame["compared_with"]),
        words("Tests", frame["tests"]),
        words("Tasks", frame["n"], "center"),
        values("CodeACT solves", frame["codeact_k"].map("{:.3g}".format), runs),
        values("The other solves", frame["other_k"].map("{:.3g}".format), frame["other_run_id"]),
        Column("Difference", differences),
        values("Better on", map("{} / {}".format, frame["only_codeact"], frame["only_other"]), runs),
        values("p", frame["p_value"].map(_p_words), runs),
        values("p (Holm)", frame["p_holm"].map(_p_words), runs),
        words("Finding", frame["finding"]),
    ]
    luck = TEXTS["luck"]["several" if (frame["n_seeds"] > 1).any() else "one"]
    note = TEXTS["notes"]["comparisons"].format(tests=len(frame), luck=luck)
    notes = [note, "Better on: tasks that CodeACT / the other solves more often."]
    return Table("comparisons", frame, columns, frame["data_set"].tolist(), notes, metrics)


def _p_words(p: float) -> str:
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}"


def _tests(codeact: Line, other: Line) -> list[dict[str, Any]]:
    # The rows of one comparison: each benchmark's base and plus tests, then all tasks together.
    runs = [*codeact.runs, *other.runs]
    kinds = [kind for kind in KINDS if len(results.benchmarks_of(runs, kind)) == len(runs)]
    compared: list[tuple[str, Side, list[str]]] = []
    for column, (kind, side) in BENCHMARKS.items():
        if kind in kinds:
            compared.append((HEADINGS[column], side, [kind]))
    if len(kinds) > 1:
        compared += [("all tasks, base", "base", kinds), ("all tasks, plus", "plus", kinds)]
    rows = []
    for heading, side, judged in compared:
        ours = [_verdicts(run, judged) for run in codeact.runs]
        theirs = [_verdicts(run, judged) for run in other.runs]
        if len(set(map(frozenset, ours + theirs))) > 1:  # of different versions nothing can be said
            continue
        names = {"data_set": codeact.names["data_set"], "compared_with": other.names["arm"], "tests": heading}
        names |= {"n_seeds": max(len(ours), len(theirs)), "run_id": codeact.run_id, "other_run_id": other.run_id}
        rows.append(names | _one_test(ours, theirs, side))
    return rows


def _verdicts(record: RunRecord, kinds: Sequence[str]) -> dict[str, Any]:
    # Task -> verdicts of a run, of its benchmarks of those kinds together.
    found: dict[str, Any] = {}
    for kind in kinds:
        found |= results.benchmarks_of([record], kind)[0]["verdicts"]
    return found


def _one_test(ours: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], side: Side) -> dict[str, Any]:
    test = sign_flip_test(ours, other, side)
    interval = paired_bootstrap(ours, other, side)
    k, k_other = (sum(results.n_solved(run, side) for run in runs) / len(runs) for runs in (ours, other))
    finding = "no difference shown"
    if test["p_value"] < 0.05:
        finding = "CodeACT ahead" if k > k_other else "CodeACT behind"
    return {
        "n": test["n"],
        "codeact_k": round(k, 3),
        "other_k": round(k_other, 3),
        "difference_points": round(100 * interval["difference"], 3),
        "low": round(100 * interval["low"], 2),
        "high": round(100 * interval["high"], 2),
        "only_codeact": test["b"],
        "only_other": test["c"],
        "p_value": round(test["p_value"], 6),
        "finding": finding,
    }


def findings(metrics: Sequence[RunRecord]) -> list[str]:
    """What was measured, in sentences: CodeACT against full data and against random, judged on all plus tests."""
    sentences = []
    frame = comparison_table(metrics).frame
    for row in frame[frame["tests"] == "all tasks, plus"].to_dict("records"):
        ours = 100 * row["codeact_k"] / row["n"]
        other = 100 * row["other_k"] / row["n"]
        rival = "random" if row["compared_with"].startswith("random") else "full data"
        seeds = f" (mean of {row['n_seeds']} seeds)" if row["n_seeds"] > 1 else ""
        test = "McNemar p" if row["n_seeds"] == 1 else "paired p"
        equals = "" if row["p_value"] < 0.001 else " ="
        sentences.append(
            f"{row['data_set']}: {TEXTS['verdicts'][rival][row['finding']]}. CodeACT solves {ours:.1f}% of {row['n']} "
            f"tasks under the plus tests{seeds}, {row['compared_with']} {other:.1f}% ({ours - other:+.1f} points, 95% "
            f"interval {row['low']:+.1f} to {row['high']:+.1f}, {test}{equals} {_p_words(row['p_value'])})."
        )
    for record, arms in results.by_setting(results.measured_lines(metrics)):
        full = arms.get(BASELINE)
        codeact = arms.get(CODEACT)
        if full and codeact and full.record["train"] and codeact.record["train"]:
            time, memory = (percent_cell(results.relative_change(full, codeact, column)) for column in EFFICIENCY)
            sentences.append(
                f"{results.setting(record)}: against all data with dynamic padding, CodeACT changes training time by "
                f"{time} and peak memory by {memory}, the cost of selection not counted."
            )
    return sentences
