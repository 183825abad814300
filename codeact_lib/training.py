"""Fine-tune a base model on instructions with any padding strategy, survive a kill, and measure what it cost.

    python -m codeact_lib.training --config train.json          # train.json: the arguments of fine_tune, by name

The Hugging Face Trainer runs the loop; this module gives it the data in an order that depends on the seed alone (so all
padding strategies train on the same samples in each optimizer step), the loss of `modeling.supervised_loss`, and a log
that lives in the checkpoints. A training killed at any moment goes on from its last complete checkpoint when started
again with the same arguments, and ends with the loss, the seconds and the token counts of an undisturbed one.

Files in `output_dir`: `checkpoints/` (while training), `model/` (weights as safetensors, or the LoRA adapter, and the
tokenizer), `train_metrics.json` (written last).
"""

import argparse
import fcntl
import inspect
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, logging, set_seed

from .artifacts import environment_facts, make_folder, read_json, sha256_file, sha256_json, write_json
from .errors import ArtifactError, CodeActError, DataError, ModelError, ProfileError
from .memory import PeakMemory
from .modeling import (
    LORA_TARGETS,
    SEGMENTS,
    check_segment_support,
    load_base_model,
    load_tokenizer,
    use_supervised_loss,
)
from .packing import DynamicPackCollator, PaddingStrategy
from .prompts import IGNORE_INDEX, get_template, tokenize_example

# In half precision on a CPU, oneDNN compiles a kernel for every new shape and keeps a thousand: with batches of all
# widths that is 0.5-1 GB of "peak memory" that is no memory of the training. Keeping 32 costs no measurable time.
FEW_KERNELS = {"LRU_CACHE_CAPACITY": "32", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32"}
PRINT_EVERY = 5.0  # seconds between progress lines
SEALED = "codeact_checkpoint.json"  # written last into a checkpoint: without it the checkpoint is half written
NO_PACKING = (PaddingStrategy.TRADITIONAL, PaddingStrategy.DYNAMIC)
# What may change between two attempts without making the first one's checkpoints useless.
NOT_IN_IDENTITY = ("save_steps", "save_total_limit", "logging_steps")
# The arguments of fine_tune that a profile gives under the same name.
PROFILE_KEYS = (
    *("tuning", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "max_length", "isolate"),
    *("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "bf16", "fp16", "gradient_checkpointing"),
    *("attn_implementation", "save_steps", "logging_steps", "torch_threads"),
)


@dataclass
class TrainReport:
    """What a training did and what it cost: the content of `train_metrics.json`.

    `seconds` is the training loop without writing checkpoints, added up over the attempts that led to the result.
    `peak_memory_bytes` is the CUDA allocator's peak, or without a GPU how far resident memory grew above that of the
    resting process with the model loaded (`peak_memory_kind`). `slots` are tokens with padding. `final_loss` is the
    mean over the last tenth of the optimizer steps, per supervised token.
    """

    seconds: float
    optimizer_steps: int
    n_samples: int
    epochs: float
    samples_per_second: float
    supervised_tokens: int
    supervised_tokens_per_second: float
    tokens: int
    slots: int
    padding_rate: float
    rows: int
    peak_memory_bytes: int
    peak_memory_kind: str
    final_loss: float
    loss_curve: list
    strategy: str
    isolate: bool
    tuning: str
    attn_implementation: str
    template_sha256: str
    dropped: dict
    truncated: int
    resumed: bool
    hardware: dict

    def to_dict(self) -> dict:
        return asdict(self)


def fine_tune(
    train_jsonl,
    *,
    model_path,
    output_dir,
    template,
    strategy="dynamic_pack",
    isolate=True,
    revision=None,
    tuning="full",
    lora_r=8,
    lora_alpha=16,
    lora_dropout=0.1,
    lora_target_modules=LORA_TARGETS,
    attn_implementation=None,
    max_length=2048,
    loss_normalization="step",
    torch_threads=None,
    **training_arguments,
) -> TrainReport:
    """Fine-tune `model_path` on the rows of `train_jsonl` and write the model and its metrics into `output_dir`.

    `train_jsonl` has one {"instruction", "response"} object a line; rows whose prompt fills `max_length` or that have
    no text are left out and counted. `strategy` and `isolate` are those of `DynamicPackCollator`, `tuning` and the
    `lora_*` keys those of `load_base_model`; every other keyword is a `transformers.TrainingArguments` one. Without
    `attn_implementation` the fastest that keeps packed samples apart is chosen. `loss_normalization` "step" divides by
    the supervised tokens of the whole optimizer step; "micro_batch" averages the means of its micro-batches, as the
    authors' version of transformers did (tokens of short micro-batches then weigh more).

    Starting again after a kill resumes; starting again with other arguments starts anew. Raises DataError, ModelError,
    ProfileError or ArtifactError with a remedy, before training where the cause can be seen before.
    """
    output_dir, strategy, template = make_folder(output_dir), PaddingStrategy(strategy), get_template(template)
    lora = {"lora_r": lora_r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout}
    lora["lora_target_modules"] = list(lora_target_modules)
    args = make_arguments(output_dir / "checkpoints", training_arguments)
    rows = read_rows(train_jsonl)
    identity = sha256_json(
        {
            "train": sha256_file(train_jsonl),
            "model": [str(model_path), revision, tuning, lora, attn_implementation],
            "data": [template.sha256, strategy.value, isolate, max_length, loss_normalization],
            "arguments": {k: v for k, v in training_arguments.items() if k not in NOT_IN_IDENTITY},
        }
    )
    if loss_normalization not in ("step", "micro_batch"):
        raise ProfileError(f"unknown loss_normalization {loss_normalization!r}: choose step or micro_batch")
    if torch_threads:
        torch.set_num_threads(torch_threads)
    with only_one(output_dir):
        set_seed(args.seed)
        tokenizer = load_tokenizer(model_path, revision)
        samples, dropped, truncated = tokenize_rows(rows, tokenizer, template, max_length, train_jsonl)
        model = load_base_model(
            model_path,
            revision=revision,
            tuning=tuning,
            dtype=_weight_dtype(tuning, args),
            attn_implementation="sdpa" if attn_implementation is None else attn_implementation,
            **lora,
        )
        if attn_implementation is None:
            _choose_attention(model, strategy, isolate)
        set_seed(args.seed)
        collator = DynamicPackCollator(tokenizer, max_length, strategy, isolate)
        trainer = PackedTrainer(model, args, samples, collator, identity, loss_normalization)
        checkpoint = latest_checkpoint(output_dir / "checkpoints", identity)
        run_trainer(trainer, checkpoint)
        save_model(trainer, tokenizer, output_dir / "model")
        report = trainer.log_book.report(
            n_samples=len(samples),
            epochs=args.num_train_epochs,
            logging_steps=max(1, int(args.logging_steps)),
            strategy=strategy.value,
            isolate=isolate,
            tuning=tuning,
            attn_implementation=model.config._attn_implementation,
            template_sha256=template.sha256,
            dropped=dropped,
            truncated=truncated,
            resumed=checkpoint is not None,
        )
        write_json(output_dir / "train_metrics.json", report.to_dict())
        shutil.rmtree(output_dir / "checkpoints", ignore_errors=True)
    return report


# ---- before training -----------------------------------------------------------------------------------------------


def make_arguments(folder, given) -> TrainingArguments:
    """`TrainingArguments` from the keywords of a profile; ProfileError for an unknown or impossible one."""
    known = inspect.signature(TrainingArguments).parameters
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ProfileError(f"unknown training argument {', '.join(unknown)}: use the names of TrainingArguments")
    defaults = {
        "save_strategy": "steps",
        "save_total_limit": 2,
        "logging_strategy": "no",  # the log book keeps every step's loss itself
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "seed": 0,
    }
    if given.get("fp16") and not torch.cuda.is_available():
        raise ProfileError("fp16 needs a GPU: set fp16 to false (bf16 works on CPUs)")
    try:
        return TrainingArguments(output_dir=str(folder), **{**defaults, **given})
    except (ValueError, TypeError, ImportError) as error:
        raise ProfileError(f"training arguments do not fit together or this machine: {error}") from error


def read_rows(train_jsonl) -> list[dict]:
    """The rows of a training file, each with text `instruction` and `response`; DataError names file and line."""
    path, rows = Path(train_jsonl), []
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist: make it with notebook 03 (or `codeact run --only 03`)")
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


def tokenize_rows(rows, tokenizer, template, max_length, source):
    """Token ids and labels of the usable rows, counts of the others by status, and how many responses were cut."""
    samples, dropped, truncated = [], {"empty": 0, "prompt_too_long": 0}, 0
    for row in rows:
        example = tokenize_example(tokenizer, template, row["instruction"], row["response"], max_length)
        if example["status"] in dropped:
            dropped[example["status"]] += 1
            continue
        truncated += example["status"] == "truncated"
        samples.append({key: np.array(example[key], dtype=np.int32) for key in ("input_ids", "labels")})
    if not samples:
        raise DataError(f"{source}: none of {len(rows)} rows can be trained on ({dropped}): raise max_length?")
    return samples, dropped, truncated


def _weight_dtype(tuning, args):
    """Trained weights stay in float32 (mixed precision computes in less); frozen ones need no more than the compute."""
    if tuning == "full" or not (args.bf16 or args.fp16):
        return torch.float32
    return torch.bfloat16 if args.bf16 else torch.float16


def _choose_attention(model, strategy, isolate) -> None:
    """Switch to per-sample attention where packed samples must be kept apart and the architecture allows it."""
    if not isolate or strategy in NO_PACKING:
        return
    try:
        check_segment_support(model.config)
    except ModelError:
        return  # transformers' own position-based masks keep the samples apart too, only slower
    getattr(model, "get_base_model", lambda: model)().set_attn_implementation(SEGMENTS)


@contextmanager
def only_one(output_dir, patience: float = 20.0):
    """Hold the folder's lock; a process that is just being killed gets `patience` seconds to let go of it."""
    deadline = time.monotonic() + patience
    with open(output_dir / ".training.lock", "w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ArtifactError(f"another process is training into {output_dir}: wait or stop it") from error
                time.sleep(0.5)
        yield


# ---- the trainer ---------------------------------------------------------------------------------------------------


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


class PackedTrainer(Trainer):
    """The Hugging Face Trainer with a seeded order, the supervised-position loss and a log book in each checkpoint."""

    def __init__(self, model, args, samples, collator, identity="", loss_normalization="step"):
        self.log_book = LogBook(identity=identity)
        self.loss_normalization = loss_normalization
        self.seconds_saving = 0.0
        self.memory = None  # a PeakMemory while training
        super().__init__(
            model=use_supervised_loss(model),
            args=args,
            train_dataset=samples,
            data_collator=lambda features: _counted(collator, features),
            callbacks=[LogBookKeeper(self)],
        )
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset=None):
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return SeededOrder(len(self.train_dataset), seed)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            self.log_book.count(batch.pop("counts"))
        # Without the number the loss is the micro-batch's mean, and the Trainer divides by the accumulation steps.
        return batches, num_items_in_batch if self.loss_normalization == "step" else None

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.log_book.add_loss(loss)  # its share of the step's mean
        return loss

    def _save_checkpoint(self, model, trial):
        start = time.monotonic()
        self.log_book.see_memory(self.memory)
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            seal_checkpoint(folder, self.log_book.state(now=start - self.seconds_saving))
        self.seconds_saving += time.monotonic() - start


def _counted(collator, features) -> dict:
    """A batch with what it holds; the counts leave it again before the model sees it."""
    batch = collator(features)
    rows, width = batch["input_ids"].shape
    tokens = sum(len(feature["input_ids"]) for feature in features)
    supervised = int((batch["labels"] != IGNORE_INDEX).sum())
    batch["counts"] = {"rows": rows, "slots": rows * width, "tokens": tokens, "supervised": supervised}
    return batch


@dataclass
class LogBook:
    """Everything measured so far; kept in the checkpoints so that a resumed training reports all of itself."""

    identity: str
    seconds: float = 0.0  # of the training loop up to the last checkpoint
    samples_seen: dict = field(default_factory=lambda: {"rows": 0, "slots": 0, "tokens": 0, "supervised": 0})
    losses: list = field(default_factory=list)  # one per optimizer step, per supervised token
    supervised: list = field(default_factory=list)  # supervised tokens up to and with each step
    learning_rates: list = field(default_factory=list)
    peak_memory_bytes: int = 0
    peak_memory_kind: str = ""
    started: float | None = None  # on the monotonic clock, set so that now - started is seconds

    def see_memory(self, memory) -> None:
        self.peak_memory_bytes, self.peak_memory_kind = max(self.peak_memory_bytes, memory.bytes()), memory.kind

    def count(self, counts: dict) -> None:
        for name, n in counts.items():
            self.samples_seen[name] += n

    def add_loss(self, loss) -> None:
        """Add a micro-batch's share of the step's loss; the tensor stays where it is (no wait for the device)."""
        if len(self.losses) == len(self.learning_rates):
            self.losses.append(0.0)
        self.losses[-1] = self.losses[-1] + loss.detach()

    def finish_step(self, learning_rate: float) -> None:
        self.learning_rates.append(learning_rate)
        self.supervised.append(self.samples_seen["supervised"])

    def settle(self) -> None:
        """Bring the losses over from the device; ModelError as soon as one is not a number."""
        self.losses = [float(loss) for loss in self.losses]
        bad = next((i for i, loss in enumerate(self.losses) if not math.isfinite(loss)), None)
        if bad is not None:
            raise ModelError(f"the loss is {self.losses[bad]} at step {bad + 1}: lower learning_rate, or drop fp16")

    def state(self, now: float) -> dict:
        self.settle()
        return {**asdict(self), "seconds": now - self.started, "started": None}

    def report(self, *, n_samples, epochs, logging_steps, **facts) -> TrainReport:
        seen, steps = self.samples_seen, len(self.losses)
        return TrainReport(
            seconds=self.seconds,
            optimizer_steps=steps,
            n_samples=n_samples,
            epochs=epochs,
            samples_per_second=n_samples * epochs / self.seconds,
            supervised_tokens=seen["supervised"],
            supervised_tokens_per_second=seen["supervised"] / self.seconds,
            tokens=seen["tokens"],
            slots=seen["slots"],
            padding_rate=1 - seen["tokens"] / seen["slots"],
            rows=seen["rows"],
            peak_memory_bytes=self.peak_memory_bytes,
            peak_memory_kind=self.peak_memory_kind,
            final_loss=float(np.mean(self.losses[-max(1, steps // 10) :])),
            loss_curve=self.curve(logging_steps),
            hardware=environment_facts(),
            **facts,
        )

    def curve(self, every: int) -> list[dict]:
        """Mean loss of each `every` steps, at their last step."""
        windows = [range(start, min(start + every, len(self.losses))) for start in range(0, len(self.losses), every)]
        return [
            {
                "step": window[-1] + 1,
                "loss": float(np.mean([self.losses[step] for step in window])),
                "supervised_tokens": self.supervised[window[-1]],
                "learning_rate": self.learning_rates[window[-1]],
            }
            for window in windows
        ]


class LogBookKeeper(TrainerCallback):
    """Writes the log book step by step and prints where the training is and how long it will take."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.printed = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.log_book.started = time.monotonic() - self.trainer.log_book.seconds
        self.first_step, self.began, self.printed = state.global_step, time.monotonic(), time.monotonic()

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.learning_rate = float(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.log_book.finish_step(self.learning_rate)
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
                f"{book.samples_seen['supervised'] / seconds:,.0f} supervised tokens/s  "
                f"{_clock(seconds)} elapsed, {_clock(left)} left",
                flush=True,
            )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def run_trainer(trainer, checkpoint) -> None:
    """Train from the checkpoint (or the start) under the memory watch; the log book has the sums afterwards."""
    book = trainer.log_book
    if checkpoint is not None:
        print(f"resuming from {checkpoint.name}", flush=True)
        for name, value in read_json(checkpoint / SEALED)["log_book"].items():
            setattr(book, name, value)
    with PeakMemory() as memory:
        trainer.memory = memory
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        book.seconds = time.monotonic() - book.started - trainer.seconds_saving
        book.see_memory(memory)
    book.settle()


# ---- checkpoints and the model -------------------------------------------------------------------------------------


def seal_checkpoint(folder, log_book_state) -> None:
    """Write, last and by rename, what the checkpoint holds: sizes and hashes of its files, and the log book."""
    files = {path.name: file_stamp(path) for path in sorted(Path(folder).iterdir()) if path.is_file()}
    write_json(Path(folder) / SEALED, {"files": files, "log_book": log_book_state})


def file_stamp(path, hash_up_to: int = 2**30) -> list:
    """Size in bytes and sha256, the latter only up to 1 GiB: hashing 80 GB takes longer than the steps it protects."""
    size = path.stat().st_size
    return [size, sha256_file(path) if size <= hash_up_to else None]


def latest_checkpoint(folder, identity):
    """The newest complete checkpoint of this very training, or None; unusable ones are removed and named."""
    found = sorted(Path(folder).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    for path in found:
        problem = checkpoint_problem(path, identity)
        if problem is None:
            return path
        print(f"{path.name} is not used: {problem}", flush=True)
        shutil.rmtree(path, ignore_errors=True)
    return None


def checkpoint_problem(folder, identity):
    """Why this checkpoint cannot be resumed from; None when it can."""
    try:
        seal = read_json(folder / SEALED)
        stamps = {name: file_stamp(folder / name) for name in seal["files"]}
    except (ArtifactError, OSError, KeyError):
        return "it is half written"
    damaged = sorted(name for name, stamp in seal["files"].items() if stamps[name] != stamp)
    if damaged:
        return f"{', '.join(damaged)} is damaged"
    if seal["log_book"]["identity"] != identity:
        return "it belongs to a training with other data or arguments"
    return None


def save_model(trainer, tokenizer, folder) -> None:
    """Write weights (or adapter), configuration and tokenizer beside `folder` and put them in place by rename."""
    partial = folder.with_name(".model.partial")
    shutil.rmtree(partial, ignore_errors=True)
    trainer.model.config.use_cache = True  # it was off for training only
    trainer.save_model(str(partial))
    if trainer.is_world_process_zero():
        (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle; the arguments are in the manifest
        tokenizer.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)


# ---- a process of its own ------------------------------------------------------------------------------------------


def fine_tune_in_child(arguments: dict, *, launcher: str = "python", say=print) -> TrainReport:
    """Run `fine_tune(**arguments)` in a fresh process and hand each progress line it prints to `say`.

    A notebook's kernel holds memory of its own and must not be what is measured. The child ends when this process
    does; what libraries write to its standard error goes to `training.log` in the output folder. `launcher`
    "accelerate" starts it through `accelerate launch`. Raises ModelError with the last line of that file.
    """
    output_dir = make_folder(arguments["output_dir"])
    config, log = output_dir / "train.json", output_dir / "training.log"
    write_json(config, {name: _plain(value) for name, value in arguments.items()})
    start = [sys.executable, "-m"] + (["accelerate.commands.launch", "-m"] if launcher == "accelerate" else [])
    command = [*start, "codeact_lib.training", "--config", str(config), "--with-parent"]
    root = str(Path(__file__).resolve().parents[1])
    environment = {
        **FEW_KERNELS,
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.getenv("PYTHONPATH")])),
    }
    pipes = {"stdout": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(command, stderr=errors, env=environment, **pipes) as child,
    ):
        try:
            for line in child.stdout:
                say(line.rstrip())
        except BaseException:  # an interrupted cell must not leave a training behind
            child.terminate()
            raise
    if child.returncode:
        raise ModelError(f"training ended with exit code {child.returncode}: {_last_line(log)}")
    return TrainReport(**read_json(output_dir / "train_metrics.json"))


def _last_line(log) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["killed, out of memory?"]
    return lines[-1].removeprefix("error: ")


def _plain(value):
    """Paths and templates as the text that names them."""
    return value.name if hasattr(value, "sha256") else str(value) if isinstance(value, os.PathLike) else value


def _leave_with_parent() -> None:
    """End this process when the one that started it is gone, or it would go on in a folder someone else resumes."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(argv=None) -> int:
    """The command line; returns the exit code, 1 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m codeact_lib.training", description="Fine-tune one model.")
    parser.add_argument("--config", required=True, help="JSON file with the arguments of fine_tune")
    parser.add_argument("--with-parent", action="store_true", help="end when the process that started this one ends")
    options = parser.parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # the progress lines are our own
    warnings.simplefilter("ignore", FutureWarning)
    if options.with_parent:
        _leave_with_parent()
    try:
        arguments = read_json(options.config)
        missing = sorted({"train_jsonl", "model_path", "output_dir", "template"} - set(arguments))
        if missing:
            raise ProfileError(f"{options.config} lacks {', '.join(missing)}")
        fine_tune(**arguments)
    except CodeActError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
