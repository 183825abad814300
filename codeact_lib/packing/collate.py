"""The tensors of a batch, laid out as `plan.py` says, and what its padding costs.

collator = DynamicPackCollator(tokenizer, max_length=2048)
Trainer(model, args, train_dataset=features, data_collator=collator)   # features: {"input_ids", "labels"}
"""

import numpy as np
import torch

from codeact_lib.errors import DataError
from codeact_lib.packing.plan import (
    PaddingStrategy,
    as_strategy,
    plan_micro_batches,
    plan_rows,
    shape_of,
    strategy_name,
)
from codeact_lib.prompts import IGNORE_INDEX


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
