"""Instruction sets in one schema, and what had to be left out of them.

    examples, report = load_instructions("my.jsonl", instruction_column="problem", response_column="solution")
    examples                  # frame: example_id, instruction, response, dataset
    print(report)             # my.jsonl: 3,983 rows read, 3,981 usable; dropped: 2 empty
    report.dropped            # frame: file, row, reason; one line for each row that was left out

Nothing is repaired, guessed or cut here. A row that cannot be used never vanishes: it is dropped, and its row number
and reason are kept; or it is an error, where the caller wants to hear of it at once.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pandas as pd

from codeact_lib.config import MINI_DATASETS, looks_local
from codeact_lib.data.overlap import NearDuplicates, find_leaks
from codeact_lib.data.rows import Columns, Unusable, detect_columns, row_texts
from codeact_lib.errors import DataError
from codeact_lib.hub import hub_error, pinned_revision
from codeact_lib.mini import build_corpus

__all__ = ["COLUMNS", "FILE_FORMATS", "ValidationReport", "columns_of", "find_leaks", "load_instructions", "read_rows"]

COLUMNS = ["example_id", "instruction", "response", "dataset"]
FILE_FORMATS = (".jsonl", ".json", ".parquet", ".csv")
DUPLICATES = ("duplicate", "near duplicate")  # kinds of reason that say nothing against the row itself
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNDECODED = re.compile("[\udc80-\udcff]")  # what `errors="surrogateescape"` makes of a byte that is not UTF-8


@dataclass(frozen=True)
class ValidationReport:
    """What reading an instruction set left out.

    Attributes:
        source: name of the file, built-in set or hub data set.
        n_read: rows looked at, good and bad (with a limit, reading stops there).
        n_usable: rows in the frame.
        dropped: frame ``file, row, reason``, in order of row. ``row`` counts from 1 (in JSONL it is the line number).
            A reason reads ``kind: detail``; the kinds are ``not JSON``, ``not UTF-8``, ``not an object``, ``wrong
            number of fields``, ``missing key``, ``not text``, ``not a chat``, ``no first turn``, ``empty``, ``too
            long``, ``duplicate``, ``near duplicate``.
        rows: the row of the source that each row of the frame came from.
    """

    source: str
    n_read: int
    n_usable: int
    dropped: pd.DataFrame
    rows: tuple = ()

    def counts(self):
        """Number of dropped rows by kind of reason: ``{"empty": 2}``."""
        return dict(Counter(reason.partition(":")[0] for reason in self.dropped["reason"]))

    def to_dict(self):
        """Everything as plain JSON values, the dropped rows included."""
        dropped = self.dropped.to_dict("records")
        return {
            "source": self.source,
            "n_read": self.n_read,
            "n_usable": self.n_usable,
            "counts": self.counts(),
            "dropped": dropped,
        }

    def __str__(self):
        reasons = ", ".join(f"{count:,} {kind}" for kind, count in self.counts().items()) or "none"
        return f"{self.source}: {self.n_read:,} rows read, {self.n_usable:,} usable; dropped: {reasons}"


def load_instructions(
    path,
    *,
    dataset=None,
    revision=None,
    split="train",
    instruction_column="instruction",
    response_column="response",
    input_column=None,
    messages_column=None,
    limit=None,
    max_characters=None,
    drop_duplicates=True,
    near_duplicates=None,
    invalid_rows="drop",
):
    """Read an instruction set and check every row.

    Args:
        path: a built-in set (``mini-evol``, ``mini-oss``), a file (.jsonl, .json with a list, .parquet, .csv), or the
            id of a hub data set.
        dataset: name written into the ``dataset`` column and the ids; by default the last part of ``path``.
        revision, split: commit and split of a hub data set.
        instruction_column, response_column: keys of the two texts in each row.
        input_column: key of Alpaca's ``input``, which is added to the instruction where it holds text.
        messages_column: key of a list of chat messages, of which the first turn is taken (see ``layouts``); the other
            columns are then not looked at.
        limit: keep the first ``limit`` usable rows.
        max_characters: drop a row whose two texts together are longer.
        drop_duplicates: drop a row whose two texts, blanks at the ends aside, equal those of an earlier one.
        near_duplicates: drop a row that has at least this share (Jaccard index, in (0, 1]) of its five-token sequences
            in common with an earlier one; ``None`` does not look. About a millisecond a row.
        invalid_rows: "drop" leaves out and reports a row that cannot be used, "error" raises for the first such row.

    Returns:
        ``(examples, report)``: a frame ``example_id, instruction, response, dataset`` in the order of the source, and a
        ``ValidationReport``. ``example_id`` is ``<dataset>-<row>``, so an id leads back to its row; built-in sets and
        files with an ``example_id`` in every row keep their own.

    Raises:
        DataError: the source is missing, unreadable, or holds no usable row; or, with ``invalid_rows="error"``, a row
            is no text.
    """
    source = Path(path).name if _is_file(path) else str(path)
    dataset = dataset or Path(str(path)).stem
    columns = Columns(instruction_column, response_column, input_column, messages_column)
    neighbours = near_duplicates and NearDuplicates(near_duplicates)
    sieve = _Sieve(columns, max_characters, drop_duplicates, neighbours)
    for number, row in read_rows(path, revision, split):
        if limit is not None and len(sieve.good) >= limit:
            break
        sieve.add(number, row)
    if not sieve.good:
        raise DataError(_nothing_usable(path, sieve))
    invalid = [entry for entry in sieve.dropped if entry[1].partition(":")[0] not in DUPLICATES]
    if invalid and invalid_rows == "error":
        raise DataError(_first_invalid(path, invalid))
    numbers, ids, instructions, responses = zip(*sieve.good, strict=True)
    values = [_example_ids(ids, numbers, dataset), instructions, responses, dataset]
    examples = pd.DataFrame(dict(zip(COLUMNS, values, strict=True)))
    dropped = pd.DataFrame([(source, *entry) for entry in sieve.dropped], columns=["file", "row", "reason"])
    return examples, ValidationReport(source, len(examples) + len(dropped), len(examples), dropped, numbers)


def columns_of(path, revision=None, split="train"):
    """The ``Columns`` that the keys of the first readable row suggest.

    Raises ``DataError`` with the keys, where they are none of the usual.
    """
    row = next((row for _, row in islice(read_rows(path, revision, split), 100) if isinstance(row, dict)), {})
    columns = detect_columns(list(row))
    if columns is None:
        raise DataError(_not_recognised(path, row))
    return columns


# ---------------------------------------------------------------------------------------------- one row


class _Sieve:
    """Rows one by one: ``good`` holds (number, own id, instruction, response), ``dropped`` (number, reason)."""

    def __init__(self, columns, max_characters, drop_duplicates, neighbours):
        self.columns, self.max_characters = columns, max_characters
        self.seen, self.neighbours = {} if drop_duplicates else None, neighbours
        self.good, self.dropped, self.keys = [], [], []

    def add(self, number, row):
        if isinstance(row, dict) and not self.keys:
            self.keys = list(row)
        try:
            instruction, response = _checked_texts(row, self.columns, self.max_characters)
            self._require_new(number, instruction, response)
        except Unusable as error:
            self.dropped.append((number, str(error)))
        else:
            self.good.append((number, row.get("example_id"), instruction, response))

    def _require_new(self, number, instruction, response):
        if self.seen is not None:
            first = self.seen.setdefault((instruction.strip(), response.strip()), number)
            if first != number:
                raise Unusable(f"duplicate: same texts as row {first}")
        found = self.neighbours and self.neighbours.add(number, f"{instruction}\n{response}")
        if found:
            raise Unusable(f"near duplicate: {found[1]:.0%} in common with row {found[0]}")


def _checked_texts(row, columns, max_characters):
    """The two texts of a row; ``Unusable`` with the reason where they are none."""
    if isinstance(row, _Unreadable):
        raise Unusable(row.reason)
    if not isinstance(row, dict):
        raise Unusable(f"not an object: {type(row).__name__}")
    texts = row_texts(row, columns)
    for name, text in zip(_text_names(columns), texts, strict=True):
        if _UNDECODED.search(text):
            raise Unusable(f"not UTF-8: {name}")
        if _SURROGATE.search(text):
            raise Unusable(f"not text: {name} holds half a surrogate pair")  # no tokenizer and no file takes it
    length = sum(map(len, texts))
    if max_characters is not None and length > max_characters:
        raise Unusable(f"too long: {length:,} characters, {max_characters:,} are allowed")
    return texts


def _text_names(columns):
    return [columns.messages] * 2 if columns.messages else [columns.instruction, columns.response]


def _example_ids(own, numbers, dataset):
    if all(isinstance(i, str) and i and not _SURROGATE.search(i) for i in own) and len(set(own)) == len(own):
        return own
    return [f"{dataset}-{number}" for number in numbers]


def _nothing_usable(path, sieve):
    if not sieve.dropped:
        return f"{path} holds no rows. An instruction set needs at least one row with an instruction and a response."
    number, reason = sieve.dropped[0]
    keys = ", ".join(map(repr, sieve.keys))
    remedy = f" Its rows have the keys {keys}: set instruction_column and response_column." if keys else ""
    return (
        f"{path} holds no usable row in {len(sieve.dropped):,}; the first problem is in row {number}: {reason}.{remedy}"
    )


def _not_recognised(path, row):
    if not row:
        return f"{path} holds no row with named columns: each needs an instruction and a response."
    return (
        f"{path}: the columns {', '.join(map(repr, row))} are none of the usual names. Say which one holds the "
        "instruction and which the response (instruction_column, response_column), or the chat (messages_column)."
    )


def _first_invalid(path, invalid):
    number, reason = invalid[0]
    others = f" ({len(invalid) - 1:,} more rows cannot be used either)" if len(invalid) > 1 else ""
    return (
        f"{path}, row {number}: {reason}{others}. Correct or delete it, or set invalid_rows to drop: rows that cannot "
        "be used are then left out and listed in the report."
    )


# ---------------------------------------------------------------------------------------------- sources


@dataclass(frozen=True)
class _Unreadable:
    reason: str


def _is_file(path):
    return looks_local(str(path)) or Path(path).exists()


def read_rows(path, revision=None, split="train"):
    """Pairs (row number from 1, row) of any source, as they come: a row is a dict if all is well, and may be anything.

    A row that cannot be decoded comes as an object of its own, which ``load_instructions`` reports. Raises
    ``DataError`` where the source as a whole cannot be read.
    """
    if path in MINI_DATASETS:
        return enumerate(build_corpus(path).to_dict("records"), 1)
    if _is_file(path):
        return _read_file(Path(path))
    return enumerate(_read_hub(path, revision, split), 1)


def _read_file(path):
    if not path.is_file():
        raise DataError(f"{path} does not exist or is a folder. Give one file ending in {', '.join(FILE_FORMATS)}.")
    if path.suffix not in FILE_FORMATS:
        raise DataError(f"{path}: no reader for the ending {path.suffix!r}. Convert it to {', '.join(FILE_FORMATS)}.")
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    try:
        yield from readers[path.suffix](path)
    except (OSError, ValueError, csv.Error) as error:  # JSON and parquet errors are ValueErrors
        raise DataError(f"{path} is not readable as {path.suffix[1:]}: {error}. Export it again as JSONL.") from error


def _read_jsonl(path):
    """One row a line; blank lines are skipped, a line that is not JSON is a row that will be reported."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _parse_line(line.rstrip(b"\n"))


def _parse_line(line):
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return _Unreadable(f"not UTF-8: byte {error.start} of the line")
    except (ValueError, RecursionError) as error:
        return _Unreadable(f"not JSON: {error}")


def _read_json(path):
    """A list of objects; bytes that are not UTF-8 spoil the row that holds them, not the file."""
    try:
        rows = json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(rows, list):
        raise ValueError("it must be a list of objects")
    return enumerate(rows, 1)


def _read_csv(path):
    """Rows under the header's names, all fields as text: the word "None" or "NA" is a fine answer."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default, 131,072 characters, is an error in mid-file
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        if _SURROGATE.search("".join(header)):
            raise ValueError("its header is not UTF-8")
        for number, row in enumerate(reader, 1):
            whole = None not in row and None not in row.values()  # how DictReader marks too many fields, and too few
            names = len(header)
            yield number, row if whole else _Unreadable(f"wrong number of fields: the header has {names}")


def _read_parquet(path):
    """Rows batch by batch, so that a large file never stands in memory whole."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        rows = (row for batch in file.iter_batches(4096) for row in batch.to_pylist())
        yield from enumerate(rows, 1)


def _read_hub(path, revision, split):
    import datasets

    commit = pinned_revision(path, revision, "dataset")
    try:
        return datasets.load_dataset(path, revision=commit, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise hub_error(error, path, revision, "dataset") from error
