"""Reading instruction sets: all formats give the same rows, each bad row is reported, dead ends say what to do."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from conftest import REPO
from hypothesis import given, settings
from hypothesis import strategies as st

from codeact_lib.data import instructions
from codeact_lib.data.instructions import COLUMNS, columns_of, load_instructions
from codeact_lib.errors import DataError

ROWS = [{"q": f"Question {i}?", "a": f"answer {i}\nüß"} for i in range(5)]
NAMES = {"instruction_column": "q", "response_column": "a"}


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_file_format_gives_the_same_rows(tmp_path, suffix):
    examples, report = load_instructions(write(tmp_path / f"set{suffix}", ROWS), **NAMES)
    assert list(examples.columns) == COLUMNS
    assert examples["example_id"].tolist() == ["set-1", "set-2", "set-3", "set-4", "set-5"]
    assert examples["instruction"].tolist() == [row["q"] for row in ROWS]
    assert examples["response"].tolist() == [row["a"] for row in ROWS]
    assert set(examples["dataset"]) == {"set"}
    assert (report.n_read, report.n_usable, len(report.dropped)) == (5, 5, 0)
    assert report.rows == (1, 2, 3, 4, 5)
    assert report.to_dict()["counts"] == {} and str(report).endswith("5 rows read, 5 usable; dropped: none")


BAD_LINES = [
    (b'{"q": "x"}', "missing key: a"),
    (b'{"q": " \\t", "a": "y"}', "empty: q"),
    (b'{"q": "x", "a": null}', "empty: a"),
    (b'{"q": "x", "a": 3}', "not text: a is int"),
    (b'{"q": ["x"], "a": "y"}', "not text: q is list"),
    (b'{"q": "x", "a": "\\ud800"}', "not text: a holds half a surrogate pair"),
    (b'{"q": "x", "a": "y"', "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b'["x", "y"]', "not an object: list"),
    (b'{"q": "\xff\xfe", "a": "y"}', "not UTF-8: byte 7 of the line"),
    (b'{"q": "fine ", "a": "fine"}', "duplicate: same texts as row 1"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_row_is_dropped_and_reported_with_its_row_number_and_reason(tmp_path, line, reason):
    path = tmp_path / "set.jsonl"
    path.write_bytes(b'{"q": "fine", "a": "fine"}\n\n' + line + b'\n{"q": "last", "a": "row"}')
    examples, report = load_instructions(path, **NAMES)
    assert examples["instruction"].tolist() == ["fine", "last"]
    assert examples["example_id"].tolist() == ["set-1", "set-4"]  # the line in the file, blank lines counted
    assert report.dropped[["file", "row"]].values.tolist() == [["set.jsonl", 3]]
    assert report.dropped["reason"][0].startswith(reason)
    assert report.counts() == {reason.partition(":")[0]: 1}
    assert str(report) == f"set.jsonl: 3 rows read, 2 usable; dropped: 1 {reason.partition(':')[0]}"
    assert json.loads(json.dumps(report.to_dict()))["dropped"][0]["row"] == 3


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_where_bad_rows_are_errors_the_message_names_file_row_and_remedy(tmp_path, line, reason):
    path = tmp_path / "set.jsonl"
    path.write_bytes(b'{"q": "fine", "a": "fine"}\n\n' + line + b'\n{"q": "last", "a": "row"}')
    if reason.startswith("duplicate"):  # nothing is wrong with the row
        assert len(load_instructions(path, **NAMES, invalid_rows="error")[0]) == 2
        return
    with pytest.raises(DataError) as error:
        load_instructions(path, **NAMES, invalid_rows="error")
    assert f"{path}, row 3: {reason}" in str(error.value) and "set invalid_rows to drop" in str(error.value)


JSON_VALUES = st.sampled_from(
    [None, True, 3, 0.5, float("nan"), "", " \t", "x", "y", "\ud800", "\0", ["x"], {"x": "y"}]
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["q", "a", "other"]), JSON_VALUES, max_size=3), max_size=8))
def test_rows_read_are_rows_kept_plus_rows_reported(tmp_path_factory, rows):
    path = write(tmp_path_factory.mktemp("drawn") / "set.jsonl", rows + ROWS)
    examples, report = load_instructions(path, **NAMES)
    assert len(examples) + len(report.dropped) == report.n_read == len(rows) + len(ROWS)
    assert report.n_usable == len(examples) >= len(ROWS) - len(rows)
    assert examples["example_id"].is_unique
    assert all(text.strip() for text in [*examples["instruction"], *examples["response"]])


def test_bytes_that_are_not_utf8_spoil_their_row_and_not_the_file(tmp_path):
    rows = {
        ".json": b'[{"q": "fine", "a": "fine"}, {"q": "x", "a": "\xff"}, {"q": "last", "a": "row"}]',
        ".csv": b"q,a\nfine,fine\nx,\xff\nlast,row\n",
    }
    for suffix, content in rows.items():
        (tmp_path / f"set{suffix}").write_bytes(content)
        examples, report = load_instructions(tmp_path / f"set{suffix}", **NAMES)
        assert examples["instruction"].tolist() == ["fine", "last"] and report.rows == (1, 3)
        assert report.dropped[["row", "reason"]].values.tolist() == [[2, "not UTF-8: a"]]


def test_a_csv_line_with_too_few_or_too_many_fields_is_a_reported_row(tmp_path):
    (tmp_path / "set.csv").write_text(f'q,a\nfine,"two\nlines"\none\n1,2,3\nlast,{"x" * 200_000}\n')
    examples, report = load_instructions(tmp_path / "set.csv", **NAMES)
    assert examples["response"].str.len().tolist() == [9, 200_000]
    assert report.dropped["row"].tolist() == [2, 3]
    assert set(report.dropped["reason"]) == {"wrong number of fields: the header has 2"}


def test_a_row_longer_than_allowed_is_reported_with_its_length(tmp_path):
    path = write(tmp_path / "set.jsonl", [*ROWS, {"q": "q" * 600, "a": "a" * 700}])
    examples, report = load_instructions(path, **NAMES, max_characters=1299)
    assert len(examples) == 5
    assert report.dropped["reason"].tolist() == ["too long: 1,300 characters, 1,299 are allowed"]
    assert len(load_instructions(path, **NAMES, max_characters=1300)[0]) == 6


ALPACA = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": "Greet.", "input": "", "output": "hi"},
    {"instruction": "Wave.", "output": "o/"},
]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_the_input_of_an_alpaca_row_becomes_part_of_its_instruction(tmp_path, suffix):
    path = write(tmp_path / f"set{suffix}", ALPACA)
    columns = columns_of(path)
    assert (columns.instruction, columns.response, columns.input) == ("instruction", "output", "input")
    examples, _ = load_instructions(path, response_column="output", input_column="input")
    assert examples["instruction"].tolist() == ["Add.\n1 and 2", "Greet.", "Wave."]


CHATS = [
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
     {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"},
     {"role": "assistant", "content": "Ciao"}],
    [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
]  # fmt: skip
SHAREGPT = [{"from": "human", "value": "Sum"}, {"from": "gpt", "value": "sum(xs)"}]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_of_a_chat_the_first_turn_is_taken(tmp_path, suffix):
    path = write(tmp_path / f"set{suffix}", [{"messages": messages} for messages in CHATS])
    assert columns_of(path).messages == "messages"
    examples, _ = load_instructions(path, messages_column="messages")
    assert examples[["instruction", "response"]].values.tolist() == [["Hi", "Hello"], ["2+2?", "4"]]
    other = write(tmp_path / f"other{suffix}", [{"conversations": SHAREGPT}])
    examples, _ = load_instructions(other, messages_column=columns_of(other).messages)
    assert examples[["instruction", "response"]].values.tolist() == [["Sum", "sum(xs)"]]


USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
BAD_CHATS = [
    ({"other": []}, "missing key: messages"),
    ({"messages": "Hi"}, "not a chat: messages is str"),
    ({"messages": []}, "no first turn: messages holds no user message with an assistant message right after it"),
    ({"messages": [USER]}, "no first turn"),
    ({"messages": [ASSISTANT, USER]}, "no first turn"),
    ({"messages": [USER, USER, ASSISTANT]}, "no first turn"),
    ({"messages": ["Hi", "Hello"]}, "not a chat: message 1 of messages is str"),
    ({"messages": [USER, {"content": "Hello"}]}, "not a chat: message 2 of messages has no role"),
    ({"messages": [USER, {**ASSISTANT, "content": None}]}, "not text: message 2 of messages is NoneType"),
    ({"messages": [USER, {**ASSISTANT, "content": " "}]}, "empty: the first answer of messages"),
    ({"messages": [{**USER, "content": ""}, ASSISTANT]}, "empty: the first question of messages"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_CHATS)
def test_a_chat_without_a_first_turn_is_reported(tmp_path, row, reason):
    path = write(tmp_path / "set.jsonl", [row, {"messages": CHATS[1]}])
    examples, report = load_instructions(path, messages_column="messages")
    assert len(examples) == 1 and report.dropped["row"].tolist() == [1]
    assert report.dropped["reason"][0].startswith(reason)


def test_columns_without_a_usual_name_are_asked_for(tmp_path):
    with pytest.raises(DataError, match="the columns 'q', 'a' are none of the usual names. Say which one holds"):
        columns_of(write(tmp_path / "set.jsonl", ROWS))


def test_near_duplicates_are_dropped_and_the_rows_they_repeat_are_named(tmp_path):
    text = " ".join(f"word{i}" for i in range(200))
    rows = [{"q": text, "a": "x"}, {"q": f"{text} more", "a": "x"}, {"q": text[::-1], "a": "x"}]
    path = write(tmp_path / "set.jsonl", rows)
    examples, report = load_instructions(path, **NAMES, near_duplicates=0.9)
    assert report.rows == (1, 3) and report.counts() == {"near duplicate": 1}
    assert report.dropped["reason"][0] == "near duplicate: 98% in common with row 1"
    assert len(load_instructions(path, **NAMES)[0]) == 3


def test_a_folder_of_files_is_read_as_the_hub_is(tmp_path):
    """The hub's loader takes folders too: the same code path, without a network."""
    write(tmp_path / "train.jsonl", ROWS)
    assert list(instructions._read_hub(str(tmp_path), None, "train")) == ROWS


def test_missing_values_of_columnar_files_are_empty_text(tmp_path):
    for suffix in (".parquet", ".csv"):
        path = write(tmp_path / f"set{suffix}", [*ROWS, {"q": "no answer", "a": None}])
        _, report = load_instructions(path, **NAMES)
        assert report.dropped["reason"].tolist() == ["empty: a"]


def test_words_and_numbers_in_a_csv_stay_text(tmp_path):
    examples, _ = load_instructions(
        write(tmp_path / "set.csv", [{"q": "2 + 2", "a": "4"}, {"q": "None?", "a": "NA"}]), **NAMES
    )
    assert examples["response"].tolist() == ["4", "NA"]


def test_duplicates_are_kept_when_asked_for(tmp_path):
    path = write(tmp_path / "set.jsonl", ROWS + ROWS)
    assert len(load_instructions(path, **NAMES)[0]) == 5
    assert len(load_instructions(path, **NAMES, drop_duplicates=False)[0]) == 10


def test_the_limit_counts_usable_rows_and_stops_reading(tmp_path):
    path = write(tmp_path / "set.jsonl", [{"q": "", "a": "x"}, *ROWS])
    examples, report = load_instructions(path, **NAMES, limit=2)
    assert examples["instruction"].tolist() == ["Question 0?", "Question 1?"]
    assert (report.n_read, len(report.dropped)) == (3, 1)


def test_own_ids_are_kept_when_every_row_has_a_different_one(tmp_path):
    rows = [{**row, "example_id": f"id-{i}"} for i, row in enumerate(ROWS)]
    examples, _ = load_instructions(write(tmp_path / "own.jsonl", rows), **NAMES, dataset="mine")
    assert examples["example_id"].tolist() == [f"id-{i}" for i in range(5)]
    rows[1]["example_id"] = "id-0"
    examples, _ = load_instructions(write(tmp_path / "twice.jsonl", rows), **NAMES, dataset="mine")
    assert examples["example_id"].tolist() == [f"mine-{i}" for i in range(1, 6)]


def error_of(path, **options):
    with pytest.raises(DataError) as caught:
        load_instructions(path, **options)
    return str(caught.value)


def test_a_dead_end_names_the_file_and_the_remedy(tmp_path):
    missing = error_of(tmp_path / "none.jsonl")
    assert "none.jsonl does not exist" in missing and ".jsonl, .json, .parquet, .csv" in missing
    assert "is a folder" in error_of(tmp_path)
    wrong = error_of(write(tmp_path / "set.jsonl", ROWS))
    assert "missing key: instruction" in wrong
    assert "'q', 'a': set instruction_column and response_column" in wrong and "row 1" in wrong
    (tmp_path / "empty.jsonl").write_text("\n\n")
    assert "holds no rows" in error_of(tmp_path / "empty.jsonl")
    (tmp_path / "set.txt").write_text("text")
    assert "no reader for the ending '.txt'" in error_of(f"{tmp_path}/set.txt")


@pytest.mark.parametrize("suffix", [".json", ".parquet", ".csv"])
def test_a_damaged_file_is_named(tmp_path, suffix):
    path = tmp_path / f"set{suffix}"
    path.write_bytes(b'{"q": "an object, not a list"}' if suffix == ".json" else b"\xff\xfe\x00\x01 not a table")
    assert f"set{suffix} is not readable as {suffix[1:]}" in error_of(path)


def test_a_hub_set_that_cannot_be_had_says_what_to_check():
    code = "from codeact_lib.data import load_instructions; load_instructions('some-user/some-set', revision='abc')"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=offline, cwd=REPO, capture_output=True, text=True)
    assert "DataError: cannot load a data set from some-user/some-set: HF_HUB_OFFLINE is set" in done.stderr
    assert "`hf download some-user/some-set --repo-type dataset`" in done.stderr


# ---- real rows

REAL_DATA = os.environ.get("CODEACT_REAL_DATA")


@pytest.mark.skipif(not REAL_DATA, reason="CODEACT_REAL_DATA names no folder with real instruction rows")
def test_real_rows_load_and_the_two_without_answer_are_reported():
    examples, report = load_instructions(os.path.join(REAL_DATA, "evol_instruct.jsonl"), response_column="output")
    assert report.n_read == 3983
    assert report.counts()["empty"] == 2
    assert len(examples) + len(report.dropped) == report.n_read
