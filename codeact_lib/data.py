"""Instruction sets in one schema, and what had to be left out of them.

    examples, report = load_instructions("my.jsonl", instruction_column="problem", response_column="solution")
    examples                  # frame: example_id, instruction, response, dataset
    print(report)             # 3,983 rows read, 3,981 usable; dropped: 2 empty
    report.dropped            # frame: file, row, reason; one line for each row that was left out

Nothing is repaired, guessed or cut here. A row that cannot be used never vanishes: it is dropped, and its row number
and reason are kept; or it is an error, where the caller wants to hear of it at once.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from codeact_lib.config import MINI_DATASETS, looks_local
from codeact_lib.errors import DataError

COLUMNS = ["example_id", "instruction", "response", "dataset"]
_SURROGATE = re.compile("[\ud800-\udfff]")
FILE_FORMATS = (".jsonl", ".json", ".parquet", ".csv")


@dataclass(frozen=True)
class ValidationReport:
    """What reading an instruction set left out.

    Attributes:
        source: name of the file, built-in set or hub data set.
        n_read: rows looked at, good and bad (with a limit, reading stops there).
        n_usable: rows in the frame.
        dropped: frame ``file, row, reason``, in order of row. ``row`` counts from 1 (in JSONL it is the line number).
            A reason reads ``kind: detail``; the kinds are ``not JSON``, ``not UTF-8``, ``not an object``, ``missing
            key``, ``not text``, ``empty``, ``duplicate``.
    """

    source: str
    n_read: int
    n_usable: int
    dropped: pd.DataFrame

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
    instruction_column="instruction",
    response_column="response",
    limit=None,
    drop_duplicates=True,
    invalid_rows="drop",
):
    """Read an instruction set and check every row.

    Args:
        path: a built-in set (``mini-evol``, ``mini-oss``), a file (.jsonl, .json with a list, .parquet, .csv), or the
            id of a hub data set (its ``train`` split).
        dataset: name written into the ``dataset`` column and the ids; by default the last part of ``path``.
        revision: commit of a hub data set.
        instruction_column, response_column: keys of the two texts in each row.
        limit: keep the first ``limit`` usable rows.
        drop_duplicates: drop a row whose two texts, blanks at the ends aside, equal those of an earlier one.
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
    good, dropped = _sort_out(_read_rows(path, revision), instruction_column, response_column, limit, drop_duplicates)
    if not good:
        raise DataError(_nothing_usable(path, dropped))
    invalid = [(number, reason) for number, reason, _ in dropped if not reason.startswith("duplicate")]
    if invalid and invalid_rows == "error":
        raise DataError(_first_invalid(path, invalid))
    dropped = [(source, number, reason) for number, reason, _ in dropped]
    examples = pd.DataFrame(
        {
            "example_id": _example_ids(good, dataset),
            "instruction": [row[instruction_column] for _, row in good],
            "response": [row[response_column] for _, row in good],
            "dataset": dataset,
        },
        columns=COLUMNS,
    )
    dropped = pd.DataFrame(dropped, columns=["file", "row", "reason"])
    return examples, ValidationReport(source, len(good) + len(dropped), len(good), dropped)


def _sort_out(rows, instruction_column, response_column, limit, drop_duplicates):
    """Pairs (number, row) that can be used, and (number, reason, row) that cannot; stops at ``limit`` usable rows."""
    good, dropped, seen = [], [], {}
    for number, row in rows:
        if limit is not None and len(good) >= limit:
            break
        reason = _problem(row, instruction_column, response_column)
        if reason is None and drop_duplicates:
            texts = (row[instruction_column].strip(), row[response_column].strip())
            first = seen.setdefault(texts, number)
            reason = f"duplicate: same texts as row {first}" if first != number else None
        if reason is None:
            good.append((number, row))
        else:
            dropped.append((number, reason, row))
    return good, dropped


# ---------------------------------------------------------------------------------------------- one row


def _problem(row, instruction_column, response_column):
    """Why a row cannot be used, or ``None``."""
    if isinstance(row, _Unreadable):
        return row.reason
    if not isinstance(row, dict):
        return f"not an object: {type(row).__name__}"
    for key in (instruction_column, response_column):
        if key not in row:
            return f"missing key: {key}"
        value = row[key]
        if value is None or (isinstance(value, float) and value != value):  # null; how CSV and parquet give no text
            return f"empty: {key}"
        if not isinstance(value, str):
            return f"not text: {key} is {type(value).__name__}"
        if not value.strip():
            return f"empty: {key}"
        if _SURROGATE.search(value):
            return f"not text: {key} holds half a surrogate pair"  # no tokenizer and no file takes it
    return None


def _example_ids(good, dataset):
    own = [row.get("example_id") for _, row in good]
    if all(isinstance(i, str) and i and not _SURROGATE.search(i) for i in own) and len(set(own)) == len(own):
        return own
    return [f"{dataset}-{number}" for number, _ in good]


def _nothing_usable(path, dropped):
    if not dropped:
        return f"{path} holds no rows. An instruction set needs at least one row with an instruction and a response."
    number, reason, _ = dropped[0]
    keys = next((", ".join(map(repr, row)) for _, _, row in dropped if isinstance(row, dict)), "")
    remedy = f" Its rows have the keys {keys}: set instruction_column and response_column." if keys else ""
    return f"{path} holds no usable row in {len(dropped):,}; the first problem is in row {number}: {reason}.{remedy}"


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


def _read_rows(path, revision):
    """Pairs (row number, row) of any source; a row that cannot be decoded is an ``_Unreadable``."""
    if path in MINI_DATASETS:
        from codeact_lib.mini import build_corpus

        return enumerate(build_corpus(path).to_dict("records"), 1)
    if _is_file(path):
        return _read_file(Path(path))
    return enumerate(_read_hub(path, revision), 1)


def _read_file(path):
    if not path.is_file():
        raise DataError(f"{path} does not exist or is a folder. Give one file ending in {', '.join(FILE_FORMATS)}.")
    if path.suffix == ".jsonl":
        return _read_jsonl(path)
    if path.suffix not in FILE_FORMATS:
        raise DataError(f"{path}: no reader for the ending {path.suffix!r}. Convert it to {', '.join(FILE_FORMATS)}.")
    try:
        rows = _read_whole(path)
    except (OSError, ValueError) as error:  # JSON, parquet and CSV errors are all ValueErrors
        raise DataError(f"{path} is not readable as {path.suffix[1:]}: {error}. Export it again as JSONL.") from error
    return enumerate(rows, 1)


def _read_jsonl(path):
    """One row a line; blank lines are skipped, a line that is not JSON is a row that will be reported."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    return [(number, _parse_line(line)) for number, line in enumerate(lines, 1) if line.strip()]


def _parse_line(line):
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return _Unreadable(f"not UTF-8: byte {error.start} of the line")
    except (ValueError, RecursionError) as error:
        return _Unreadable(f"not JSON: {error}")


def _read_whole(path):
    if path.suffix == ".json":
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(rows, list):
            raise ValueError("it must be a list of objects")
        return rows
    # keep_default_na: the word "None" or "NA" is a fine answer; an empty field arrives as empty text
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str, keep_default_na=False)
    return frame.to_dict("records")


def _read_hub(path, revision):
    import datasets

    try:
        return datasets.load_dataset(path, revision=revision, split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"The data set {path!r} is neither a file here nor on the Hugging Face hub ({error}). Check the name, "
            f"the revision ({revision}) and the network, or give a local file ending in {', '.join(FILE_FORMATS)}."
        ) from error


# ---------------------------------------------------------------------------------------------- leaks


def find_leaks(examples, benchmark_tasks, *, n=10, threshold=0.5):
    """Training rows that contain, or nearly contain, a benchmark task.

    Texts become lower-case words (letters and digits). A row leaks a task when it holds at least ``threshold`` of the
    ``n``-word sequences of the task's prompt, or of its canonical solution. 82 of HumanEval's 164 problems were found
    solvable straight from a public instruction set (ise-uiuc/magicoder, issue 40), so this is worth a look.

    Args:
        examples: frame with ``example_id, instruction, response``.
        benchmark_tasks: dicts in EvalPlus's schema (``task_id, prompt, canonical_solution``).
        n: words in a sequence. A task text of fewer words cannot be told from chance and is left out.
        threshold: share of a task text's sequences that makes a leak, in (0, 1].

    Returns:
        Frame ``example_id, task_id, part, share`` (part: ``prompt`` or ``canonical_solution``), worst first.
    """
    holders, sizes = _index_tasks(benchmark_tasks, n)
    leaks = []
    for row in examples.to_dict("records"):
        grams = _word_grams(f"{row['instruction']}\n{row['response']}", n)
        shared = Counter(task for gram in grams for task in holders.get(gram, ()))
        leaks += [(row["example_id"], *task, count / sizes[task]) for task, count in shared.items()]
    leaks = sorted((leak for leak in leaks if leak[-1] >= threshold), key=lambda leak: (-leak[-1], *leak[:-1]))
    return pd.DataFrame(leaks, columns=["example_id", "task_id", "part", "share"])


def _index_tasks(tasks, n):
    """n-gram -> the (task_id, part) that hold it; (task_id, part) -> its number of n-grams."""
    holders, sizes = defaultdict(list), {}
    for task in tasks:
        for part in ("prompt", "canonical_solution"):
            grams = _word_grams(task[part], n)
            sizes[task["task_id"], part] = len(grams)
            for gram in grams:
                holders[gram].append((task["task_id"], part))
    return holders, sizes


def _word_grams(text, n):
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
