"""Checkpoints that are either whole or not used, and the folder of the finished model.

A checkpoint is written file by file, then sealed: a last file, put in place by rename, names every other one with its
size and hash. What is not sealed, or not as the seal says, is never resumed from; the one before it is. The Trainer
itself resumes from half-written folders.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase, Trainer

from codeact_lib.artifacts import read_json, sha256_file, write_json
from codeact_lib.errors import ArtifactError

SEALED = "codeact_checkpoint.json"
# The recorder's key in the seal: its name of old, so that checkpoints of old are gone on from.
STATE = "log_book"
# Each library has its own error for a full disk.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
# Bytes. Hashing 80 GB takes longer than the steps it protects.
HASH_UP_TO = 2**30


def seal_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write, last and by rename, what the checkpoint holds: sizes and hashes of its files, and the recorder's state."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = size_and_hash(path)
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


def unwritten(partial: Path, name: str, checkpoints: str | Path, error: Exception) -> ArtifactError:
    """The error for a checkpoint or model that could not be written; the half-written folder is removed."""
    # Half a checkpoint may be what fills the disk.
    shutil.rmtree(partial, ignore_errors=True)
    earlier = checkpoints_in(checkpoints)
    onward = f"goes on from {earlier[0].name}" if earlier else "begins anew, no earlier checkpoint is there"
    free = shutil.disk_usage(partial.parent).free / 1e9
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ArtifactError(
        f"{name} could not be written into {partial.parent} ({free:.1f} GB free): {reason}. "
        f"Free some space and start the same training again: it {onward}"
    )


def save_model(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights (or adapter), configuration and tokenizer beside `folder` and put them in place by rename.

    Every process must call it: the weights may be sharded over all of them. Only the first one writes.
    """
    partial = folder.with_name(".model.partial")
    if trainer.is_world_process_zero():
        shutil.rmtree(partial, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    # It was off for training only, and would make generation recompute every token.
    trainer.model.config.use_cache = True
    try:
        trainer.save_model(str(partial))
        if trainer.is_world_process_zero():
            # A pickle, which runs code when it is loaded; the arguments are in the manifest.
            (partial / "training_args.bin").unlink(missing_ok=True)
            tokenizer.save_pretrained(partial)
            shutil.rmtree(folder, ignore_errors=True)  # a folder replaces only an empty one
            os.replace(partial, folder)
    except WRITE_ERRORS as error:
        raise unwritten(partial, "the finished model", trainer.args.output_dir, error) from error
    trainer.accelerator.wait_for_everyone()
