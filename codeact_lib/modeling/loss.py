"""A loss that computes no logit it does not need.

In instruction tuning only response tokens are supervised, often fewer than half, yet the language-model head is usually
applied to every slot: at 32,000 entries a token that is most of the memory. `supervised_loss` applies it to the
supervised positions only, in chunks.

    loss = supervised_loss(model, collator(features), num_items_in_batch=n_supervised)
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import CausalLMOutputWithPast

from codeact_lib.errors import ModelError
from codeact_lib.modeling.attention import SEGMENTS, flash_varlen_arguments, segment_bounds
from codeact_lib.prompts import IGNORE_INDEX

CHUNK = 512  # supervised positions whose logits exist at one time, once there are too many for
SMALL = 2**24  # logits (64 MiB in float32), which are cheaper to hold than to compute twice


# ---- loss ----------------------------------------------------------------------------------------------------------
def supervised_loss(model, batch, num_items_in_batch=None):
    """Cross-entropy of the next token at the supervised positions of a batch.

    `batch` holds `input_ids`, `labels` (rows, length) and the model's other inputs. The sum of the losses is divided
    by `num_items_in_batch`: pass the number of supervised tokens of the whole optimizer step, over all micro-batches
    and ranks, and every token weighs the same however the step was cut (dividing by the micro-batch's own count, which
    is what None does, gives tokens of small micro-batches more weight). Returns a float32 scalar with gradient; a
    batch without a supervised position gives a connected 0, not NaN.

    Equal to the loss of the model's own forward pass; the head runs on the supervised positions only.
    """
    batch = dict(batch)
    labels = batch.pop("labels")
    core = _causal_lm(model)
    total, count = _summed_loss(core, labels, batch)
    return total / (num_items_in_batch if num_items_in_batch is not None else max(count, 1))


def use_supervised_loss(model):
    """Make `model(..., labels=...)` return `supervised_loss`, so that any Hugging Face Trainer trains with it.

    The forward pass is replaced on the model itself, inside whatever wraps it (PEFT, mixed precision, DDP): their hooks
    still run. Without labels the model behaves as before. Returns the model.
    """
    core = _causal_lm(model)
    plain_forward = core.forward

    def forward(input_ids=None, labels=None, num_items_in_batch=None, **kwargs):
        if labels is None:
            return plain_forward(input_ids=input_ids, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if value is not None and name != "return_dict"}
        batch = {"input_ids": input_ids, "labels": labels, **kwargs}
        return CausalLMOutputWithPast(loss=supervised_loss(core, batch, num_items_in_batch))

    core.forward = forward
    core.accepts_loss_kwargs = True
    return model


def _causal_lm(model):
    """The causal language model inside DDP and PEFT wrappers (adapters are part of its layers)."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def _summed_loss(core, labels, inputs):
    """Sum of the losses at supervised positions, and how many there are."""
    target = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)  # position t predicts label t + 1
    hidden = core.get_decoder()(**_isolated(inputs, core.config), use_cache=False).last_hidden_state
    target = target.to(hidden.device)
    keep = target != IGNORE_INDEX
    target = target[keep]
    return head_loss(hidden[keep], core.get_output_embeddings(), target, core.config), len(target)


def _isolated(inputs, config) -> dict:
    """The decoder's inputs in the form in which its attention tells packed samples apart."""
    if inputs.get("position_ids") is None:
        return inputs
    positions = inputs["position_ids"].expand(inputs["input_ids"].shape[0], -1)
    if config._attn_implementation == SEGMENTS:
        return {**inputs, "segments": segment_bounds(positions)}  # found once, not once a layer
    if "flash" in str(config._attn_implementation):
        return {**inputs, **flash_varlen_arguments(positions)}
    return inputs


def head_loss(hidden, head, target, config=None):
    """Summed cross-entropy of `target` (n,) under `head` applied to `hidden` (n, d), logits never held all at once.

    Raises ModelError for models that transform their logits after the head (soft cap, scaling): the loss would differ.
    """
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ModelError(f"{config.model_type} transforms its logits ({name}), which supervised_loss does not do")
    weight, bias = head.weight, getattr(head, "bias", None)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    else:
        hidden = hidden.to(weight.dtype)
    if len(target) * len(weight) <= SMALL:
        return _chunk_loss(hidden, weight, bias, target)
    if hidden.dtype == torch.float32 and hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK, chunking_method=None)
        return F.linear_cross_entropy(hidden, weight, target, linear_bias=bias, reduction="sum", options=options)
    return _chunked_loss(hidden, weight, bias, target)


def _chunked_loss(hidden, weight, bias, target):
    """The same in plain PyTorch: float32 sums over chunks whose logits are computed again in the backward pass.

    For older PyTorch, and for half precision, where the fused loss would come back rounded to half precision.
    """
    pieces = zip(hidden.split(CHUNK), target.split(CHUNK), strict=True)
    return sum(checkpoint(_chunk_loss, h, weight, bias, t, use_reentrant=False) for h, t in pieces)


def _chunk_loss(hidden, weight, bias, target):
    with torch.autocast(hidden.device.type, enabled=False):
        return F.cross_entropy(F.linear(hidden, weight, bias).float(), target, reduction="sum")
