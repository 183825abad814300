"""The chosen rows as files: one that looks like the source, and those that TRL, axolotl and LLaMA-Factory read."""

import json
import math
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet

from codeact_lib.artifacts import atomic_write, make_folder, write_json, write_jsonl
from codeact_lib.data.instructions import read_rows
from codeact_lib.data.rows import Columns, Message, conversation
from codeact_lib.errors import CodeActError, DataError

OUT_FORMATS = (".jsonl", ".json", ".parquet")
ADDED_COLUMNS = ("codeact_cluster", "codeact_ifd", "codeact_reason")
EXPORTS = ("trl", "axolotl", "llama-factory")


def check_outputs(out: Path, exports: Sequence[str]) -> None:
    """CodeActError where the chosen rows cannot be written as asked for, before there are any."""
    if out.suffix not in OUT_FORMATS:
        raise CodeActError(f"{out}: chosen rows are written as {', '.join(OUT_FORMATS)}; give the file such an ending.")
    unknown = [layout for layout in exports if layout not in EXPORTS]
    if unknown:
        raise CodeActError(f"No export is called {unknown[0]!r}; choose of {', '.join(EXPORTS)}.")
    make_folder(out.parent)


def write_chosen(
    data: str | Path, revision: str | None, chosen: pd.DataFrame, columns: Columns, out: Path, exports: Sequence[str]
) -> list[Path]:
    """Write the rows of `data` that `chosen` names (see `Selection.chosen`), and the exports; returns the files."""
    wanted = set(chosen["row"])
    originals = {number: row for number, row in read_rows(data, revision) if number in wanted}
    added = chosen[["cluster", "ifd", "reason"]].set_axis(ADDED_COLUMNS, axis=1).to_dict("records")
    records = [{**originals[number], **extra} for number, extra in zip(chosen["row"], added, strict=True)]
    if out.suffix == ".parquet":
        try:
            table = pyarrow.Table.from_pylist(records)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise DataError(
                f"{out}: a column holds values of different types ({error}), which parquet cannot; write a .jsonl "
                "file. The same command continues from here."
            ) from error
        with atomic_write(out, "wb") as file:
            pyarrow.parquet.write_table(table, file)
    elif out.suffix == ".json":
        write_json(out, plain(records))
    else:
        write_jsonl(out, plain(records))
    files = [out]
    for layout in exports:
        conversations = [conversation(originals[number], columns) for number in chosen["row"]]
        files += export(layout, conversations, out.with_name(f"{out.stem}-{layout}"), out.stem)
    return files


def export(layout: str, conversations: list[list[Message]], folder: str | Path, name: str) -> list[Path]:
    """Write conversations where a trainer reads them; returns the files.

    - `trl`: `train.jsonl` for `SFTTrainer`. Rows of one turn are conversational prompt-completion pairs; as soon as one
      row has more turns, all are `messages`.
    - `axolotl`: `train.jsonl` and `dataset.yml`, the `datasets` entry to paste into a configuration.
    - `llama-factory`: `train.json` and `dataset_info.json`: set `dataset_dir` to the folder, `dataset` to `name`.
    """
    if layout not in EXPORTS:
        raise ValueError(f"layout {layout!r} is unknown; choose one of {', '.join(EXPORTS)}")
    folder = Path(folder)
    whole = [{"messages": messages} for messages in conversations]
    if layout == "trl":
        # SFTTrainer computes the loss of a completion alone; for whole chats it has to be told where answers begin.
        if all(len(messages) == 2 for messages in conversations):
            pairs = [{"prompt": messages[:1], "completion": messages[1:]} for messages in conversations]
            return [write_jsonl(folder / "train.jsonl", pairs)]
        return [write_jsonl(folder / "train.jsonl", whole)]
    if layout == "axolotl":
        lines = write_jsonl(folder / "train.jsonl", whole)
        entry = f"datasets:\n  - path: {json.dumps(str(lines))}\n    ds_type: json\n    type: chat_template\n"
        with atomic_write(folder / "dataset.yml") as file:
            file.write(f"{entry}    field_messages: messages\n    roles_to_train: [assistant]\n")
        return [lines, folder / "dataset.yml"]
    info: dict[str, Any] = {"file_name": "train.json", "formatting": "sharegpt", "columns": {"messages": "messages"}}
    # Its defaults are ShareGPT's words (`from`, `value`, `human`, `gpt`); these are OpenAI's.
    info["tags"] = {f"{word}_tag": word for word in ("role", "content", "user", "assistant", "system")}
    write_json(folder / "train.json", whole)
    write_json(folder / "dataset_info.json", {name: info})
    return [folder / "train.json", folder / "dataset_info.json"]


def plain(value: Any) -> Any:
    """A value as JSON has it: parquet and hub rows hold arrays, numbers and dates of their own."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float)):
        return value
    return value.isoformat() if isinstance(value, date) else str(value)
