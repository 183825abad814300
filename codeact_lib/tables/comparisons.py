"""CodeACT against others: paired tests against full data and a random selection, and the paper's headline again.

The headline is recomputed from every reported and measured pair, and stands beside the authors' own re-run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from codeact_lib.evaluation.records import RunRecord, Side
from codeact_lib.statistics import paired_bootstrap, sign_flip_test
from codeact_lib.tables import results
from codeact_lib.tables.cells import mark_notes, marked, percent_cell
from codeact_lib.tables.costs import selection_seconds
from codeact_lib.tables.render import Cell, Column, Table, values, words
from codeact_lib.tables.results import BASELINE, BENCHMARKS, CODEACT, HEADINGS, TEXTS, Line

COLUMNS = [
    *("data_set", "compared_with", "tests", "n", "n_seeds", "codeact_k", "other_k", "difference_points", "low", "high"),
    *("only_codeact", "only_other", "p_value", "p_holm", "finding", "run_id", "other_run_id"),
]
CLAIMS = {
    "HumanEval: +8.6 points": "gain_points",
    "Training time: -78%": "time_change_pct",
    "The same, selection counted": "time_with_selection_pct",
    "Peak memory: -27%": "memory_change_pct",
}
SETTING = ["dataset", "model", "size"]
CLAIM_COLUMNS = ["source", "dataset", "model", "full", "codeact", *CLAIMS.values(), "run_id"]
Pair = tuple[Line, Line]  # full data and CodeACT of one model on one data set from one source


def comparison_table(metrics: Sequence[RunRecord]) -> Table:
    """Paired tests of CodeACT against full data and against a random 40%, per benchmark and pooled."""
    from statsmodels.stats.multitest import multipletests

    rows: list[dict[str, Any]] = []
    for _, arms in results.by_setting(results.measured_lines(metrics)):
        for arm in (BASELINE, results.RANDOM):
            if CODEACT in arms and arm in arms:
                rows += _tests(arms[CODEACT], arms[arm])
    frame = pd.DataFrame(rows, columns=COLUMNS)
    # Holm's correction holds however the tests depend on each other, and these share runs and tasks
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
    kinds = [kind for kind in results.KINDS if len(results.benchmarks_of(runs, kind)) == len(runs)]
    compared: list[tuple[str, Side, list[str]]] = []
    for column, (kind, side) in BENCHMARKS.items():
        if kind in kinds:
            compared.append((HEADINGS[column], side, [kind]))
    if len(kinds) > 1:
        compared += [("all tasks, base", "base", kinds), ("all tasks, plus", "plus", kinds)]
    rows = []
    for heading, side, judged in compared:
        verdicts = [_verdicts(run, judged) for run in runs]
        # of different versions nothing can be said
        if len(set(map(frozenset, verdicts))) > 1:
            continue
        ours = verdicts[: len(codeact.runs)]
        theirs = verdicts[len(codeact.runs) :]
        names = {"data_set": codeact.names["data_set"], "compared_with": other.names["arm"], "tests": heading}
        names |= {"n_seeds": max(len(ours), len(theirs)), "run_id": codeact.run_id, "other_run_id": other.run_id}
        rows.append(names | _one_test(ours, theirs, side))
    return rows


def _verdicts(record: RunRecord, kinds: Sequence[str]) -> dict[str, Any]:
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
        seeds = ""
        test = "McNemar p"
        if row["n_seeds"] > 1:
            seeds = f" (mean of {row['n_seeds']} seeds)"
            test = "paired p"
        p = f"{test} = {_p_words(row['p_value'])}".replace("= <", "<")
        sentences.append(
            f"{row['data_set']}: {TEXTS['verdicts'][rival][row['finding']]}. CodeACT solves {ours:.1f}% of {row['n']} "
            f"tasks under the plus tests{seeds}, {row['compared_with']} {other:.1f}% ({ours - other:+.1f} points, 95% "
            f"interval {row['low']:+.1f} to {row['high']:+.1f}, {p})."
        )
    for record, arms in results.by_setting(results.measured_lines(metrics)):
        full = arms.get(BASELINE)
        codeact = arms.get(CODEACT)
        if full and codeact and full.record["train"] and codeact.record["train"]:
            time = percent_cell(results.relative_change(full, codeact, "training_time_min"))
            memory = percent_cell(results.relative_change(full, codeact, "peak_memory_gib"))
            sentences.append(
                f"{results.setting(record)}: against all data with dynamic padding, CodeACT changes training time by "
                f"{time} and peak memory by {memory}, the cost of selection not counted."
            )
    return sentences


def derived_claims_table(metrics: Sequence[RunRecord], reported: Mapping[str, pd.DataFrame]) -> Table:
    """The paper's headline (+8.6 points, -78% time, -27% memory) recomputed from every reported and measured pair."""
    pairs = _pairs(metrics, reported)
    frame = pd.DataFrame([_claims(*pair) for pair in pairs]).reindex(columns=CLAIM_COLUMNS)
    runs = frame["run_id"]
    scores = [f"{_score_words(full, 'humaneval')} → {_score_words(ours, 'humaneval')}" for full, ours in pairs]
    columns = [
        words("Data set", frame["dataset"]),
        words("Model", frame["model"]),
        values("HumanEval, full → 40%", scores, runs),
        values("Gain", frame["gain_points"].map("{:+.1f} points".format), runs),
        values("Time", frame["time_change_pct"].map(percent_cell), runs),
        values("Time, selection counted", frame["time_with_selection_pct"].map(percent_cell), runs),
        values("Peak memory", frame["memory_change_pct"].map(percent_cell), runs),
    ]
    blocks = frame["source"].map(TEXTS["sources"]).tolist()
    notes = [TEXTS["notes"]["derived_claims"], *mark_notes(sum(pairs, ())), *results.hardware_notes(metrics)]
    return Table("derived_claims", frame, columns, blocks, notes, metrics)


def _pairs(metrics: Sequence[RunRecord], reported: Mapping[str, pd.DataFrame]) -> list[Pair]:
    # Both arms of each model on each data set, reported and measured, where HumanEval is known of both.
    pairs: list[Pair] = []
    for source, frame in (("paper", reported["rq1"]), ("follow-up", results.followup_pairs(reported["followup"]))):
        # HumanEval is what the claims are about: marks of other scores have no place here
        for (dataset, model, size), rows in frame.drop(columns=results.SCORES[1:]).groupby(SETTING, sort=False):
            full, ours = marked(results.reported_lines(rows.sort_values("codeact"), source))
            pairs.append((full.named(dataset=dataset, model=f"{model} {size}"), ours))
    for record, measured in results.by_setting(results.measured_lines(metrics)):
        if BASELINE in measured and CODEACT in measured:
            model = f"{record['model']['label']} {record['model']['size']}"
            full = measured[BASELINE].named(dataset=record["dataset_label"], model=model)
            pairs.append((full, measured[CODEACT]))
    return [(full, ours) for full, ours in pairs if pd.notna(full.rate("humaneval") + ours.rate("humaneval"))]


def _claims(full: Line, ours: Line) -> dict[str, Any]:
    # What the claims are about, as one row of the CSV.
    row = {**full.names, "source": full.source, "full": full.rate("humaneval"), "codeact": ours.rate("humaneval")}
    row["gain_points"] = round(row["codeact"] - row["full"], 3)
    row["time_change_pct"] = results.relative_change(full, ours, "training_time_min")
    row["memory_change_pct"] = results.relative_change(full, ours, "peak_memory_gib")
    if ours.runs:
        minutes = selection_seconds(ours) / 60
        row["time_with_selection_pct"] = results.relative_change(full, ours, "training_time_min", minutes)
        row["run_id"] = f"{ours.run_id}{results.BETWEEN_RUNS}{full.run_id}"
    return row


def headline_table(metrics: Sequence[RunRecord], reported: Mapping[str, pd.DataFrame]) -> Table:
    """The paper's three claims side by side: as its own table, its follow-up and each measured setting have them."""
    pairs = derived_claims_table(metrics, reported).frame
    ours = pairs[pairs["source"] == "measured"]
    # the row of the paper's table 1 that its abstract speaks of
    theirs = pairs[(pairs["dataset"] == "EVOL-Instruct") & (pairs["model"] == "DeepSeek-Coder 6.7B")]
    frame = pd.DataFrame({"claim": list(CLAIMS)})
    columns = [words("Claim", CLAIMS)]
    for row in pd.concat([theirs, ours]).to_dict("records"):
        name = {"paper": "Paper", "follow-up": "Follow-up"}.get(row["source"], f"Measured, {row['dataset']}")
        frame[name] = [row[column] for column in CLAIMS.values()]
        points, *changes = frame[name]
        texts = [f"{points:+.1f} points", *map(percent_cell, changes)]
        columns.append(values(name, texts, [row["run_id"]] * len(texts)))
    frame["run_id"] = results.BETWEEN_RUNS.join(ours["run_id"])
    notes = [TEXTS["notes"]["headline"], *results.hardware_notes(metrics)]
    return Table("headline", frame, columns, notes=notes, metrics=metrics)


def followup_table(reported: Mapping[str, pd.DataFrame]) -> Table:
    """The paper's scores beside the authors' own later re-run of the same rows, with the difference."""
    again = results.followup_pairs(reported["followup"]).drop(columns="model").rename(columns={"paper_model": "model"})
    frame = reported["rq1"].merge(again, on=[*SETTING, "codeact"], suffixes=("_paper", "_followup"))
    both = results.with_endings(results.SCORES, "_paper", "_followup")
    frame = frame[[*SETTING, "ratio", *both]]
    sides = []
    for source in ("paper", "followup"):
        rows = frame.rename(columns=lambda name, source=source: name.removesuffix(f"_{source}"))
        sides.append(marked(results.reported_lines(rows, source)))
    columns = [
        words("Model", frame["model"] + " " + frame["size"]),
        words("Data", frame["ratio"].map("{:.0%}".format), "center"),
    ]
    for column, heading in HEADINGS.items():
        cells = []
        for before, after in zip(*sides, strict=True):
            change = after.rate(column) - before.rate(column)
            cells.append(Cell(f"{_score_words(before, column)} → {_score_words(after, column)}", (f"{change:+.1f}",)))
        columns.append(Column(heading, cells))
    notes = [TEXTS["notes"]["followup"], *mark_notes(sum(sides, []))]
    return Table("followup", frame, columns, frame["dataset"].tolist(), notes)


def _score_words(line: Line, column: str) -> str:
    return f"{line.rate(column):.1f} {line.marks.get(column, '')}".strip()
