"""What each optimizer step is made of: rows read, tokenised and fitted, an order drawn, micro-batches laid out.

The order depends on the number of samples and the seed alone, and a step takes the next `batch_size x accumulation x
ranks` samples of it. However they are packed, and over however many processes they are dealt, a step holds the same
samples, so that all padding strategies and all numbers of devices train the same model.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, TrainingArguments

from codeact_lib.errors import ArtifactError, DataError, ProfileError
from codeact_lib.packing.collate import DynamicPackCollator, Sample
from codeact_lib.packing.plan import plan_micro_batches, shape_of
from codeact_lib.prompts import IGNORE_INDEX, PromptTemplate, tokenize_example


# ---- samples -------------------------------------------------------------------------------------------------------
class TokenizedRows(NamedTuple):
    """What `tokenize_rows` makes of a training file."""

    samples: list[dict[str, np.ndarray]]  # `input_ids` and `labels`, int32
    dropped: dict[str, int]  # rows left out, by reason
    truncated: int  # responses cut


def read_rows(train_jsonl: str | Path) -> list[dict[str, str]]:
    """The rows of a training file, each with text `instruction` and `response`; DataError names file and line."""
    path = Path(train_jsonl)
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist: make it with notebook 03 (or `codeact run --only 03`)")
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                row = {"instruction": row["instruction"], "response": row["response"]}
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}, line {number}: not a row with instruction and response ({error})") from error
            if not all(isinstance(text, str) for text in row.values()):
                raise DataError(f"{path}, line {number}: instruction and response must be text")
            rows.append(row)
    return rows


def tokenize_rows(
    rows: Sequence[Mapping[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    template: str | PromptTemplate,
    max_length: int,
    source: str | Path,
    overlong: str = "truncate",
) -> TokenizedRows:
    """Token ids and labels of the usable rows.

    `overlong` "truncate" cuts the response of a row longer than `max_length` (the paper), "drop" leaves the row out.
    Rows whose prompt alone fills `max_length` have nothing to learn from and are left out too. DataError, which names
    `source`, when nothing is left.
    """
    if overlong not in ("truncate", "drop"):
        raise DataError(f"unknown overlong {overlong!r}: choose truncate or drop")
    kept = ("ok", "truncated") if overlong == "truncate" else ("ok",)
    samples = []
    found: Counter[str] = Counter()
    for row in rows:
        example = tokenize_example(tokenizer, template, row["instruction"], row["response"], max_length)
        found[example["status"]] += 1
        if example["status"] in kept:
            # As arrays they take a ninth of the memory: 4 bytes a token, where a list of Python's numbers takes 36.
            ids = np.array(example["input_ids"], dtype=np.int32)
            samples.append({"input_ids": ids, "labels": np.array(example["labels"], dtype=np.int32)})
    dropped = {"empty": found["empty"], "prompt_too_long": found["prompt_too_long"]}
    if overlong == "drop":
        dropped["overlong"] = found.pop("truncated", 0)
    if not samples:
        raise DataError(f"{source}: none of {len(rows)} rows can be trained on ({dropped}): raise max_length?")
    return TokenizedRows(samples, dropped, found["truncated"])


# ---- steps ---------------------------------------------------------------------------------------------------------
class SeededOrder:
    """A new permutation every epoch, a function of (number of samples, seed, epoch) and of nothing else."""

    def __init__(self, n_samples: int, seed: int) -> None:
        self.n_samples = n_samples
        self.seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        # Trainings of neighbouring seeds share no order, up to 100,003 epochs.
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        return iter(torch.randperm(self.n_samples, generator=generator).tolist())

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order is asked for next."""
        self.epoch = epoch


class StepPlan(NamedTuple):
    """The samples of a step in order, its micro-batches as rows of positions in that list, and the slots of each."""

    indices: list[int]
    micro_batches: list[list[list[int]]]
    slots: list[int]  # tokens with padding


class Step(TypedDict):
    """The share of one process in a step, and what the whole step holds over all processes."""

    micro_batches: list[dict[str, torch.Tensor]]
    counts: dict[str, int]  # samples, rows, slots, tokens, supervised (tokens), pairs (tokens squared, by sample)


class OptimizerSteps(torch.utils.data.Dataset):
    """A data set whose item (epoch, step) is what one process trains on in that optimizer step.

    `packing_scope` and `tokens_per_micro_batch` are those of `TrainSettings`. The last step of an epoch has the samples
    that are left. Raises ProfileError for an unknown `packing_scope`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        collator: DynamicPackCollator,
        args: TrainingArguments,
        packing_scope: str = "batch",
        tokens_per_micro_batch: int | None = None,
    ) -> None:
        if packing_scope not in ("batch", "window"):
            raise ProfileError(f"unknown packing_scope {packing_scope!r}: choose batch or window")
        self.samples = samples
        self.collator = collator
        self.ranks = args.world_size
        self.rank = args.process_index
        batch_size = args.per_device_train_batch_size
        self.step_size = batch_size * args.gradient_accumulation_steps * self.ranks  # samples, over all processes
        self.batch_size = batch_size if packing_scope == "batch" else None
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.order = SeededOrder(len(samples), args.seed if args.data_seed is None else args.data_seed)
        # The order of its epoch, once that was asked for, and the plans that `largest_micro_batch` made ahead; each is
        # handed out once and forgotten.
        self.drawn: list[int] = []
        self.planned: dict[tuple[int, int], StepPlan] = {}
        self.lengths = [len(sample["input_ids"]) for sample in samples]
        self.supervised = [int((np.asarray(sample["labels"])[1:] != IGNORE_INDEX).sum()) for sample in samples]

    def __len__(self) -> int:
        """Optimizer steps in an epoch."""
        return -(-len(self.samples) // self.step_size)

    def __getitem__(self, place: tuple[int, int]) -> Step:
        plan = self.plan(*place)
        samples = [self.samples[i] for i in plan.indices]
        # Every process plans the whole step and lays out its own share, so that nothing has to be communicated.
        own = plan.micro_batches[self.rank :: self.ranks]
        lengths = [self.lengths[i] for i in plan.indices]
        counts = {
            "samples": len(plan.indices),
            "rows": sum(map(len, plan.micro_batches)),
            "slots": sum(plan.slots),
            "tokens": sum(lengths),
            "supervised": sum(self.supervised[i] for i in plan.indices),
            "pairs": sum(n * n for n in lengths),
        }
        return {"micro_batches": [self.collator.lay_out(samples, rows) for rows in own], "counts": counts}

    def plan(self, epoch: int, step: int) -> StepPlan:
        """Which samples the step takes and how they are packed."""
        if (epoch, step) in self.planned:
            return self.planned.pop((epoch, step))
        if not self.drawn or self.order.epoch != epoch:
            self.order.set_epoch(epoch)
            self.drawn = list(self.order)
        indices = self.drawn[step * self.step_size : (step + 1) * self.step_size]
        lengths = [self.lengths[i] for i in indices]
        packing = (self.collator.max_length, self.collator.strategy)
        micro_batches = plan_micro_batches(
            lengths,
            *packing,
            batch_size=self.batch_size,
            tokens_per_micro_batch=self.tokens_per_micro_batch,
            ranks=self.ranks,
        )
        slots = [math.prod(shape_of(rows, lengths, *packing)) for rows in micro_batches]
        return StepPlan(indices, micro_batches, slots)

    def largest_micro_batch(self) -> int:
        """Slots of the largest micro-batch of the first epoch: what decides the peak of memory."""
        # The plans are kept for the training, which begins with that epoch.
        for step in range(len(self)):
            self.planned[0, step] = self.plan(0, step)
        return max(max(plan.slots) for plan in self.planned.values())


class StepSampler(torch.utils.data.Sampler):
    """Places (epoch, step) of one epoch; `global_step` tells, when it starts, how far the training has come."""

    def __init__(self, steps_per_epoch: int, global_step: Callable[[], int]) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.global_step = global_step

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.global_step() // self.steps_per_epoch
        return iter([(epoch, step) for step in range(self.steps_per_epoch)])
