"""Summed negative log-likelihoods of many token sequences under one causal language model.

    sums = sum_nll(model, [Sequence(0, "direct", ids, start), ...])   # nats, one float a sequence

A batch of one leaves most of a machine idle, and logits at every position are most of the memory. So here

* sequences are sorted by length and cut into batches of at most `tokens_per_batch` slots, padded on the right without
  an attention mask: a causal model never looks right;
* the head works at scored positions only, block by block of the vocabulary (`modeling.loss.head_loss`), so memory
  grows neither with the vocabulary nor with the length;
* a batch that does not fit in memory is halved, and no batch of the size that failed is tried again;
* processes that `torchrun` or `accelerate launch` started share the batches.
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
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from codeact_lib.ifd.resume import Key, SumShards
from codeact_lib.measure import unless_out_of_memory
from codeact_lib.modeling.loss import causal_lm, head_loss
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

    @property
    def n_scored(self) -> int:
        """Tokens that count in the sum."""
        return len(self.ids) - self.start

    @property
    def key(self) -> Key:
        """Identity of the sum: the row, the pass, and a hash of the tokens and of where scoring starts."""
        digest = hashlib.blake2b(np.asarray([self.start, *self.ids], dtype="<i8").tobytes(), digest_size=8)
        return f"{self.example_id}", self.name, digest.hexdigest()


def sum_nll(
    model: nn.Module,
    sequences: list[Sequence],
    *,
    tokens_per_batch: int | None = None,
    shards: SumShards | None = None,
    progress: bool = False,
) -> list[float | None]:
    """Sum of the NLL of each sequence's scored tokens, in nats.

    Args:
        model: a causal language model, on whatever device and in whatever precision. The NLL of a token is computed in
            float32 and added up in float64.
        sequences: what to score.
        tokens_per_batch: slots of a batch, padding included; None takes `TOKENS_PER_BATCH` of the device.
        shards: files to read known sums from and to append new ones to.
        progress: say every 5 seconds how far it is.

    Returns:
        The sums, in order; NaN where the model gave none, None where memory did not suffice for that sequence alone.
        Under torchrun or accelerate every process must make the same call, and gets the whole list.
    """
    core = causal_lm(model)
    shards = shards or SumShards(None, "")
    team = _launched_processes(_device(core))
    rank = team.process_index if team else 0
    n_processes = team.num_processes if team else 1
    known = shards.read()
    if team:
        team.wait_for_everyone()  # nobody appends before all have read: they must agree on what is left
    sums: dict[int, float | None] = {}
    for i, sequence in enumerate(sequences):
        if sequence.key in known:
            sums[i] = known[sequence.key]
    plain_head = _has_plain_head(core)
    slots = tokens_per_batch or TOKENS_PER_BATCH.get(_device(core).type, TOKENS_PER_BATCH["cuda"])
    if not plain_head:
        slots = min(slots, max(1, MAX_LOGITS // core.config.vocab_size))
    # Planned over all sequences, known or not: a resumed call forms the same batches and so gets the same digits.
    batches = plan_batches([len(sequence.ids) for sequence in sequences], slots)
    remaining = [[i for i in batch if i not in sums] for batch in batches]
    share = [batch for batch in remaining if batch][rank::n_processes]
    report = _Progress(sequences, share, print if progress and rank == 0 else None)
    report.announce(remaining, n_processes)
    with _inference(core), report:
        write = partial(shards.append, process=rank)
        mine = _score_share(core, sequences, share, plain_head, write, report)
    if team:
        from accelerate.utils import gather_object

        mine = dict(gather_object(list(mine.items())))
    sums |= mine
    return [sums[i] for i in range(len(sequences))]


def _score_share(
    core: PreTrainedModel,
    sequences: list[Sequence],
    share: list[list[int]],
    plain_head: bool,
    write: Callable[[dict[Key, float], float], object],
    report: _Progress,
) -> dict[int, float | None]:
    """The sums of this process's batches, each written as soon as it is there."""
    sums: dict[int, float | None] = {}

    def forward(batch: list[int]) -> list[float]:
        return _forward_nll(core, [sequences[i] for i in batch], plain_head)

    started = time.monotonic()
    for batch, values in score_batches(forward, share, sequences):
        found = {}
        for i, value in zip(batch, values, strict=True):
            sums[i] = value
            if value is not None:  # what memory did not suffice for is tried again by the next call
                found[sequences[i].key] = value
        write(found, time.monotonic() - started)
        report.add(batch)
        started = time.monotonic()
    return sums


# ---- batches ---------------------------------------------------------------------------------------------------------
def plan_batches(lengths: list[int], tokens_per_batch: int) -> list[list[int]]:
    """Cut sequences, longest first, into batches of at most `tokens_per_batch` slots once padded.

    Longest first, because then a batch that does not fit in memory shows at once, and the estimate of the time left
    errs on the safe side. A sequence over the budget stands alone.

    >>> plan_batches([3, 9, 4, 5], 10)
    [[1], [3, 2], [0]]
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens_per_batch:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def score_batches(
    score: Callable[[list[int]], list[float]], batches: list[list[int]], sequences: list[Sequence]
) -> Iterator[tuple[list[int], list[float] | list[None]]]:
    """Yield (batch, sums) of every batch, in halves where memory does not suffice.

    `score` takes a list of sequence numbers and returns their sums, or raises what PyTorch raises when memory is out.
    Then half as many slots are the most that is tried from there on, until a single sequence fails: its sum is None.
    """
    waiting = deque(batches)
    limit = float("inf")
    while waiting:
        batch = waiting.popleft()
        slots = len(batch) * max(len(sequences[i].ids) for i in batch)
        sums = None
        if slots <= limit or len(batch) == 1:
            sums = unless_out_of_memory(score, batch)
        if sums is not None:
            yield batch, sums
        elif len(batch) == 1:
            yield batch, [None]
        else:
            limit = min(limit, max(slots // 2, 1))
            half = len(batch) // 2
            waiting.extendleft([batch[half:], batch[:half]])


# ---- one forward pass ------------------------------------------------------------------------------------------------
def _forward_nll(core: PreTrainedModel, batch: list[Sequence], plain_head: bool) -> list[float]:
    """Sums of a batch by one forward pass: right padding, no mask, no cache.

    With a plain head the head sees the scored places only; else the model's own logits are taken, all of them.
    """
    padded = np.zeros((len(batch), max(len(sequence.ids) for sequence in batch)), dtype=np.int64)
    for i, sequence in enumerate(batch):
        padded[i, : len(sequence.ids)] = sequence.ids
    row = np.repeat(np.arange(len(batch)), [sequence.n_scored for sequence in batch])
    # what stands at position t predicts token t + 1
    position = np.concatenate([np.arange(sequence.start - 1, len(sequence.ids) - 1) for sequence in batch])
    target = torch.from_numpy(padded[row, position + 1])
    ids = torch.from_numpy(padded).to(_device(core))
    if plain_head:
        hidden = core.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[row, position]
        losses = head_loss(hidden, core.get_output_embeddings(), target.to(hidden.device), reduction="none")
    else:
        logits = core(input_ids=ids, use_cache=False).logits[row, position]
        losses = F.cross_entropy(logits.float(), target.to(logits.device), reduction="none")
    return np.bincount(row, weights=losses.cpu().numpy(), minlength=len(batch)).tolist()  # float64


def _has_plain_head(core: PreTrainedModel) -> bool:
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
def _launched_processes(device: torch.device) -> PartialState | None:
    """accelerate's state of the processes that were launched together; None where this one is alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return None
    from accelerate import PartialState

    return PartialState(cpu=device.type == "cpu", timeout=timedelta(days=1))  # the slowest share may take long


# ---- progress --------------------------------------------------------------------------------------------------------
class _Progress(Progress):
    """Rows done, once all their passes are; the time left is reckoned by tokens, which is what time goes by."""

    def __init__(
        self, sequences: list[Sequence], batches: list[list[int]], say: Callable[[str], object] | None
    ) -> None:
        self.sequences = sequences
        self.passes_left: Counter[int] = Counter()
        self.tokens = 0
        self.tokens_left = 0
        for batch in batches:
            self.passes_left.update(sequences[i].row for i in batch)
            self.tokens_left += sum(len(sequences[i].ids) for i in batch)
        super().__init__("IFD", len(self.passes_left), "rows", say, note=self.rates)

    def announce(self, remaining: list[list[int]], n_processes: int) -> None:
        """Say what need not be scored again, and whose share is reported."""
        rows = {sequence.row for sequence in self.sequences}
        left = {self.sequences[i].row for batch in remaining for i in batch}
        if self.say and len(left) < len(rows):
            self.say(f"IFD: {len(rows) - len(left):,} of {len(rows):,} rows were scored before")
        if self.say and n_processes > 1:
            self.say(f"IFD: {n_processes} processes; this is the share of the first")

    def add(self, batch: list[int]) -> None:
        """Count a batch of sequences."""
        rows_done = 0
        for i in batch:
            sequence = self.sequences[i]
            self.tokens += len(sequence.ids)
            self.tokens_left -= len(sequence.ids)
            self.passes_left[sequence.row] -= 1
            rows_done += self.passes_left[sequence.row] == 0
        self.advance(rows_done)

    def rates(self) -> str:
        """Rows and tokens a second."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        return f"{self.rate:,.0f} rows/s, {self.tokens / seconds:,.0f} tokens/s"

    @property
    def seconds_left(self) -> float:
        """Seconds that the tokens left take."""
        return self.tokens_left * (time.monotonic() - self.started) / max(self.tokens, 1)
