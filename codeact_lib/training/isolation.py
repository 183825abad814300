"""Whether packed samples stay apart: checked on the user's own model and data, just before the first step."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from codeact_lib.errors import ModelError
from codeact_lib.modeling.load import evaluation_mode
from codeact_lib.packing.collate import DynamicPackCollator, Sample
from codeact_lib.prompts import IGNORE_INDEX

# Difference of a sample's loss that rounding explains. A neighbour that is seen moves it by far more.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}


@torch.no_grad()
def isolation_error(model: PreTrainedModel, collator: DynamicPackCollator, samples: Sequence[Sample]) -> float:
    """Largest difference, over `samples`, between the loss of a sample packed with the others and alone.

    `model(**batch)` must return a loss (`use_supervised_loss`, or any Hugging Face causal language model).
    """
    alone = DynamicPackCollator(collator.pad_id, collator.max_length, "dynamic")
    # With the labels of its neighbours hidden, the loss of a packed batch is that of one sample.
    hidden: list[Sample] = [{**sample, "labels": [IGNORE_INDEX] * len(sample["labels"])} for sample in samples]
    errors = []
    for i, sample in enumerate(samples):
        losses = []
        for batch in (collator([*hidden[:i], sample, *hidden[i + 1 :]]), alone([sample])):
            there = {name: tensor.to(model.device) for name, tensor in batch.items()}
            losses.append(float(model(**there).loss))
        errors.append(abs(losses[0] - losses[1]))
    return max(errors)


def check_isolation(
    model: PreTrainedModel, collator: DynamicPackCollator, samples: Sequence[Sample], dtype: torch.dtype = torch.float32
) -> float | None:
    """Refuse to train where packing would change the training; return the `isolation_error` that was measured.

    `dtype` is the precision that the model computes in. Nothing is tested (None) when samples may see each other
    (`isolate=False`). Raises ModelError on a mismatch.
    """
    if not collator.isolate:
        return None
    # The three shortest share a row if any do, and cost next to nothing.
    shortest = sorted(samples, key=lambda sample: len(sample["input_ids"]))[:3]
    training = model.training
    evaluation_mode(model)
    error = isolation_error(model, collator, shortest)
    model.train(training)
    if not error <= TOLERANCE[dtype]:  # also when it is not a number
        raise ModelError(
            f"packed samples do not train as unpacked ones: their losses differ by {error:.4f} (rounding explains "
            f"{TOLERANCE[dtype]}). attn_implementation {model.config._attn_implementation!r} does not keep samples "
            "apart in this model: take 'sdpa' or 'eager', strategy 'dynamic', or isolate: false if that is wanted"
        )
    return error
