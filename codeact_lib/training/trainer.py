"""The Hugging Face Trainer with whole optimizer steps as its batches.

Each item of the data is one optimizer step: a list of micro-batches, as many as packing makes of it. The loss is the
sum over all of them divided by the supervised tokens of the step; gradients are exchanged once, after the last.
"""

import copy
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from codeact_lib.errors import ModelError
from codeact_lib.measure import PeakMemory, clock
from codeact_lib.modeling.load import evaluation_mode
from codeact_lib.modeling.loss import use_supervised_loss
from codeact_lib.packing.collate import DynamicPackCollator, Sample
from codeact_lib.processes import Progress
from codeact_lib.prompts import IGNORE_INDEX
from codeact_lib.training.checkpoints import WRITE_ERRORS, checkpoints_in, seal_checkpoint, unwritten
from codeact_lib.training.report import TrainRecorder
from codeact_lib.training.settings import half_dtype
from codeact_lib.training.steps import OptimizerSteps, StepSampler

# Difference of a sample's loss that rounding explains. A neighbour that is seen moves it by far more.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}


class PackedTrainer(Trainer):
    """A Trainer of `OptimizerSteps`: in their order, with their micro-batches, the supervised-position loss, recorded.

        steps = OptimizerSteps(samples, collator, args, packing_scope="window")
        PackedTrainer(model, args, steps, TrainRecorder(identity="")).run()

    Checkpoints are sealed with the recorder's state; `checkpoint` is the one to go on from. `loss_normalization`: see
    `TrainSettings`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        steps: OptimizerSteps,
        recorder: TrainRecorder,
        checkpoint: Path | None = None,
        loss_normalization: str = "step",
    ) -> None:
        self.keep_checkpoints = args.save_total_limit
        args = copy.copy(args)
        # Accumulation is inside the step, and `_save_checkpoint` removes the older checkpoints.
        args.gradient_accumulation_steps = 1
        args.save_total_limit = None
        super().__init__(model=use_supervised_loss(model), args=args, train_dataset=steps.samples)
        self.steps = steps
        self.recorder = recorder
        self.checkpoint = checkpoint
        self.loss_normalization = loss_normalization
        self.memory = PeakMemory()
        self.step_loss: torch.Tensor | None = None
        self.remove_callback(PrinterCallback)
        self.add_callback(StepCallback(self))

    def run(self) -> None:
        """Train from the checkpoint (or the start) to the end; the recorder has the sums afterwards."""
        with self.memory:
            self.train(resume_from_checkpoint=self.checkpoint and str(self.checkpoint))
            self.recorder.settle()  # waits for the device
            self.recorder.stop(self.memory)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """One item a step, over all epochs."""
        # The Trainer's own would have accelerate deal the items to the processes; here each lays out its share itself.
        return torch.utils.data.DataLoader(
            self.steps,
            batch_size=1,
            sampler=StepSampler(len(self.steps), lambda: self.state.global_step),
            collate_fn=lambda items: items[0],
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], int | None]:
        """The next step, and by how many tokens its loss is divided."""
        step = next(epoch_iterator)
        self.recorder.count(step["counts"])
        # Without the number the loss is the micro-batch's mean, and the Trainer divides by the accumulation steps.
        return [step], step["counts"]["supervised"] if self.loss_normalization == "step" else None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: int | None = None) -> torch.Tensor:
        """Forward and backward over all micro-batches of this process; the loss of the whole step."""
        micro_batches = inputs["micro_batches"]
        self.current_gradient_accumulation_steps = len(micro_batches)
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(micro_batches, 1):
            with nullcontext() if number == len(micro_batches) else self.accelerator.no_sync(model):
                total += super().training_step(model, batch, num_items_in_batch)
        # The mean, because each process's share of the loss was counted as many times as there are processes.
        self.step_loss = self.accelerator.reduce(total, "mean")
        return self.step_loss

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counted for the whole training, from the lengths of its samples

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # The clock is read before and put forward after: neither this attempt nor the next one counts the writing. What
        # the Trainer would remove by `save_total_limit` stays until the new one is sealed.
        began = time.monotonic()
        self.recorder.stop(self.memory)
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                seal_checkpoint(folder, self.recorder.state())
        except WRITE_ERRORS as error:
            raise unwritten(folder, folder.name, folder.parent, error) from error
        if self.is_world_process_zero() and self.keep_checkpoints:
            for older in checkpoints_in(folder.parent)[self.keep_checkpoints :]:
                shutil.rmtree(older, ignore_errors=True)
        self.recorder.started += time.monotonic() - began


class StepCallback(TrainerCallback):
    """Tests before the first step that packed samples stay apart, records each step and shows the progress."""

    def __init__(self, trainer: PackedTrainer) -> None:
        self.trainer = trainer
        self.learning_rate = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        steps = trainer.steps
        dtype = half_dtype(args) or trainer.model.dtype
        # Here and not before: the model is where it trains now, in the precision that it trains in.
        with trainer.compute_loss_context_manager():  # mixed precision, where it is on
            trainer.recorder.isolation_error = check_isolation(trainer.model, steps.collator, steps.samples, dtype)
        trainer.recorder.begin()
        say = print if trainer.is_world_process_zero() else None
        done = state.global_step
        # lines such as `step 40/3,108, loss 0.8123  5,210 supervised tokens/s  1:12 min elapsed, 1:31 h left`
        self.progress = Progress("step", state.max_steps, "", say, initial=done, note=self.measured)

    def on_pre_optimizer_step(self, *given: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.learning_rate = float(optimizer.param_groups[0]["lr"])

    def on_step_end(self, *given: Any, **kwargs: Any) -> None:
        self.trainer.recorder.finish_step(self.trainer.step_loss, self.learning_rate)
        self.progress.advance()

    def on_train_end(self, *given: Any, **kwargs: Any) -> None:
        self.progress.close()

    def measured(self) -> str:
        """Mean loss of the last 20 steps, speed and time; only when a line is due, because it waits for the GPU."""
        recorder = self.trainer.recorder
        recorder.settle()
        recorder.stop(self.trainer.memory)
        loss = np.mean(recorder.losses[-20:])
        speed = recorder.seen["supervised"] / recorder.seconds
        return f"loss {loss:.4f}  {speed:,.0f} supervised tokens/s  {clock(recorder.seconds)} elapsed"


# ---- whether packed samples stay apart: on the user's own model and data ---------------------------------------------
@torch.no_grad()
def isolation_error(model: PreTrainedModel, collator: DynamicPackCollator, samples: Sequence[Sample]) -> float:
    """Largest difference, over `samples`, between the loss of a sample packed with the others and alone.

    `model(**batch)` must return a loss (`use_supervised_loss`, or any Hugging Face causal language model).
    """
    alone = DynamicPackCollator(collator.pad_id, collator.max_length, "dynamic")
    # With the labels of its neighbours hidden, the loss of a packed batch is that of one sample.
    hidden: list[Sample] = [{**sample, "labels": [IGNORE_INDEX] * len(sample["labels"])} for sample in samples]
    errors = []
    for i, sample in enumerate(samples):
        losses = []
        for batch in (collator([*hidden[:i], sample, *hidden[i + 1 :]]), alone([sample])):
            there = {name: tensor.to(model.device) for name, tensor in batch.items()}
            losses.append(float(model(**there).loss))
        errors.append(abs(losses[0] - losses[1]))
    return max(errors)


def check_isolation(
    model: PreTrainedModel, collator: DynamicPackCollator, samples: Sequence[Sample], dtype: torch.dtype = torch.float32
) -> float | None:
    """Refuse to train where packing would change the training; return the `isolation_error` that was measured.

    `dtype` is the precision that the model computes in. Nothing is tested (None) when samples may see each other
    (`isolate=False`). Raises ModelError on a mismatch.
    """
    if not collator.isolate:
        return None
    # The three shortest share a row if any do, and cost next to nothing.
    shortest = sorted(samples, key=lambda sample: len(sample["input_ids"]))[:3]
    training = model.training
    evaluation_mode(model)
    error = isolation_error(model, collator, shortest)
    model.train(training)
    if not error <= TOLERANCE[dtype]:  # also when it is not a number
        raise ModelError(
            f"packed samples do not train as unpacked ones: their losses differ by {error:.4f} (rounding explains "
            f"{TOLERANCE[dtype]}). attn_implementation {model.config._attn_implementation!r} does not keep samples "
            "apart in this model: take 'sdpa' or 'eager', strategy 'dynamic', or isolate: false if that is wanted"
        )
    return error
