"""Padding strategies: how the samples of one batch fill a rectangle of tokens.

A batch of samples of unequal length must become rectangular tensors. Six samples of 4, 3, 5, 11, 7 and 6 tokens and a
model length of 16 (the example of the paper's figure) can be laid out as

    traditional    6 rows of 16 = 96 slots     every row padded to the model's maximum length
    dynamic        6 rows of 11 = 66 slots     every row padded to the longest sample of the batch
    dynamic_pack   3 rows of 13 = 39 slots     ascending lengths, next-fit: [3 4 5] [6 7] [11]
    balanced_pack  3 rows of 13 = 39 slots     fewest rows, then the shortest longest row
    flat           1 row  of 36 = 36 slots     one row, no padding at all

The samples of an optimizer step never change, only the rectangle they fill: the schedule, the number of steps and, with
`isolate=True`, the loss and the gradient are those of unpacked training.

    collator = DynamicPackCollator(tokenizer, max_length=2048)
    Trainer(model, args, train_dataset=features, data_collator=collator)   # features: {"input_ids", "labels"}
"""

from enum import StrEnum
from heapq import heapify, heapreplace

import numpy as np
import torch

from .errors import DataError
from .prompts import IGNORE_INDEX


class PaddingStrategy(StrEnum):
    """The five ways to lay out a batch; a member equals its name as a string ("dynamic-pack" is accepted too)."""

    TRADITIONAL = "traditional"
    DYNAMIC = "dynamic"
    DYNAMIC_PACK = "dynamic_pack"
    BALANCED_PACK = "balanced_pack"
    FLAT = "flat"

    @classmethod
    def _missing_(cls, value):
        name = str(value).lower().replace("-", "_")
        for member in cls:
            if member.value == name:
                return member
        raise DataError(f"unknown padding strategy {value!r}: choose one of {', '.join(m.value for m in cls)}")


def plan_rows(lengths, max_length: int, strategy="dynamic_pack") -> list[list[int]]:
    """Distribute samples over rows; return for each row the indices of its samples, in order.

    `lengths` are token counts (each at least 1). No sample is lost, split or repeated, and no row exceeds `max_length`
    tokens except under "flat". Equal lengths keep their order, so the plan is a function of its arguments alone.

    "dynamic_pack" is the paper's (CodeACT, arXiv 2408.02193, Dynamic Pack): ascending, next-fit. Raises DataError for a
    sample longer than `max_length` (truncate it first) or shorter than one token.
    """
    strategy = PaddingStrategy(strategy)
    lengths = [int(n) for n in lengths]
    _check_lengths(lengths, None if strategy is PaddingStrategy.FLAT else max_length)
    if not lengths:
        return []
    if strategy is PaddingStrategy.FLAT:
        return [list(range(len(lengths)))]
    if strategy is PaddingStrategy.DYNAMIC_PACK:
        return _next_fit_ascending(lengths, max_length)
    if strategy is PaddingStrategy.BALANCED_PACK:
        return _fewest_balanced_rows(lengths, max_length)
    return [[i] for i in range(len(lengths))]


def _check_lengths(lengths, max_length) -> None:
    for i, n in enumerate(lengths):
        if n < 1:
            raise DataError(f"sample {i} has {n} tokens: drop empty samples before packing")
        if max_length is not None and n > max_length:
            raise DataError(f"sample {i} has {n} tokens, more than max_length {max_length}: truncate or drop it first")


def _next_fit_ascending(lengths, max_length):
    rows, used = [], max_length + 1  # "full", so that the first sample opens a row
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if used + lengths[i] > max_length:
            rows.append([])
            used = 0
        rows[-1].append(i)
        used += lengths[i]
    return rows


def _best_fit_descending(lengths, max_length):
    rows, free = [], []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [r for r, room in enumerate(free) if room >= lengths[i]]
        if fitting:
            row = min(fitting, key=free.__getitem__)
        else:
            row = len(rows)
            rows.append([])
            free.append(max_length)
        rows[row].append(i)
        free[row] -= lengths[i]
    return rows


def _longest_first(lengths, n_rows):
    """Longest-processing-time rule: the longest sample left goes to the emptiest of `n_rows` rows."""
    rows = [[] for _ in range(n_rows)]
    heap = [(0, r) for r in range(n_rows)]
    heapify(heap)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        load, row = heap[0]
        rows[row].append(i)
        heapreplace(heap, (load + lengths[i], row))
    return rows


def _longest(rows, lengths):
    return max(sum(lengths[i] for i in row) for row in rows)


def _fewest_balanced_rows(lengths, max_length):
    """Fewest rows first (from the lower bound up to what the greedy packers need), then the shortest longest row."""
    greedy = None
    n_rows = -(-sum(lengths) // max_length)
    while True:
        rows = _level(_longest_first(lengths, n_rows), lengths)
        if _longest(rows, lengths) <= _floor(lengths, n_rows):
            return rows  # as level as can be, which most batches are at once
        greedy = greedy or [plan(lengths, max_length) for plan in (_next_fit_ascending, _best_fit_descending)]
        plans = [rows, *(_level(plan, lengths) for plan in greedy if len(plan) == n_rows)]
        rows = min(plans, key=lambda plan: _longest(plan, lengths))
        if _longest(rows, lengths) <= max_length:
            return rows
        n_rows += 1


def _floor(lengths, n_rows):
    """Level enough: no longest row is below the mean or below the longest sample; one per cent above is not chased."""
    return max(-(-sum(lengths) // n_rows), max(lengths)) * 1.01


def _level(rows, lengths, max_moves: int = 64):
    """Shorten the longest row by moving or swapping one sample at a time while that helps."""
    rows = [list(row) for row in rows]
    floor = _floor(lengths, len(rows))
    for _ in range(max_moves):
        loads = [sum(lengths[i] for i in row) for row in rows]
        source = max(range(len(rows)), key=loads.__getitem__)
        move = _best_move(rows, loads, lengths, source) if loads[source] > floor else None
        if move is None:
            break
        target, give, take = move
        rows[source].remove(give)
        rows[target].append(give)
        if take is not None:
            rows[target].remove(take)
            rows[source].append(take)
    return rows


def _best_move(rows, loads, lengths, source):
    """The exchange with another row that leaves the longer of the two shortest; None when none is shorter than now."""
    best, best_load = None, loads[source]
    for target in range(len(rows)):
        if target == source:
            continue
        for give in rows[source]:
            for take in (None, *rows[target]):
                delta = lengths[give] - (0 if take is None else lengths[take])
                load = max(loads[source] - delta, loads[target] + delta)
                if load < best_load:
                    best, best_load = (target, give, take), load
    return best


class DynamicPackCollator:
    """Collate tokenised samples into the tensors any Hugging Face causal language model takes.

    `tokenizer_or_pad_id` gives the padding token (a tokenizer's `pad_token_id`, else its `eos_token_id`). Features are
    dicts with `input_ids` and optionally `labels` (default: the ids themselves), lists or 1-D tensors; other keys are
    ignored, nothing is changed in place. Shapes are (rows, longest row), or (rows, max_length) under "traditional".

    isolate=True (default): samples of a row do not see each other. `position_ids` restart at every sample and there is
    no `attention_mask`; an attention that derives the samples from the positions does the rest (`attn_implementation`
    "codeact_segments" of `codeact_lib.modeling`, or transformers' own masks with `use_cache=False`). The loss is that
    of unpacked training. Pass no attention mask of your own: even one of all ones switches isolation off.

    isolate=False: as in the paper, plain causal attention over the row and an `attention_mask` that hides the padding,
    so a sample also sees the samples before it.

    The first label of each sample is -100: nothing in a sample predicts it, only the end of its neighbour would.
    """

    def __init__(self, tokenizer_or_pad_id, max_length: int, strategy="dynamic_pack", isolate: bool = True):
        self.pad_id = _pad_id(tokenizer_or_pad_id)
        self.max_length = int(max_length)
        self.strategy = PaddingStrategy(strategy)
        self.isolate = bool(isolate)

    def __call__(self, features) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `labels` and `position_ids` (isolated) or `attention_mask` (not), all int64."""
        samples = [_sample(feature) for feature in features]
        rows = plan_rows([len(ids) for ids, _ in samples], self.max_length, self.strategy)
        row_lengths = [[len(samples[i][0]) for i in row] for row in rows]
        width = max(sum(lengths) for lengths in row_lengths)
        if self.strategy is PaddingStrategy.TRADITIONAL:
            width = self.max_length
        batch = {
            "input_ids": _fill([[samples[i][0] for i in row] for row in rows], width, self.pad_id),
            "labels": _fill([[samples[i][1] for i in row] for row in rows], width, IGNORE_INDEX),
        }
        if self.isolate:
            batch["position_ids"] = _positions(row_lengths, width)
        else:
            batch["attention_mask"] = _fill([[np.ones(sum(n), dtype=np.int64)] for n in row_lengths], width, 0)
        return batch


def _pad_id(tokenizer_or_pad_id) -> int:
    if isinstance(tokenizer_or_pad_id, (int, np.integer)):
        return int(tokenizer_or_pad_id)
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer_or_pad_id, name, None) is not None:
            return int(getattr(tokenizer_or_pad_id, name))
    raise DataError("the tokenizer has neither a padding nor an end token: pass the padding token id as a number")


def _sample(feature):
    """Copies of the ids and labels as arrays, the first label hidden."""
    ids = np.array(feature["input_ids"], dtype=np.int64)
    labels = feature.get("labels")
    labels = np.array(ids if labels is None else labels, dtype=np.int64)
    if ids.shape != labels.shape:
        raise DataError(f"a sample has {ids.size} input_ids but {labels.size} labels: they must be equally many")
    labels[:1] = IGNORE_INDEX
    return ids, labels


def _fill(rows, width, value) -> torch.Tensor:
    """Concatenate the arrays of each row and pad on the right with `value`: (len(rows), width) int64."""
    out = np.full((len(rows), width), value, dtype=np.int64)
    for r, pieces in enumerate(rows):
        joined = np.concatenate(pieces)
        out[r, : len(joined)] = joined
    return torch.from_numpy(out)


def _positions(row_lengths, width) -> torch.Tensor:
    """Positions 0..n-1 for each sample and again for the padding.

    When every row holds one sample the count just runs on: right padding cannot be seen by a causal model anyway, and
    with plain positions the fast causal kernel needs no mask.
    """
    if all(len(lengths) == 1 for lengths in row_lengths):
        return torch.arange(width).repeat(len(row_lengths), 1)
    pieces = [[*lengths, width - sum(lengths)] for lengths in row_lengths]
    return _fill([[np.arange(n) for n in lengths] for lengths in pieces], width, 0)


def padding_report(lengths, max_length: int, batch_size: int, strategies=None):
    """Account for what each strategy makes of a data set, batches taken in the order given.

    Returns a pandas frame, one row per strategy: `strategy`, `batches`, `rows`, `tokens` (real ones), `slots` (tokens
    with padding), `padding_rate` (share of slots that is padding, 0 to 1), `largest_batch` (slots) and
    `attention_pairs` (sum of squared row lengths: the cost of attention that spans whole rows).
    """
    import pandas as pd

    lengths = [int(n) for n in lengths]
    strategies = [PaddingStrategy(s) for s in (strategies or PaddingStrategy)]
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return pd.DataFrame([_account(batches, max_length, strategy) for strategy in strategies])


def _account(batches, max_length, strategy) -> dict:
    shapes = [_shape(batch, max_length, strategy) for batch in batches]
    tokens, slots = sum(map(sum, batches)), sum(rows * width for rows, width in shapes)
    return {
        "strategy": strategy.value,
        "batches": len(batches),
        "rows": sum(rows for rows, _ in shapes),
        "tokens": tokens,
        "slots": slots,
        "padding_rate": 1 - tokens / slots if slots else 0.0,
        "largest_batch": max((rows * width for rows, width in shapes), default=0),
        "attention_pairs": sum(rows * width**2 for rows, width in shapes),
    }


def _shape(batch, max_length, strategy) -> tuple[int, int]:
    rows = plan_rows(batch, max_length, strategy)
    return len(rows), max_length if strategy is PaddingStrategy.TRADITIONAL else _longest(rows, batch)
