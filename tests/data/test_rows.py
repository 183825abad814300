"""Conversations in the files that trainers read."""

import json

import pytest
import yaml

from codeact_lib.data.rows import Columns, conversation, detect_columns
from codeact_lib.select.export import EXPORTS, export

TURN = [{"role": "user", "content": "Hi ü"}, {"role": "assistant", "content": "Hello"}]
SEVERAL = [{"role": "system", "content": "Be brief."}, *TURN, *TURN]


@pytest.mark.parametrize(
    ("keys", "columns"),
    [
        (["instruction", "response"], Columns()),
        (["instruction", "input", "output"], Columns("instruction", "output", "input")),
        (["prompt", "completion"], Columns("prompt", "completion")),
        (["id", "problem", "solution"], Columns("problem", "solution")),
        (["conversations", "prompt", "completion"], Columns(messages="conversations")),
        (["text"], None),
        (["instruction"], None),
    ],
)
def test_the_usual_names_are_recognised(keys, columns):
    assert detect_columns(keys) == columns


def test_a_row_of_columns_is_a_conversation_of_one_turn_and_a_chat_keeps_every_turn():
    row = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    assert conversation(row, Columns(response="output", input="input")) == [
        {"role": "user", "content": "Add.\n1, 2"},
        {"role": "assistant", "content": "3"},
    ]
    assert conversation({"messages": SEVERAL}, Columns(messages="messages")) == SEVERAL


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_trl_gets_prompts_and_completions_or_whole_chats_where_one_has_several_turns(tmp_path):
    (path,) = export("trl", [TURN, TURN], tmp_path, "mine")
    assert read_lines(path) == [{"prompt": TURN[:1], "completion": TURN[1:]}] * 2
    export("trl", [TURN, SEVERAL], tmp_path, "mine")
    assert read_lines(path) == [{"messages": TURN}, {"messages": SEVERAL}]


def test_what_trl_reads_can_be_loaded_and_templated(tmp_path):
    import datasets

    (path,) = export("trl", [TURN, TURN], tmp_path, "mine")
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows[1]["prompt"] + rows[1]["completion"] == TURN


def test_axolotl_gets_messages_and_the_entry_that_names_them(tmp_path):
    lines, entry = export("axolotl", [TURN, SEVERAL], tmp_path / "a: folder", "mine")
    assert read_lines(lines) == [{"messages": TURN}, {"messages": SEVERAL}]
    (dataset,) = yaml.safe_load(entry.read_text())["datasets"]
    assert dataset["path"] == str(lines) and dataset["type"] == "chat_template"
    assert dataset["field_messages"] == "messages" and dataset["roles_to_train"] == ["assistant"]


def test_llama_factory_gets_a_description_under_the_name_of_the_set(tmp_path):
    rows, info = export("llama-factory", [TURN, SEVERAL], tmp_path, "mine")
    entry = json.loads(info.read_text())["mine"]
    assert info.name == "dataset_info.json" and (tmp_path / entry["file_name"]) == rows
    records = json.loads(rows.read_text(encoding="utf-8"))
    assert [record[entry["columns"]["messages"]] for record in records] == [TURN, SEVERAL]
    assert set(TURN[0]) == {entry["tags"]["role_tag"], entry["tags"]["content_tag"]}


def test_an_unknown_layout_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=", ".join(EXPORTS)):
        export("other", [TURN], tmp_path, "mine")
