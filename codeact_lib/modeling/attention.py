"""Attention inside each sample of a packed row.

`codeact_segments` is registered with transformers as an attention implementation. It finds where samples start in a
packed row (where `position_ids` stop counting up) and runs causal scaled-dot-product attention on each sample alone: no
(L, L) mask is ever built, and cost grows with the sum of squared sample lengths, not of row lengths.
"""

from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.utils import is_flash_attn_2_available

from codeact_lib.errors import ModelError

SEGMENTS = "codeact_segments"
FLASH = "flash_attention_2"

Segments = list[list[tuple[int, int]]]  # of each row the start and end of every sample in it


def segment_bounds(position_ids: Tensor) -> Segments:
    """Start and end of every sample in each row of `position_ids` (rows, length).

    A sample starts at the row's first slot and wherever the position is not one more than the one before it.
    """
    rows, length = position_ids.shape
    starts = (position_ids[:, 1:] != position_ids[:, :-1] + 1).nonzero().tolist()  # one transfer from the device
    cuts = [[0] for _ in range(rows)]
    for row, index in starts:
        cuts[row].append(index + 1)
    return [list(zip(cut, [*cut[1:], length], strict=True)) for cut in cuts]


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each sample of packed rows; the signature is that of transformers' AttentionInterface.

    `query` is (rows, heads, length, head_dim), `key` and `value` may have fewer heads. The samples come from `segments`
    (as `segment_bounds` returns them) or else from `position_ids`. Returns (rows, length, heads, head_dim) and None.
    Raises ModelError for anything it would compute wrongly.
    """
    problem = None
    if attention_mask is not None:
        problem = "an attention mask was passed"
    elif query.shape[2] != key.shape[2]:
        problem = "a key-value cache is in use (generation): call model.set_attn_implementation('sdpa') first"
    elif kwargs.get("sliding_window") is not None or kwargs.get("softcap") is not None:
        problem = "the model uses a sliding window or soft-capped attention"
    elif kwargs.get("position_bias") is not None or not getattr(module, "is_causal", True):
        problem = "the attention is not plain causal attention"
    if problem:
        raise ModelError(f"{SEGMENTS} attends causally inside each packed sample and nothing else, but {problem}")
    segments = kwargs.get("segments")
    if segments is None:
        if kwargs.get("position_ids") is None:
            raise ModelError(f"{SEGMENTS} needs position_ids, which this architecture does not hand to its attention")
        segments = segment_bounds(kwargs["position_ids"].expand(query.shape[0], -1))
    options = {"dropout_p": dropout, "scale": scaling, "is_causal": True, "enable_gqa": key.shape[1] != query.shape[1]}
    if all(len(row) == 1 for row in segments):
        return causal_attention(query, key, value, options).transpose(1, 2), None
    attended = []
    for q, k, v in zip(*(samples_of(tensor, segments) for tensor in (query, key, value)), strict=True):
        attended.append(causal_attention(q, k, v, options).transpose(1, 2))
    joined = torch.cat(attended, dim=1)
    return joined.view(query.shape[0], query.shape[2], *joined.shape[2:]), None


def samples_of(tensor: Tensor, segments: Segments) -> list[Tensor]:
    """The samples of (rows, heads, length, head_dim), each (1, heads, tokens, head_dim)."""
    # Views made by `split`, whose gradients are put side by side once; those of slices would each be a tensor of the
    # full size, and all of them added up.
    samples: list[Tensor] = []
    for row, bounds in zip(tensor.split(1), segments, strict=True):
        samples += row.split([end - start for start, end in bounds], dim=2)
    return samples


def causal_attention(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
    """Causal attention among all slots of (rows, heads, length, head_dim), in the kernel that fits the device."""
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, **options)
    # In half precision a CPU compiles, and keeps, kernels for every sample length it meets.
    with torch.autocast("cpu", enabled=False):
        attended = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), **options)
    return attended.to(query.dtype)


def no_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> None:
    """The mask builder beside `segment_attention`: none is built, and one that hides something is refused."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ModelError(f"{SEGMENTS} cannot hide padding by an attention mask: pad on the right and pass position_ids")


def check_segment_support(config: PretrainedConfig) -> None:
    """Raise ModelError unless packed samples of this architecture can be isolated by `codeact_segments`."""
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    window = getattr(config, "sliding_window", None)
    problem = None
    if others:
        problem = f"layers of type {', '.join(sorted(others))}"
    # Qwen2 names a window that only `use_sliding_window` switches on.
    elif window is not None and getattr(config, "use_sliding_window", True):
        problem = "a sliding attention window"
    elif getattr(config, "attention_chunk_size", None) is not None:
        problem = "a chunked attention window"
    elif getattr(config, "attn_logit_softcapping", None) is not None or getattr(config, "alibi", False):
        problem = "soft-capped or position-biased attention"
    if problem:
        raise ModelError(
            f"{config.model_type} has {problem}, which {SEGMENTS} would compute wrongly: "
            "use attn_implementation='sdpa' or 'eager', or strategy 'dynamic'"
        )


def flash_attention_runs_here(half_precision: bool) -> bool:
    """Whether FlashAttention can serve: its package is installed, a GPU is there, and the precision is a half one."""
    return half_precision and torch.cuda.is_available() and is_flash_attn_2_available()


def flash_varlen_arguments(position_ids: Tensor) -> dict[str, Any]:
    """What FlashAttention's variable-length kernel must be told to keep packed samples apart.

    The rows of `position_ids` (rows, length) count as one long row: `cu_seq_lens_*` are where in it each sample starts,
    and its end (samples + 1, int32), `max_length_*` the longest sample, as in transformers' FlashAttentionKwargs.
    """
    # Left to find the samples by itself, transformers looks for them only in a batch of one row, and asks the device
    # in every layer.
    lengths = [end - start for row in segment_bounds(position_ids) for start, end in row]
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=position_ids.device)
    longest = max(lengths)
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


AttentionInterface.register(SEGMENTS, segment_attention)
AttentionMaskInterface.register(SEGMENTS, no_mask)
