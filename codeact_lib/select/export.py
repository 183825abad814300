"""The forms in which chosen rows go out: what TRL, axolotl and LLaMA-Factory read."""

from __future__ import annotations

import json
from pathlib import Path

from codeact_lib.artifacts import atomic_write, write_json

EXPORTS = ("trl", "axolotl", "llama-factory")


# ---------------------------------------------------------------------------------------------- out
def export(layout, conversations, folder, name):
    """Write conversations where a trainer reads them; returns the files.

    - ``trl``: ``train.jsonl`` for ``SFTTrainer``. Rows of one turn are conversational prompt-completion pairs, on which
      it computes the loss of the answer alone; as soon as one row has more turns, all are ``messages``.
    - ``axolotl``: ``train.jsonl`` and ``dataset.yml``, the ``datasets`` entry to paste into a configuration.
    - ``llama-factory``: ``train.json`` and ``dataset_info.json``: set ``dataset_dir`` to the folder, ``dataset`` to
      ``name``.

    Args:
        layout: one of ``EXPORTS``.
        conversations: lists of ``{"role", "content"}``, see ``conversation``.
        folder: made where it does not exist.
        name: of the data set, for LLaMA-Factory.
    """
    folder = Path(folder)
    if layout == "trl":
        single = all(len(messages) == 2 for messages in conversations)
        split = [{"prompt": messages[:1], "completion": messages[1:]} for messages in conversations]
        return [_lines(folder / "train.jsonl", split if single else _as_messages(conversations))]
    if layout == "axolotl":
        return [_lines(folder / "train.jsonl", _as_messages(conversations)), _axolotl_entry(folder)]
    if layout == "llama-factory":
        write_json(folder / "train.json", _as_messages(conversations))
        write_json(folder / "dataset_info.json", {name: _LLAMA_FACTORY})
        return [folder / "train.json", folder / "dataset_info.json"]
    raise ValueError(f"layout {layout!r} is unknown; choose one of {', '.join(EXPORTS)}")


_LLAMA_FACTORY = {
    "file_name": "train.json",
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}


def _as_messages(conversations):
    return [{"messages": messages} for messages in conversations]


def _axolotl_entry(folder):
    entry = f"datasets:\n  - path: {json.dumps(str(folder / 'train.jsonl'))}\n    ds_type: json\n"
    with atomic_write(folder / "dataset.yml") as file:
        file.write(f"{entry}    type: chat_template\n    field_messages: messages\n    roles_to_train: [assistant]\n")
    return folder / "dataset.yml"


def _lines(path, records):
    with atomic_write(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path
