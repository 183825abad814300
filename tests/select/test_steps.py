"""`codeact select`: original columns kept, every row accounted for, resumed after a kill to the identical file."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import held_elsewhere

from codeact_lib import cli
from codeact_lib.data.rows import Columns
from codeact_lib.errors import CodeActError
from codeact_lib.evaluation.benchmarks import load_benchmark
from codeact_lib.mini import build_corpus
from codeact_lib.select.export import ADDED_COLUMNS, OUT_FORMATS
from codeact_lib.select.steps import select_rows

FAST = {"model": "mini-base", "n_clusters": 3}


def quiet(line):
    pass


def rows_of(n):
    """Rows of the generated set under other names, with columns of their own."""
    corpus = build_corpus("mini-evol").head(n)
    pairs = zip(corpus["instruction"], corpus["response"], strict=True)
    return [{"id": i, "prompt": q, "completion": a, "tags": ["x", {"ü": None}]} for i, (q, a) in enumerate(pairs)]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A selection from 60 rows, one of them without an answer, one copied, one from a benchmark."""
    folder = tmp_path_factory.mktemp("select")
    task = load_benchmark("mini-mbpp").tasks[0]
    rows = rows_of(60)
    rows[7] = {**rows[7], "completion": ""}
    rows[9] = {**rows[8], "id": 9}
    rows[11] = {**rows[11], "prompt": task["prompt"], "completion": task["canonical_solution"]}
    data = write_lines(folder / "data.jsonl", rows)
    places = {"out": folder / "chosen.jsonl", "report": folder / "report.html", "exports": ("trl", "llama-factory")}
    selection = select_rows(data, **places, benchmarks=("mini-mbpp", "none.jsonl"), say=quiet, **FAST)
    return folder, rows, selection


def test_chosen_rows_keep_their_columns_and_gain_cluster_ifd_and_reason(finished):
    folder, rows, selection = finished
    chosen = read_lines(folder / "chosen.jsonl")
    assert 10 < len(chosen) < 30
    for line in chosen:
        original = {key: value for key, value in line.items() if key not in ADDED_COLUMNS}
        assert original == rows[line["id"]]
        assert line["codeact_reason"] == "among the hardest 40% of its cluster" and line["codeact_ifd"] < 1


def test_the_chosen_rows_are_those_of_the_paper_s_three_lines(finished):
    folder, _, _ = finished
    rows = pd.read_csv(folder / "chosen.jsonl.work" / "rows.csv")
    expected = []
    for _, cluster in rows.groupby("cluster"):
        kept = cluster[cluster["ifd"] < 1].sort_values("ifd", ascending=False, kind="stable")
        expected += (kept["row"].head(int(len(kept) * 0.4)) - 1).tolist()
    assert [line["id"] for line in read_lines(folder / "chosen.jsonl")] == expected
    (centroids,) = (folder / "chosen.jsonl.work").glob("centroids-*.npy")
    assert np.load(centroids).shape == (3, 384)


def test_every_row_of_the_source_has_one_fate_and_a_reason(finished):
    folder, rows, selection = finished
    fates = pd.read_csv(folder / "chosen.jsonl.work" / "rows.csv")
    assert fates["row"].tolist() == list(range(1, len(rows) + 1))
    assert fates["reason"].notna().all() and fates["kept"].sum() == len(selection.chosen)
    assert fates.set_index("row")["reason"][8] == "empty: completion"
    assert fates.set_index("row")["reason"][10] == "duplicate: same texts as row 9"


def test_the_report_shows_cards_reasons_leaks_and_policies_and_asks_nothing_of_the_network(finished):
    folder, _, selection = finished
    page = (folder / "report.html").read_text(encoding="utf-8")
    for card in selection.cards.itertuples():
        assert f"Cluster {card.cluster}: {', '.join(card.keywords)}" in page
    for words in ("empty: completion", "duplicate: same texts as row 9", "below its cluster&#39;s quota"):
        assert words in page
    assert "none.jsonl was not looked at: none.jsonl is neither a benchmark" in page
    assert re.search(r"mini-mbpp</td><td[^>]*>all rows</td><td[^>]*>58</td><td[^>]*>[1-9]", page)
    assert page.count("<svg") == 4 and "stratified" in page
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", page) and str(folder) not in page


def test_exports_hold_the_chosen_rows_in_the_same_order(finished):
    folder, rows, _ = finished
    ids = [line["id"] for line in read_lines(folder / "chosen.jsonl")]
    pairs = read_lines(folder / "chosen-trl" / "train.jsonl")
    assert [pair["prompt"][0]["content"] for pair in pairs] == [rows[i]["prompt"] for i in ids]
    assert [pair["completion"][0]["content"] for pair in pairs] == [rows[i]["completion"] for i in ids]
    assert "chosen" in json.loads((folder / "chosen-llama-factory" / "dataset_info.json").read_text())


def test_a_second_call_repeats_nothing_and_another_ratio_only_chooses(finished, tmp_path):
    folder, rows, _ = finished
    before, lines = (folder / "chosen.jsonl").read_bytes(), []
    work = {"work_dir": folder / "chosen.jsonl.work", "benchmarks": ("mini-mbpp",), "say": lines.append}
    select_rows(folder / "data.jsonl", out=tmp_path / "again.jsonl", **work, **FAST)
    assert (tmp_path / "again.jsonl").read_bytes() == before
    assert sum("kept from before" in line for line in lines) == 4
    for changes in ({"ratio": 0.2}, {"policy": "random"}):
        lines.clear()
        select_rows(folder / "data.jsonl", out=tmp_path / "other.json", **work, **FAST, **changes)
        assert sum("kept from before" in line for line in lines) == 4
        other = json.loads((tmp_path / "other.json").read_text(encoding="utf-8"))
        assert [row["id"] for row in other] != [row["id"] for row in read_lines(folder / "chosen.jsonl")]


def test_several_processes_choose_what_one_does(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    folder, _, _ = finished
    lines, out = [], tmp_path / "chosen.jsonl"
    scored = shutil.ignore_patterns("ifd*", ".*")  # all but the scores is kept from before
    shutil.copytree(folder / "chosen.jsonl.work", tmp_path / "chosen.jsonl.work", ignore=scored)
    select_rows(folder / "data.jsonl", out=out, say=lines.append, processes=2, **FAST)
    assert any("2 processes" in line for line in lines) and sum("kept from before" in line for line in lines) == 2
    assert len(list((tmp_path / "chosen.jsonl.work" / "ifd").glob("scores-*.jsonl"))) == 2
    ours, theirs = read_lines(out), read_lines(folder / "chosen.jsonl")
    assert [row["id"] for row in ours] == [row["id"] for row in theirs]
    assert [row["codeact_ifd"] for row in ours] == pytest.approx([row["codeact_ifd"] for row in theirs], rel=1e-5)


def test_a_parquet_file_goes_in_and_comes_out_with_its_types(finished, tmp_path):
    folder, rows, _ = finished
    frame = pd.DataFrame(rows[20:32]).assign(when=pd.Timestamp("2024-08-04"), tags=[["a"]] * 12)
    frame.to_parquet(tmp_path / "data.parquet")
    selection = select_rows(tmp_path / "data.parquet", out=tmp_path / "chosen.parquet", say=quiet, ratio=1.0, **FAST)
    chosen = pd.read_parquet(tmp_path / "chosen.parquet")
    assert len(chosen) == len(selection.chosen) > 5 and chosen["when"].dtype.kind == "M" and chosen["id"].dtype == int
    assert chosen["tags"].map(list).tolist() == [["a"]] * len(chosen)
    with pytest.raises(CodeActError, match="column holds values of different types .* write a .jsonl file"):
        work = {"work_dir": folder / "chosen.jsonl.work", "benchmarks": ("mini-mbpp",)}
        select_rows(folder / "data.jsonl", out=tmp_path / "other.parquet", say=quiet, **work, **FAST)


def test_leaking_rows_can_be_dropped_and_are_named(finished, tmp_path):
    folder, _, selection = finished
    leaking = set(selection.leaks["mini-mbpp"]["example_id"])
    assert "data-12" in leaking
    work = {"work_dir": folder / "chosen.jsonl.work", "say": quiet}
    clean = select_rows(
        folder / "data.jsonl",
        out=tmp_path / "clean.json",
        benchmarks=("mini-mbpp",),
        drop_leaks=True,
        **work,
        **FAST,
    )
    assert not leaking & set(clean.scored["example_id"]) and len(clean.scored) == 58 - len(leaking)
    fates = clean.every_row().set_index("example_id")
    assert set(fates.loc[list(leaking), "reason"]) == {"holds a benchmark task"}
    assert len(fates) == 60 and isinstance(json.loads((tmp_path / "clean.json").read_text()), list)


def test_chats_are_scored_by_their_first_turn_and_exported_whole(tmp_path):
    chats = [
        {"messages": [{"role": role, "content": row[key]} for role, key in turns] * 2}
        for row in rows_of(12)
        for turns in [[("user", "prompt"), ("assistant", "completion")]]
    ]
    data = write_lines(tmp_path / "chats.jsonl", chats)
    out = tmp_path / "chosen.jsonl"
    selection = select_rows(data, out=out, exports=("axolotl",), ratio=1.0, say=quiet, model="mini-base", n_clusters=2)
    assert selection.columns == Columns(messages="messages")
    exported = read_lines(tmp_path / "chosen-axolotl" / "train.jsonl")
    assert [row["messages"] for row in exported] == [row["messages"] for row in read_lines(out)]
    assert {len(row["messages"]) for row in exported} == {4}


# ---------------------------------------------------------------------------------------------- a kill


SLOWLY = {"tokens_per_batch": 400}  # many small batches, so that a kill falls between them


@pytest.mark.slow
def test_after_a_kill_the_same_command_gives_the_identical_file_and_scores_no_row_twice(tmp_path):
    data, whole, resumed = (
        write_lines(tmp_path / "data.jsonl", rows_of(120)),
        tmp_path / "a.jsonl",
        tmp_path / "b.jsonl",
    )
    select_rows(data, out=whole, say=quiet, **SLOWLY, **FAST)
    options = ["--model", "mini-base", "--out", str(resumed), "--clusters", "3", "--tokens-per-batch", "400"]
    command = [sys.executable, "-m", "codeact_lib.cli", "select", str(data), *options]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    scores, deadline = tmp_path / "b.jsonl.work" / "ifd", time.monotonic() + 300
    while not lines_in(scores) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = lines_in(scores)
    assert before and not resumed.exists()  # in the middle of the scoring
    select_rows(data, out=resumed, say=quiet, **SLOWLY, **FAST)
    assert resumed.read_bytes() == whole.read_bytes() and len(read_lines(whole)) > 20
    after = lines_in(scores)
    assert set(before[:-1]) <= set(after) and len(after) == len(set(after))


def lines_in(folder):
    """Lines of the scorer's shards so far."""
    paths = sorted(folder.glob("scores-*.jsonl")) if folder.is_dir() else []
    return [line for path in paths for line in path.read_bytes().splitlines()]


def test_two_commands_do_not_work_in_one_folder(finished, monkeypatch):
    folder, _, _ = finished
    monkeypatch.setattr("codeact_lib.artifacts.PATIENCE_SECONDS", 0.1)
    with held_elsewhere(folder / "chosen.jsonl.work" / ".lock"):
        with pytest.raises(CodeActError, match="Another process is choosing rows in .*chosen.jsonl.work: wait for it"):
            select_rows(folder / "data.jsonl", out=folder / "chosen.jsonl", say=quiet, **FAST)


# ---------------------------------------------------------------------------------------------- broken input

BROKEN_ROWS = {
    b'{"instruction": "x"}': "missing key: response",
    b'{"response": "x"}': "missing key: instruction",
    b'{"instruction": " \\t", "response": "y"}': "empty: instruction",
    b'{"instruction": "x", "response": ""}': "empty: response",
    b'{"instruction": "x", "response": null}': "empty: response",
    b'{"instruction": "x", "response": NaN}': "empty: response",
    b'{"instruction": "x", "response": 3}': "not text: response is int",
    b'{"instruction": ["x"], "response": "y"}': "not text: instruction is list",
    b'{"instruction": {"x": 1}, "response": "y"}': "not text: instruction is dict",
    b'{"instruction": "x", "response": "\\ud800"}': "not text: response holds half a surrogate pair",
    b'{"instruction": "x", "response": "y"': "not JSON",
    b'{"instruction": "x"} {"response": "y"}': "not JSON",
    b"instruction: x": "not JSON",
    b"[" * 100_000: "not JSON",
    b'["x", "y"]': "not an object: list",
    b"null": "not an object: NoneType",
    b'"text"': "not an object: str",
    b'{"instruction": "\xff\xfe", "response": "y"}': "not UTF-8",
    b"\x00\x01\x02": "not JSON",
    b'{"instruction": "same", "response": "same"}': "duplicate: same texts as row 1",
    b'{"instruction": "long", "response": "' + b"y" * 5000 + b'"}': "too long: 5,004 characters",
}


def test_twenty_kinds_of_broken_rows_are_each_reported_and_end_nothing(tmp_path):
    good = [b'{"instruction": "same", "response": "same"}', b'{"instruction": "Add.", "response": "return a + b"}']
    # scored, but not by every model: signs no tokenizer has seen, an instruction that fills the window, one letter
    odd = [
        b'{"instruction": "\xf0\x9f\xa6\x84\\u0000", "response": "\\u0000\xf0\x9f\xa6\x84"}',
        b'{"instruction": "x", "response": "y"}',
    ]
    odd.append(b'{"instruction": "' + b"word " * 700 + b'", "response": "y"}')
    data = tmp_path / "broken.jsonl"
    data.write_bytes(b"\n".join([*good, *BROKEN_ROWS, *odd]) + b"\n\n")
    report = tmp_path / "report.html"
    selection = select_rows(
        data, out=tmp_path / "chosen.jsonl", report=report, max_characters=4000, max_length=256, say=quiet, **FAST
    )
    fates = pd.read_csv(tmp_path / "chosen.jsonl.work" / "rows.csv").set_index("row")
    assert len(BROKEN_ROWS) >= 20 and len(fates) == len(good) + len(BROKEN_ROWS) + len(odd)
    for number, reason in enumerate(BROKEN_ROWS.values(), len(good) + 1):
        assert fates["reason"][number].startswith(reason) and not fates["kept"][number]
        assert f'<td class="value">{number}</td><td class="text">{reason}' in report.read_text(encoding="utf-8")
    assert fates["status"].iloc[-1] == "prompt_too_long" and len(selection.scored) == 5
    assert "1 instructions (20.0%) are longer than the embedding model reads" in report.read_text(encoding="utf-8")


def test_a_set_of_which_no_row_can_be_scored_ends_with_an_empty_file_and_a_report(tmp_path):
    rows = [{"instruction": f"word {i} " * 600, "response": "y"} for i in range(3)]
    data, out, report = write_lines(tmp_path / "long.jsonl", rows), tmp_path / "chosen.jsonl", tmp_path / "report.html"
    selection = select_rows(data, out=out, report=report, max_length=256, say=quiet, **FAST)
    assert out.read_bytes() == b"" and selection.every_row()["reason"].tolist() == ["status prompt_too_long"] * 3
    page = report.read_text(encoding="utf-8")
    assert "0 of 3 rows were chosen" in page and "3 have no score" in page and "no row has a score" in page


BROKEN_CALLS = [
    ({"data": "none.jsonl"}, "none.jsonl does not exist"),
    ({"data": "."}, "is a folder"),
    ({"data": "data.txt"}, "no reader for the ending '.txt'"),
    ({"data": "empty.jsonl"}, "holds no row"),
    ({"data": "blank.jsonl"}, "holds no usable row in 2; the first problem is in row 1: empty"),
    ({"data": "odd.jsonl"}, "'q', 'a' are none of the usual names"),
    ({"data": "list.json"}, "is not readable as json: it must be a list of objects"),
    ({"out": "chosen.txt"}, f"chosen rows are written as {', '.join(OUT_FORMATS)}"),
    ({"exports": ("other",)}, "No export is called 'other'; choose of trl"),
    ({"ratio": 0.0}, "ratio: 0.0 does not fit"),
    ({"policy": "best"}, "policy: 'best' does not fit"),
    ({"colour": "blue"}, "colour: 'blue' does not fit"),
    ({"template": "none"}, "unknown prompt template 'none'"),
    ({"near_duplicates": 1.5}, "near_duplicates: 1.5 does not fit"),
    ({"embedding_model": "./no-model"}, "cannot load a model from ./no-model"),
    ({"model": "./no-model"}, "no-model"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN_CALLS)
def test_what_cannot_be_selected_from_is_an_error_that_names_it(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "data.jsonl", rows_of(4))
    write_lines(tmp_path / "odd.jsonl", [{"q": "x", "a": "y"}])
    write_lines(tmp_path / "blank.jsonl", [{"instruction": "", "response": "y"}] * 2)
    for name, text in (("data.txt", "x"), ("empty.jsonl", "\n"), ("list.json", '{"a": 1}')):
        (tmp_path / name).write_text(text)
    call = {"data": "data.jsonl", "out": "chosen.jsonl", "say": quiet, **FAST, **changes}
    with pytest.raises(CodeActError, match=re.escape(message)):
        select_rows(**call)
    assert not (tmp_path / "chosen.jsonl").exists()


def test_the_command_says_an_error_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["select", str(tmp_path / "none.jsonl"), "--model", "mini-base", "--out", str(tmp_path / "a.jsonl")])
    assert ended.value.code == 1
    assert capsys.readouterr().err.strip().startswith("error: ") and os.listdir(tmp_path) in ([], ["a.jsonl.work"])
