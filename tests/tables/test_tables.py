"""Reported numbers, bold marks, measured rows, and the files and the report made of them."""

import csv
import html.parser
import io
import json
import math
import re
import shutil
import statistics
import subprocess
import sys

import pandas as pd
import pytest
from conftest import REPO
from hypothesis import given
from hypothesis import strategies as st
from run_records import ENVIRONMENT, METRICS, REPORTED, SEEDS, links, record

from codeact_lib import tables
from codeact_lib.errors import ArtifactError
from codeact_lib.evaluation.records import seal
from codeact_lib.tables import load_metrics, load_reported, rq1_table, rq2_table, write_report, write_table
from codeact_lib.tables.cells import marked
from codeact_lib.tables.render import to_html, to_json, to_latex, to_markdown
from codeact_lib.tables.results import measured_line, reported_lines

# The paper's two result tables as printed, copied by hand; ** around what is bold.
PAPER = (REPO / "tests" / "paper_tables.txt").read_text(encoding="utf-8")


def printed(name):
    """Headings of blocks and rows of cells of one table of the paper."""
    lines = PAPER.split(f"# {name}\n")[1].split("# RQ")[0].splitlines()
    return [line.split(" | ") if " | " in line else line for line in lines]


def rendered(table, rows):
    """The same of one of ours, read from its Markdown: without the column Source and the daggers."""
    cells = [line.strip("| ").split(" | ") for line in to_markdown(table).splitlines() if line.startswith("| ")]
    heads = [line for line in cells if line[0] == "Model"]
    source = heads[0].index("Source")
    body = [line for line in cells if line[0] not in ("Model", "---") and line[source] == "paper"]
    assert len(body) == rows
    return [[re.sub(r" [†‡]", "", cell) for i, cell in enumerate(line) if i != source] for line in body]


def test_reported_files_have_every_row_of_the_paper_in_its_columns():
    assert [len(REPORTED[name]) for name in ("rq1", "rq2", "followup")] == [12, 15, 16]
    assert list(REPORTED["rq1"].columns) == [
        *("dataset", "model", "size", "codeact", "training_time_min", "peak_memory_gib"),
        *("humaneval", "humaneval_plus", "mbpp", "mbpp_plus"),
    ]
    assert list(REPORTED["rq2"].columns) == [
        *("group", "model", "size", "base_model", "data_type", "data_num"),
        *("humaneval", "humaneval_plus", "mbpp", "mbpp_plus"),
    ]


def test_the_headline_row_is_the_papers():
    row = REPORTED["rq1"].query("dataset == 'EVOL-Instruct' and model == 'DeepSeek-Coder' and codeact").iloc[0]
    assert [row["training_time_min"], row["peak_memory_gib"], row["humaneval"], row["mbpp_plus"]] == [
        58,
        37.23,
        67.1,
        58.1,
    ]


def test_the_reported_numbers_alone_give_the_papers_rq1_cell_by_cell_with_its_bold():
    paper = [line for line in printed("RQ1") if isinstance(line, list)]
    assert rendered(rq1_table([], REPORTED["rq1"]), 12) == paper
    assert rendered(rq1_table(METRICS, REPORTED["rq1"], REPORTED["followup"]), 12) == paper  # whatever stands beside it


def test_the_reported_numbers_alone_give_the_papers_rq2_cell_by_cell_with_its_bold():
    paper = [line for line in printed("RQ2") if isinstance(line, list)]
    assert rendered(rq2_table([], REPORTED["rq2"]), 15) == paper
    assert rendered(rq2_table(METRICS, REPORTED["rq2"]), 15) == paper


def test_blocks_of_rq1_are_the_papers_data_sets_in_its_order():
    blocks = dict.fromkeys(rq1_table([], REPORTED["rq1"]).blocks)
    assert [f"{block} dataset" for block in blocks] == [line for line in printed("RQ1") if isinstance(line, str)]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=12))
def test_bold_is_every_best_value_of_a_group_of_at_least_two(rows):
    groups, values = zip(*rows, strict=True)
    found = tables.bold_marks(pd.DataFrame({"score": values}), list(groups), ["score"])["score"].tolist()
    for i, (group, value) in enumerate(rows):
        peers = [v for g, v in rows if g == group]
        assert found[i] == (len(peers) > 1 and value == max(peers))


def test_rows_that_can_only_be_of_378_tasks_are_marked():
    cells = rq2_table([], REPORTED["rq2"]).cells
    marked = cells[cells["MBPP"].str.endswith("†")]
    assert marked["Model"].tolist() == ["Claude-3-Opus", "GPT-4-Turbo", "WizardCoder-CL"]
    assert cells["HumanEval"].str.contains("†").sum() == 0


def test_a_reported_number_that_no_count_of_solved_tasks_gives_is_marked():
    table = rq1_table([], REPORTED["rq1"], REPORTED["followup"])
    marked = table.frame[table.frame["marks"] != ""]
    # of 164 tasks 87 are 53.0% and 88 are 53.7%: the follow-up's 53.3 and 49.0 are neither
    assert marked[["source", "dataset", "model", "codeact"]].values.tolist() == [
        ["follow-up", "EVOL-Instruct", "CodeLlama", False]
    ]
    assert marked["marks"].item() == "humaneval ‡; humaneval_plus ‡"
    assert {"53.3 ‡", "49.0 ‡"} <= set(table.cells.loc[marked.index].to_numpy().ravel())
    assert any(note.startswith("‡") for note in table.notes)
    again, claims = tables.followup_table(REPORTED), tables.derived_claims_table(METRICS, REPORTED)
    assert again.cells["HumanEval"].str.contains("54.3 → 53.3 ‡").sum() == 1
    assert claims.cells["HumanEval, full → 40%"].str.contains("‡").sum() == 1
    assert "53.3 ‡ → 53.0" in claims.cells["HumanEval, full → 40%"].tolist()


def test_a_pair_that_mixes_the_two_versions_of_mbpp_is_marked():
    row = {"mbpp": 60.7, "mbpp_plus": 49.5}  # 242 of 399 and 187 of 378
    assert tables.fits(row["mbpp"], 399) and not tables.fits(row["mbpp"], 378)
    assert tables.fits(row["mbpp_plus"], 378) and not tables.fits(row["mbpp_plus"], 399)
    assert marked(reported_lines(pd.DataFrame([row]), "paper"))[0].marks == {"mbpp": "‡", "mbpp_plus": "‡"}


def changed(records, which, change):
    """Records of which one has another judged ``mini-mbpp``."""
    copies = json.loads(json.dumps(records))
    change(copies[which]["benchmarks"]["mini-mbpp"])
    return copies


def test_measured_cells_of_another_version_or_task_count_than_the_rest_are_marked():
    for key, other in (("version", "v2"), ("n", 80)):
        odd = changed(METRICS, 2, lambda judged, key=key, other=other: judged.update({key: other}))
        for table in (rq1_table(odd, REPORTED["rq1"]), rq2_table(odd, REPORTED["rq2"]), tables.arms_table(odd)):
            marked = table.frame[table.frame["marks"].str.contains("§")]
            assert marked["run_id"].tolist() == [METRICS[2]["run_id"]]
            assert marked["marks"].item() == "mbpp §; mbpp_plus §"
            assert any(note.startswith("§") for note in table.notes)
    assert not rq1_table(METRICS, REPORTED["rq1"]).frame["marks"].str.contains("§").any()


def test_a_known_benchmark_that_was_only_judged_in_part_is_marked():
    real = json.loads(json.dumps(METRICS[:2]))
    for run in real:
        run["benchmarks"] = {"mbpp": run["benchmarks"]["mini-mbpp"]}  # 160 tasks are not MBPP+
    assert set(tables.arms_table(real).frame["marks"]) == {"mbpp §; mbpp_plus §"}
    for run in real:
        run["benchmarks"] = {"my-tasks": run["benchmarks"]["mbpp"]}  # of a benchmark of one's own 160 may be all
    assert set(tables.arms_table(real).frame["marks"]) == {""}


def test_a_count_that_does_not_agree_with_the_verdicts_is_marked():
    odd = changed(METRICS, 1, lambda judged: judged["plus"].update(k=judged["plus"]["k"] + 1))
    marked = rq1_table(odd, REPORTED["rq1"]).frame.query("run_id == @METRICS[1]['run_id']")
    assert marked["marks"].item() == "mbpp_plus ‡"


@given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_every_count_fits_its_own_number_of_tasks(counts):
    k, n = counts
    assert tables.fits(round(100 * k / n, 1), n)


# Measured beside reported


def test_nothing_measured_reads_not_run_and_leaves_the_paper_alone():
    empty, full = rq1_table([], REPORTED["rq1"]), rq1_table(METRICS, REPORTED["rq1"])
    assert set(empty.cells.loc[empty.cells["Source"] == "measured", "HumanEval"]) == {"not run"}
    paper = [table.cells[table.cells["Source"] == "paper"].reset_index(drop=True) for table in (empty, full)]
    pd.testing.assert_frame_equal(*paper)


def test_measured_cells_carry_counts_interval_units_and_run():
    table = rq1_table(METRICS, REPORTED["rq1"])
    row = table.frame.query("run_id == 'mini-base__mini-evol__cdas'").iloc[0]
    solved = METRICS[2]["benchmarks"]["mini-humaneval"]["base"]
    assert (row["humaneval_k"], row["humaneval_n"]) == (solved["k"], solved["n"])
    assert row["humaneval_low"] < row["humaneval"] < row["humaneval_high"]
    assert row["benchmark_versions"] == "mini-humaneval v1 (160 tasks); mini-mbpp v1 (160 tasks)"
    assert row["hardware"] == "a CPU, 2 cores"
    place = links(table).index("mini-base__mini-evol__cdas")
    cells = table.cells.iloc[place]
    assert cells[["CodeACT", "Training time", "Peak memory"]].tolist() == ["✓", "39.2 s", "306 MiB"]
    assert re.fullmatch(rf"\d+\.\d\n{solved['k']}/160, \d+\.\d–\d+\.\d", cells["HumanEval"])


def test_a_small_model_stands_in_a_block_that_says_it_cannot_be_compared():
    table = rq1_table(METRICS, REPORTED["rq1"])
    own = [block for block, link in zip(table.blocks, links(table), strict=True) if link]
    assert len(own) == 4
    assert all("2M-parameter model on CPU" in block and "not comparable" in block for block in own)


def test_a_run_of_the_papers_model_stands_under_the_papers_rows():
    model = {"name": "cl", "label": "CodeLlama", "size": "7B", "revision": "main", "reported_as": "CodeLlama"}
    table = rq1_table([record("mini-evol", "full", 1.0, "dynamic", 0.5, 60.0, 10**10, 9, model=model)], REPORTED["rq1"])
    place = [i for i, link in enumerate(links(table)) if link]
    assert [table.blocks[i] for i in place] == ["Models trained on EVOL-Instruct"]
    assert table.cells.iloc[place[0] + 1]["HumanEval"] == "not run"  # its CodeACT arm


def test_the_order_of_records_changes_no_table():
    again = rq1_table(METRICS[::-1], REPORTED["rq1"])
    once = rq1_table(METRICS, REPORTED["rq1"])
    rows = [sorted(map(tuple, table.cells.astype(str).to_numpy())) for table in (once, again)]
    assert rows[0] == rows[1]


def test_seeds_of_an_arm_are_one_row_with_mean_spread_counts_and_all_their_runs():
    table = rq1_table(SEEDS, REPORTED["rq1"])
    row = table.frame[table.frame["run_id"].fillna("").str.startswith("mini-base__mini-evol__cdas")].iloc[0]
    ks = [r["benchmarks"]["mini-humaneval"]["base"]["k"] for r in SEEDS if r["run_id"] in row["run_id"].split("; ")]
    assert (row["run_id"], row["seeds"]) == ("mini-base__mini-evol__cdas; mini-base__mini-evol__cdas__seed-1", "0; 1")
    assert row["humaneval_k"] == f"{ks[0]}; {ks[1]}" and row["humaneval_n"] == 160
    assert row["humaneval"] == pytest.approx(100 * statistics.mean(ks) / 160, abs=1e-3)
    assert row["humaneval_sd"] == pytest.approx(100 * statistics.stdev(ks) / 160, abs=1e-3)
    assert row["humaneval_low"] < row["humaneval"] < row["humaneval_high"]
    cells = table.cells.iloc[links(table).index(row["run_id"])]
    assert cells["Training time"] == "35.3 ± 5.5 s"  # 39.2 s and 31.36 s
    assert re.fullmatch(rf"\d+\.\d ± \d+\.\d\n{ks[0]}; {ks[1]} of 160, \d+\.\d–\d+\.\d", cells["HumanEval"])
    assert len(table.frame) == len(rq1_table(METRICS, REPORTED["rq1"]).frame)


def test_every_table_has_one_row_an_arm_however_many_seeds():
    for make in (tables.arms_table, tables.comparison_table, tables.cost_table, tables.policy_table):
        assert len(make(SEEDS).frame) == len(make(METRICS).frame), make.__name__
    assert len(rq2_table(SEEDS, REPORTED["rq2"]).frame) == len(rq2_table(METRICS, REPORTED["rq2"]).frame)
    claims = tables.derived_claims_table(SEEDS, REPORTED).frame.query("source == 'measured'")
    assert claims["full"].tolist() == pytest.approx(
        [measured_line(seeds).rate("humaneval") for seeds in (SEEDS[1::6], SEEDS[4::6])], abs=1e-3
    )


def test_seeds_that_were_judged_on_different_versions_are_not_averaged():
    odd = changed(SEEDS, -1, lambda judged: judged.update(version="v2"))
    row = tables.arms_table(odd).frame.query("run_id.str.contains(@odd[-1]['run_id'])").iloc[0]
    assert math.isnan(row["mbpp"]) and not math.isnan(row["humaneval"])
    assert row["marks"] == "mbpp §; mbpp_plus §"


def test_mixed_benchmark_versions_are_called_out():
    odd = json.loads(json.dumps(METRICS))
    odd[1]["benchmarks"]["mini-mbpp"]["version"] = "v2"
    assert any("mix benchmark versions" in note for note in rq1_table(odd, REPORTED["rq1"]).notes)
    assert not any("mix benchmark versions" in note for note in rq1_table(METRICS, REPORTED["rq1"]).notes)


def test_rq2_holds_base_and_arms_in_a_group_of_their_own():
    table = rq2_table(METRICS, REPORTED["rq2"])
    measured = table.cells[table.cells["Source"] == "measured"]
    assert len(measured) == 7
    assert measured["Data num"].tolist()[:3] == ["-", "2,400", "957"]
    assert len({block for block in table.blocks if block.startswith("Measured")}) == 1


# Tests, claims, costs


def runs_of(table, row, heading):
    """What a cell was measured on; None for names and reported numbers."""
    return next(column.cells[row].run for column in table.columns if column.heading == heading)


def test_paired_counts_agree_with_a_naive_count():
    frame = tables.comparison_table(METRICS).frame
    row = frame[(frame["tests"] == "all tasks, plus") & frame["compared_with"].str.startswith("random")].iloc[0]
    ours, other = (
        [v["plus"] == "pass" for b in METRICS[i]["benchmarks"].values() for v in b["verdicts"].values()] for i in (2, 3)
    )
    assert row["n"] == 320
    assert row["only_codeact"] == sum(a and not b for a, b in zip(ours, other, strict=True))
    assert row["only_other"] == sum(b and not a for a, b in zip(ours, other, strict=True))
    pairs = int(row["only_codeact"] + row["only_other"])
    tail = sum(math.comb(pairs, i) for i in range(min(row["only_codeact"], row["only_other"]) + 1)) / 2**pairs
    assert row["p_value"] == pytest.approx(min(1, 2 * tail), abs=1e-5)


def test_it_is_said_in_words_when_cdas_does_not_beat_random():
    twins = json.loads(json.dumps(METRICS))
    twins[2]["benchmarks"] = twins[3]["benchmarks"]
    sentences = tables.findings(twins)
    assert any("CDAS does not beat a random selection" in s and "EVOL" in s and "+0.0 points" in s for s in sentences)


def test_the_headline_claims_are_recomputed_from_the_papers_own_rows():
    frame = tables.derived_claims_table(METRICS, REPORTED).frame
    assert frame.query("source == 'measured'")["time_with_selection_pct"].tolist() == pytest.approx(
        [100 * ((39.2 + 150) / 112.3 - 1)] * 2, abs=1e-2
    )
    claim = frame.query("source == 'paper' and dataset == 'EVOL-Instruct' and model == 'DeepSeek-Coder 6.7B'").iloc[0]
    assert claim["gain_points"] == pytest.approx(8.6)
    assert (round(claim["time_change_pct"]), round(claim["memory_change_pct"])) == (-78, -27)
    again = frame.query("source == 'follow-up' and dataset == 'EVOL-Instruct' and model == 'DeepSeek-Coder 6.7B'").iloc[
        0
    ]
    assert again["gain_points"] == pytest.approx(-0.6)
    assert len(frame[frame["source"] == "measured"]) == 2


def test_the_three_claims_stand_side_by_side_for_paper_followup_and_measured():
    table = tables.headline_table(SEEDS, REPORTED)
    assert table.cells["Paper"].tolist() == ["+8.6 points", "-78%", "not stated", "-27%"]
    assert table.cells["Follow-up"].tolist() == ["-0.6 points", "not stated", "not stated", "not stated"]
    measured = table.cells["Measured, EVOL-Instruct (mini)"]
    assert measured[1] == "-65%" and runs_of(table, 1, "Measured, EVOL-Instruct (mini)")  # 39.2 of 112.3 s
    assert runs_of(table, 1, "Paper") is None
    assert tables.headline_table([], REPORTED).cells.columns.tolist() == ["Claim", "Paper", "Follow-up"]


def test_a_change_in_percent_has_its_sign_and_none_where_it_rounds_to_nothing_is_negative():
    cells = [tables.percent_cell(value) for value in (-78.4, 12.5, -0.3, math.nan)]
    assert cells == ["-78%", "+12%", "+0%", "not stated"]


def test_selection_pays_once_the_time_saved_exceeds_its_cost():
    frame = tables.cost_table(METRICS).frame
    pays = dict(zip(frame["run_id"], frame["break_even_trainings"], strict=True))
    assert pays["mini-base__mini-evol__cdas"] == 3  # 150 s of selection, 73.1 s saved by each training
    assert math.isnan(pays["mini-base__mini-evol__random"]) and math.isnan(pays["mini-base__mini-evol__full"])
    assert tables.cost_table(METRICS).frame["gpu_hours"].isna().all()
    slower = [r | {"train": r["train"] | {"seconds": 200.0}} if r["policy"] == "cdas" else r for r in METRICS]
    assert "never" in set(tables.cost_table(slower).cells["Pays after"])


def test_gpu_hours_count_every_gpu_of_the_machine():
    gpus = {"environment": ENVIRONMENT | {"gpu": "8 x NVIDIA H100"}, "keys": {}}
    table = tables.cost_table([record | {"provenance": gpus} for record in METRICS])
    row = table.frame.query("run_id == 'mini-base__mini-evol__cdas'").iloc[0]
    assert row["total"] == pytest.approx(3 + 147 + 39.2 + 2 * 13.5)
    assert row["gpu_hours"] == pytest.approx(8 * row["total"] / 3600, abs=1e-5)
    assert "GPU hours" in table.cells and "GPU hours" not in tables.cost_table(METRICS).cells


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_table_of_seconds_names_what_they_were_measured_on_and_what_shared_it(jobs):
    metrics = [record | {"concurrent_jobs": jobs} for record in METRICS]
    made = [make(metrics) for make in (tables.cost_table, tables.split_table, tables.arms_table)]
    made += [make(metrics, REPORTED) for make in (tables.headline_table, tables.derived_claims_table)]
    for table in [*made, rq1_table(metrics, REPORTED["rq1"])]:
        notes = "\n".join(table.notes)
        assert "a CPU, 2 cores" in notes and ("shared by 2 jobs" in notes) == (jobs == 2), table.name
        assert "resident memory" in notes, table.name


def test_the_followup_stands_beside_the_paper_cell_by_cell():
    frame = tables.followup_table(REPORTED).frame
    assert len(frame) == 8
    moved = frame.query("dataset == 'EVOL-Instruct' and model == 'DeepSeek-Coder' and ratio == 1.0").iloc[0]
    assert (moved["humaneval_paper"], moved["humaneval_followup"]) == (58.5, 67.7)


# Files


class Cells(html.parser.HTMLParser):
    """Text and bold mark of each body cell of an HTML table, and everything that could leave the file."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.ids, self.targets, self.bold, self.open = [], [], [], False, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.targets += [attributes[k] for k in ("href", "src", "xlink:href", "srcset", "data") if k in attributes]
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append(["", False])
            self.open = True
        if tag == "strong" and self.open:
            self.rows[-1][-1][1] = True

    def handle_endtag(self, tag):
        self.open = self.open and tag != "td"

    def handle_data(self, data):
        if self.open:
            self.rows[-1][-1][0] += data


def test_all_formats_hold_the_same_bold_cells():
    table = rq1_table([], REPORTED["rq1"])
    expected = [cell.text for _, rows in table.by_block() for row in rows for cell in row if cell.bold]
    assert re.findall(r"\| \*\*(.+?)\*\*(?= \|)", to_markdown(table)) == expected
    assert [text for row in Cells(to_html(table)).rows for text, bold in row if bold] == expected
    body = to_latex(table).split(r"\midrule", 1)[1]
    assert re.findall(r"\\textbf\{(.+?)\}", body) == expected


def test_markdown_is_one_well_formed_pipe_table_a_block():
    table = rq1_table(METRICS, REPORTED["rq1"])
    blocks = [part for part in to_markdown(table).split("\n\n") if part.startswith("| ")]
    assert len(blocks) == len(set(table.blocks)) == 4
    for block in blocks:
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()} == {len(table.cells.columns) + 1}


def test_latex_rows_have_as_many_cells_as_columns_and_no_bare_special_characters():
    text = to_latex(rq2_table(changed(SEEDS, -1, lambda judged: judged.update(version="v2")), REPORTED["rq2"]))
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and not line.startswith(r"\multicolumn")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {9}
    assert text.isascii() and to_latex(rq1_table([], REPORTED["rq1"], REPORTED["followup"])).isascii()
    assert not re.search(r"(?<!\\)[%#_]", "\n".join(rows))


def test_csv_is_read_back_as_numbers(tmp_path):
    paths = write_table(rq1_table(METRICS, REPORTED["rq1"]), tmp_path / "rq1")
    assert sorted(p.suffix for p in paths) == [".csv", ".html", ".json", ".md", ".tex"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "rq1.csv").read_text())))
    assert len(rows) == 12 + 12 + 4
    assert rows[0]["codeact"] == "no" and float(rows[0]["peak_memory_gib"]) == 64.28 and rows[0]["humaneval_k"] == ""
    assert float(rows[-1]["training_time_min"]) == pytest.approx(39.2 / 60, abs=1e-4)
    assert rows[-1]["humaneval_n"] == "160"


def test_json_holds_the_rows_and_for_each_run_where_its_numbers_come_from():
    table = rq1_table([r | {"metrics_sha256": "ab"} for r in METRICS], REPORTED["rq1"], REPORTED["followup"])
    facts = json.loads(to_json(table))
    assert len(facts["rows"]) == len(table.frame)
    measured = [row for row in facts["rows"] if row["run_id"]]
    assert {row["run_id"] for row in measured} == set(facts["runs"])
    for row in measured:
        assert facts["runs"][row["run_id"]]["sha256"] == "ab"
        assert facts["runs"][row["run_id"]]["environment"] == ENVIRONMENT and row["humaneval_n"] == 160


def test_followup_rows_are_a_source_of_their_own_with_its_own_bold():
    table = rq1_table([], REPORTED["rq1"], REPORTED["followup"])
    rows = table.frame[table.frame["source"] == "follow-up"].set_index(["dataset", "model", "codeact"])
    assert len(rows) == 8
    assert rows.loc[("EVOL-Instruct", "DeepSeek-Coder", False), "humaneval"] == 67.7
    evol = table.cells[(table.cells["Source"] == "follow-up") & (table.cells["HumanEval"] == "67.7")]
    (scores,) = [column for column in table.columns if column.heading == "HumanEval"]
    assert evol.index.size and all(scores.cells[table.rows.index(row)].bold for row in evol.index)
    without = rq1_table([], REPORTED["rq1"])
    paper = table.cells[table.cells["Source"] == "paper"].reset_index(drop=True)
    assert paper.equals(without.cells[without.cells["Source"] == "paper"].reset_index(drop=True))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_latex_compiles(tmp_path):
    made = [rq1_table(METRICS, REPORTED["rq1"], REPORTED["followup"]), rq2_table(METRICS, REPORTED["rq2"])]
    made += [tables.arms_table(METRICS), tables.comparison_table(METRICS), tables.cost_table(METRICS)]
    made += [tables.derived_claims_table(METRICS, REPORTED), tables.followup_table(REPORTED)]
    pages = "\\clearpage\n".join(map(to_latex, made))
    head = "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs,graphicx}\n"
    (tmp_path / "all.tex").write_text(f"{head}\\begin{{document}}\n{pages}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_every_extra_table_writes_all_formats_with_and_without_measurements(tmp_path):
    for metrics in (METRICS, METRICS[:1], []):
        for make in (tables.arms_table, tables.comparison_table, tables.cost_table):
            assert len(write_table(make(metrics), tmp_path / make.__name__)) == 5
        write_table(tables.derived_claims_table(metrics, REPORTED), tmp_path / "claims")
        assert isinstance(tables.findings(metrics), list)


def test_writing_twice_gives_the_same_bytes(tmp_path):
    first = [p.read_bytes() for p in write_table(rq2_table(METRICS, REPORTED["rq2"]), tmp_path / "a")]
    assert first == [p.read_bytes() for p in write_table(rq2_table(METRICS, REPORTED["rq2"]), tmp_path / "a")]


def test_the_report_asks_for_nothing_outside_itself_and_its_links_resolve(tmp_path):
    svg = tmp_path / "drawing.svg"
    svg.write_text(
        '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9pt" height="9pt" viewBox="0 0 9 9">'
        '<defs><g id="a"/></defs><use xlink:href="#a" xmlns:xlink="http://www.w3.org/1999/xlink"/></svg>'
    )
    made = [rq1_table(METRICS, REPORTED["rq1"]), tables.arms_table(METRICS)]
    (tmp_path / "other.svg").write_text(svg.read_text())
    figures = [tables.ReportFigure(svg, "A <drawing>"), tables.ReportFigure(tmp_path / "other.svg", "Another")]
    parts = {"title": "T", "summary": tables.findings(METRICS), "tables": made, "figures": figures}
    parts |= {"runs": tables.run_groups(METRICS), "provenance": {"python": "3.11"}}
    report = write_report(tmp_path / "report.html", **parts)
    assert report.read_bytes() == write_report(tmp_path / "again.html", **parts).read_bytes()
    page = Cells(report.read_text(encoding="utf-8"))
    assert page.targets and all(target.startswith("#") for target in page.targets)
    assert {target[1:] for target in page.targets} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "@import" not in report.read_text() and "url(" not in report.read_text()


def test_every_measured_number_in_the_html_leads_to_the_facts_of_its_runs_and_no_reported_one_does():
    for records in (METRICS, SEEDS):
        text = to_html(rq1_table(records, REPORTED["rq1"], REPORTED["followup"]), link_runs=True)
        for line in [line for line in text.splitlines() if line.startswith("<tr><td")]:
            numbers = re.findall(r'<td class="value">(.*?)</td>', line)[2:]  # after size and CodeACT
            linked = [cell.startswith('<a href="#') for cell in numbers]
            assert all(linked) if ">measured<" in line and "not run" not in line else not any(linked)
        arms = set(re.findall(r'href="#(?:arm|run)-(.*?)"', text))
        assert arms == {r["run_id"] for r in METRICS if r["policy"] in ("full", "cdas")}


def test_both_sides_of_a_paired_test_lead_to_their_own_run():
    table = tables.comparison_table(METRICS)
    columns = list(table.cells.columns)
    ours, other = (runs_of(table, 0, column) for column in ("CodeACT solves", "The other solves"))
    assert (ours, other) == ("mini-base__mini-evol__cdas", "mini-base__mini-evol__full")
    assert runs_of(table, 0, "Compared with") is None and "Better on" in columns


def test_tables_load_neither_matplotlib_nor_the_module_that_runs_as_a_command():
    """Run with `-m`, a module that its package had already loaded would be there twice, and Python warns of it."""
    code = "import sys, codeact_lib.tables; print({'matplotlib', 'codeact_lib.tables.deviations'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Bad input


def test_metrics_are_read_in_the_order_asked_for_and_missing_runs_left_out(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.json").write_text(json.dumps(seal(METRICS[0] | {"run_id": name})))
    assert [r["run_id"] for r in load_metrics(tmp_path, ["b", "gone", "a"])] == ["b", "a"]
    assert [r["run_id"] for r in load_metrics(tmp_path)] == ["a", "b"]
    assert len(load_metrics(tmp_path)[0]["metrics_sha256"]) == 64


def test_a_metrics_file_that_was_altered_is_found_by_its_hash(tmp_path):
    text = json.dumps(seal(METRICS[1]))
    (tmp_path / "x.json").write_text(text.replace('"seconds": 112.3', '"seconds": 11.23'))
    with pytest.raises(ArtifactError, match=r"x\.json was altered.*delete it"):
        load_metrics(tmp_path)


def test_a_run_without_metrics_is_not_run_and_changes_no_other_row():
    gone = METRICS[2]["run_id"]
    rest = [r for r in METRICS if r["run_id"] != gone]
    whole, without = (rq1_table(records, REPORTED["rq1"]) for records in (METRICS, rest))
    lost = whole.frame["run_id"] == gone
    assert without.frame.loc[lost, "status"].tolist() == ["not run"]
    assert without.frame.loc[lost, "humaneval"].isna().all()
    assert "not run" in without.cells[lost.to_numpy()[without.cells.index]]["HumanEval"].tolist()
    pd.testing.assert_frame_equal(whole.frame[~lost], without.frame[~lost], check_dtype=False)
    makers = (lambda records: rq2_table(records, REPORTED["rq2"]), tables.arms_table, tables.cost_table)
    for make in makers:
        before, after = make(METRICS), make(rest)
        kept = (before.frame["run_id"] != gone).to_numpy()
        assert before.cells[kept].to_numpy().tolist() == after.cells.to_numpy().tolist()


def test_a_damaged_metrics_file_is_named_with_the_remedy(tmp_path):
    (tmp_path / "x.json").write_text('{"run_id": "x"}')
    with pytest.raises(ArtifactError, match=r"x\.json lacks model.*05_eval"):
        load_metrics(tmp_path)


def test_a_missing_reported_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"rq1\.csv"):
        load_reported(tmp_path)
