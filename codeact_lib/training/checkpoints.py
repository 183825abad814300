"""Checkpoints that are either whole or not used, the folder of the finished model, and adapters merged into it.

A checkpoint is written file by file, then sealed: a last file, put in place by rename, names every other one with its
size and hash. What is not sealed, or not as the seal says, is never resumed from; the one before it is. The Trainer
itself resumes from half-written folders.
"""

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from codeact_lib.artifacts import read_json, sha256_file, write_json
from codeact_lib.errors import ArtifactError, ModelError, first_line
from codeact_lib.modeling.load import adapter_base, evaluation_mode, load_base_model, load_tokenizer, recorded_tuning

SEALED = "codeact_checkpoint.json"
# The recorder's key in the seal: its name of old, so that checkpoints of old are gone on from.
STATE = "log_book"
# Each library has its own error for a full disk.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
# Bytes. Hashing 80 GB takes longer than the steps it protects.
HASH_UP_TO = 2**30
# Of the largest logit: rounding of a merged weight, far below what the wrong base does.
MERGE_TOLERANCE = 1e-2


def seal_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write, last and by rename, what the checkpoint holds: sizes and hashes of its files, and the recorder's state."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): size_and_hash(path) for path in paths}
    write_json(folder / SEALED, {"files": files, STATE: state})


def size_and_hash(path: Path) -> list[int | str | None]:
    """Size in bytes and sha256, the latter only up to `HASH_UP_TO`."""
    size = path.stat().st_size
    return [size, sha256_file(path) if size <= HASH_UP_TO else None]


def latest_checkpoint(folder: str | Path, identity: str) -> Path | None:
    """The newest complete checkpoint of this very training, or None; unusable ones are removed and named."""
    for path in checkpoints_in(folder):
        problem = problem_of(path, identity)
        if problem is None:
            return path
        print(f"{path.name} is not used: {problem}", flush=True)
        shutil.rmtree(path, ignore_errors=True)
    return None


def checkpoints_in(folder: str | Path) -> list[Path]:
    """Checkpoint folders, the newest first."""
    return sorted(Path(folder).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)


def problem_of(folder: Path, identity: str) -> str | None:
    """Why this checkpoint cannot be resumed from; None when it can."""
    try:
        seal = read_json(folder / SEALED)
        files = seal["files"]
        owner = seal[STATE]["identity"]
    except (ArtifactError, KeyError, TypeError):
        return "it is half written"
    for name, stamp in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if size_and_hash(folder / name) != stamp:
            return f"{name} is damaged"
    return None if owner == identity else "it belongs to a training with other data or arguments"


def unwritten(unfinished: Path, name: str, checkpoints: str | Path, error: Exception) -> ArtifactError:
    """The error for a checkpoint or model that could not be written; the half-written folder is removed."""
    # Half a checkpoint may be what fills the disk.
    shutil.rmtree(unfinished, ignore_errors=True)
    earlier = checkpoints_in(checkpoints)
    onward = f"goes on from {earlier[0].name}" if earlier else "begins anew, no earlier checkpoint is there"
    free = shutil.disk_usage(unfinished.parent).free / 1e9
    return ArtifactError(
        f"{name} could not be written into {unfinished.parent} ({free:.1f} GB free): {first_line(error)}. "
        f"Free some space and start the same training again: it {onward}"
    )


def save_model(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights (or adapter), configuration and tokenizer beside `folder` and put them in place by rename.

    Every process must call it: the weights may be sharded over all of them. Only the first one writes.
    """
    unfinished = folder.with_name(".model.partial")
    if trainer.is_world_process_zero():
        shutil.rmtree(unfinished, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    # It was off for training only, and would make generation recompute every token.
    trainer.model.config.use_cache = True
    try:
        trainer.save_model(str(unfinished))
        if trainer.is_world_process_zero():
            # A pickle, which runs code when it is loaded; the arguments are in the manifest.
            (unfinished / "training_args.bin").unlink(missing_ok=True)
            tokenizer.save_pretrained(unfinished)
            shutil.rmtree(folder, ignore_errors=True)  # a folder replaces only an empty one
            os.replace(unfinished, folder)
    except WRITE_ERRORS as error:
        raise unwritten(unfinished, "the finished model", trainer.args.output_dir, error) from error
    trainer.accelerator.wait_for_everyone()


# ---- an adapter and its base as one model ----------------------------------------------------------------------------
def merge_adapter(adapter: str | Path, output_dir: str | Path, *, tuning: str | None = None) -> float:
    """Write the merged model and its tokenizer to `output_dir`; return the largest difference of a logit.

    `tuning` is "lora" or "qlora", by default what the training's `train_metrics.json` beside the adapter says. Raises
    ModelError when the logits of base and adapter and those of the merged model differ, on fixed tokens, by more than a
    hundredth of the largest, and writes nothing then; ArtifactError when `adapter` holds none, or `output_dir` exists.
    """
    adapter = Path(adapter)
    output_dir = Path(output_dir)
    if not (adapter / "adapter_config.json").is_file():
        raise ArtifactError(f"{adapter} holds no adapter: give the model/ folder of a LoRA or QLoRA training")
    if output_dir.exists():
        raise ArtifactError(f"{output_dir} exists: choose another folder, or delete it first")
    tuning = tuning or recorded_tuning(adapter)
    if tuning is None:
        raise ArtifactError(
            f"{adapter.parent / 'train_metrics.json'} is missing: say by tuning= whether the adapter was trained with "
            "lora or qlora"
        )
    path, revision = adapter_base(adapter)
    load = partial(load_base_model, path, revision=revision, adapter=adapter, tuning=tuning, attn_implementation="sdpa")
    before = fixed_logits(load())
    # A QLoRA adapter has learnt to correct the base model as it looks in 4 bits. It belongs onto those weights,
    # unpacked again to floating point; onto the original ones it would correct rounding errors that are not there.
    merged = load(dequantize=True).merge_and_unload()
    error = float((fixed_logits(merged) - before).abs().max() / before.abs().max())
    if not error <= MERGE_TOLERANCE:
        raise ModelError(f"the merged model's logits differ by {error:.1%} of the largest: is tuning {tuning!r} right?")
    unfinished = output_dir.with_name(f".{output_dir.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    merged.config.use_cache = True  # it was off for training only
    merged.save_pretrained(unfinished)
    load_tokenizer(adapter).save_pretrained(unfinished)
    unfinished.rename(output_dir)
    return error


@torch.no_grad()
def fixed_logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits of fixed tokens, in float32."""
    evaluation_mode(model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (2, 32), generator=generator).to(model.device)
    return model(input_ids=ids, use_cache=False).logits.float()
