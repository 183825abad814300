"""CodeACT against full data and against a random selection: paired tests, and what they mean in words."""

from __future__ import annotations

from typing import Any

import pandas as pd

from codeact_lib.statistics import paired_bootstrap, sign_flip_test
from codeact_lib.tables.cells import percent_cell
from codeact_lib.tables.render import Table
from codeact_lib.tables.results import (
    BASELINE,
    BENCHMARKS,
    BETWEEN_RUNS,
    CODEACT,
    RANDOM,
    arm_label,
    benchmark_of,
    by_setting,
    find_arm,
    measured_row,
    relative_change,
    run_sources,
    setting,
)

NOTHING_SHOWN = "no difference shown"
COLUMNS = [
    *("data_set", "compared_with", "tests", "n", "n_seeds", "codeact_k", "other_k", "difference_points", "low", "high"),
    *("only_codeact", "only_other", "p_value", "p_holm", "finding", "run_id", "other_run_id"),
]
NOTE = (
    "Difference: pass@1 of CodeACT less that of the other, with its 95% interval (paired bootstrap over tasks). p: "
    "exact "
    "McNemar test on the tasks that one arm solves and the other does not. p (Holm): the same, corrected for the "
    "number "
    "of tests in this table ({tests}); the finding goes by the uncorrected p, of which about one in twenty falls below "
    "0.05 by chance. {luck}"
)
ONE_SEED = "Each line compares two training runs: the test covers the choice of tasks, not the luck of training."
SEVERAL_SEEDS = (
    "With several seeds a task counts by the share of seeds that solve it, solved tasks are means over seeds, and the "
    "test (exact, signs of the tasks' differences flipped; McNemar's for one seed) covers the choice of tasks; the "
    "luck of training is averaged over the seeds and seen in their spread."
)


def comparison_table(metrics: list[dict]) -> Table:
    """Paired tests of CodeACT against full data and against a random 40%, per benchmark and pooled."""
    rows = [row for arms in by_setting(metrics) for row in _comparisons(arms)]
    frame = pd.DataFrame(rows, columns=COLUMNS).assign(p_holm=_holm([row["p_value"] for row in rows]))
    cells = pd.DataFrame({"Compared with": frame["compared_with"], "Tests": frame["tests"]})
    cells["Tasks"] = frame["n"].map(str)
    cells["CodeACT solves"] = [f"{k:.3g}" for k in frame["codeact_k"]]
    cells["The other solves"] = [f"{k:.3g}" for k in frame["other_k"]]
    cells["Difference"] = [
        f"{points:+.1f} points\n{low:+.1f} to {high:+.1f}"
        for points, low, high in zip(frame["difference_points"], frame["low"], frame["high"], strict=True)
    ]
    cells["Better on"] = [f"{b} / {c}" for b, c in zip(frame["only_codeact"], frame["only_other"], strict=True)]
    cells["p"], cells["p (Holm)"] = frame["p_value"].map(_p_words), frame["p_holm"].map(_p_words)
    cells["Finding"] = frame["finding"]
    luck = SEVERAL_SEEDS if len(frame) and frame["n_seeds"].max() > 1 else ONE_SEED
    notes = [NOTE.format(tests=len(frame), luck=luck), "Better on: tasks that CodeACT / the other solves more often."]
    links = [{None: row["run_id"], "The other solves": row["other_run_id"]} for row in rows]
    more: dict[str, Any] = {
        "left": ("Compared with", "Tests", "Finding"),
        "links": links,
        "sources": run_sources(metrics),
    }
    return Table("comparisons", "Paired tests", frame, cells, blocks=list(frame["data_set"]), notes=notes, **more)


def _p_words(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _holm(p_values: list[float]) -> list[float]:
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, method="holm")[1].round(6).tolist() if p_values else []


def _comparisons(arms: list[list[dict]]) -> list[dict]:
    codeact = find_arm(arms, CODEACT)
    rows = []
    for other in (find_arm(arms, BASELINE), find_arm(arms, RANDOM)):
        if codeact and other:
            names: dict[str, Any] = {"data_set": setting(codeact[0]), "compared_with": arm_label(other[0])}
            names |= {"n_seeds": max(len(codeact), len(other))}
            names |= {key: _ids(runs) for key, runs in (("run_id", codeact), ("other_run_id", other))}
            rows += [names | test for test in _tests(codeact, other)]
    return rows


def _ids(runs: list[dict]) -> str:
    return BETWEEN_RUNS.join(run["run_id"] for run in runs)


def _tests(codeact: list[dict], other: list[dict]) -> list[dict]:
    """Each benchmark's base and plus tests, then all tasks together."""
    shared = {kind for kind, *_ in BENCHMARKS if all(benchmark_of(run, kind) for run in (*codeact, *other))}
    sides: list[tuple[tuple[str, ...], str, str]] = [
        ((kind,), side, heading) for kind, side, _, heading in BENCHMARKS if kind in shared
    ]
    kinds = tuple(dict.fromkeys(kind for kind, *_ in BENCHMARKS if kind in shared))
    if len(kinds) > 1:
        sides += [(kinds, "base", "all tasks, base"), (kinds, "plus", "all tasks, plus")]
    rows = []
    for kinds, side, heading in sides:
        ours, theirs = ([_passed(run, kinds, side) for run in runs] for runs in (codeact, other))
        if len({frozenset(run) for run in (*ours, *theirs)}) == 1:  # of different versions nothing can be said
            rows.append(_one_test(ours, theirs, heading))
    return rows


def _passed(record: dict, kinds: tuple[str, ...], side: str) -> dict[str, bool]:
    found = [benchmark_of(record, kind) for kind in kinds]
    return {task: verdict[side] in (True, "pass") for b in found if b for task, verdict in b["verdicts"].items()}


def _one_test(ours: list[dict[str, bool]], other: list[dict[str, bool]], heading: str) -> dict:
    test, interval = sign_flip_test(ours, other), paired_bootstrap(ours, other)
    k, k_other = (sum(sum(run.values()) for run in runs) / len(runs) for runs in (ours, other))
    direction = "ahead" if k > k_other else "behind"
    return {
        "tests": heading,
        "n": test["n"],
        "codeact_k": round(k, 3),
        "other_k": round(k_other, 3),
        "difference_points": round(100 * interval["difference"], 3),
        "low": round(100 * interval["low"], 2),
        "high": round(100 * interval["high"], 2),
        "only_codeact": test["b"],
        "only_other": test["c"],
        "p_value": round(test["p_value"], 6),
        "finding": f"CodeACT {direction}" if test["p_value"] < 0.05 else NOTHING_SHOWN,
    }


# In words


def findings(metrics: list[dict]) -> list[str]:
    """What was measured, in sentences: CodeACT against full data and against random, judged on all plus tests."""
    frame = comparison_table(metrics).frame
    strictest = frame[frame["tests"] == "all tasks, plus"]
    savings = [_saving(arms) for arms in by_setting(metrics)]
    return [_finding(row) for row in strictest.to_dict("records")] + [text for text in savings if text]


# (compared with random?, finding) -> what it means
_VERDICTS = {
    (True, "CodeACT ahead"): "CDAS beats a random selection of the same size",
    (True, "CodeACT behind"): "CDAS is worse than a random selection of the same size",
    (True, NOTHING_SHOWN): "CDAS does not beat a random selection of the same size, the difference is within the noise",
    (False, "CodeACT ahead"): "CodeACT on 40% of the data beats training on all of it",
    (False, "CodeACT behind"): "CodeACT on 40% of the data falls behind training on all of it",
    (False, NOTHING_SHOWN): "no difference between CodeACT on 40% of the data and training on all of it is shown",
}


def _finding(row: dict) -> str:
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


def _saving(arms: list[list[dict]]) -> str:
    full, ours = find_arm(arms, BASELINE), find_arm(arms, CODEACT)
    if not (full and ours and full[0]["train"] and ours[0]["train"]):
        return ""
    before, after = measured_row(full), measured_row(ours)
    time, memory = (relative_change(before[c], after[c]) for c in ("training_time_min", "peak_memory_gb"))
    return (
        f"{setting(ours[0])}: against all data with dynamic padding, CodeACT changes training time by "
        f"{percent_cell(time)} and peak memory by {percent_cell(memory)}, the cost of selection not counted."
    )
