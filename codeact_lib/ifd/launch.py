"""Score rows by one process or by several that share them.

    scores = score_rows(examples, "deepseek-ai/deepseek-coder-1.3b-base", "deepseek-coder", shard_dir="ifd/shards")

is what notebook 02 and `codeact select` call: one process for each GPU. From the shell

    torchrun --nproc-per-node 8 -m codeact_lib.ifd data.jsonl --model deepseek-ai/deepseek-coder-6.7b-base \\
        --template deepseek-coder --max-length 2048 --dtype bfloat16 --shards ifd/shards --out ifd.parquet

`accelerate launch -m codeact_lib.ifd ...` does the same, `python -m` takes one process. The scores do not depend on how
many there are; killed at any moment, the same command (with as many processes as one likes) resumes from the shards.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from transformers import PreTrainedModel

from codeact_lib.artifacts import locked, make_folder, write_frame
from codeact_lib.data.instructions import load_instructions
from codeact_lib.errors import ModelError
from codeact_lib.ifd.score import score_ifd
from codeact_lib.modeling.load import compute_device, load_base_model, load_tokenizer
from codeact_lib.processes import child_environment, end_with, pass_lines_on, start

DEFAULT_MAX_LENGTH = 2048  # tokens, as the paper; a model that reads fewer gets its own limit


def score_rows(
    examples: pd.DataFrame,
    model: str,
    template: str,
    *,
    shard_dir: Path,
    revision: str | None = None,
    dtype: str = "float32",
    max_length: int | None = None,
    preset: str = "corrected",
    tokens_per_batch: int | None = None,
    processes: int | None = None,
    loaded: PreTrainedModel | None = None,
    say: Callable[[str], object] = print,
) -> pd.DataFrame:
    """Load a scorer and score every row: step 2 of CDAS, in notebook 02 and `codeact select`.

    Args:
        examples: frame with `example_id, instruction, response`.
        model, revision, dtype: the scorer, as `load_base_model` takes it.
        template: name of its prompt template.
        shard_dir: folder that a killed call resumes from; of several processes, through which they share the work.
        max_length: tokens of prompt and answer; None for `DEFAULT_MAX_LENGTH`, or what the model reads if that is less.
        preset, tokens_per_batch: see `score_ifd`.
        processes: None for one for each GPU; a model in 4 bits is scored by this process alone.
        loaded: the scorer, where the caller has it in memory.
        say: takes each line of several processes.
    """
    tokenizer = load_tokenizer(model, revision=revision)
    scorer = load_base_model(model, revision=revision, dtype=dtype) if loaded is None else loaded
    if max_length is None:
        window = getattr(scorer.config, "max_position_embeddings", None)  # some architectures have no such limit
        max_length = min(DEFAULT_MAX_LENGTH, window or DEFAULT_MAX_LENGTH)
    options: dict[str, Any] = {"max_length": max_length, "preset": preset, "tokens_per_batch": tokens_per_batch}
    n_processes = processes or max(torch.cuda.device_count(), 1)
    if n_processes > 1 and not getattr(scorer, "is_loaded_in_4bit", False):
        data = Path(shard_dir) / "rows.parquet"
        write_frame(data, examples)
        arguments = {"data": data, "model": model, "revision": revision, "template": template, "dtype": dtype}
        score_in_processes({**arguments, "shards": shard_dir, **options}, n_processes=n_processes, say=say)
    if loaded is None:
        scorer = scorer.to(compute_device())
    # After several processes this call finds everything in the shards.
    return score_ifd(scorer, tokenizer, examples, template, shard_dir=shard_dir, progress=True, **options)


def score_in_processes(
    arguments: Mapping[str, Any], *, n_processes: int | None = None, say: Callable[[str], object] = print
) -> None:
    """Run `score_file` in processes launched by torchrun, one for each GPU; what it leaves are the shards.

    `arguments`: what `score_file` takes, by name; `n_processes`: None for as many as there are GPUs (one without any).
    Each line that is printed goes to `say`. Raises ModelError with the last line of what went wrong.
    """
    n_processes = n_processes or max(torch.cuda.device_count(), 1)
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    command += ["-m", "codeact_lib.ifd", str(arguments["data"]), f"--parent={os.getpid()}"]
    for name, value in arguments.items():
        if name != "data" and value is not None:
            command.append(f"--{name.replace('_', '-')}={value}")
    lines: list[str] = []

    def keep(line: str) -> None:
        lines.append(line)
        if line.startswith(("IFD", "saved")):
            say(line)

    status = pass_lines_on(start(command, env=child_environment()), keep)
    if status:
        errors = [line for line in lines if "error: " in line.lower()] or lines or ["killed"]
        raise ModelError(f"scoring in {n_processes} processes ended with exit code {status}: {errors[0]}")


def score_file(
    data: Annotated[str, typer.Argument(help="Instruction set: a file, a built-in set or a hub id.")],
    model: Annotated[str, typer.Option(help="Base model: a folder, a hub id, or a folder with a LoRA adapter.")],
    shards: Annotated[Path, typer.Option(help="Folder for the append-only files.")],
    revision: Annotated[str | None, typer.Option(help="Commit of a hub model.")] = None,
    template: Annotated[str, typer.Option(help="Prompt template.")] = "deepseek-coder",
    max_length: Annotated[int, typer.Option(help="Tokens of prompt and answer together.")] = DEFAULT_MAX_LENGTH,
    preset: Annotated[str, typer.Option(help="corrected or authors.")] = "corrected",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    tokens_per_batch: Annotated[int | None, typer.Option(help="Slots of a batch [default: by device].")] = None,
    instruction_column: str = "instruction",
    response_column: str = "response",
    out: Annotated[Path | None, typer.Option(help="Parquet file for the scores.")] = None,
    parent: Annotated[int | None, typer.Option(help="End when the process of this number is gone.")] = None,
) -> None:
    """Score DATA into shards, and into one table if asked for; of several processes the first one writes it."""
    if parent:
        end_with(parent)
    first = int(os.environ.get("RANK", 0)) == 0
    busy = f"Another process is scoring into {shards}: wait for it, stop it, or give this one another --shards."
    with locked(make_folder(shards) / ".lock", busy) if first else nullcontext():
        examples, _ = load_instructions(data, instruction_column=instruction_column, response_column=response_column)
        scorer: dict[str, Any] = {"revision": revision, "dtype": dtype, "max_length": max_length, "preset": preset}
        scorer |= {"tokens_per_batch": tokens_per_batch, "processes": 1}  # this process is one of them
        scores = score_rows(examples, model, template, shard_dir=shards, **scorer)
    if out and first:
        write_frame(out, scores)
        print(f"saved {out} ({len(scores):,} rows)")
