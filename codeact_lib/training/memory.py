"""Memory and disk of a training, before it starts: predicted from the configuration, and made to fit.

The estimate needs no weight and no GPU. Where the layout asked for does not fit, `per_device_train_batch_size` is
lowered and `gradient_accumulation_steps` raised, so that a step keeps its samples and (with the loss divided by the
supervised tokens of the step) its gradient; only when a batch of one is still too much, `max_length` is lowered, which
cuts samples and therefore changes the training. Both are said, and stand in `train_metrics.json`.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from codeact_lib.errors import ArtifactError, ModelError
from codeact_lib.hub import hub_error, pinned_revision
from codeact_lib.modeling.loss import CHUNK

GB = 1e9
# Bytes of state per trained weight, by the name of the optimizer in TrainingArguments (its beginning).
OPTIMIZER_BYTES = {"adamw_bnb_8bit": 2, "adamw_8bit": 2, "paged_adamw_8bit": 2, "adamw": 8, "paged_adamw": 8}


# ---- what training needs -------------------------------------------------------------------------------------------
def without_weights(config: str | Path | PreTrainedConfig, revision: str | None = None) -> PreTrainedModel:
    """The model of a folder, a hub id or a configuration on the meta device: shapes, and no memory."""
    path = config
    try:
        if isinstance(path, str | Path):
            commit = pinned_revision(path, revision)
            config = AutoConfig.from_pretrained(path, revision=commit, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise hub_error(error, path, revision) from error


def memory_by_slots(
    model: PreTrainedModel,
    *,
    tuning: str = "full",
    targets: Sequence[str] = (),
    lora_r: int = 8,
    optim: str = "adamw",
    ranks: int = 1,
    gradient_checkpointing: bool = False,
    half_precision: bool = False,
) -> Callable[[float], dict[str, float]]:
    """Bytes that training needs on one device, as a function of the slots (tokens with padding) of a micro-batch.

    `model` needs no weights; `ranks` says over how many devices they are sharded. The function returns the bytes by
    purpose: `weights`, `gradients` and `optimizer` are exact up to a few per cent, `activations` is what
    `activations_per_slot` counts and one chunk of logits.
    """
    itemsize = 2 if half_precision else 4
    if tuning == "full":
        targets = ()
    weights, trained = weight_bytes(model, tuning, targets, lora_r, itemsize)
    state = next((size for name, size in OPTIMIZER_BYTES.items() if optim.startswith(name)), 0)
    sharded = {"weights": weights / ranks, "gradients": 4 * trained / ranks, "optimizer": state * trained / ranks}
    per_slot = activations_per_slot(model.config, gradient_checkpointing, itemsize, targets)
    logits = 3 * 4 * CHUNK * model.config.vocab_size
    return lambda slots: {**sharded, "activations": float(slots * per_slot + logits)}


def weight_bytes(
    model: PreTrainedModel, tuning: str, targets: Sequence[str], lora_r: int, itemsize: int
) -> tuple[float, int]:
    """Bytes of all weights, frozen ones of `itemsize` bytes each, and how many of them are trained (in float32)."""
    linear = [(name.split(".")[-1], m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    total = sum(parameter.numel() for parameter in model.parameters())
    if tuning == "full":
        return 4 * total, total
    trained = sum(lora_r * (layer.in_features + layer.out_features) for name, layer in linear if name in targets)
    if tuning == "lora":
        return total * itemsize + 4 * trained, trained
    # NF4 with doubly quantised scales in the layers' matrices; embeddings, head and norms stay, in float32.
    packed = sum(layer.weight.numel() for _, layer in linear if layer is not model.get_output_embeddings())
    return 0.516 * packed + 4 * (total - packed) + 4 * trained, trained


def activations_per_slot(
    config: PreTrainedConfig, gradient_checkpointing: bool, itemsize: int, adapted: Sequence[str]
) -> float:
    """Bytes a slot that a Llama-type model keeps for the backward pass."""
    hidden = config.hidden_size
    layers = config.num_hidden_layers
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden  # GPT-2 has no name for it
    # Vectors that autograd was seen to keep in a layer (a test counts them), and under an adapter the input of each
    # adapted layer once more, behind its dropout, whose mask is a byte for each number.
    one_layer = 10 * hidden + 4 * intermediate
    for name in adapted:
        one_layer += (intermediate if name == "down_proj" else hidden) * (1 + 1 / itemsize)
    if gradient_checkpointing:  # one layer at a time, and the hidden vector in front of each
        return itemsize * (one_layer + layers * hidden)
    return itemsize * layers * one_layer


def check_memory(estimate: dict[str, float], available: float, place: str) -> str:
    """One line that says what training needs and what there is; ModelError with the remedies when it cannot fit."""
    parts = ", ".join(f"{name} {size / GB:.3g}" for name, size in estimate.items())
    need = sum(estimate.values())
    line = f"memory estimate: {need / GB:.3g} GB ({parts}) of {available / GB:.3g} GB on {place}"
    # Weights, gradients and optimizer are the part of the estimate that is sure.
    if need - estimate["activations"] > available:
        raise ModelError(
            f"{line}: it does not fit. Take tuning lora or qlora, a smaller model, or more devices with "
            "accelerate_config fsdp2"
        )
    return line if need <= available else f"{line}: tight; lower per_device_train_batch_size if it fails"


def check_disk(folder: Path, estimate: dict[str, float], keep: int | None, ranks: int = 1) -> None:
    """Raise ArtifactError when checkpoints and model would not fit on the disk of `folder`.

    `estimate` is that of one of `ranks` devices. Space that checkpoints of an earlier attempt take counts as free.
    """
    weights = estimate["gradients"] * ranks  # what is trained takes as much as its gradients
    checkpoint = weights + estimate["optimizer"] * ranks
    # At the peak there are `keep` checkpoints (None: two are reckoned with), one being written, and the model.
    need = ((keep or 2) + 1) * checkpoint + weights
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free + taken
    if need > free:
        raise ArtifactError(
            f"checkpoints and model need {need / GB:.1f} GB, {folder} has {free / GB:.1f} GB: free some space, choose "
            "another folder with --artifacts-dir, or lower save_total_limit"
        )


# ---- a layout that fits --------------------------------------------------------------------------------------------
# Share of the free memory: the rest is for fragments, workspaces of kernels, and what an estimate leaves out.
HEADROOM = 0.9
SHORTEST = 256  # tokens; a shorter max_length would cut most samples of an instruction set


class BatchLayout(NamedTuple):
    """How one process takes the samples of an optimizer step."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    max_length: int


def smaller_layouts(layout: BatchLayout, batches: bool = True) -> Iterator[BatchLayout]:
    """The layout, then smaller ones: batch sizes that divide the step, then a batch of one with shorter samples."""
    # Without `batches`, samples of a whole step are packed together: the batch size decides nothing and stays.
    yield layout
    asked, accumulation, max_length = layout
    for batch in range(asked - 1, 0, -1):
        if batches and asked * accumulation % batch == 0:
            layout = BatchLayout(batch, asked * accumulation // batch, max_length)
            yield layout
    for eighths in range(7, 0, -1):
        length = max_length * eighths // 8
        if length >= SHORTEST:
            yield layout._replace(max_length=length)


def fit_layout(
    layout: BatchLayout,
    needs: Callable[[BatchLayout], dict[str, float]],
    available: float,
    place: str,
    batches: bool = True,
) -> tuple[BatchLayout, dict[str, Any]]:
    """The first of `smaller_layouts` whose predicted peak fits, and the plan: `memory_plan` in `train_metrics.json`.

    `needs` are the predicted bytes by purpose, `available` those that `place` has free. The plan has `predicted_bytes`,
    `available_bytes`, the layout's three numbers, and in `lowered` what was changed. ModelError when nothing fits.
    """
    for smaller in smaller_layouts(layout, batches):
        peak = sum(needs(smaller).values())
        if peak <= HEADROOM * available:
            changes = zip(layout._fields, layout, smaller, strict=True)
            lowered = [f"{name} {asked} -> {fitted}" for name, asked, fitted in changes if asked != fitted]
            plan = {"predicted_bytes": round(peak), "available_bytes": round(available), **smaller._asdict()}
            return smaller, {**plan, "lowered": ", ".join(lowered)}
    raise ModelError(
        f"even {smaller.per_device_train_batch_size} sample of {smaller.max_length} tokens at a time would need "
        f"{peak / GB:.3g} GB, {HEADROOM:.0%} of the {available / GB:.3g} GB free on {place} may be used: take tuning "
        "lora or qlora, gradient_checkpointing true, a smaller model, or more devices with accelerate_config fsdp2"
    )


def plan_line(plan: dict[str, Any], place: str) -> str:
    """What was planned, as one line."""
    # What was lowered comes first, because the user asked for something else.
    fit = f"predicted peak {plan['predicted_bytes'] / GB:.3g} GB (an estimate) of {plan['available_bytes'] / GB:.3g} GB"
    if not plan["lowered"]:
        return f"memory plan: {fit} free on {place}; nothing had to be lowered"
    cut = "; samples are cut shorter than asked for" if "max_length" in plan["lowered"] else ""
    return f"memory plan: {plan['lowered']}, so that training fits{cut}: {fit} free on {place}"
