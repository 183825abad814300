"""Memory and disk of a training, before it starts: predicted from the configuration, and made to fit.

The estimate needs no weight and no GPU. Where the layout asked for does not fit, `per_device_train_batch_size` is
lowered and `gradient_accumulation_steps` raised, so that a step keeps its samples and (with the loss divided by the
supervised tokens of the step) its gradient; only when a batch of one is still too much, `max_length` is lowered, which
cuts samples and therefore changes the training. Both are said, and stand in `train_metrics.json`.

torch is imported where it is needed: `codeact plan` imports this file and must start at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from codeact_lib.errors import ArtifactError, ModelError
from codeact_lib.hub import hub_error, pinned_revision

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments

GB = 1e9

# Bytes of state per trained weight, by the name of the optimizer in TrainingArguments (its beginning).
OPTIMIZER_BYTES = {"adamw_bnb_8bit": 2, "adamw_8bit": 2, "paged_adamw_8bit": 2, "adamw": 8, "paged_adamw": 8}
LOGIT_CHUNK = 512  # positions whose logits exist at one time: `modeling.loss.CHUNK`, which a test compares

# ---- memory and disk -----------------------------------------------------------------------------------------------


def memory_estimate(
    path: str | Path | PreTrainedConfig,
    *,
    revision: str | None = None,
    tuning: str = "full",
    targets: Sequence[str] = (),
    lora_r: int = 8,
    dtype: torch.dtype | None = None,
    optim: str = "adamw",
    slots: float = 0,
    ranks: int = 1,
    gradient_checkpointing: bool = False,
    half_precision: bool = False,
) -> dict[str, float]:
    """Bytes that training needs on one device, by purpose: `weights`, `gradients`, `optimizer`, `activations`.

    `path` is a model's folder or hub id, or its configuration; `dtype` that of its weights (None: float32). `slots` is
    the largest micro-batch in tokens with padding, `ranks` over how many devices weights are sharded (1: not at all).
    The first three are exact up to a few per cent; `activations` counts what a Llama-type layer keeps for the backward
    pass (ten hidden and four intermediate vectors a token, and under an adapter the input of each adapted layer once
    more, behind its dropout; with gradient checkpointing that is for one layer only, else one hidden vector a layer)
    and one chunk of logits.
    """
    model = _without_weights(path, revision)
    total = sum(parameter.numel() for parameter in model.parameters())
    if tuning == "full":
        targets = ()
        trained = total
        adapters = 0
    else:
        trained = _adapter_size(model, targets, lora_r)
        adapters = 4 * trained
    itemsize = 4 if dtype is None else dtype.itemsize
    weights = _four_bit_bytes(model) if tuning == "qlora" else total * itemsize
    optimizer = next((size for name, size in OPTIMIZER_BYTES.items() if optim.startswith(name)), 0)
    return {
        "weights": (weights + adapters) / ranks,
        "gradients": 4 * trained / ranks,
        "optimizer": optimizer * trained / ranks,
        "activations": _activations(model.config, slots, gradient_checkpointing, 2 if half_precision else 4, targets),
    }


def memory_by_slots(path: str | Path | PreTrainedConfig, **options: Any) -> Callable[[float], dict[str, float]]:
    """`memory_estimate` as a function of `slots`, in which it is linear: the model's shape is read only twice."""
    none = memory_estimate(path, slots=0, **options)
    per_slot = memory_estimate(path, slots=1, **options)["activations"] - none["activations"]
    return lambda slots: {**none, "activations": none["activations"] + slots * per_slot}


def _without_weights(path: str | Path | PreTrainedConfig, revision: str | None) -> PreTrainedModel:
    """The model on the meta device: shapes, and no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = path
    try:
        if isinstance(path, str | Path):
            commit = pinned_revision(path, revision)
            config = AutoConfig.from_pretrained(path, revision=commit, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise hub_error(error, path, revision) from error


def _linear_layers(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Linear]]:
    """Last name and module of each linear layer."""
    import torch

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            yield name.split(".")[-1], module


def _four_bit_bytes(model: PreTrainedModel) -> float:
    """NF4 with doubly quantised scales in the layers' matrices; embeddings, head and norms stay, in float32."""
    head = model.get_output_embeddings()
    packed = sum(layer.weight.numel() for _, layer in _linear_layers(model) if layer is not head)
    return 0.516 * packed + 4 * (sum(p.numel() for p in model.parameters()) - packed)


def _adapter_size(model: PreTrainedModel, targets: Sequence[str], r: int) -> int:
    adapted = (layer for name, layer in _linear_layers(model) if name in targets)
    return sum(r * (layer.in_features + layer.out_features) for layer in adapted)


def _activations(
    config: PreTrainedConfig, slots: float, gradient_checkpointing: bool, itemsize: int, adapted: Sequence[str]
) -> float:
    hidden = config.hidden_size
    layers = config.num_hidden_layers
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden  # GPT-2 has no name for it
    one_layer = 10 * hidden + 4 * intermediate
    for name in adapted:
        one_layer += (intermediate if name == "down_proj" else hidden) * (1 + 1 / itemsize)
    kept = one_layer + layers * hidden if gradient_checkpointing else layers * one_layer
    return float(slots * kept * itemsize + 3 * 4 * LOGIT_CHUNK * config.vocab_size)


def check_memory(estimate: dict[str, float], available: float, place: str) -> str:
    """One line that says what training needs and what there is.

    Raises ModelError with the sum and the remedies when weights, gradients and optimizer alone do not fit: the part of
    the estimate that is sure. `available` is in bytes, `place` names the device.
    """
    parts = ", ".join(f"{name} {size / GB:.3g}" for name, size in estimate.items())
    need = sum(estimate.values())
    line = f"memory estimate: {need / GB:.3g} GB ({parts}) of {available / GB:.3g} GB on {place}"
    if need - estimate["activations"] > available:
        raise ModelError(
            f"{line}: it does not fit. Take tuning lora or qlora, a smaller model, or more devices with "
            "accelerate_config fsdp2"
        )
    return line if need <= available else f"{line}: tight; lower per_device_train_batch_size if it fails"


def available_memory(args: TrainingArguments) -> tuple[float, str]:
    """Bytes on the device that `TrainingArguments` choose, and its name."""
    import torch

    if args.use_cpu or not torch.cuda.is_available():
        return float(psutil.virtual_memory().available), "this machine"
    device = torch.cuda.get_device_properties(args.device)
    return float(device.total_memory), device.name


def free_gpu_memory(args: TrainingArguments) -> float | None:
    """Bytes free on the GPU of this process, the least over all processes; None where training uses no GPU."""
    import torch

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


def check_disk(folder: Path, estimate: dict[str, float], keep: int | None, ranks: int = 1) -> None:
    """Raise ArtifactError when checkpoints and model would not fit on the disk of `folder`.

    At the peak there are `keep` checkpoints (None: two are reckoned with), one being written, and the model. A
    checkpoint holds what is trained, which takes as much as its gradients, and the optimizer's state. Space that
    checkpoints of an earlier attempt take already counts as free.
    """
    weights = estimate["gradients"] * ranks
    checkpoint = weights + estimate["optimizer"] * ranks
    need = ((keep or 2) + 1) * checkpoint + weights
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free + taken
    if need > free:
        raise ArtifactError(
            f"checkpoints and model need {need / GB:.1f} GB, {folder} has {free / GB:.1f} GB: free some space, choose "
            "another folder with --artifacts-dir, or lower save_total_limit"
        )


# ---- a layout that fits --------------------------------------------------------------------------------------------

HEADROOM = 0.9  # of the free memory: fragments, workspaces of kernels, and what an estimate leaves out
SHORTEST = 256  # tokens; a shorter max_length would cut most samples of an instruction set


@dataclass(frozen=True)
class BatchLayout:
    """How one process takes the samples of an optimizer step."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    max_length: int


class FittedLayout(NamedTuple):
    """A layout that fits, and how that was planned: the content of `memory_plan` in `train_metrics.json`.

    The plan has `predicted_bytes`, `available_bytes`, the layout's three numbers, and in `lowered` what was changed.
    """

    layout: BatchLayout
    plan: dict[str, Any]


def smaller_layouts(layout: BatchLayout, batches: bool = True) -> Iterator[BatchLayout]:
    """The layout, then ever smaller ones: batch sizes that divide the step, then a batch of one with shorter samples.

    With `batches` false (samples of a whole step packed together) the batch size decides nothing and stays.
    """
    step = layout.per_device_train_batch_size * layout.gradient_accumulation_steps
    yield layout
    if batches:
        for batch in range(layout.per_device_train_batch_size - 1, 0, -1):
            if step % batch == 0:
                layout = replace(layout, per_device_train_batch_size=batch, gradient_accumulation_steps=step // batch)
                yield layout
    for eighths in range(7, 0, -1):
        length = layout.max_length * eighths // 8
        if length >= SHORTEST:
            yield replace(layout, max_length=length)


def fit_layout(
    layout: BatchLayout, need: Callable[[BatchLayout], float], available: float, place: str, batches: bool = True
) -> FittedLayout:
    """The first of `smaller_layouts` whose predicted peak fits, and the plan.

    `need(layout)` predicts the peak in bytes, `available` is what `place` has free. Raises ModelError when even the
    smallest layout does not fit.
    """
    for smaller in smaller_layouts(layout, batches):
        peak = need(smaller)
        if peak <= HEADROOM * available:
            asked = asdict(layout)
            fitted = asdict(smaller)
            lowered = [f"{name} {asked[name]} -> {fitted[name]}" for name in asked if asked[name] != fitted[name]]
            plan = {"predicted_bytes": round(peak), "available_bytes": round(available), **fitted}
            return FittedLayout(smaller, {**plan, "lowered": ", ".join(lowered)})
    raise ModelError(
        f"even {smaller.per_device_train_batch_size} sample of {smaller.max_length} tokens at a time would need "
        f"{peak / GB:.3g} GB, {HEADROOM:.0%} of the {available / GB:.3g} GB free on {place} may be used: take tuning "
        "lora or qlora, gradient_checkpointing true, a smaller model, or more devices with accelerate_config fsdp2"
    )


def plan_line(plan: dict[str, Any], place: str) -> str:
    """What was planned, as one line; what was lowered comes first, because the user asked for something else."""
    fit = f"predicted peak {plan['predicted_bytes'] / GB:.3g} GB (an estimate) of {plan['available_bytes'] / GB:.3g} GB"
    if not plan["lowered"]:
        return f"memory plan: {fit} free on {place}; nothing had to be lowered"
    cut = "; samples are cut shorter than asked for" if "max_length" in plan["lowered"] else ""
    return f"memory plan: {plan['lowered']}, so that training fits{cut}: {fit} free on {place}"
