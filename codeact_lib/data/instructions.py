"""Instruction sets in one schema, and what had to be left out of them.

examples, report = load_instructions("my.jsonl", instruction_column="problem", response_column="solution")
examples                  # frame: example_id, instruction, response, dataset
print(report)             # my.jsonl: 3,983 rows read, 3,981 usable; dropped: 2 empty
report.dropped            # frame: file, row, reason; one line for each row that was left out
"""
# Nothing is repaired, guessed or cut here, and no row vanishes: it is dropped, and its row number and reason are kept;
# or it is an error, where the caller wants to hear of it at once.

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pandas as pd

from codeact_lib.config import MINI_DATASETS, looks_local
from codeact_lib.data.overlap import NearDuplicates
from codeact_lib.data.rows import Columns, Unusable, detect_columns, row_texts
from codeact_lib.errors import DataError
from codeact_lib.hub import hub_error, pinned_revision
from codeact_lib.mini import build_corpus

COLUMNS = ["example_id", "instruction", "response", "dataset"]
FILE_FORMATS = (".jsonl", ".json", ".parquet", ".csv")
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNDECODED = re.compile("[\udc80-\udcff]")  # what `errors="surrogateescape"` makes of a byte that is not UTF-8


@dataclass(frozen=True)
class ValidationReport:
    """What reading an instruction set left out.

    A reason reads `kind: detail`; the kinds are `not JSON`, `not UTF-8`, `not an object`, `wrong number of fields`,
    `missing key`, `not text`, `not a chat`, `no first turn`, `empty`, `too long`, `duplicate`, `near duplicate`.
    """

    source: str  # name of the file, built-in set or hub data set
    n_read: int  # rows looked at, good and bad (with a limit, reading stops there)
    n_usable: int  # rows in the frame
    dropped: pd.DataFrame  # `file, row, reason`, in order of row, which counts from 1 (in JSONL: the line number)
    rows: tuple[int, ...] = ()  # the row of the source that each row of the frame came from

    def counts(self) -> dict[str, int]:
        """Number of dropped rows by kind of reason: `{"empty": 2}`."""
        return dict(Counter(reason.partition(":")[0] for reason in self.dropped["reason"]))

    def to_dict(self) -> dict[str, Any]:
        """Everything but `rows` as plain JSON values, the dropped rows included."""
        facts = {"source": self.source, "n_read": self.n_read, "n_usable": self.n_usable}
        return {**facts, "counts": self.counts(), "dropped": self.dropped.to_dict("records")}

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {kind}" for kind, count in self.counts().items())
        return f"{self.source}: {self.n_read:,} rows read, {self.n_usable:,} usable; dropped: {reasons or 'none'}"


def load_instructions(
    path: str | Path,
    *,
    dataset: str | None = None,
    revision: str | None = None,
    split: str = "train",
    instruction_column: str = "instruction",
    response_column: str = "response",
    input_column: str | None = None,
    messages_column: str | None = None,
    limit: int | None = None,
    max_characters: int | None = None,
    drop_duplicates: bool = True,
    near_duplicates: float | None = None,
    invalid_rows: str = "drop",
) -> tuple[pd.DataFrame, ValidationReport]:
    """Read an instruction set and check every row.

    Args:
        path: a built-in set (`mini-evol`, `mini-oss`), a file (.jsonl, .json with a list, .parquet, .csv), or the
            id of a hub data set.
        dataset: name written into the `dataset` column and the ids; by default the last part of `path`.
        instruction_column, response_column, input_column, messages_column: see `rows.Columns`.
        limit: keep the first `limit` usable rows.
        max_characters: drop a row whose two texts together are longer.
        drop_duplicates: drop a row whose two texts, blanks at the ends aside, equal those of an earlier one.
        near_duplicates: drop a row that has this share in common with an earlier one, see `overlap.NearDuplicates`.
        invalid_rows: "drop" leaves out and reports a row that cannot be used, "error" raises for the first such row.

    Returns a frame `example_id, instruction, response, dataset` in the order of the source, and a report. `example_id`
    is `<dataset>-<row>`, so an id leads back to its row; where every row has one of its own, that is kept. Raises
    DataError when the source is missing, unreadable, or holds no usable row.
    """
    source = Path(path).name if _is_file(path) else str(path)
    dataset = dataset or Path(path).stem
    columns = Columns(instruction_column, response_column, input_column, messages_column)
    seen: dict[tuple[str, str], int] = {}
    neighbours = NearDuplicates(near_duplicates) if near_duplicates else None
    usable: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    keys: list[str] = []
    for number, row in read_rows(path, revision, split):
        if limit is not None and len(usable) >= limit:
            break
        # Where no row is usable, the keys of one say which columns may have been meant.
        if isinstance(row, dict) and not keys:
            keys = list(row)
        try:
            instruction, response = _checked_texts(row, columns, max_characters)
            # Without the blanks at their ends: two rows that differ in those only teach the same.
            first = seen.setdefault((instruction.strip(), response.strip()), number)
            if drop_duplicates and first != number:
                raise Unusable(f"duplicate: same texts as row {first}")
            near = neighbours.add(number, f"{instruction}\n{response}") if neighbours else None
            if near:
                raise Unusable(f"near duplicate: {near.similarity:.0%} in common with row {near.key}")
        except Unusable as error:
            dropped.append({"file": source, "row": number, "reason": str(error)})
        else:
            own_id = row.get("example_id")
            usable.append({"row": number, "example_id": own_id, "instruction": instruction, "response": response})
    _check_rows(path, usable, dropped, keys, invalid_rows)
    examples = pd.DataFrame(usable)
    rows = tuple(examples["row"].tolist())
    # Ids of the source's own only where they tell every row apart: later stages join by them.
    own_ids = [good["example_id"] for good in usable]
    fit = all(isinstance(own, str) and own and not _SURROGATE.search(own) for own in own_ids)
    if not fit or len(set(own_ids)) < len(own_ids):
        examples["example_id"] = [f"{dataset}-{row}" for row in rows]
    examples["dataset"] = dataset
    lost = pd.DataFrame(dropped, columns=["file", "row", "reason"])
    return examples[COLUMNS], ValidationReport(source, len(usable) + len(dropped), len(usable), lost, rows)


def columns_of(path: str | Path, revision: str | None = None) -> Columns:
    """The `Columns` that the keys of the first readable row suggest; DataError, where they are none of the usual."""
    first = next((row for _, row in islice(read_rows(path, revision), 100) if isinstance(row, dict)), {})
    if not first:
        raise DataError(f"{path} holds no row with named columns: each needs an instruction and a response.")
    columns = detect_columns(list(first))
    if columns is None:
        raise DataError(
            f"{path}: the columns {', '.join(map(repr, first))} are none of the usual names. Say which one holds the "
            "instruction and which the response (instruction_column, response_column), or the chat (messages_column)."
        )
    return columns


# ---- one row ---------------------------------------------------------------------------------------------------------
def _checked_texts(row: Any, columns: Columns, max_characters: int | None) -> tuple[str, str]:
    """The two texts of a row; `Unusable` with the reason where they are none."""
    if isinstance(row, Unusable):
        raise row
    if not isinstance(row, dict):
        raise Unusable(f"not an object: {type(row).__name__}")
    texts = row_texts(row, columns)
    for column, text in zip((columns.instruction, columns.response), texts, strict=True):
        name = columns.messages or column
        if _UNDECODED.search(text):
            raise Unusable(f"not UTF-8: {name}")
        # JSON can write one, no tokenizer and no UTF-8 file takes it.
        if _SURROGATE.search(text):
            raise Unusable(f"not text: {name} holds half a surrogate pair")
    length = sum(map(len, texts))
    if max_characters is not None and length > max_characters:
        raise Unusable(f"too long: {length:,} characters, {max_characters:,} are allowed")
    return texts


def _check_rows(
    path: str | Path, usable: list[dict[str, Any]], dropped: list[dict[str, Any]], keys: list[str], invalid_rows: str
) -> None:
    """DataError where no row can be used, or where one cannot and the caller wants to hear of it at once."""
    if not usable and not dropped:
        raise DataError(f"{path} holds no rows. An instruction set needs one with an instruction and a response.")
    if not usable:
        problem = f"the first problem is in row {dropped[0]['row']}: {dropped[0]['reason']}."
        if keys:
            problem += f" Its rows have the keys {', '.join(map(repr, keys))}: "
            problem += "set instruction_column and response_column."
        raise DataError(f"{path} holds no usable row in {len(dropped):,}; {problem}")
    # A repeated row is left out too, but nothing is wrong with it.
    invalid = [each for each in dropped if not each["reason"].startswith(("duplicate:", "near duplicate:"))]
    if invalid and invalid_rows == "error":
        others = f" ({len(invalid) - 1:,} more rows cannot be used either)" if len(invalid) > 1 else ""
        raise DataError(
            f"{path}, row {invalid[0]['row']}: {invalid[0]['reason']}{others}. Correct or delete it, or set "
            "invalid_rows to drop: rows that cannot be used are then left out and listed in the report."
        )


# ---- sources ---------------------------------------------------------------------------------------------------------
def _is_file(path: str | Path) -> bool:
    return looks_local(str(path)) or Path(path).exists()


def read_rows(path: str | Path, revision: str | None = None, split: str = "train") -> Iterator[tuple[int, Any]]:
    """Pairs (row number from 1, row) of any source; DataError where the source as a whole cannot be read.

    A row is a dict if all is well, and may be anything; one that cannot be decoded comes as an `Unusable`.
    """
    if str(path) in MINI_DATASETS:
        yield from enumerate(build_corpus(str(path)).to_dict("records"), 1)
        return
    if not _is_file(path):
        yield from enumerate(_read_hub(str(path), revision, split), 1)
        return
    path = Path(path)
    formats = ", ".join(FILE_FORMATS)
    if not path.is_file():
        raise DataError(f"{path} does not exist or is a folder. Give one file ending in {formats}.")
    if path.suffix not in FILE_FORMATS:
        raise DataError(f"{path}: no reader for the ending {path.suffix!r}. Convert it to {formats}.")
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    try:
        yield from readers[path.suffix](path)
    except (OSError, ValueError, csv.Error) as error:  # JSON and parquet errors are ValueErrors
        raise DataError(f"{path} is not readable as {path.suffix[1:]}: {error}. Export it again as JSONL.") from error


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    # Blank lines are skipped but counted, so that a row's number is that of its line. Bytes, because a line that is not
    # UTF-8 must not end the reading of those after it.
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.rstrip(b"\n").decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                row = Unusable(f"not UTF-8: byte {error.start} of the line")
            except (ValueError, RecursionError) as error:
                # The second is what Python's parser makes of a line of 100,000 brackets.
                row = Unusable(f"not JSON: {error}")
            yield number, row


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    # Bytes that are not UTF-8 become surrogates, and so spoil the row that holds them, not the file.
    try:
        rows = json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(rows, list):
        raise ValueError("it must be a list of objects")
    return enumerate(rows, 1)


def _read_csv(path: Path) -> Iterator[tuple[int, Any]]:
    # All fields stay text, which pandas' reader would not leave them: the word "None" or "NA" is a fine answer.
    # The default, 131,072 characters a field, is an error in mid-file.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        if _SURROGATE.search("".join(header)):
            raise ValueError("its header is not UTF-8")
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():  # how DictReader marks too many fields, and too few
                yield number, Unusable(f"wrong number of fields: the header has {len(header)}")
            else:
                yield number, row


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet

    # Batch by batch, so that a large file never stands in memory whole.
    with pyarrow.parquet.ParquetFile(path) as file:
        yield from enumerate(chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(4096)), 1)


def _read_hub(path: str, revision: str | None, split: str) -> Iterable[dict[str, Any]]:
    import datasets

    # A commit, not a branch: two stages of one run must not read two versions of a set.
    commit = pinned_revision(path, revision, "dataset")
    try:
        return datasets.load_dataset(path, revision=commit, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise hub_error(error, path, revision, "dataset") from error
