"""`python -m bench packing`: the planner alone over a file of lengths, what each strategy pads and how long it plans.

The file is a JSONL or JSON list of token counts, or a JSONL of instructions, for which a byte-level BPE is trained on
the spot (any tokenizer of that size gives nearly these lengths). Each strategy plans in a fresh process.
"""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Say, Work, compare, contest, write_bench
from codeact_lib.errors import DataError
from codeact_lib.mini.tokenizer import byte_level_bpe
from codeact_lib.packing.collate import padding_report
from codeact_lib.packing.plan import PaddingStrategy, plan_micro_batches
from codeact_lib.prompts import TEMPLATES

TEXT_KEYS = (("instruction", "output"), ("instruction", "response"), ("problem", "solution"))
VOCAB_SIZE = 32_000


def bench_packing(
    path: str | Path,
    *,
    batch_size: int = 16,
    max_length: int = 2048,
    accumulation_steps: int = 4,
    seed: int = 0,
    repeats: int = 3,
    folder: str | Path | None = None,
    say: Say = print,
) -> Path:
    """Plan all strategies within the batch and over the accumulation window; return the JSON file of the results.

    Batches are drawn in an order that depends on `seed` alone, the same for all. Seconds are those of planning one
    whole epoch, `microseconds_per_batch` those for `batch_size` samples. The baseline is the paper's pack.
    """
    lengths = read_lengths(path, max_length)
    shuffled = [lengths[i] for i in np.random.default_rng(seed).permutation(len(lengths))]
    setting = {"lengths": shuffled, "max_length": max_length, "batch_size": batch_size}
    contenders = {}
    for scope, steps in (("batch", None), ("window", accumulation_steps)):
        for strategy in PaddingStrategy:
            arguments = {**setting, "strategy": strategy.value, "accumulation_steps": steps}
            contenders[f"{strategy.value}, {scope}"] = ("bench.packing:prepare", arguments)
    table = compare(contest(contenders, repeats=repeats, say=say), baseline="dynamic_pack, batch")
    table.insert(2, "microseconds_per_batch", table["seconds"] / len(lengths) * batch_size * 1e6)
    about = {"samples": len(lengths), "mean length": round(float(np.mean(lengths)), 1), "longest": max(lengths)}
    about |= {"max_length": max_length, "batch_size": batch_size, "accumulation_steps": accumulation_steps}
    return write_bench("packing", table, about, folder)


def prepare(
    lengths: list[int], max_length: int, batch_size: int, strategy: str, accumulation_steps: int | None
) -> Work:
    """A contender: returns the planning of one epoch, which returns what the plan pads."""
    report = padding_report(lengths, max_length, batch_size, [strategy], accumulation_steps=accumulation_steps)
    window = batch_size * (accumulation_steps or 1)
    steps = [lengths[start : start + window] for start in range(0, len(lengths), window)]

    def work() -> dict[str, Any]:
        for step in steps:
            plan_micro_batches(step, max_length, strategy, batch_size=None if accumulation_steps else batch_size)
        return report.drop(columns="strategy").iloc[0].to_dict()

    return work


def read_lengths(path: str | Path, max_length: int) -> list[int]:
    """Token counts, none above `max_length`, from a JSON list, a JSONL of numbers, or a JSONL of instructions."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist: give a file of token counts or of instructions")
    try:
        first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    except (ValueError, IndexError) as error:
        raise DataError(f"{path}, line 1: neither a number, a list of numbers nor an instruction") from error
    if isinstance(first, dict):
        return lengths_of_instructions(path, max_length)
    numbers = first if isinstance(first, list) else [json.loads(line) for line in path.read_text().splitlines()]
    return [min(int(n), max_length) for n in numbers]


def lengths_of_instructions(path: str | Path, max_length: int, vocab_size: int = VOCAB_SIZE) -> list[int]:
    """Tokens of each row with text on both sides, in the DeepSeek-Coder template and cut to `max_length`."""
    return [min(len(ids), max_length) for ids, _ in tokenize_instructions(path, vocab_size)]


def tokenize_instructions(path: str | Path, vocab_size: int = VOCAB_SIZE) -> list[tuple[list[int], int]]:
    """Token ids of each usable row and how many of them are its prompt, by a tokenizer trained on the file itself."""
    rows = _read_texts(path)
    tokenizer = byte_level_bpe(chain.from_iterable(rows), vocab_size, ("<s>", "</s>"))
    prompts = tokenizer.encode_batch([TEMPLATES["deepseek-coder"].prompt(prompt) for prompt, _ in rows])
    answers = tokenizer.encode_batch([answer for _, answer in rows])
    return [([0, *p.ids, *a.ids, 1], 1 + len(p.ids)) for p, a in zip(prompts, answers, strict=True)]


def _read_texts(path: str | Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    for question, answer in TEXT_KEYS:
        if question in rows[0] and answer in rows[0]:
            pairs = [(row[question], row[answer]) for row in rows]
            return [pair for pair in pairs if pair[0].strip() and pair[1].strip()]
    raise DataError(f"{path}: rows have {', '.join(rows[0])}; wanted are instruction and response")
