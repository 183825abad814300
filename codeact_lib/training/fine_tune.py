"""Fine-tune a base model on instructions with any padding strategy, survive a kill, and measure what it cost.

    python -m codeact_lib.training --config train.json          # train.json: the arguments of fine_tune, by name
    accelerate launch --config_file fsdp2.yaml -m codeact_lib.training --config train.json      # several GPUs or nodes

A training killed at any moment goes on from its last complete checkpoint when started again with the same arguments,
and ends with the loss, the seconds and the token counts of an undisturbed one.

Files in `output_dir`: `checkpoints/` (while training), `model/` (weights as safetensors, or the LoRA adapter, the
tokenizer and a model card), `train_metrics.json` (written last).
"""

import argparse
import copy
import fcntl
import inspect
import re
import shutil
import sys
import time
import warnings
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch
from transformers.utils import logging

from codeact_lib.artifacts import make_folder, read_json, sha256_file, sha256_json, write_json
from codeact_lib.errors import ArtifactError, CodeActError, ModelError, ProfileError
from codeact_lib.measure import model_flops, peak_flops_per_second
from codeact_lib.modeling.attention import FLASH, SEGMENTS, check_segment_support, flash_attention_runs_here
from codeact_lib.modeling.load import LORA_TARGETS, compute_device, load_base_model, load_tokenizer
from codeact_lib.packing.collate import DynamicPackCollator
from codeact_lib.packing.plan import PaddingStrategy, as_strategy, strategy_name
from codeact_lib.processes import end_with
from codeact_lib.prompts import get_template
from codeact_lib.training.checkpoints import latest_checkpoint, save_model
from codeact_lib.training.launch import fine_tune_in_child
from codeact_lib.training.memory import (
    BatchLayout,
    available_memory,
    check_disk,
    check_memory,
    fit_layout,
    free_gpu_memory,
    memory_estimate,
    plan_line,
    sharding_ranks,
)
from codeact_lib.training.report import TrainReport, write_model_card
from codeact_lib.training.steps import SeededOrder, existing, make_steps, read_rows, tokenize_rows

__all__ = [
    "PROFILE_KEYS",
    "SeededOrder",
    "TrainReport",
    "fine_tune",
    "fine_tune_in_child",
    "latest_checkpoint",
    "make_arguments",
    "read_rows",
    "tokenize_rows",
]

NO_PACKING = (PaddingStrategy.TRADITIONAL, PaddingStrategy.DYNAMIC)
# What may change between two attempts without making the first one's checkpoints useless.
NOT_IN_IDENTITY = ("save_steps", "save_total_limit", "logging_steps")
# The arguments of fine_tune that a profile gives under the same name.
PROFILE_KEYS = (
    *("tuning", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "max_length", "isolate"),
    *("packing_scope", "overlong", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "bf16", "fp16"),
    *("gradient_checkpointing", "attn_implementation", "save_steps", "logging_steps", "torch_threads"),
)


def fine_tune(
    train_jsonl,
    *,
    model_path,
    output_dir,
    template,
    strategy="dynamic_pack",
    isolate=True,
    packing_scope="batch",
    tokens_per_micro_batch=None,
    overlong="truncate",
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
    described_as=None,
    device_memory=None,
    **training_arguments,
) -> TrainReport:
    """Fine-tune `model_path` on the rows of `train_jsonl` and write the model and its metrics into `output_dir`.

    `train_jsonl` has one {"instruction", "response"} object a line; rows whose prompt fills `max_length` or that have
    no text are left out and counted, longer responses are cut or, with `overlong` "drop", left out too. `strategy` and
    `isolate` are those of `DynamicPackCollator`, `packing_scope` and `tokens_per_micro_batch` those of `PackedTrainer`,
    `tuning` and the `lora_*` keys those of `load_base_model`; every other keyword is a `transformers.TrainingArguments`
    one. Without `attn_implementation` the fastest that keeps packed samples apart is chosen. `loss_normalization`
    "step" divides by the supervised tokens of the whole optimizer step; "micro_batch" averages the means of its
    micro-batches, as the authors' version of transformers did (tokens of short micro-batches then weigh more).
    `described_as` (name -> value: data set, selection) is what the model card says of the data. `device_memory`
    (bytes) is what training may use, by default what the GPU has free: where the predicted peak exceeds it, the batch
    is lowered, or else `max_length` (see `memory_planner`); on a CPU nothing is lowered unless it is given.

    Starting again after a kill resumes; starting again with other arguments starts anew. Raises DataError, ModelError,
    ProfileError or ArtifactError with a remedy, before training where the cause can be seen before.
    """
    from transformers import set_seed

    from codeact_lib.training.trainer import PackedTrainer

    output_dir, strategy, template = make_folder(output_dir), as_strategy(strategy), get_template(template)
    lora = {"lora_r": lora_r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout}
    lora["lora_target_modules"] = list(lora_target_modules)
    scope = {"packing_scope": packing_scope, "tokens_per_micro_batch": tokens_per_micro_batch}
    if loss_normalization not in ("step", "micro_batch"):
        raise ProfileError(f"unknown loss_normalization {loss_normalization!r}: choose step or micro_batch")
    if torch_threads:
        torch.set_num_threads(torch_threads)
    args = make_arguments(output_dir / "checkpoints", training_arguments)
    with only_one(output_dir) if args.process_index == 0 else nullcontext():
        set_seed(args.seed)
        tokenizer, rows = load_tokenizer(model_path, revision), read_rows(train_jsonl)

        @cache
        def tokenized(max_length):
            return tokenize_rows(rows, tokenizer, template, max_length, train_jsonl, overlong)

        def prepare(layout):
            """Arguments, collator, and what `tokenize_rows` returns, when samples are taken in this layout."""
            collator = DynamicPackCollator(tokenizer, layout.max_length, strategy, isolate)
            return with_layout(args, layout), collator, *tokenized(layout.max_length)

        estimate = memory_of(model_path, revision, tuning, lora, args)
        asked = BatchLayout(args.per_device_train_batch_size, args.gradient_accumulation_steps, max_length)
        layout, plan = fit_to_memory(asked, prepare, scope, estimate, device_memory or free_gpu_memory(args))
        args, collator, samples, dropped, truncated = prepare(layout)
        slots = make_steps(samples, collator, args, **scope).largest_micro_batch()
        check_resources(estimate(slots), plan, args, output_dir)
        # Of the layout only max_length changes what is learnt: a checkpoint of one batch size serves another.
        identity = sha256_json(
            {
                "train": sha256_file(existing(train_jsonl)),
                "model": [str(model_path), revision, tuning, lora, attn_implementation],
                "data": [
                    template.sha256,
                    strategy_name(strategy),
                    isolate,
                    layout.max_length,
                    loss_normalization,
                    scope,
                    overlong,
                ],
                "arguments": {k: v for k, v in training_arguments.items() if k not in NOT_IN_IDENTITY},
                "processes": args.world_size,
            }
        )
        model = load_model(model_path, revision, tuning, lora, attn_implementation, collator, args)
        trainer = PackedTrainer(
            model, args, samples, collator, **scope, identity=identity, loss_normalization=loss_normalization
        )
        resumed = train_and_save(trainer, tokenizer, output_dir)
        report = trainer.log_book.report(
            n_samples=len(samples),
            logging_steps=max(1, int(args.logging_steps)),
            strategy=strategy_name(strategy),
            isolate=isolate,
            packing_scope=packing_scope,
            tuning=tuning,
            attn_implementation=model.config._attn_implementation,
            template_sha256=template.sha256,
            dropped=dropped,
            truncated=truncated,
            processes=args.world_size,
            resumed=resumed,
            memory_plan=plan,
            **utilization(model, trainer.log_book, args),
        )
        if args.process_index == 0:
            finish(output_dir, report, model_path, revision, described_as, training_arguments)
    return report


def train_and_save(trainer, tokenizer, output_dir) -> bool:
    """Run the training to its end and save the model; whether it went on from a checkpoint."""
    from codeact_lib.training.trainer import run_trainer

    with trainer.args.main_process_first(local=False):  # it removes checkpoints that cannot be used
        checkpoint = latest_checkpoint(output_dir / "checkpoints", trainer.log_book.identity)
    run_trainer(trainer, checkpoint)
    save_model(trainer, tokenizer, output_dir / "model")
    return checkpoint is not None


def utilization(model, book, args) -> dict:
    """Useful floating-point operations of the training, and their share of the devices' peak (None where unknown)."""
    flops = model_flops(model, book.seen["tokens"], book.seen["pairs"])
    peak = peak_flops_per_second(args.bf16 or args.fp16)
    share = None if peak is None else flops / (book.seconds * peak * args.world_size)
    return {"model_flops": flops, "model_flops_utilization": share}


def finish(output_dir, report, model_path, revision, described_as, arguments) -> None:
    """The model card, the metrics, and the checkpoints gone: everything is written, they are not needed any more."""
    data, title = {**(described_as or {})}, f"{Path(str(model_path)).name}, {report.strategy}"
    write_model_card(
        output_dir / "model",
        report,
        base_model=str(model_path),
        revision=revision,
        title=data.pop("title", title),
        data=data,
        arguments=arguments,
    )
    write_json(output_dir / "train_metrics.json", report.to_dict())
    shutil.rmtree(output_dir / "checkpoints", ignore_errors=True)


# ---- before training -----------------------------------------------------------------------------------------------


def make_arguments(folder, given):
    """`TrainingArguments` from the keywords of a profile; ProfileError for an unknown or impossible one."""
    from transformers import TrainingArguments

    known = inspect.signature(TrainingArguments).parameters
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ProfileError(f"unknown training argument {', '.join(unknown)}: use the names of TrainingArguments")
    device = compute_device().type
    if given.get("fp16") and device != "cuda":
        raise ProfileError("fp16 needs an NVIDIA GPU: set fp16 to false (bf16 works on CPUs)")
    if given.get("bf16") and device == "mps":
        print("bf16 is left out: autocast on mps does not cover all that training uses; this one computes in float32")
        given = {**given, "bf16": False}
    defaults = {
        "save_strategy": "steps",
        "save_total_limit": 2,
        "logging_strategy": "no",  # the log book keeps every step's loss itself
        "logging_nan_inf_filter": False,  # it would wait for the device after every micro-batch
        "report_to": [],
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,  # every micro-batch, even an empty one, reaches every weight
        "remove_unused_columns": False,
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": device == "cuda",
        "seed": 0,
    }
    try:
        return TrainingArguments(output_dir=str(folder), **{**defaults, **given})
    except (ValueError, TypeError, ImportError) as error:
        raise ProfileError(f"training arguments do not fit together or this machine: {error}") from error


def weight_dtype(tuning, args) -> torch.dtype:
    """Trained weights stay in float32 (mixed precision computes in less); frozen ones need no more than the compute."""
    if tuning == "full" or not (args.bf16 or args.fp16):
        return torch.float32
    return torch.bfloat16 if args.bf16 else torch.float16


def memory_of(model_path, revision, tuning, lora, args):
    """A function from slots (tokens of the largest micro-batch, with padding) to `memory_estimate` of this training."""
    options = {"revision": revision, "tuning": tuning, "targets": lora["lora_target_modules"], "lora_r": lora["lora_r"]}
    options |= {"dtype": weight_dtype(tuning, args), "optim": str(args.optim.value), "ranks": sharding_ranks(args)}
    options |= {"gradient_checkpointing": args.gradient_checkpointing, "half_precision": args.bf16 or args.fp16}
    none, one = (memory_estimate(model_path, slots=slots, **options) for slots in (0, 1))
    per_slot = one["activations"] - none["activations"]
    return lambda slots: {**none, "activations": none["activations"] + slots * per_slot}


def with_layout(args, layout):
    """The same arguments with the batch size and accumulation of a layout."""
    args = copy.copy(args)
    args.per_device_train_batch_size = layout.per_device_train_batch_size
    args.gradient_accumulation_steps = layout.gradient_accumulation_steps
    return args


def fit_to_memory(asked, prepare, scope, estimate, available):
    """The layout to train in, and the plan; the one asked for and None where the memory is not known."""
    if available is None:
        return asked, None

    def need(layout):
        args, collator, samples, *_ = prepare(layout)
        return sum(estimate(make_steps(samples, collator, args, **scope).largest_micro_batch()).values())

    return fit_layout(asked, need, available, "the device", batches=scope["packing_scope"] == "batch")


def check_resources(estimate, plan, args, output_dir) -> None:
    """Print what memory the training will need; raise before any weight is read when it or the disk cannot do."""
    line = plan_line(plan, "the device") if plan else check_memory(estimate, *available_memory(args))
    if args.process_index == 0:
        check_disk(output_dir, estimate, args.save_total_limit, sharding_ranks(args))
        print(line, flush=True)


def load_model(model_path, revision, tuning, lora, attn_implementation, collator, args):
    """The model to train, with the attention that was asked for or the fastest one that serves."""
    from transformers import set_seed

    dtype, attention = weight_dtype(tuning, args), attn_implementation or "sdpa"
    options = {"revision": revision, "tuning": tuning, "dtype": dtype, "attn_implementation": attention}
    model = load_base_model(model_path, **options, **lora)
    if attn_implementation is None:
        choose_attention(model, collator.strategy, collator.isolate, args)
    set_seed(args.seed)
    return model


def choose_attention(model, strategy, isolate, args) -> None:
    """Switch to the fastest attention that keeps packed samples apart here; the model comes with "sdpa"."""
    if not isolate or strategy in NO_PACKING:
        return
    core = getattr(model, "get_base_model", lambda: model)()
    if flash_attention_runs_here(args.bf16 or args.fp16):
        return core.set_attn_implementation(FLASH)
    try:
        check_segment_support(model.config)
    except ModelError:
        return  # transformers' own position-based masks keep the samples apart too, only slower
    core.set_attn_implementation(SEGMENTS)


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
            except OSError:
                break  # a file system without such locks: the claim on the stage has to do
        yield


# ---- the command ---------------------------------------------------------------------------------------------------


def leave_unimported(arguments) -> None:
    """Keep the Trainer from importing what this training does not use: it imports all of it that it finds.

    That is up to a quarter of the time in which a training starts (through PEFT, bitsandbytes brings PyTorch's
    compiler), and memory that is not the training's. To Python a module that is None is not installed.
    """
    quantised = arguments.get("tuning") == "qlora" or re.search("bnb|8bit", str(arguments.get("optim")))
    unused = {"datasets": True, "peft": arguments.get("tuning", "full") == "full", "bitsandbytes": not quantised}
    for name in (name for name, is_unused in unused.items() if is_unused):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def main(argv=None) -> int:
    """The command line; returns the exit code, 1 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m codeact_lib.training", description="Fine-tune one model.")
    parser.add_argument("--config", required=True, help="JSON file with the arguments of fine_tune")
    parser.add_argument("--with-parent", type=int, metavar="PID", help="end when that process ends")
    options = parser.parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # the progress lines are our own
    warnings.simplefilter("ignore", FutureWarning)
    if options.with_parent:
        end_with(options.with_parent)
    try:
        arguments = read_json(options.config)
        missing = sorted({"train_jsonl", "model_path", "output_dir", "template"} - set(arguments))
        if missing:
            raise ProfileError(f"{options.config} lacks {', '.join(missing)}")
        leave_unimported(arguments)
        fine_tune(**arguments)
    except CodeActError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0
