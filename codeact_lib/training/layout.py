"""Fit a training to the memory of its GPU before it starts, without changing what an optimizer step is made of.

The peak is predicted for the layout that was asked for. Where it does not fit, `per_device_train_batch_size` is lowered
and `gradient_accumulation_steps` raised, so that a step keeps its samples and (with the loss divided by the supervised
tokens of the step) its gradient; only when a batch of one is still too much, `max_length` is lowered, which cuts
samples and therefore changes the training. Both are said, and stand in `train_metrics.json`.
"""

from dataclasses import asdict, dataclass, replace

import torch

from codeact_lib.errors import ModelError
from codeact_lib.training.memory import GB

HEADROOM = 0.9  # of the free memory: fragments, workspaces of kernels, and what an estimate leaves out
SHORTEST = 256  # tokens; a shorter max_length would cut most samples of an instruction set


@dataclass(frozen=True)
class BatchLayout:
    """How one process takes the samples of an optimizer step."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    max_length: int


def smaller_layouts(layout: BatchLayout, batches: bool = True):
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
        if (length := layout.max_length * eighths // 8) >= SHORTEST:
            yield replace(layout, max_length=length)


def fit_layout(layout: BatchLayout, need, available: float, place: str, batches: bool = True):
    """The first of `smaller_layouts` whose predicted peak fits, and the plan as a dict.

    `need(layout)` predicts the peak in bytes, `available` is what `place` has free. The plan has `predicted_bytes`,
    `available_bytes`, the layout's three numbers, and in `lowered` what was changed, in words. Raises ModelError when
    even the smallest layout does not fit.
    """
    for smaller in smaller_layouts(layout, batches):
        peak = need(smaller)
        if peak <= HEADROOM * available:
            plan = {"predicted_bytes": round(peak), "available_bytes": round(available), **asdict(smaller)}
            return smaller, plan | {"lowered": _differences(layout, smaller)}
    raise ModelError(
        f"even {smaller.per_device_train_batch_size} sample of {smaller.max_length} tokens at a time would need "
        f"{peak / GB:.3g} GB, {HEADROOM:.0%} of the {available / GB:.3g} GB free on {place} may be used: take tuning "
        "lora or qlora, gradient_checkpointing true, a smaller model, or more devices with accelerate_config fsdp2"
    )


def _differences(asked: BatchLayout, fitted: BatchLayout) -> str:
    pairs = ((name, getattr(asked, name), value) for name, value in asdict(fitted).items())
    return ", ".join(f"{name} {old} -> {new}" for name, old, new in pairs if old != new)


def plan_line(plan: dict, place: str) -> str:
    """What was planned, as one line; what was lowered comes first, because the user asked for something else."""
    fit = f"predicted peak {plan['predicted_bytes'] / GB:.3g} GB (an estimate) of {plan['available_bytes'] / GB:.3g} GB"
    if not plan["lowered"]:
        return f"memory plan: {fit} free on {place}; nothing had to be lowered"
    cut = "; samples are cut shorter than asked for" if "max_length" in plan["lowered"] else ""
    return f"memory plan: {plan['lowered']}, so that training fits{cut}: {fit} free on {place}"


def free_gpu_memory(args) -> float | None:
    """Bytes free on the GPU of this process, the least over all processes; None where training uses no GPU."""
    if args.use_cpu or not torch.cuda.is_available():
        return None
    free = torch.tensor(float(torch.cuda.mem_get_info(args.device)[0]), device=args.device)
    if args.world_size > 1:  # all must lay out their samples alike
        torch.distributed.all_reduce(free, torch.distributed.ReduceOp.MIN)
    return float(free)
