"""Summed negative log-likelihoods of many token sequences under one causal language model.

    sums = sum_nll(model, [Sequence(0, "direct", ids, start), ...])   # nats, one float a sequence

A batch of one leaves most of a machine idle, and logits at every position are most of the memory. So here

* sequences are sorted by length and cut into batches of at most ``tokens_per_batch`` slots, padded on the right without
  an attention mask: a causal model never looks right;
* the head works at scored positions only, block by block of the vocabulary: a block of logits is reduced to one number
  a position while it is still in the cache, so memory grows neither with the vocabulary nor with the length;
* a batch that does not fit in memory is halved, and no batch of the size that failed is tried again;
* processes that ``torchrun`` or ``accelerate launch`` started share the batches.
"""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.nn.functional as F

from codeact_lib.measure import unless_out_of_memory
from codeact_lib.modeling.loss import _causal_lm

# Slots of a batch, positions and vocabulary entries of a block of logits. On a CPU a block (2 MiB in float32) stays in
# the cache; a GPU wants enough work for all its units (128 MiB).
TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16384}
LOGIT_BLOCK = {"cpu": (512, 1024), "cuda": (4096, 8192)}
MAX_LOGITS = 2**26  # of a model whose logits are its own affair: 256 MiB in float32
PROGRESS_SECONDS = 5.0


@dataclass(frozen=True)
class Sequence:
    """One pass over one row of the data: token ids (int32), of which ``ids[start:]`` are scored; ``start >= 1``."""

    row: int
    name: str  # of the pass
    ids: np.ndarray
    start: int

    @property
    def n_scored(self):
        return len(self.ids) - self.start


def sum_nll(model, sequences, keys=None, *, tokens_per_batch=None, shards=None, progress=False):
    """Sum of the NLL of each sequence's scored tokens, in nats.

    Args:
        model: a causal language model, on whatever device and in whatever precision. The NLL of a token is computed in
            float32 and added up in float64.
        sequences: list of ``Sequence``.
        keys: what identifies each sequence in the shards.
        tokens_per_batch: slots of a batch, padding included; None takes ``TOKENS_PER_BATCH`` of the device.
        shards: a ``shards.SumShards`` to read known sums from and to append new ones to, or None.
        progress: print rows done, rows/s, tokens/s and time left every 5 seconds; two sequences make a row.

    Returns:
        List of floats, in order; NaN where the model gave none, None where memory did not suffice for that sequence
        alone. Under torchrun or accelerate every process must make the same call, and gets the whole list.
    """
    core = _causal_lm(model)
    team = _launched_processes(_device(core))
    rank, n_processes = (team.process_index, team.num_processes) if team else (0, 1)
    known = shards.read() if shards else {}
    sums = {i: known[key] for i, key in enumerate(keys or []) if key in known}
    if team:
        team.wait_for_everyone()  # nobody appends before all have read: they must agree on what is left
    score, slots = _scorer(core, sequences, tokens_per_batch)
    # Planned over all sequences, known or not: a resumed call forms the same batches and so gets the same digits.
    batches = plan_batches([len(sequence.ids) for sequence in sequences], slots)
    share = [left for batch in batches if (left := [i for i in batch if i not in sums])][rank::n_processes]
    report = _Progress(sequences, len(sums), share, progress and rank == 0, n_processes)
    mine, started = {}, time.monotonic()
    with _inference(core), shards.append(rank) if shards else nullcontext() as write:
        for batch, values in score_batches(score, share, sequences):
            mine.update(zip(batch, values, strict=True))
            if write:
                write([(keys[i], mine[i]) for i in batch if mine[i] is not None], time.monotonic() - started)
            started = time.monotonic()
            report.add(batch)
    sums.update(_gathered(mine, team))
    return [sums[i] for i in range(len(sequences))]


# ---------------------------------------------------------------------------------------------- batches


def plan_batches(lengths, tokens_per_batch):
    """Cut sequences, longest first, into batches of at most ``tokens_per_batch`` slots once padded.

    Longest first, because then a batch that does not fit in memory shows at once, and the estimate of the time left
    errs on the safe side. A sequence over the budget stands alone.

    >>> plan_batches([3, 9, 4, 5], 10)
    [[1], [3, 2], [0]]
    """
    batches = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens_per_batch:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def score_batches(score, batches, sequences):
    """Yield ``(batch, sums)`` of every batch, in halves where memory does not suffice.

    ``score`` takes a list of sequence numbers and returns their sums, or raises what PyTorch raises when memory is out.
    Then half as many slots are the most that is tried from there on, until a single sequence fails: its sum is None.
    """
    waiting, limit = deque(batches), float("inf")
    while waiting:
        batch = waiting.popleft()
        slots = len(batch) * max(len(sequences[i].ids) for i in batch)
        sums = None if slots > limit and len(batch) > 1 else unless_out_of_memory(score, batch)
        if sums is None and len(batch) > 1:
            limit = min(limit, max(slots // 2, 1))
            waiting.extendleft([batch[len(batch) // 2 :], batch[: len(batch) // 2]])
        else:
            yield batch, sums or [None]


# ---------------------------------------------------------------------------------------------- one forward pass


def _scorer(core, sequences, tokens_per_batch):
    """A function from sequence numbers to their sums, and how many slots it should get at a time."""
    slots = tokens_per_batch or TOKENS_PER_BATCH.get(_device(core).type, TOKENS_PER_BATCH["cuda"])
    if not (plain_head := _has_plain_head(core)):
        slots = min(slots, max(1, MAX_LOGITS // core.config.vocab_size))
    token_nll = _head_token_nll if plain_head else _model_token_nll
    return lambda batch: _forward_nll(core, [sequences[i] for i in batch], token_nll), slots


def _forward_nll(core, batch, token_nll):
    """Sums of a batch by one forward pass: right padding, no mask, no cache."""
    ids = np.zeros((len(batch), max(len(sequence.ids) for sequence in batch)), dtype=np.int64)
    for i, sequence in enumerate(batch):
        ids[i, : len(sequence.ids)] = sequence.ids
    row = np.repeat(np.arange(len(batch)), [sequence.n_scored for sequence in batch])
    # what stands at position t predicts token t + 1
    position = np.concatenate([np.arange(sequence.start - 1, len(sequence.ids) - 1) for sequence in batch])
    target = torch.from_numpy(ids[row, position + 1])
    losses = token_nll(core, torch.from_numpy(ids).to(_device(core)), (row, position), target)
    return np.bincount(row, weights=losses.cpu().numpy(), minlength=len(batch)).tolist()  # float64


def _head_token_nll(core, ids, at, target):
    """(m,) float32 NLL of ``target`` predicted at the places ``at``; the head sees those places only."""
    hidden = core.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[at]
    return head_nll(core.get_output_embeddings(), hidden, target.to(hidden.device))


def _model_token_nll(core, ids, at, target):
    """The same from the model's own logits, all of them."""
    logits = core(input_ids=ids, use_cache=False).logits[at]
    return F.cross_entropy(logits.float(), target.to(logits.device), reduction="none")


def head_nll(head, hidden, target):
    """float32 NLL of tokens ``target`` (m,) under the language-model head, given hidden states (m, d).

    No more than a block of logits exists at a time. A head that is more than a matrix (an adapter, 4 bits, a bias) is
    called as it is, for so many positions that their logits make up a few blocks.
    """
    n_positions, n_entries = LOGIT_BLOCK.get(hidden.device.type, LOGIT_BLOCK["cuda"])
    if type(head) is torch.nn.Linear and head.bias is None and head.weight.device == hidden.device:
        nll, n = _blocked_nll, n_positions
    else:
        nll, n = _whole_nll, max(8 * n_positions * n_entries // head.out_features, 1)
    return torch.cat([nll(head, h, t, n_entries) for h, t in zip(hidden.split(n), target.split(n), strict=True)])


def _blocked_nll(head, hidden, target, n_entries):
    weight, hidden = head.weight, hidden.to(head.weight.dtype)
    chosen = (hidden.float() * weight[target].float()).sum(-1)
    parts = [(hidden @ block.t()).float().logsumexp(-1) for block in weight.split(n_entries)]
    return torch.stack(parts).logsumexp(0) - chosen


def _whole_nll(head, hidden, target, _):
    logits = head(hidden)
    return F.cross_entropy(logits.float(), target.to(logits.device), reduction="none")


def _has_plain_head(core):
    """Whether the model's logits are its head applied to its decoder's output, and nothing more.

    Some models cap or scale them afterwards; what a model does is seen on eight tokens, not guessed from the names in
    its configuration. Where it does more, its own logits are used.
    """
    ids = (torch.arange(8, device=_device(core)) % core.config.vocab_size)[None]
    with _inference(core):
        own = core(input_ids=ids, use_cache=False).logits.float()
        hidden = core.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        plain = core.get_output_embeddings()(hidden).float().to(own.device)
    return bool((own - plain).abs().max() <= 1e-3 * own.abs().max())


def _device(core):
    return core.get_input_embeddings().weight.device


@contextmanager
def _inference(core):
    """Evaluation mode without gradients; the model leaves as it came."""
    training = core.training
    core.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        core.train(training)


# ---------------------------------------------------------------------------------------------- several processes


def _launched_processes(device):
    """accelerate's ``PartialState`` of the processes that were launched together; None where this one is alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return None
    from accelerate import PartialState

    return PartialState(cpu=device.type == "cpu", timeout=timedelta(days=1))  # the slowest share may take long


def _gathered(sums, team):
    """The sums of all processes, in each of them."""
    if not team:
        return sums
    from accelerate.utils import gather_object

    return dict(gather_object(list(sums.items())))


# ---------------------------------------------------------------------------------------------- progress


class _Progress:
    """Lines such as ``IFD 812/2,400 rows, 130 rows/s, 21,000 tokens/s, 12 s left``; tokens are what time goes by.

    Of several processes the first one reports, on its own share.
    """

    def __init__(self, sequences, n_known, batches, shown, n_processes):
        self.sequences, self.shown = sequences, shown
        left = [i for batch in batches for i in batch]
        self.total, self.tokens_left = len(left) / 2, sum(len(sequences[i].ids) for i in left)
        self.tokens, self.rows = 0, 0.0
        self.started = self.printed = time.monotonic()
        if shown and n_known:
            print(f"IFD: {n_known / 2:,.0f} of {len(sequences) / 2:,.0f} rows were scored before", flush=True)
        if shown and n_processes > 1:
            print(f"IFD: {n_processes} processes; this is the share of the first", flush=True)

    def add(self, batch):
        tokens = sum(len(self.sequences[i].ids) for i in batch)
        self.tokens, self.tokens_left = self.tokens + tokens, self.tokens_left - tokens
        self.rows += len(batch) / 2
        now = time.monotonic()
        if self.shown and (now - self.printed >= PROGRESS_SECONDS or not self.tokens_left):
            self.printed, seconds = now, max(now - self.started, 1e-9)
            print(
                f"IFD {self.rows:,.0f}/{self.total:,.0f} rows, {self.rows / seconds:,.0f} rows/s, "
                f"{self.tokens / seconds:,.0f} tokens/s, {self.tokens_left * seconds / self.tokens:,.0f} s left",
                flush=True,
            )
