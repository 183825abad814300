"""The Hugging Face Trainer with whole optimizer steps as its batches.

Each item of the data is one optimizer step: a list of micro-batches, as many as packing makes of it. The loss is the
sum over all of them divided by the supervised tokens of the step; gradients are exchanged once, after the last.
"""

import copy
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback

from codeact_lib.artifacts import read_json
from codeact_lib.measure import PeakMemory
from codeact_lib.modeling.loss import use_supervised_loss
from codeact_lib.training.checkpoints import SEALED, WRITE_ERRORS, remove_old_checkpoints, seal_checkpoint, unwritten
from codeact_lib.training.isolation import check_isolation
from codeact_lib.training.report import LogBook
from codeact_lib.training.steps import StepSampler, make_steps

PRINT_EVERY = 5.0  # seconds between progress lines


class PackedTrainer(Trainer):
    """A Trainer in a seeded order, with packed micro-batches, the supervised-position loss and a log book.

    `samples` hold `input_ids` and `labels`, `collator` is a `DynamicPackCollator`. `packing_scope` "batch" packs each
    per-device batch by itself (the paper); "window" packs all samples of an optimizer step together into micro-batches
    of at most `tokens_per_micro_batch` slots (default: two rows of the collator's max_length).

        collator = DynamicPackCollator(tokenizer, 2048, "balanced_pack")
        PackedTrainer(model, args, samples, collator, packing_scope="window").train()
    """

    def __init__(
        self,
        model,
        args,
        samples,
        collator,
        *,
        packing_scope="batch",
        tokens_per_micro_batch=None,
        identity="",
        loss_normalization="step",
    ):
        self.log_book, self.loss_normalization = LogBook(identity=identity), loss_normalization
        self.seconds_saving, self.memory, self.collator = 0.0, None, collator  # memory: a PeakMemory while training
        self.step_loss = None
        self.keep_checkpoints = args.save_total_limit
        scope = {"packing_scope": packing_scope, "tokens_per_micro_batch": tokens_per_micro_batch}
        self.steps = make_steps(samples, collator, args, **scope)
        args = copy.copy(args)
        args.gradient_accumulation_steps = 1  # it is inside the step now
        args.save_total_limit = None  # old checkpoints go when the new one is sealed, not before
        super().__init__(model=use_supervised_loss(model), args=args, train_dataset=samples, callbacks=[Keeper(self)])
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self):
        """One item a step. Each process lays out its own share of it, so nothing is left for accelerate to divide."""
        return torch.utils.data.DataLoader(
            self.steps,
            batch_size=1,
            sampler=StepSampler(len(self.steps), lambda: self.state.global_step),
            collate_fn=lambda items: items[0],
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        step = next(epoch_iterator)
        self.log_book.count(step["counts"])
        # Without the number the loss is the micro-batch's mean, and the Trainer divides by the accumulation steps.
        return [step], step["counts"]["supervised"] if self.loss_normalization == "step" else None

    def training_step(self, model, inputs, num_items_in_batch=None):
        micro_batches, total = inputs["micro_batches"], 0.0
        self.current_gradient_accumulation_steps = len(micro_batches)
        for number, batch in enumerate(micro_batches, 1):
            with nullcontext() if number == len(micro_batches) else self.accelerator.no_sync(model):
                total = total + super().training_step(model, batch, num_items_in_batch)
        self.step_loss = self.accelerator.reduce(
            total, "mean"
        )  # each process's share counts as many times as there are
        return self.step_loss

    def floating_point_ops(self, inputs):
        return 0  # counted for the whole training, from the lengths of its samples

    def _save_checkpoint(self, model, trial):
        start = time.monotonic()
        self.log_book.see_memory(self.memory)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                seal_checkpoint(folder, self.log_book.state(now=start - self.seconds_saving))
        except WRITE_ERRORS as error:
            raise unwritten(folder, folder.name, folder.parent, error) from error
        if self.is_world_process_zero():
            remove_old_checkpoints(folder.parent, self.keep_checkpoints)
        self.seconds_saving += time.monotonic() - start


class Keeper(TrainerCallback):
    """Writes the log book step by step and prints where the training is and how long it will take."""

    def __init__(self, trainer):
        self.trainer, self.printed = trainer, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        trainer, book = self.trainer, self.trainer.log_book
        with trainer.compute_loss_context_manager():  # mixed precision, where it is on
            book.isolation_error = check_isolation(
                trainer.model, trainer.collator, trainer.train_dataset, compute_dtype(args, trainer.model)
            )
        book.started = time.monotonic() - book.seconds
        self.first_step, self.began, self.printed = state.global_step, time.monotonic(), time.monotonic()

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.learning_rate = float(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.log_book.finish_step(self.trainer.step_loss, self.learning_rate)
        now = time.monotonic()
        if now - self.printed >= PRINT_EVERY or state.global_step == state.max_steps:
            self.printed = now
            self.say(state, now)

    def say(self, state, now) -> None:
        book = self.trainer.log_book
        book.settle()
        left = (now - self.began) / (state.global_step - self.first_step) * (state.max_steps - state.global_step)
        if self.trainer.is_world_process_zero():
            recent, seconds = float(np.mean(book.losses[-20:])), now - book.started - self.trainer.seconds_saving
            print(
                f"step {state.global_step}/{state.max_steps}  loss {recent:.4f}  "
                f"{book.seen['supervised'] / seconds:,.0f} supervised tokens/s  "
                f"{_clock(seconds)} elapsed, {_clock(left)} left",
                flush=True,
            )


def compute_dtype(args, model) -> torch.dtype:
    """The precision of the forward pass: that of mixed precision where it is on, else of the weights."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else model.dtype


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def run_trainer(trainer, checkpoint) -> None:
    """Train from the checkpoint (or the start) under the memory watch; the log book has the sums afterwards."""
    book = trainer.log_book
    if checkpoint is not None:
        if trainer.is_world_process_zero():
            print(f"resuming from {checkpoint.name}", flush=True)
        for name, value in read_json(checkpoint / SEALED)["log_book"].items():
            setattr(book, name, value)
    with PeakMemory() as memory:
        trainer.memory = memory
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        book.settle()  # waits for the device
        book.seconds = time.monotonic() - book.started - trainer.seconds_saving
        book.see_memory(memory)
