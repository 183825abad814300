"""Score an instruction file from the shell, by one process or by several that share the rows.

    torchrun --nproc-per-node 8 -m codeact_lib.ifd.launch data.jsonl --model deepseek-ai/deepseek-coder-6.7b-base \\
        --template deepseek-coder --max-length 2048 --dtype bfloat16 --shards ifd/shards --out ifd.parquet

``accelerate launch -m codeact_lib.ifd.launch ...`` does the same, ``python -m`` takes one process. The scores do not
depend on how many there are; killed at any moment, the same command (with as many processes as one likes) goes on from
the shards. `score_in_processes` is the way from a notebook.
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from codeact_lib.artifacts import locked, make_folder, write_frame
from codeact_lib.data.instructions import load_instructions
from codeact_lib.errors import CodeActError, ModelError
from codeact_lib.ifd.score import score_ifd
from codeact_lib.modeling.load import compute_device, load_base_model, load_tokenizer
from codeact_lib.processes import child_environment, end_with, pass_lines_on, start


def score_file(
    data: Annotated[str, typer.Argument(help="Instruction set: a file, a built-in set or a hub id.")],
    model: Annotated[str, typer.Option(help="Base model: a folder, a hub id, or a folder with a LoRA adapter.")],
    shards: Annotated[Path, typer.Option(help="Folder for the append-only files.")],
    revision: Annotated[str | None, typer.Option(help="Commit of a hub model.")] = None,
    template: Annotated[str, typer.Option(help="Prompt template.")] = "deepseek-coder",
    max_length: Annotated[int, typer.Option(help="Tokens of prompt and answer together.")] = 2048,
    preset: Annotated[str, typer.Option(help="corrected or authors.")] = "corrected",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    tokens_per_batch: Annotated[int | None, typer.Option(help="Slots of a batch [default: by device].")] = None,
    instruction_column: str = "instruction",
    response_column: str = "response",
    out: Annotated[Path | None, typer.Option(help="Parquet file for the scores.")] = None,
    parent: Annotated[int | None, typer.Option(help="End when the process of this number is gone.")] = None,
):
    """Score DATA into shards, and into one table if asked for; of several processes the first one writes it."""
    if parent:
        end_with(parent)

    first = int(os.environ.get("RANK", 0)) == 0
    busy = f"Another process is scoring into {shards}: wait for it, stop it, or give this one another --shards."
    with locked(make_folder(shards) / ".lock", busy) if first else nullcontext():
        columns = {"instruction_column": instruction_column, "response_column": response_column}
        examples, _ = load_instructions(data, **columns)
        scorer = load_base_model(model, revision=revision, dtype=dtype).to(compute_device())
        options = {"max_length": max_length, "preset": preset, "tokens_per_batch": tokens_per_batch}
        tokenizer = load_tokenizer(model, revision=revision)
        scores = score_ifd(scorer, tokenizer, examples, template, shard_dir=shards, progress=True, **options)
    if out and first:
        write_frame(out, scores)
        print(f"saved {out} ({len(scores):,} rows)")


def score_in_processes(arguments, *, n_processes=None, say=print):
    """Run `score_file` in processes launched by torchrun, one for each GPU; what it leaves are the shards.

    `arguments`: what `score_file` takes, by name; `n_processes`: None for as many as there are GPUs (one without any).
    Each line that is printed goes to `say`. Raises ModelError with the last line of what went wrong.
    """
    import torch

    n_processes = n_processes or max(torch.cuda.device_count(), 1)
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    command += ["-m", "codeact_lib.ifd.launch", str(arguments["data"]), f"--parent={os.getpid()}"]
    options = {name: value for name, value in arguments.items() if name != "data" and value is not None}
    command += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    lines: list[str] = []

    def keep(line: str) -> None:
        lines.append(line)
        if line.startswith(("IFD", "saved")):
            say(line)

    status = pass_lines_on(start(command, env=child_environment()), keep)
    if status:
        errors = [line for line in lines if "error: " in line.lower()] or lines or ["killed"]
        raise ModelError(f"scoring in {n_processes} processes ended with exit code {status}: {errors[0]}")


if __name__ == "__main__":
    try:
        typer.run(score_file)
    except CodeActError as error:
        sys.exit(f"error: {error}")
