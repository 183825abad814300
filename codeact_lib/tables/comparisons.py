"""CodeACT against full data and against a random selection: paired tests, and what they mean in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from codeact_lib.statistics import paired_bootstrap, sign_flip_test
from codeact_lib.tables.cells import percent_cell
from codeact_lib.tables.render import Cell, Column, Table, values, words
from codeact_lib.tables.results import (
    BASELINE,
    BENCHMARKS,
    CODEACT,
    EFFICIENCY,
    RANDOM,
    ArmResult,
    RunRecord,
    Side,
    arm_label,
    benchmarks_of,
    by_setting,
    find_arm,
    relative_change,
    run_sources,
    setting,
    solved_tasks,
)

NOTHING_SHOWN = "no difference shown"
COLUMNS = [
    *("data_set", "compared_with", "tests", "n", "n_seeds", "codeact_k", "other_k", "difference_points", "low", "high"),
    *("only_codeact", "only_other", "p_value", "p_holm", "finding", "run_id", "other_run_id"),
]
NOTE = (
    "Difference: pass@1 of CodeACT less that of the other, with its 95% interval (paired bootstrap over tasks). p: "
    "exact McNemar test on the tasks that one arm solves and the other does not. p (Holm): the same, corrected for the "
    "number of tests in this table ({tests}); the finding goes by the uncorrected p, of which about one in twenty "
    "falls below 0.05 by chance. {luck}"
)
ONE_SEED = "Each line compares two training runs: the test covers the choice of tasks, not the luck of training."
SEVERAL_SEEDS = (
    "With several seeds a task counts by the share of seeds that solve it, solved tasks are means over seeds, and the "
    "test (exact, signs of the tasks' differences flipped; McNemar's for one seed) covers the choice of tasks; the "
    "luck of training is averaged over the seeds and seen in their spread."
)


def comparison_table(metrics: Sequence[RunRecord]) -> Table:
    """Paired tests of CodeACT against full data and against a random 40%, per benchmark and pooled."""
    from statsmodels.stats.multitest import multipletests

    rows: list[dict[str, Any]] = []
    for arms in by_setting(metrics):
        rows += _comparisons(arms)
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
        values("Better on", [f"{row['only_codeact']} / {row['only_other']}" for row in rows], runs),
        values("p", frame["p_value"].map(_p_words), runs),
        values("p (Holm)", frame["p_holm"].map(_p_words), runs),
        words("Finding", frame["finding"]),
    ]
    luck = SEVERAL_SEEDS if any(row["n_seeds"] > 1 for row in rows) else ONE_SEED
    notes = [NOTE.format(tests=len(frame), luck=luck), "Better on: tasks that CodeACT / the other solves more often."]
    return Table("comparisons", "Paired tests", frame, columns, frame["data_set"].tolist(), notes, run_sources(metrics))


def _p_words(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _comparisons(arms: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """The rows of one setting: CodeACT against each of the two others that was run."""
    rows = []
    codeact = find_arm(arms, CODEACT)
    for other in (find_arm(arms, BASELINE), find_arm(arms, RANDOM)):
        if codeact and other:
            names = {
                "data_set": setting(codeact.first),
                "compared_with": arm_label(other.first),
                "n_seeds": max(len(codeact.runs), len(other.runs)),
                "run_id": codeact.run_id,
                "other_run_id": other.run_id,
            }
            rows += [names | test for test in _tests(codeact.runs, other.runs)]
    return rows


def _tests(codeact: Sequence[RunRecord], other: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Each benchmark's base and plus tests, then all tasks together."""
    runs = [*codeact, *other]
    shared = [benchmark for benchmark in BENCHMARKS if len(benchmarks_of(runs, benchmark.kind)) == len(runs)]
    compared: list[tuple[list[str], Side, str]] = [([kind], side, heading) for kind, side, _, heading in shared]
    kinds = list(dict.fromkeys(benchmark.kind for benchmark in shared))
    if len(kinds) > 1:
        compared += [(kinds, "base", "all tasks, base"), (kinds, "plus", "all tasks, plus")]
    rows = []
    for judged, side, heading in compared:
        ours = [_passed(run, judged, side) for run in codeact]
        theirs = [_passed(run, judged, side) for run in other]
        if len({frozenset(run) for run in (*ours, *theirs)}) == 1:  # of different versions nothing can be said
            rows.append({"tests": heading} | _one_test(ours, theirs))
    return rows


def _passed(record: RunRecord, kinds: Sequence[str], side: Side) -> dict[str, bool]:
    """Task -> whether the run solved it, of the benchmarks of those kinds."""
    passed = {}
    for kind in kinds:
        for judged in benchmarks_of([record], kind):
            passed |= solved_tasks(judged, side)
    return passed


def _one_test(ours: list[dict[str, bool]], other: list[dict[str, bool]]) -> dict[str, Any]:
    test = sign_flip_test(ours, other)
    interval = paired_bootstrap(ours, other)
    k, k_other = (sum(sum(run.values()) for run in runs) / len(runs) for runs in (ours, other))
    finding = NOTHING_SHOWN
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


# ---- in words --------------------------------------------------------------------------------------------------------


def findings(metrics: Sequence[RunRecord]) -> list[str]:
    """What was measured, in sentences: CodeACT against full data and against random, judged on all plus tests."""
    frame = comparison_table(metrics).frame
    strictest = frame[frame["tests"] == "all tasks, plus"]
    savings = [_saving(arms) for arms in by_setting(metrics)]
    return [_finding(row) for row in strictest.to_dict("records")] + list(filter(None, savings))


# (compared with random?, finding) -> what it means
_VERDICTS = {
    (True, "CodeACT ahead"): "CDAS beats a random selection of the same size",
    (True, "CodeACT behind"): "CDAS is worse than a random selection of the same size",
    (True, NOTHING_SHOWN): "CDAS does not beat a random selection of the same size, the difference is within the noise",
    (False, "CodeACT ahead"): "CodeACT on 40% of the data beats training on all of it",
    (False, "CodeACT behind"): "CodeACT on 40% of the data falls behind training on all of it",
    (False, NOTHING_SHOWN): "no difference between CodeACT on 40% of the data and training on all of it is shown",
}


def _finding(row: dict[str, Any]) -> str:
    ours, other = 100 * row["codeact_k"] / row["n"], 100 * row["other_k"] / row["n"]
    verdict = _VERDICTS[row["compared_with"].startswith("random"), row["finding"]]
    seeds = f" (mean of {row['n_seeds']} seeds)" if row["n_seeds"] > 1 else ""
    test = "McNemar p" if row["n_seeds"] == 1 else "paired p"
    test += " =" if row["p_value"] >= 0.001 else ""
    return (
        f"{row['data_set']}: {verdict}. CodeACT solves {ours:.1f}% of {row['n']} tasks under the plus tests{seeds}, "
        f"{row['compared_with']} {other:.1f}% ({ours - other:+.1f} points, 95% interval {row['low']:+.1f} to "
        f"{row['high']:+.1f}, {test} {_p_words(row['p_value'])})."
    )


def _saving(arms: Sequence[ArmResult]) -> str:
    full, ours = find_arm(arms, BASELINE), find_arm(arms, CODEACT)
    if not (full and ours and full.first["train"] and ours.first["train"]):
        return ""
    time, memory = (
        percent_cell(relative_change(full.averages[column].mean, ours.averages[column].mean)) for column in EFFICIENCY
    )
    return (
        f"{setting(ours.first)}: against all data with dynamic padding, CodeACT changes training time by "
        f"{time} and peak memory by {memory}, the cost of selection not counted."
    )
