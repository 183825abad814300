"""Summed negative log-likelihoods of many token sequences under one causal language model.

    sums = sum_nll(model, [Sequence(0, "direct", ids, start), ...], ...)   # nats, one float a sequence

A batch of one leaves most of a machine idle, and logits at every position are most of the memory. So sequences are
sorted by length and cut into batches, the head works at scored positions only, a batch that does not fit in memory is
halved, and processes that `torchrun` or `accelerate` started share the batches.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from codeact_lib.ifd.resume import Key, SumShards
from codeact_lib.measure import unless_out_of_memory
from codeact_lib.modeling.loss import causal_lm, token_losses
from codeact_lib.processes import Progress

if TYPE_CHECKING:  # only processes that were launched together need it
    from accelerate import PartialState

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16384}  # slots of a batch
MAX_LOGITS = 2**26  # held at once for a model that changes them after its head: 256 MiB in float32


@dataclass(frozen=True)
class Sequence:
    """One pass over one row of the data: token ids (int32), of which `ids[start:]` are scored; `start >= 1`."""

    row: int
    name: str  # of the pass
    ids: np.ndarray
    start: int
    example_id: object = ""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def key(self) -> Key:
        """Identity of the sum: the row, the pass, and a hash of the tokens and of where scoring starts."""
        digest = hashlib.blake2b(np.asarray([self.start, *self.ids], dtype="<i8").tobytes(), digest_size=8)
        return f"{self.example_id}", self.name, digest.hexdigest()


Forward = Callable[[list[Sequence]], list[float]]  # the sums of a batch, in one pass
Say = Callable[[str], object] | None  # None for silence


def sum_nll(
    model: nn.Module, sequences: list[Sequence], tokens_per_batch: int | None, shards: SumShards | None, progress: bool
) -> list[float | None]:
    """Sum of the NLL of each sequence's scored tokens, in nats and in their order.

    NaN where the model gave none, None where memory did not suffice for that sequence alone.
    """
    # Under torchrun or accelerate every process makes the same call, and gets the whole list.
    core = causal_lm(model)
    team = _launched_processes(core)
    rank, n_processes = (team.process_index, team.num_processes) if team else (0, 1)
    say = print if progress and rank == 0 else None
    sums: dict[Key, float | None] = {}
    if shards:
        sums |= shards.read()
    if team:
        team.wait_for_everyone()  # nobody appends before all have read: they must agree on what is left
    with _inference(core):
        plain_head = _has_plain_head(core)
        slots = tokens_per_batch or TOKENS_PER_BATCH.get(_device(core).type, TOKENS_PER_BATCH["cuda"])
        if not plain_head:
            slots = min(slots, max(1, MAX_LOGITS // core.config.vocab_size))
        remaining = []
        # Planned over all sequences, known or not: a resumed call forms the same batches and so gets the same digits.
        for batch in plan_batches(sequences, slots):
            missing = [sequence for sequence in batch if sequence.key not in sums]
            if missing:
                remaining.append(missing)
        n_rows = len({sequence.row for sequence in sequences})
        n_done = n_rows - len({sequence.row for sequence in chain.from_iterable(remaining)})
        if say and n_done:
            say(f"IFD: {n_done:,} of {n_rows:,} rows were scored before")
        if say and team:
            say(f"IFD: {n_processes} processes; this is the share of the first")
        share = remaining[rank::n_processes]
        found = _score_share(share, lambda batch: _forward_nll(core, batch, plain_head), shards, rank, say)
    if team:
        from accelerate.utils import gather_object

        found = dict(gather_object(list(found.items())))
    sums |= found
    return [sums[sequence.key] for sequence in sequences]


def _score_share(
    share: list[list[Sequence]], forward: Forward, shards: SumShards | None, rank: int, say: Say
) -> dict[Key, float | None]:
    """The sums of this process's batches, each written as soon as it is there."""
    sums: dict[Key, float | None] = {}
    passes_left = Counter(sequence.row for sequence in chain.from_iterable(share))
    # A long row takes longer than a short one: what is left is reckoned by tokens, and rows are told beside them.
    n_tokens = sum(map(len, chain.from_iterable(share)))

    def rows() -> str:
        done = sum(left == 0 for left in passes_left.values())
        seconds = max(time.monotonic() - report.started, 1e-9)
        return f"{done:,}/{len(passes_left):,} rows, {done / seconds:,.0f} rows/s, {report.rate:,.0f} tokens/s"

    with Progress("IFD", n_tokens, "tokens", say, note=rows) as report:
        started = time.monotonic()
        for batch, values in score_batches(forward, share):
            found = dict(zip([sequence.key for sequence in batch], values, strict=True))
            sums |= found
            if shards:
                shards.append(found, time.monotonic() - started, rank)
            passes_left.subtract(sequence.row for sequence in batch)
            report.advance(sum(map(len, batch)))
            started = time.monotonic()
    return sums


# ---- batches ---------------------------------------------------------------------------------------------------------
def plan_batches(sequences: list[Sequence], tokens_per_batch: int) -> list[list[Sequence]]:
    """Cut sequences, longest first, into batches of at most `tokens_per_batch` slots once padded.

    A sequence over the budget stands alone.

    >>> plan_batches(["abc", "abcdefghi", "abcd", "abcde"], 10)
    [['abcdefghi'], ['abcde', 'abcd'], ['abc']]
    """
    batches: list[list[Sequence]] = []
    # Longest first, because then a batch that does not fit in memory shows at once, and the estimate of the time left
    # errs on the safe side.
    for sequence in sorted(sequences, key=len, reverse=True):
        if batches and len(batches[-1][0]) * (len(batches[-1]) + 1) <= tokens_per_batch:
            batches[-1].append(sequence)
        else:
            batches.append([sequence])
    return batches


def score_batches(
    score: Forward, batches: list[list[Sequence]]
) -> Iterator[tuple[list[Sequence], list[float] | list[None]]]:
    """Yield (batch, sums) of every batch, in halves where memory does not suffice.

    Once PyTorch says that memory is out, half as many slots are the most that is tried from there on, until a single
    sequence fails: its sum is None.
    """
    waiting = deque(batches)
    limit = float("inf")
    while waiting:
        batch = waiting.popleft()
        slots = len(batch) * max(map(len, batch))
        sums = None
        if slots <= limit or len(batch) == 1:
            sums = unless_out_of_memory(score, batch)
        if sums is not None or len(batch) == 1:
            yield batch, sums or [None]
        else:
            limit = min(limit, max(slots // 2, 1))
            half = len(batch) // 2
            waiting.extendleft([batch[half:], batch[:half]])


# ---- one forward pass ------------------------------------------------------------------------------------------------
def _forward_nll(core: PreTrainedModel, batch: list[Sequence], plain_head: bool) -> list[float]:
    """Sums of a batch by one forward pass: the head at the scored places, or all logits where it is not plain."""
    # Padded on the right and without an attention mask: a causal model never looks right.
    padded = np.zeros((len(batch), max(map(len, batch))), dtype=np.int64)
    for i, sequence in enumerate(batch):
        padded[i, : len(sequence)] = sequence.ids
    row = np.repeat(np.arange(len(batch)), [len(sequence) - sequence.start for sequence in batch])
    # What stands at position t predicts token t + 1.
    position = np.concatenate([np.arange(sequence.start - 1, len(sequence) - 1) for sequence in batch])
    target = torch.from_numpy(padded[row, position + 1])
    ids = torch.from_numpy(padded).to(_device(core))
    if plain_head:
        hidden = core.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[row, position]
        losses = token_losses(hidden, core.get_output_embeddings(), target.to(hidden.device))
    else:
        logits = core(input_ids=ids, use_cache=False).logits[row, position]
        losses = F.cross_entropy(logits.float(), target.to(logits.device), reduction="none")
    # Each loss is float32; NumPy's bincount adds weights up in float64.
    return np.bincount(row, weights=losses.cpu().numpy(), minlength=len(batch)).tolist()


def _has_plain_head(core: PreTrainedModel) -> bool:
    """Whether the model's logits are its head applied to its decoder's output, and nothing more."""
    # Some cap them afterwards (Gemma 2) or scale them (Cohere). What a model does is seen on eight tokens, not guessed
    # from the names in its configuration.
    ids = (torch.arange(8, device=_device(core)) % core.config.vocab_size)[None]
    own = core(input_ids=ids, use_cache=False).logits.float()
    hidden = core.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    plain = core.get_output_embeddings()(hidden).float().to(own.device)
    return bool((own - plain).abs().max() <= 1e-3 * own.abs().max())


def _device(core: PreTrainedModel) -> torch.device:
    return core.get_input_embeddings().weight.device


@contextmanager
def _inference(core: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients; the model leaves as it came."""
    training = core.training
    core.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        core.train(training)


# ---- several processes -----------------------------------------------------------------------------------------------
def _launched_processes(core: PreTrainedModel) -> PartialState | None:
    """accelerate's state of the processes that were launched together; None where this one is alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return None
    from accelerate import PartialState

    # A day: gloo and NCCL give up after 30 and 10 minutes, and the slowest share may take longer than that.
    return PartialState(cpu=_device(core).type == "cpu", timeout=timedelta(days=1))
