"""Fine-tune a base model on instructions with any padding strategy, survive a kill, and measure what it cost.

    python -m codeact_lib.training --config train.json          # the arguments of fine_tune, by name
    accelerate launch --config_file fsdp2.yaml -m codeact_lib.training --config train.json      # several GPUs or nodes

A training killed at any moment goes on from its last complete checkpoint when started again with the same arguments,
and ends with the loss, the seconds and the token counts of an undisturbed one. With other arguments it starts anew.

Files in `output_dir`: `checkpoints/` (while training), `model/` (weights as safetensors, or the LoRA adapter, the
tokenizer and a model card), `train_metrics.json` (written last).
"""

import copy
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from codeact_lib.artifacts import atomic_write, locked, read_json, sha256_file, sha256_json, write_json
from codeact_lib.errors import ModelError
from codeact_lib.measure import environment_facts, model_flops, peak_flops_per_second
from codeact_lib.modeling.attention import FLASH, SEGMENTS, check_segment_support, flash_attention_runs_here
from codeact_lib.modeling.load import load_base_model, load_tokenizer, resolve_path
from codeact_lib.modeling.loss import causal_lm
from codeact_lib.packing.collate import DynamicPackCollator
from codeact_lib.packing.plan import PaddingStrategy, strategy_name
from codeact_lib.prompts import PromptTemplate
from codeact_lib.training import memory
from codeact_lib.training.checkpoints import SEALED, STATE, latest_checkpoint, save_model
from codeact_lib.training.report import TrainRecorder, TrainReport
from codeact_lib.training.settings import TrainSettings, make_arguments, weight_dtype
from codeact_lib.training.steps import OptimizerSteps, TokenizedRows, read_rows, tokenize_rows
from codeact_lib.training.trainer import PackedTrainer

# What may change between two attempts without making the first one's checkpoints useless.
NOT_IN_IDENTITY = ("save_steps", "save_total_limit", "logging_steps")
LOCK = ".training.lock"  # in the output folder


class TrainingPlan(NamedTuple):
    """All that is known before a weight is read: samples, steps, and whether they fit."""

    args: TrainingArguments
    tokenizer: PreTrainedTokenizerBase
    rows: TokenizedRows
    steps: OptimizerSteps
    memory_plan: dict[str, Any] | None = None  # None where the device's memory is not known


def fine_tune(
    train_jsonl: str | Path,
    *,
    model_path: str | Path,
    output_dir: str | Path,
    template: str | PromptTemplate,
    **options: Any,
) -> TrainReport:
    """Fine-tune `model_path` on the rows of `train_jsonl` and write the model and its metrics into `output_dir`.

    `options` are the other fields of `TrainSettings`; every other keyword is a `transformers.TrainingArguments` one.
    Raises DataError, ModelError, ProfileError or ArtifactError with a remedy, before training where that can be known.
    """
    settings = TrainSettings.from_keywords(
        train_jsonl=train_jsonl, model_path=model_path, output_dir=output_dir, template=template, **options
    )
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    args = make_arguments(settings.output_dir / "checkpoints", settings.training_arguments)
    first = args.process_index == 0
    busy = f"another process is training into {settings.output_dir}: wait or stop it"
    # Processes that were launched together share the folder: the first one holds its lock for all.
    with locked(settings.output_dir / LOCK, busy) if first else nullcontext():
        set_seed(args.seed)
        plan = plan_training(settings, args)
        trainer = load(settings, plan)
        trainer.run()
        save_model(trainer, plan.tokenizer, settings.output_dir / "model")
        report = make_report(settings, plan, trainer)
        if first:
            write_results(settings, report)
    return report


# ---- before a weight is read ---------------------------------------------------------------------------------------
def plan_training(settings: TrainSettings, args: TrainingArguments) -> TrainingPlan:
    """Tokenise, choose the layout that fits the memory there is, say so, and refuse what memory or disk cannot hold."""
    tokenizer = load_tokenizer(settings.model_path, settings.revision)
    rows = read_rows(settings.train_jsonl)
    estimate = memory_of(settings, args)

    @cache
    def tokenized(max_length: int) -> TokenizedRows:
        return tokenize_rows(rows, tokenizer, settings.template, max_length, settings.train_jsonl, settings.overlong)

    @cache
    def planned(layout: memory.BatchLayout) -> TrainingPlan:
        # Copied, because new TrainingArguments would set up device and process group once more.
        own = copy.copy(args)
        own.per_device_train_batch_size = layout.per_device_train_batch_size
        own.gradient_accumulation_steps = layout.gradient_accumulation_steps
        tokenised = tokenized(layout.max_length)
        collator = DynamicPackCollator(tokenizer, layout.max_length, settings.strategy, settings.isolate)
        packing = (settings.packing_scope, settings.tokens_per_micro_batch)
        return TrainingPlan(own, tokenizer, tokenised, OptimizerSteps(tokenised.samples, collator, own, *packing))

    def needs(layout: memory.BatchLayout) -> dict[str, float]:
        return estimate(planned(layout).steps.largest_micro_batch())

    layout = memory.BatchLayout(args.per_device_train_batch_size, args.gradient_accumulation_steps, settings.max_length)
    available = settings.device_memory or free_gpu_memory(args)
    memory_plan: dict[str, Any] | None = None
    if available is None:
        line = memory.check_memory(needs(layout), float(psutil.virtual_memory().available), "this machine")
    else:
        batches = settings.packing_scope == "batch"
        layout, memory_plan = memory.fit_layout(layout, needs, available, "the device", batches)
        line = memory.plan_line(memory_plan, "the device")
    if args.process_index == 0:
        memory.check_disk(settings.output_dir, needs(layout), args.save_total_limit, sharding_ranks(args))
        print(line, flush=True)
    return planned(layout)._replace(memory_plan=memory_plan)


def free_gpu_memory(args: TrainingArguments) -> float | None:
    """Bytes free on the GPU of this process, the least over all processes; None where training uses no GPU."""
    if args.use_cpu or not torch.cuda.is_available():
        return None
    free = torch.tensor(float(torch.cuda.mem_get_info(args.device)[0]), device=args.device)
    # All processes must lay out their samples alike, so the fullest device decides.
    if args.world_size > 1:
        torch.distributed.all_reduce(free, torch.distributed.ReduceOp.MIN)
    return float(free)


def sharding_ranks(args: TrainingArguments) -> int:
    """Over how many processes the weights are sharded: all under FSDP, one otherwise."""
    return args.world_size if os.getenv("ACCELERATE_USE_FSDP", "").lower() == "true" else 1


def memory_of(settings: TrainSettings, args: TrainingArguments) -> Callable[[float], dict[str, float]]:
    """Bytes of memory by purpose of this training, as a function of the slots of its largest micro-batch."""
    return memory.memory_by_slots(
        memory.without_weights(resolve_path(settings.model_path), settings.revision),
        tuning=settings.tuning,
        targets=settings.lora_target_modules,
        lora_r=settings.lora_r,
        optim=str(args.optim.value),
        ranks=sharding_ranks(args),
        gradient_checkpointing=args.gradient_checkpointing,
        half_precision=args.bf16 or args.fp16,
    )


def identity(settings: TrainSettings, plan: TrainingPlan) -> str:
    """sha256 of what decides the result: only a training of the same one goes on from a checkpoint."""
    packing = {"packing_scope": settings.packing_scope, "tokens_per_micro_batch": settings.tokens_per_micro_batch}
    data = [settings.template.sha256, strategy_name(settings.strategy), settings.isolate]
    # Of the layout only max_length is in it: the others change how a step is cut, not what is learnt.
    data += [plan.steps.collator.max_length, settings.loss_normalization, packing, settings.overlong]
    model = [str(settings.model_path), settings.revision, settings.tuning, settings.lora()]
    arguments = settings.training_arguments
    return sha256_json(
        {
            "train": sha256_file(settings.train_jsonl),
            "model": [*model, settings.attn_implementation],
            "data": data,
            "arguments": {name: arguments[name] for name in arguments if name not in NOT_IN_IDENTITY},
            "processes": plan.args.world_size,
        }
    )


# ---- the model and its trainer -------------------------------------------------------------------------------------
def load(settings: TrainSettings, plan: TrainingPlan) -> PackedTrainer:
    """The model, with the attention that was asked for or the fastest one that serves, and what was trained before."""
    args = plan.args
    model = load_base_model(
        settings.model_path,
        revision=settings.revision,
        tuning=settings.tuning,
        dtype=weight_dtype(settings.tuning, args),
        attn_implementation=settings.attn_implementation or "sdpa",
        **settings.lora(),
    )
    if settings.attn_implementation is None:
        choose_attention(model, settings.strategy, settings.isolate, args)
    # Again, because a new adapter has drawn random numbers and a full training has not: dropout starts alike.
    set_seed(args.seed)
    recorder = TrainRecorder(identity(settings, plan))
    with args.main_process_first(local=False):  # it removes checkpoints that cannot be used
        checkpoint = latest_checkpoint(settings.output_dir / "checkpoints", recorder.identity)
    if checkpoint is not None:
        recorder = TrainRecorder(**read_json(checkpoint / SEALED)[STATE])
        if args.process_index == 0:
            print(f"resuming from {checkpoint.name}", flush=True)
    return PackedTrainer(model, args, plan.steps, recorder, checkpoint, settings.loss_normalization)


def choose_attention(model: PreTrainedModel, strategy: object, isolate: bool, args: TrainingArguments) -> None:
    """Switch to the fastest attention that keeps packed samples apart here; the model comes with "sdpa"."""
    if not isolate or strategy in (PaddingStrategy.TRADITIONAL, PaddingStrategy.DYNAMIC):
        return  # nothing to keep apart, and plain causal attention has the fastest kernel
    core = causal_lm(model)
    if flash_attention_runs_here(args.bf16 or args.fp16):
        core.set_attn_implementation(FLASH)
        return
    try:
        check_segment_support(model.config)
    except ModelError:
        return  # transformers' own position-based masks keep the samples apart too, only slower
    core.set_attn_implementation(SEGMENTS)


# ---- after training ------------------------------------------------------------------------------------------------
def make_report(settings: TrainSettings, plan: TrainingPlan, trainer: PackedTrainer) -> TrainReport:
    """What was measured and what it was measured of."""
    recorder = trainer.recorder
    args = plan.args
    seen = recorder.seen
    n_samples = len(plan.rows.samples)
    flops = model_flops(trainer.model, seen["tokens"], seen["pairs"])
    peak = peak_flops_per_second(args.bf16 or args.fp16)
    measured = ("seconds", "peak_memory_bytes", "peak_memory_kind", "peak_reserved_bytes", "isolation_error")
    return TrainReport(
        **{name: getattr(recorder, name) for name in measured},
        **{name: getattr(settings, name) for name in ("isolate", "packing_scope", "tuning")},
        optimizer_steps=len(recorder.losses),
        n_samples=n_samples,
        epochs=seen["samples"] / n_samples,
        samples_per_second=seen["samples"] / recorder.seconds,
        tokens=seen["tokens"],
        slots=seen["slots"],
        rows=seen["rows"],
        supervised_tokens=seen["supervised"],
        supervised_tokens_per_second=seen["supervised"] / recorder.seconds,
        padding_rate=1 - seen["tokens"] / seen["slots"],
        model_flops=flops,
        model_flops_utilization=None if peak is None else flops / (recorder.seconds * peak * args.world_size),
        final_loss=float(np.mean(recorder.losses[-max(1, len(recorder.losses) // 10) :])),
        loss_curve=recorder.curve(max(1, int(args.logging_steps))),
        strategy=strategy_name(settings.strategy),
        attn_implementation=trainer.model.config._attn_implementation,
        template_sha256=settings.template.sha256,
        dropped=plan.rows.dropped,
        truncated=plan.rows.truncated,
        processes=args.world_size,
        resumed=trainer.checkpoint is not None,
        hardware=environment_facts(),
        memory_plan=plan.memory_plan,
    )


def write_results(settings: TrainSettings, report: TrainReport) -> None:
    """The model card, the metrics, and the checkpoints gone: everything is written, they are not needed any more."""
    data = dict(settings.described_as or {})
    title = data.pop("title", f"{Path(settings.model_path).name}, {report.strategy}")
    templates = Environment(loader=PackageLoader("codeact_lib"), undefined=StrictUndefined, keep_trailing_newline=True)
    card = templates.get_template("model_card.md.j2").render(
        report=report,
        base_model=settings.model_path,
        revision=settings.revision,
        title=title,
        data=data,
        arguments=settings.training_arguments,
    )
    with atomic_write(settings.output_dir / "model" / "README.md") as file:
        file.write(card)
    write_json(settings.output_dir / "train_metrics.json", asdict(report))
    shutil.rmtree(settings.output_dir / "checkpoints", ignore_errors=True)
