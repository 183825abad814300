"""Greedy decoding in batches: left padding, a key-value cache that grows in place, rows that leave when done."""

import inspect
from typing import Any

from codeact_lib.modeling import _causal_lm


class StopStrings:
    """Finds stop strings in growing token lists without decoding every row at every step.

    A stop string can be completed only by a token whose text holds the string's last character; only then are the last
    few tokens of that row decoded.
    """

    def __init__(self, tokenizer, stop):
        self.tokenizer, self.stop = tokenizer, stop
        last = {text[-1] if text.isascii() else "\ufffd" for text in stop} | {text[-1] for text in stop}
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
        self.closing = {i for i, text in enumerate(texts) if last.intersection(text)}
        self.window = max((len(text) for text in stop), default=0) + 8  # a token may be part of a character

    def reached(self, tokens):
        """Whether the last of ``tokens`` completes a stop string."""
        if tokens[-1] not in self.closing:
            return False
        tail = self.tokenizer.decode(tokens[-self.window :], clean_up_tokenization_spaces=False)
        # A window in the middle of the answer may lose a leading blank, never a newline; the opening ends in a newline,
        # so a stop string that starts with one may also be met by the very first tokens.
        text = "\n" + tail if len(tokens) <= self.window else tail
        return any(stop in text for stop in self.stop)


def greedy_decode(model, tokenizer, prompts, max_new_tokens, stops) -> list[list[int]]:
    """Greedy continuations of token lists, left padded, with a key-value cache that finished rows leave.

    Returns the new tokens of each prompt, ended by the end token (left out), a stop string (left in) or the limit.
    """
    import torch

    ends = _end_tokens(model, tokenizer)
    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, answers, alive = growing_cache(model), [[] for _ in prompts], list(range(len(prompts)))
    options = {_cache_argument(model): cache, "use_cache": True, "logits_to_keep": 1}
    finished = set()
    for _ in range(max_new_tokens):
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions, **options)
        ids = output.logits[:, -1].argmax(-1, keepdim=True)
        for row, token in zip(alive, ids[:, 0].tolist(), strict=True):
            if row not in finished and _is_over(answers[row], token, ends, stops):
                finished.add(row)
        left = [at for at, row in enumerate(alive) if row not in finished]
        if not left:
            break
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        positions = positions[:, -1:] + 1
        if len(left) <= 0.8 * len(alive):  # taking rows out copies the cache: not for every single one
            keep = torch.tensor(left, device=model.device)
            cache.batch_select_indices(keep)
            ids, mask, positions, alive = ids[keep], mask[keep], positions[keep], [alive[at] for at in left]
    return answers


def _is_over(answer, token, ends, stops):
    """Append ``token`` to ``answer`` unless it is an end token; whether the answer is complete."""
    if token in ends:
        return True
    answer.append(token)
    return stops.reached(answer)


def _end_tokens(model, tokenizer):
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = configured if isinstance(configured, (list, tuple)) else [configured]
    return {token for token in (*several, tokenizer.eos_token_id) if token is not None}


def _cache_argument(model):
    """What `forward` calls its key-value cache: transformers 5.24 renamed it, and warns of the old name until 5.40."""
    return "cache" if "cache" in inspect.signature(_causal_lm(model).forward).parameters else "past_key_values"


def growing_cache(model):
    """A key-value cache that appends in place.

    The stock cache copies itself at every token: for 64 rows of 200 tokens that is more memory traffic than the rest of
    the step of a small model. Layers of another kind (sliding windows) are left as transformers makes them.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class GrowingLayer(DynamicLayer):
        """Keys and values (rows, heads, length, head_dim) as views into buffers that grow by half."""

        keys: Any
        values: Any
        buffers = None

        def update(self, key_states, value_states, *args, **kwargs):
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            start = self.get_seq_length()
            end = start + key_states.shape[-2]
            if self.buffers is None or end > self.buffers[0].shape[-2]:
                self.buffers = [_grown(self.keys, key_states, end), _grown(self.values, value_states, end)]
            for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[:, :, start:end] = new
            self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
            return self.keys, self.values

        def batch_select_indices(self, indices):
            super().batch_select_indices(indices)
            self.buffers = None

    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _grown(old, new, length):
    """A buffer for half as much again as ``length`` tokens that starts with ``old``."""
    buffer = new.new_empty(*new.shape[:2], length + length // 2, new.shape[-1])
    if old.numel():
        buffer[:, :, : old.shape[-2]] = old
    return buffer
