"""Padding strategies: how the samples of one batch fill a rectangle of tokens.

A batch of samples of unequal length must become rectangular tensors. Six samples of 4, 3, 5, 11, 7 and 6 tokens and a
model length of 16 (the example of the paper's figure) can be laid out as

    traditional    6 rows of 16 = 96 slots     every row padded to the model's maximum length
    dynamic        6 rows of 11 = 66 slots     every row padded to the longest sample of the batch
    dynamic_pack   3 rows of 13 = 39 slots     ascending lengths, next-fit: [3 4 5] [6 7] [11]
    balanced_pack  3 rows of 13 = 39 slots     fewest rows, then the shortest longest row
    flat           1 row  of 36 = 36 slots     one row, no padding at all

The samples of an optimizer step never change, only the rectangle they fill: the schedule, the number of steps and, with
`isolate=True`, the loss and the gradient are those of unpacked training. A batch is packed by itself (the paper), or
all batches that are accumulated into one step are packed together, which pads less still (`plan_micro_batches`).

    collator = DynamicPackCollator(tokenizer, max_length=2048)
    Trainer(model, args, train_dataset=features, data_collator=collator)   # features: {"input_ids", "labels"}
"""

from enum import StrEnum
from heapq import heapify, heapreplace

import numpy as np
import torch

from codeact_lib.errors import DataError
from codeact_lib.extensions import is_own, load_own
from codeact_lib.prompts import IGNORE_INDEX


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


def as_strategy(strategy):
    """A `PaddingStrategy`, by name or itself; or a strategy of your own, a function or its name "module:function"."""
    if is_own(strategy):
        strategy = load_own(strategy)
    return strategy if callable(strategy) else PaddingStrategy(strategy)


def strategy_name(strategy) -> str:
    """What `as_strategy` took it from: "dynamic_pack", or "module:function"."""
    return f"{strategy.__module__}:{strategy.__qualname__}" if callable(strategy) else PaddingStrategy(strategy).value


def plan_rows(lengths, max_length: int, strategy="dynamic_pack") -> list[list[int]]:
    """Distribute samples over rows; return for each row the indices of its samples, in order.

    `lengths` are token counts (each at least 1). No sample is lost, split or repeated, and no row exceeds `max_length`
    tokens except under "flat". Equal lengths keep their order, so the plan is a function of its arguments alone.

    "dynamic_pack" is the paper's (CodeACT, arXiv 2408.02193, Dynamic Pack): ascending, next-fit. A strategy of your own
    is a function `(lengths, max_length) -> rows`, or its name "module:function"; its plan is checked. Raises DataError
    for a sample longer than `max_length` (truncate it first) or shorter than one token, and for a plan that breaks the
    rules above.
    """
    strategy = as_strategy(strategy)
    lengths = [int(n) for n in lengths]
    _check_lengths(lengths, None if strategy is PaddingStrategy.FLAT else max_length)
    if not lengths:
        return []
    if callable(strategy):
        return _checked_plan(strategy(lengths, max_length), lengths, max_length, strategy_name(strategy))
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


def _checked_plan(rows, lengths, max_length, name):
    rows = [[int(i) for i in row] for row in rows]
    if sorted(i for row in rows for i in row) != list(range(len(lengths))):
        raise DataError(f"{name} planned {rows}: each of the samples 0 to {len(lengths) - 1} must be in it once")
    if _longest(rows, lengths) > max_length:
        raise DataError(f"{name} planned a row of {_longest(rows, lengths)} tokens, more than max_length {max_length}")
    return rows


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
    n_rows, greedy = -(-sum(lengths) // max_length), None
    while True:
        goal = _level_enough(lengths, n_rows, max_length)
        rows = _level(_longest_first(lengths, n_rows), lengths, goal)
        if _longest(rows, lengths) <= goal:
            return rows  # which most batches are at once
        greedy = greedy or [plan(lengths, max_length) for plan in (_next_fit_ascending, _best_fit_descending)]
        plans = [rows, *(_level([*plan], lengths, goal) for plan in greedy if len(plan) == n_rows)]
        rows = min(plans, key=lambda plan: _longest(plan, lengths))
        if _longest(rows, lengths) <= max_length:
            return rows
        n_rows += 1


def _level_enough(lengths, n_rows, max_length):
    """No longest row is below the mean or below the longest sample; two per mille above the mean are not chased."""
    return max(min(1.002 * sum(lengths) / n_rows, max_length), max(lengths))


def _level(rows, lengths, goal):
    """Shorten the longest row, in place, by dividing it and another row anew between the two, until it is `goal`."""
    loads = [sum(lengths[i] for i in row) for row in rows]
    while (longest := max(loads)) > goal:
        source = loads.index(longest)
        for target in sorted(range(len(rows)), key=loads.__getitem__):
            large, small = _halves(rows[source] + rows[target], lengths)
            load = sum(lengths[i] for i in large)
            if load < longest and target != source:
                rows[source], rows[target] = large, small
                loads[source], loads[target] = load, loads[target] + longest - load
                break
        else:
            break
    return rows


def _halves(samples, lengths):
    """Two groups with sums as near to each other as can be, the larger one first.

    Bit n of `sums[k]` is set when some of the first k samples have n tokens together: a number of a few thousand bits,
    so that the best of all 2^k divisions is found with k shifts.
    """
    sums = [1]
    for i in samples:
        sums.append(sums[-1] | sums[-1] << lengths[i])
    half = sum(lengths[i] for i in samples) // 2
    left = (sums[-1] & (1 << half + 1) - 1).bit_length() - 1  # the largest sum that is at most a half
    large, small = [], []
    for i, without in zip(reversed(samples), reversed(sums[:-1]), strict=True):
        if without >> left & 1:
            large.append(i)
        else:
            small.append(i)
            left -= lengths[i]
    return large, small


# ---- an optimizer step ---------------------------------------------------------------------------------------------


def plan_micro_batches(
    lengths, max_length: int, strategy="dynamic_pack", *, batch_size=None, tokens_per_micro_batch=None, ranks: int = 1
) -> list[list[list[int]]]:
    """Divide the samples of one optimizer step into micro-batches, each a list of rows as `plan_rows` returns them.

    With `batch_size` the samples are cut into batches of that many, in order, and each is packed by itself (the paper).
    Without, they are packed all together, and the rows dealt to micro-batches of at most `tokens_per_micro_batch` slots
    (default: two rows of `max_length`): the same samples in the step, less padding, and a bounded peak of memory.

    The number of micro-batches is a multiple of `ranks`, filled up with empty ones where need be; rank r takes every
    `ranks`-th from r on. Raises DataError as `plan_rows`, and for a budget that cannot hold the longest row.
    """
    strategy, lengths = as_strategy(strategy), [int(n) for n in lengths]
    if batch_size is not None:
        batches = [range(start, min(start + batch_size, len(lengths))) for start in range(0, len(lengths), batch_size)]
        plans = [_plan_part(part, lengths, max_length, strategy) for part in batches]
    else:
        plans = _plan_window(lengths, max_length, strategy, tokens_per_micro_batch or 2 * max_length, ranks)
    return plans + [[] for _ in range(-len(plans) % ranks)]


def _plan_part(part, lengths, max_length, strategy):
    rows = plan_rows([lengths[i] for i in part], max_length, strategy)
    return [[part[i] for i in row] for row in rows]


def _plan_window(lengths, max_length, strategy, budget, ranks):
    if not lengths:
        return []
    if strategy is PaddingStrategy.FLAT:  # one row a micro-batch, as long as the budget allows
        _check_lengths(lengths, min(budget, max_length))
        return [[row] for row in _fewest_balanced_rows(lengths, budget)]
    rows = plan_rows(lengths, max_length, strategy)
    widths = [max_length if strategy is PaddingStrategy.TRADITIONAL else sum(lengths[i] for i in row) for row in rows]
    order = sorted(range(len(rows)), key=lambda r: -widths[r])
    if widths[order[0]] > budget:
        raise DataError(f"a row of {widths[order[0]]} tokens is more than {budget} tokens_per_micro_batch: raise it")
    groups = _split_until_even(_group_rows(order, widths, budget), ranks)
    return [[rows[r] for r in group] for group in groups]


def _group_rows(order, widths, budget):
    """Rows of falling width in groups that fill at most `budget` slots each, padded to their first."""
    groups = []
    for r in order:
        if not groups or (len(groups[-1]) + 1) * widths[groups[-1][0]] > budget:
            groups.append([])
        groups[-1].append(r)
    return groups


def _split_until_even(groups, ranks):
    """Halve the groups of most rows until every rank gets equally many, which keeps all ranks busy."""
    while len(groups) % ranks and max(map(len, groups)) > 1:
        largest = max(groups, key=len)
        at, half = groups.index(largest), len(largest) // 2
        groups[at : at + 1] = [largest[:half], largest[half:]]
    return groups


def shape_of(rows, lengths, max_length: int, strategy) -> tuple[int, int]:
    """Rows and slots per row of a micro-batch once it is laid out; an empty one is a row of two slots."""
    if as_strategy(strategy) is PaddingStrategy.TRADITIONAL:
        return max(len(rows), 1), max_length
    return (len(rows), _longest(rows, lengths)) if rows else (1, 2)


# ---- collating -----------------------------------------------------------------------------------------------------


def fit_samples(samples, max_length: int, overlong="truncate") -> tuple[list[dict], dict[str, int]]:
    """Make every sample fit `max_length`, and say what it took.

    `samples` are dicts of equally long `input_ids` and `labels`; none is changed in place. `overlong` "truncate" cuts
    the end of a longer sample, which is its response (the paper); "drop" leaves it out. A sample in which no label
    after the first is left to learn from is left out in any case: it would cost time and teach nothing.

    Returns the samples that stay and the counts `truncated` (of those that stay), `overlong` (left out for their
    length) and `unsupervised` (left out). Raises DataError for another `overlong`.
    """
    if overlong not in ("truncate", "drop"):
        raise DataError(f"unknown overlong {overlong!r}: choose truncate or drop")
    kept, counts = [], {"truncated": 0, "overlong": 0, "unsupervised": 0}
    for sample in samples:
        too_long = len(sample["input_ids"]) > max_length
        cut = {key: sample[key][:max_length] for key in ("input_ids", "labels")}
        if not any(label != IGNORE_INDEX for label in cut["labels"][1:]):
            counts["unsupervised"] += 1
        elif too_long and overlong == "drop":
            counts["overlong"] += 1
        else:
            counts["truncated"] += too_long
            kept.append(cut)
    return kept, counts


class DynamicPackCollator:
    """Collate tokenised samples into the tensors any Hugging Face causal language model takes.

    `tokenizer_or_pad_id` gives the padding token (a tokenizer's `pad_token_id`, else its `eos_token_id`). Features are
    dicts with `input_ids` and optionally `labels` (default: the ids themselves), lists or 1-D tensors; other keys are
    ignored, nothing is changed in place. Shapes are (rows, longest row), or (rows, max_length) under "traditional".

    isolate=True (default): samples of a row do not see each other. `position_ids` restart at every sample and there is
    no `attention_mask`; an attention that derives the samples from the positions does the rest (`attn_implementation`
    "codeact_segments" of `codeact_lib.modeling`, or transformers' own masks with `use_cache=False`). The loss is that
    of unpacked training. Pass no attention mask of your own: even one of all ones switches isolation off. And
    FlashAttention looks for samples in a batch of one row only: take "flat", or `use_supervised_loss`, which tells it.

    isolate=False: as in the paper, plain causal attention over the row and an `attention_mask` that hides the padding,
    so a sample also sees the samples before it.

    The first label of each sample is -100: nothing in a sample predicts it, only the end of its neighbour would.
    """

    def __init__(self, tokenizer_or_pad_id, max_length: int, strategy="dynamic_pack", isolate: bool = True):
        self.pad_id = _pad_id(tokenizer_or_pad_id)
        self.max_length = int(max_length)
        self.strategy = as_strategy(strategy)
        self.isolate = bool(isolate)

    def __call__(self, features) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `labels` and `position_ids` (isolated) or `attention_mask` (not), all int64."""
        return self.lay_out(
            features, plan_rows([len(feature["input_ids"]) for feature in features], self.max_length, self.strategy)
        )

    def lay_out(self, features, rows) -> dict[str, torch.Tensor]:
        """The same for rows that are planned already, e.g. by `plan_micro_batches`; no rows make one of padding."""
        samples = {i: _sample(features[i]) for row in rows for i in row}
        lengths = [len(feature["input_ids"]) for feature in features]
        _, width = shape_of(rows, lengths, self.max_length, self.strategy)
        rows = rows or [[]]
        row_lengths = [[lengths[i] for i in row] for row in rows]
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
        joined = np.concatenate([*pieces, out[r, :0]])  # the last for a row without samples
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


def padding_report(
    lengths, max_length: int, batch_size: int, strategies=None, *, accumulation_steps=None, tokens_per_micro_batch=None
):
    """Account for what each strategy makes of a data set, samples taken in the order given.

    Batches of `batch_size` are packed by themselves; with `accumulation_steps`, so many of them are packed together
    (`plan_micro_batches`). Returns a pandas frame, one row per strategy: `strategy`, `batches` (micro-batches), `rows`,
    `tokens` (real ones), `slots` (tokens with padding), `padding_rate` (share of slots that is padding, 0 to 1),
    `largest_batch` (slots), `attention_pairs` (sum of squared row lengths: the cost of attention over whole rows) and
    `isolated_pairs` (sum of squared sample lengths: that of attention inside each sample).
    """
    import pandas as pd

    lengths = [int(n) for n in lengths]
    window = batch_size * (accumulation_steps or 1)
    options = {"batch_size": None if accumulation_steps else batch_size}
    options["tokens_per_micro_batch"] = tokens_per_micro_batch
    steps = [lengths[start : start + window] for start in range(0, len(lengths), window)]
    return pd.DataFrame(
        [_account(steps, max_length, as_strategy(name), options) for name in strategies or PaddingStrategy]
    )


def _account(steps, max_length, strategy, options) -> dict:
    shapes = [
        shape_of(rows, step, max_length, strategy)
        for step in steps
        for rows in plan_micro_batches(step, max_length, strategy, **options)
    ]
    tokens, slots = sum(map(sum, steps)), sum(rows * width for rows, width in shapes)
    return {
        "strategy": strategy_name(strategy),
        "batches": len(shapes),
        "rows": sum(rows for rows, _ in shapes),
        "tokens": tokens,
        "slots": slots,
        "padding_rate": 1 - tokens / slots if slots else 0.0,
        "largest_batch": max((rows * width for rows, width in shapes), default=0),
        "attention_pairs": sum(rows * width**2 for rows, width in shapes),
        "isolated_pairs": sum(n**2 for step in steps for n in step),
    }
