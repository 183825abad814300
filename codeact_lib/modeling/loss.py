"""A loss that computes no logit it does not need.

In instruction tuning only response tokens are supervised, often fewer than half, yet the language-model head is usually
applied to every slot: at 32,000 entries a token that is most of the memory. `supervised_loss` applies it to the
supervised positions only, in chunks; `token_losses` serves the scoring of stage 02.

    loss = supervised_loss(model, collator(features), num_items_in_batch=n_supervised)
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from codeact_lib.errors import ModelError
from codeact_lib.modeling.attention import SEGMENTS, flash_varlen_arguments, segment_bounds
from codeact_lib.prompts import IGNORE_INDEX

CHUNK = 512  # supervised positions whose logits exist at one time, once there are too many for
SMALL = 2**24  # logits (64 MiB in float32), which are cheaper to hold than to compute twice

# Positions and vocabulary entries of a block of logits when tokens are scored, without gradient. On a CPU a block
# (2 MiB in float32) stays in the cache; a GPU wants enough work for all its units (128 MiB).
LOGIT_BLOCK = {"cpu": (512, 1024), "cuda": (4096, 8192)}


# ---- the loss of a batch -------------------------------------------------------------------------------------------
def supervised_loss(
    model: nn.Module, batch: Mapping[str, Any], num_items_in_batch: int | Tensor | None = None
) -> Tensor:
    """Cross-entropy of the next token at the supervised positions of a batch.

    `batch` holds `input_ids`, `labels` (rows, length) and the model's other inputs. The sum of the losses is divided
    by `num_items_in_batch`: pass the supervised tokens of the whole optimizer step, over all micro-batches and ranks,
    and every token weighs the same however the step was cut (None: the micro-batch's own count). Returns a float32
    scalar with gradient; a batch without a supervised position gives a connected 0, not NaN.
    """
    core = causal_lm(model)
    inputs = dict(batch)
    labels = inputs.pop("labels")
    if inputs.get("position_ids") is not None:
        # Where the samples are is found here once, not once a layer.
        positions = inputs["position_ids"].expand(inputs["input_ids"].shape[0], -1)
        if core.config._attn_implementation == SEGMENTS:
            inputs["segments"] = segment_bounds(positions)
        elif "flash" in str(core.config._attn_implementation):
            inputs |= flash_varlen_arguments(positions)
    hidden = core.get_decoder()(**inputs, use_cache=False).last_hidden_state
    target = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).to(hidden.device)  # position t predicts label t + 1
    keep = target != IGNORE_INDEX
    target = target[keep]
    total = head_loss(hidden[keep], core.get_output_embeddings(), target, core.config)
    return total / (max(len(target), 1) if num_items_in_batch is None else num_items_in_batch)


def use_supervised_loss(model: PreTrainedModel) -> PreTrainedModel:
    """Make `model(..., labels=...)` return `supervised_loss`, so that any Trainer trains with it; returns the model."""
    # Replaced on the model itself, inside whatever wraps it (PEFT, mixed precision, DDP): their hooks still run.
    core = causal_lm(model)
    plain_forward = core.forward

    def forward(
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        if labels is None:
            return plain_forward(input_ids=input_ids, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if value is not None and name != "return_dict"}
        batch = {"input_ids": input_ids, "labels": labels, **kwargs}
        return CausalLMOutputWithPast(loss=supervised_loss(core, batch, num_items_in_batch))

    core.forward = forward
    core.accepts_loss_kwargs = True
    return model


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The causal language model inside DDP and PEFT wrappers (adapters are part of its layers)."""
    model = getattr(model, "module", model)
    # The model inside PEFT's wrapper has a `peft_config` too.
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        return model.get_base_model()
    return model


# ---- cross-entropy under a head, in pieces -------------------------------------------------------------------------
def head_loss(hidden: Tensor, head: nn.Module, target: Tensor, config: PretrainedConfig | None = None) -> Tensor:
    """Summed cross-entropy of `target` (n,) under `head` applied to `hidden` (n, d), with gradient, for training.

    Raises ModelError for models that transform their logits after the head (soft cap, scaling): the loss would differ.
    """
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if config is not None and getattr(config, name, None) not in (None, 1, 1.0):
            raise ModelError(f"{config.model_type} transforms its logits ({name}), which supervised_loss does not do")
    weight = head.weight
    bias = getattr(head, "bias", None)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        weight = weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    hidden = hidden.to(weight.dtype)
    if len(target) * len(weight) <= SMALL:
        return chunk_loss(hidden, weight, bias, target)
    # The fused loss comes back rounded to half precision where it is computed in that; older PyTorch has none.
    if hidden.dtype == torch.float32 and hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK, chunking_method=None)
        return F.linear_cross_entropy(hidden, weight, target, linear_bias=bias, reduction="sum", options=options)
    # Float32 sums over chunks whose logits are computed again in the backward pass.
    pieces = zip(hidden.split(CHUNK), target.split(CHUNK), strict=True)
    return sum(checkpoint(chunk_loss, h, weight, bias, t, use_reentrant=False) for h, t in pieces)


def chunk_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """The summed loss of some positions, their logits held all at once and in float32."""
    with torch.autocast(hidden.device.type, enabled=False):
        return F.cross_entropy(F.linear(hidden, weight, bias).float(), target, reduction="sum")


@torch.no_grad()
def token_losses(hidden: Tensor, head: nn.Module, target: Tensor) -> Tensor:
    """The loss of each token (n,) in float32, for scoring; of the logits there is a block at a time."""
    n_positions, n_entries = LOGIT_BLOCK.get(hidden.device.type, LOGIT_BLOCK["cuda"])
    losses = []
    if type(head) is nn.Linear and head.bias is None and head.weight.device == hidden.device:
        for h, t in zip(hidden.to(head.weight.dtype).split(n_positions), target.split(n_positions), strict=True):
            # A block is reduced to one number a position while it is still in the cache.
            parts = [(h @ block.t()).float().logsumexp(-1) for block in head.weight.split(n_entries)]
            chosen = (h.float() * head.weight[t].float()).sum(-1)
            losses.append(torch.stack(parts).logsumexp(0) - chosen)
    else:
        # More than a matrix (an adapter, 4 bits, a bias) is called as it is, for so many positions that their logits
        # make up eight blocks.
        n_positions = max(8 * n_positions * n_entries // head.out_features, 1)
        for h, t in zip(hidden.split(n_positions), target.split(n_positions), strict=True):
            logits = head(h).float()
            losses.append(F.cross_entropy(logits, t.to(logits.device), reduction="none"))
    return torch.cat(losses)
