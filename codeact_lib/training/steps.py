"""What each optimizer step is made of: rows read, tokenised and fitted, an order drawn, micro-batches laid out.

The order depends on the number of samples and the seed alone, and a step takes the next `batch_size x accumulation x
ranks` samples of it. However they are packed, and over however many processes they are dealt, a step holds the same
samples, so that all padding strategies and all numbers of devices train the same model.
"""

import json
from pathlib import Path

import numpy as np
import torch

from codeact_lib.errors import ArtifactError, DataError, ProfileError
from codeact_lib.packing.collate import fit_samples
from codeact_lib.packing.plan import plan_micro_batches, shape_of
from codeact_lib.prompts import IGNORE_INDEX, tokenize_example

PACKING_SCOPES = ("batch", "window")


def existing(train_jsonl) -> Path:
    """The path of a training file; ArtifactError when it is not there."""
    if not Path(train_jsonl).is_file():
        raise ArtifactError(f"{train_jsonl} does not exist: make it with notebook 03 (or `codeact run --only 03`)")
    return Path(train_jsonl)


def read_rows(train_jsonl) -> list[dict]:
    """The rows of a training file, each with text `instruction` and `response`; DataError names file and line."""
    path, rows = existing(train_jsonl), []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                rows.append({key: row[key] for key in ("instruction", "response")})
                texts = all(isinstance(text, str) for text in rows[-1].values())
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}, line {number}: not a row with instruction and response ({error})") from error
            if not texts:
                raise DataError(f"{path}, line {number}: instruction and response must be text")
    return rows


def tokenize_rows(rows, tokenizer, template, max_length, source, overlong="truncate"):
    """Token ids and labels of the usable rows, counts of the others by reason, and how many responses were cut.

    `overlong` "truncate" cuts the response of a row longer than `max_length`, "drop" leaves the row out. Rows whose
    prompt alone fills `max_length` have nothing to learn from and are left out too. DataError when nothing is left.
    """
    examples = [tokenize_example(tokenizer, template, r["instruction"], r["response"], max_length + 1) for r in rows]
    usable = [example for example in examples if example["status"] != "empty"]
    samples, counts = fit_samples(usable, max_length, overlong)
    dropped = {"empty": len(rows) - len(usable), "prompt_too_long": counts["unsupervised"]}
    dropped |= {"overlong": counts["overlong"]} if overlong == "drop" else {}
    if not samples:
        raise DataError(f"{source}: none of {len(rows)} rows can be trained on ({dropped}): raise max_length?")
    return [_as_arrays(sample) for sample in samples], dropped, counts["truncated"]


def _as_arrays(sample):
    return {key: np.array(values, dtype=np.int32) for key, values in sample.items()}


class SeededOrder(torch.utils.data.Sampler):
    """A new permutation every epoch, a function of (number of samples, seed, epoch) and of nothing else."""

    def __init__(self, n_samples: int, seed: int):
        self.n_samples, self.seed, self.epoch = n_samples, seed, 0

    def __len__(self):
        return self.n_samples

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        return iter(torch.randperm(self.n_samples, generator=generator).tolist())

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class OptimizerSteps(torch.utils.data.Dataset):
    """A data set whose item (epoch, step) is what one process trains on in that optimizer step.

    `step_size` is the number of samples of a step over all processes. With `batch_size` they are packed in batches of
    that many (packing_scope "batch"); without, all together ("window"), into micro-batches of at most
    `tokens_per_micro_batch` slots. Every process plans the whole step and lays out its own micro-batches, so nothing
    has to be communicated. The last step of an epoch has the samples that are left.
    """

    def __init__(
        self, samples, collator, *, step_size, batch_size=None, tokens_per_micro_batch=None, ranks=1, rank=0, seed=0
    ):
        self.samples, self.collator, self.step_size = samples, collator, step_size
        self.plan_options = {"batch_size": batch_size, "tokens_per_micro_batch": tokens_per_micro_batch, "ranks": ranks}
        self.ranks, self.rank = ranks, rank
        self.order, self.drawn = SeededOrder(len(samples), seed), None
        self.lengths = [len(sample["input_ids"]) for sample in samples]
        self.supervised = [int((np.asarray(sample["labels"])[1:] != IGNORE_INDEX).sum()) for sample in samples]

    def __len__(self):
        """Optimizer steps in an epoch."""
        return -(-len(self.samples) // self.step_size)

    def __getitem__(self, place) -> dict:
        """`micro_batches` (tensors, this process's share) and `counts` (of the whole step, over all processes)."""
        indices, plan = self.plan(*place)
        part = [self.samples[i] for i in indices]
        own = plan[self.rank :: self.ranks]
        return {
            "micro_batches": [self.collator.lay_out(part, rows) for rows in own],
            "counts": self._counts(indices, plan),
        }

    def plan(self, epoch: int, step: int):
        """The samples of a step, in order, and its micro-batches as rows of positions in that list."""
        indices = self._drawn(epoch)[step * self.step_size : (step + 1) * self.step_size]
        lengths, collator = [self.lengths[i] for i in indices], self.collator
        return indices, plan_micro_batches(lengths, collator.max_length, collator.strategy, **self.plan_options)

    def _drawn(self, epoch):
        """The order of an epoch, drawn once."""
        if self.drawn is None or self.order.epoch != epoch:
            self.order.set_epoch(epoch)
            self.drawn = list(self.order)
        return self.drawn

    def _counts(self, indices, plan) -> dict:
        lengths = [self.lengths[i] for i in indices]
        shapes = [self._shape(rows, lengths) for rows in plan]
        return {
            "samples": len(indices),
            "rows": sum(len(rows) for rows in plan),
            "slots": sum(rows * width for rows, width in shapes),
            "tokens": sum(lengths),
            "supervised": sum(self.supervised[i] for i in indices),
            "pairs": sum(n * n for n in lengths),
        }

    def _shape(self, rows, lengths):
        return shape_of(rows, lengths, self.collator.max_length, self.collator.strategy)

    def largest_micro_batch(self) -> int:
        """Slots of the largest micro-batch of the first epoch: what decides the peak of memory."""
        slots = 0
        for step in range(len(self)):
            indices, plan = self.plan(0, step)
            shapes = [self._shape(rows, [self.lengths[i] for i in indices]) for rows in plan]
            slots = max(slots, *(rows * width for rows, width in shapes))
        return slots


class StepSampler(torch.utils.data.Sampler):
    """Places (epoch, step) of one epoch; `global_step` tells, when it starts, how far the training has come."""

    def __init__(self, steps_per_epoch: int, global_step):
        self.steps_per_epoch, self.global_step = steps_per_epoch, global_step

    def __len__(self):
        return self.steps_per_epoch

    def __iter__(self):
        epoch = self.global_step() // self.steps_per_epoch
        return iter([(epoch, step) for step in range(self.steps_per_epoch)])


def make_steps(samples, collator, args, *, packing_scope="batch", tokens_per_micro_batch=None) -> OptimizerSteps:
    """The optimizer steps that `TrainingArguments` ask for; ProfileError for an unknown `packing_scope`."""
    if packing_scope not in PACKING_SCOPES:
        raise ProfileError(f"unknown packing_scope {packing_scope!r}: choose {' or '.join(PACKING_SCOPES)}")
    batch = args.per_device_train_batch_size
    return OptimizerSteps(
        samples,
        collator,
        step_size=batch * args.gradient_accumulation_steps * args.world_size,
        batch_size=batch if packing_scope == "batch" else None,
        tokens_per_micro_batch=tokens_per_micro_batch,
        ranks=args.world_size,
        rank=args.process_index,
        seed=args.seed if args.data_seed is None else args.data_seed,
    )
