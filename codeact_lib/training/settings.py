"""What a training is asked for: the keywords of `fine_tune` as one record, and `TrainingArguments` made of the rest."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from transformers import TrainingArguments

from codeact_lib.artifacts import make_folder
from codeact_lib.config import Profile
from codeact_lib.errors import ProfileError
from codeact_lib.modeling.load import LORA_TARGETS, compute_device
from codeact_lib.packing.plan import PaddingStrategy, as_strategy
from codeact_lib.prompts import PromptTemplate, get_template


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """All that `fine_tune` can be asked for."""

    train_jsonl: str | Path  # one {"instruction", "response"} object a line
    model_path: str | Path  # a folder, a hub id, or "mini-base"
    revision: str | None = None  # of a hub model
    output_dir: Path  # for checkpoints, model and metrics
    template: PromptTemplate
    strategy: PaddingStrategy | Callable[..., Any]
    tuning: str = "full"  # all weights train; "lora" and "qlora" and the next four as in `load_base_model`
    lora_r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.1
    lora_target_modules: Sequence[str] = LORA_TARGETS
    max_length: int = 2048  # tokens of a sample
    overlong: str = "truncate"  # cut a longer response; "drop" leaves its row out
    isolate: bool = True  # samples of a row do not see each other
    # "batch" packs each per-device batch by itself (the paper), "window" all samples of an optimizer step together.
    packing_scope: str = "batch"
    attn_implementation: str | None = None  # the fastest that keeps packed samples apart
    torch_threads: int | None = None  # of PyTorch on a CPU: its default
    # Slots of a micro-batch under packing_scope "window"; None takes two rows of max_length.
    tokens_per_micro_batch: int | None = None
    # "step" divides the loss by the supervised tokens of the whole optimizer step; "micro_batch" averages the means of
    # its micro-batches, as the authors' version of transformers did (tokens of short micro-batches then weigh more).
    loss_normalization: str = "step"
    # What the model card says of the data, name -> value (data set, selection); "title" is the card's title.
    described_as: Mapping[str, object] | None = None
    # Bytes that training may use; None takes what the GPU has free. Where the predicted peak exceeds it, the batch is
    # lowered, or else max_length; on a CPU nothing is lowered unless it is given.
    device_memory: float | None = None
    training_arguments: dict[str, Any]  # every other keyword: those of transformers.TrainingArguments

    @classmethod
    def from_keywords(cls, **given: Any) -> Self:
        """The record of a call: names looked up, and what is no field kept for `TrainingArguments`.

        Raises DataError for an unknown `template` or `strategy`, ProfileError for an unknown `loss_normalization`.
        """
        names = {field.name for field in fields(cls)} - {"training_arguments"}
        own = {name: given.pop(name) for name in names & given.keys()}
        if own.get("loss_normalization", "step") not in ("step", "micro_batch"):
            raise ProfileError(f"unknown loss_normalization {own['loss_normalization']!r}: choose step or micro_batch")
        own["output_dir"] = make_folder(own["output_dir"])
        own["template"] = get_template(own["template"])
        own["strategy"] = as_strategy(own.get("strategy", "dynamic_pack"))
        return cls(**own, training_arguments=given)

    def lora(self) -> dict[str, Any]:
        """The `lora_` keywords of `load_base_model`."""
        return {name: getattr(self, name) for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")}


ARGUMENTS = inspect.signature(TrainingArguments).parameters.keys()
# What a profile gives under the same name as fine_tune or TrainingArguments; the seed is that of a run.
TAKEN = {field.name for field in fields(TrainSettings)} | ARGUMENTS - {"seed"}
PROFILE_KEYS = [name for name in Profile.model_fields if name in TAKEN - {"training_arguments"}]


def make_arguments(folder: str | Path, given: Mapping[str, Any]) -> TrainingArguments:
    """`TrainingArguments` from the keywords of a profile; ProfileError for an unknown or impossible one."""
    unknown = sorted(given.keys() - ARGUMENTS)
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
        # The recorder keeps every step's loss itself, and the filter waits for the device after every micro-batch.
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        # Every micro-batch, even an empty one, reaches every weight.
        "ddp_find_unused_parameters": False,
        "remove_unused_columns": False,
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": device == "cuda",
        "seed": 0,
    }
    try:
        return TrainingArguments(output_dir=str(folder), **{**defaults, **given})
    except (ValueError, TypeError, ImportError) as error:
        raise ProfileError(f"training arguments do not fit together or this machine: {error}") from error


def half_dtype(args: TrainingArguments) -> torch.dtype | None:
    """The precision that mixed precision computes in, None without it."""
    if args.bf16:
        return torch.bfloat16
    return torch.float16 if args.fp16 else None


def weight_dtype(tuning: str, args: TrainingArguments) -> torch.dtype:
    """In what precision the weights are held."""
    # Trained ones stay in float32 (mixed precision computes in less); frozen ones need no more than the compute.
    if tuning == "full":
        return torch.float32
    return half_dtype(args) or torch.float32
