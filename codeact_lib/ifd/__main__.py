"""`python -m codeact_lib.ifd`, alone or under torchrun: score an instruction file, see `launch`."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from codeact_lib.artifacts import locked, make_folder, write_frame
from codeact_lib.data.instructions import load_instructions
from codeact_lib.errors import CodeActError
from codeact_lib.ifd.launch import DEFAULT_MAX_LENGTH, score_rows
from codeact_lib.processes import end_with


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
    # Of processes that torchrun launched together the first alone locks and writes: the others would wait for it.
    first = int(os.environ.get("RANK", 0)) == 0
    busy = f"Another process is scoring into {shards}: wait for it, stop it, or give this one another --shards."
    with locked(make_folder(shards) / ".lock", busy) if first else nullcontext():
        examples, _ = load_instructions(data, instruction_column=instruction_column, response_column=response_column)
        scores = score_rows(
            examples,
            model,
            template,
            shard_dir=shards,
            revision=revision,
            dtype=dtype,
            max_length=max_length,
            preset=preset,
            tokens_per_batch=tokens_per_batch,
            processes=1,  # this one, whoever else was launched beside it
        )
    if out and first:
        write_frame(out, scores)
        print(f"saved {out} ({len(scores):,} rows)")


if __name__ == "__main__":
    try:
        typer.run(score_file)
    except CodeActError as error:
        sys.exit(f"error: {error}")
