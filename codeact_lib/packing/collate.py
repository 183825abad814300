"""The tensors of a batch, laid out as `plan.py` says, and what its padding costs.

collator = DynamicPackCollator(tokenizer, max_length=2048)
Trainer(model, args, train_dataset=features, data_collator=collator)   # features: {"input_ids", "labels"}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codeact_lib.errors import DataError
from codeact_lib.packing import plan
from codeact_lib.packing.plan import PaddingStrategy, Rows, Strategy, plan_rows, shape_of
from codeact_lib.prompts import IGNORE_INDEX

if TYPE_CHECKING:  # planning needs neither torch nor pandas, and both are seconds to import
    import pandas as pd
    import torch
    from transformers import PreTrainedTokenizerBase

Sample = Mapping[str, Any]  # `input_ids` and, where given, `labels`: lists or 1-D tensors


class DynamicPackCollator:
    """Collate tokenised samples into the tensors any Hugging Face causal language model takes.

    `tokenizer_or_pad_id` gives the padding token (a tokenizer's `pad_token_id`, else its `eos_token_id`). Features are
    dicts with `input_ids` and optionally `labels` (default: the ids themselves), lists or 1-D tensors; other keys are
    ignored, nothing is changed in place. Shapes are (rows, longest row), or (rows, max_length) under "traditional".

    isolate=True: samples of a row do not see each other, the loss is that of unpacked training. `position_ids` restart
    at every sample and there is no `attention_mask`; an attention that derives the samples from the positions does the
    rest (`attn_implementation` "codeact_segments" of `codeact_lib.modeling`, or transformers' own masks with
    `use_cache=False`). Pass no attention mask of your own: even one of all ones switches isolation off. And
    FlashAttention looks for samples in a batch of one row only: take "flat", or `use_supervised_loss`, which tells it.
    isolate=False: as in the paper, causal attention over the row and an `attention_mask` that hides the padding.
    """

    def __init__(
        self,
        tokenizer_or_pad_id: PreTrainedTokenizerBase | int,
        max_length: int,
        strategy: Strategy = "dynamic_pack",
        isolate: bool = True,
    ) -> None:
        given: Any = tokenizer_or_pad_id
        pad_id = getattr(given, "pad_token_id", None)
        if isinstance(given, (int, np.integer)):
            pad_id = given
        elif pad_id is None:
            pad_id = given.eos_token_id  # it pads as well: no label and no attention reaches the padding
        if pad_id is None:
            raise DataError("the tokenizer has neither padding nor end token: pass the padding token id as a number")
        self.pad_id = int(pad_id)
        self.max_length = int(max_length)
        self.strategy = plan.as_strategy(strategy)
        self.isolate = bool(isolate)

    def __call__(self, features: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `labels` and `position_ids` (isolated) or `attention_mask` (not), all int64."""
        lengths = [len(feature["input_ids"]) for feature in features]
        return self.lay_out(features, plan_rows(lengths, self.max_length, self.strategy))

    def lay_out(self, features: Sequence[Sample], rows: Rows) -> dict[str, torch.Tensor]:
        """The same for rows that are planned already, e.g. by `plan_micro_batches`; no rows make one of padding."""
        import torch

        lengths = [len(feature["input_ids"]) for feature in features]
        n_rows, width = shape_of(rows, lengths, self.max_length, self.strategy)
        ids = np.full((n_rows, width), self.pad_id, dtype=np.int64)
        labels = np.full((n_rows, width), IGNORE_INDEX, dtype=np.int64)
        attended = np.zeros((n_rows, width), dtype=np.int64)
        positions = np.tile(np.arange(width), (n_rows, 1))
        # When every row holds one sample its count runs on over the padding: a causal model cannot see that anyway,
        # and with plain positions the fast causal kernel needs no mask.
        one_sample_a_row = all(len(row) == 1 for row in rows)
        for r, row in enumerate(rows):
            end = 0
            for i in row:
                start = end
                end += lengths[i]
                ids[r, start:end] = features[i]["input_ids"]
                own = features[i].get("labels")
                if own is not None and len(own) != lengths[i]:
                    numbers = f"{lengths[i]} input_ids but {len(own)} labels"
                    raise DataError(f"a sample has {numbers}: they must be equally many")
                labels[r, start:end] = ids[r, start:end] if own is None else own
                labels[r, start] = IGNORE_INDEX  # nothing in a sample predicts its first token
                attended[r, start:end] = 1
                positions[r, start:] = np.arange(width - start)
            if not one_sample_a_row:
                positions[r, end:] = np.arange(width - end)
        batch = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
        if self.isolate:
            batch["position_ids"] = torch.from_numpy(positions)
        else:
            batch["attention_mask"] = torch.from_numpy(attended)
        return batch


# ---- accounting ----------------------------------------------------------------------------------------------------
def padding_report(
    lengths: Iterable[int],
    max_length: int,
    batch_size: int,
    strategies: Iterable[Strategy] | None = None,
    *,
    accumulation_steps: int | None = None,
) -> pd.DataFrame:
    """Account for what each strategy makes of a data set, samples in the order given: a pandas frame of the strategies.

    Batches of `batch_size` are packed by themselves; with `accumulation_steps`, so many of them are packed together.
    """
    import pandas as pd

    lengths = list(map(int, lengths))
    window = batch_size * (accumulation_steps or 1)
    alone = None if accumulation_steps else batch_size
    accounts = []
    for strategy in map(plan.as_strategy, strategies or PaddingStrategy):
        shapes = []
        for start in range(0, len(lengths), window):
            step = lengths[start : start + window]
            for rows in plan.plan_micro_batches(step, max_length, strategy, batch_size=alone):
                shapes.append(shape_of(rows, step, max_length, strategy))
        heights, widths = np.array(shapes, dtype=np.int64).reshape(-1, 2).T
        slots = int(np.sum(heights * widths))
        padding_rate = 1 - sum(lengths) / slots if slots else 0.0
        account = {
            "strategy": plan.strategy_name(strategy),
            "batches": len(shapes),  # micro-batches
            "rows": int(heights.sum()),
            "tokens": sum(lengths),
            "slots": slots,  # tokens with padding
            "padding_rate": padding_rate,
            "largest_batch": int(np.max(heights * widths, initial=0)),  # slots
            "attention_pairs": int(np.sum(heights * widths**2)),  # the cost of attention over whole rows
            "isolated_pairs": int(np.sum(np.square(lengths))),  # that of attention inside each sample
        }
        accounts.append(account)
    return pd.DataFrame(accounts)
