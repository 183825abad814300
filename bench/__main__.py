"""`python -m bench NAME`: each part against the plain way of doing it, side by side in one run on this machine."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from codeact_lib.errors import CodeActError, require_package

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Speed and memory, measured side by side in one run on this machine.",
)


@app.command("select")
def bench_select(
    rows: Annotated[list[int] | None, typer.Option(help="Rows to choose from; repeatable [10k, 100k, 1M].")] = None,
    dimensions: Annotated[int, typer.Option(help="Of the embeddings; 384 is MiniLM's, 768 MPNet's.")] = 384,
    repeats: Annotated[int, typer.Option(help="Rounds; the table has medians.")] = 3,
) -> None:
    """Time and memory of choosing from up to a million rows; writes results/bench/select.json and .md."""
    from bench.select import SIZES, run

    run(tuple(rows or SIZES), dimensions, repeats, say=print)


@app.command("ifd")
def bench_ifd(
    data: Annotated[str, typer.Argument(help="Instruction file whose rows are scored.")],
    response_column: Annotated[str, typer.Option(help="Its column of answers.")] = "output",
    rows: Annotated[int, typer.Option(help="How many rows, evenly spaced.")] = 200,
    size: Annotated[str, typer.Option(help="Shape of the random model: small, or 1.3b for a GPU.")] = "small",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    tokens_per_batch: Annotated[int | None, typer.Option(help="Slots of our batches [default: by device].")] = None,
    repeats: Annotated[int, typer.Option(help="Rounds of all contenders.")] = 3,
    output: Annotated[Path | None, typer.Option(help="Folder for the table [default: results/bench].")] = None,
) -> None:
    """Our IFD scorer against a naive loop with a batch of one: speed and peak memory, on full-length and short rows."""
    from bench.ifd import run_bench

    path = run_bench(
        data,
        response_column=response_column,
        n_rows=rows,
        size=size,
        dtype=dtype,
        tokens_per_batch=tokens_per_batch,
        repeats=repeats,
        folder=output,
    )
    print(f"written: {path}")


@app.command("generate")
def bench_generate_command(
    model: Annotated[str, typer.Option(help="Path or name of a model; it is loaded in float32.")] = "mini-base",
    template: Annotated[str, typer.Option(help="Its prompt template.")] = "deepseek-coder",
    benchmark: Annotated[str, typer.Option(help="A benchmark, or a file in EvalPlus's schema.")] = "mini-humaneval",
    limit: Annotated[int, typer.Option(help="The first so many tasks.")] = 80,
    batch_size: Annotated[int, typer.Option(help="Rows decoded together.")] = 80,
    repeats: Annotated[int, typer.Option(help="Rounds.")] = 3,
) -> None:
    """Greedy solutions in batches against one prompt at a time: the time of both, and the same text of both."""
    from bench.generate import bench_generate

    table = bench_generate(
        model=model, template=template, benchmark=benchmark, limit=limit, batch_size=batch_size, repeats=repeats
    )
    print(table.to_markdown(index=False, floatfmt=",.3g"))


@app.command("eval")
def bench_eval_command(
    benchmark: Annotated[str, typer.Option(help="A benchmark, or a file in EvalPlus's schema.")] = "mini-humaneval",
    limit: Annotated[int | None, typer.Option(help="The first so many tasks [default: all].")] = None,
    isolation: Annotated[str, typer.Option(help="A rung of the isolation ladder.")] = "auto",
    repeats: Annotated[int, typer.Option(help="Rounds.")] = 3,
) -> None:
    """Judging all canonical solutions, base and plus: EvalPlus as it comes against ours, boxes included."""
    require_package("evalplus", "eval")
    from bench.eval import bench_eval

    table = bench_eval(benchmark=benchmark, limit=limit, isolation=isolation, repeats=repeats)
    print(table.to_markdown(index=False, floatfmt=",.3g"))


@app.command("packing")
def bench_packing(
    lengths: Annotated[Path, typer.Argument(help="Token counts (JSON list or a number a line), or instructions.")],
    batch_size: Annotated[int, typer.Option(help="Samples per device and micro-batch.")] = 16,
    max_length: Annotated[int, typer.Option(help="Tokens a row may have.")] = 2048,
    accumulation_steps: Annotated[int, typer.Option(help="Batches packed together in the window.")] = 4,
    repeats: Annotated[int, typer.Option(help="Fresh processes per strategy.")] = 3,
) -> None:
    """Padding and planning time of every strategy, within the batch and over the accumulation window."""
    from bench.packing import bench_packing

    path = bench_packing(
        lengths,
        batch_size=batch_size,
        max_length=max_length,
        accumulation_steps=accumulation_steps,
        repeats=repeats,
    )
    print(f"written to {path}")


@app.command("train")
def bench_train(
    instructions: Annotated[Path, typer.Argument(help="JSONL file with instruction and output (or response).")],
    architecture: Annotated[str, typer.Option(help="small, tiny, deepseek-coder-1.3b, deepseek-coder-6.7b.")] = "small",
    random_init: Annotated[
        bool, typer.Option(help="Random weights; otherwise --architecture is a model folder or hub id.")
    ] = True,
    max_length: Annotated[int, typer.Option(help="Tokens a row may have.")] = 1024,
    batch_size: Annotated[int, typer.Option(help="Samples per micro-batch.")] = 16,
    accumulation_steps: Annotated[int, typer.Option(help="Micro-batches per optimizer step.")] = 1,
    steps: Annotated[int, typer.Option(help="Optimizer steps that are timed.")] = 1,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, of the weights.")] = "float32",
    gradient_checkpointing: Annotated[bool, typer.Option("--gradient-checkpointing")] = False,
    layout: Annotated[list[str] | None, typer.Option(help="Only this layout; repeatable [default: all].")] = None,
    repeats: Annotated[int, typer.Option(help="Fresh processes per contender.")] = 3,
) -> None:
    """Step time, peak memory, padding and loss of every layout, with the plain and the supervised-position loss.

    Examples:

    \b
        python -m bench train evol_instruct.jsonl
        python -m bench train evol_instruct.jsonl --architecture deepseek-coder-6.7b --random-init \\
            --dtype bfloat16 --gradient-checkpointing --max-length 2048 --accumulation-steps 4
    """
    from bench.train import LAYOUTS, Setting, bench_train

    setting = Setting(
        architecture,
        random_init,
        max_length=max_length,
        batch_size=batch_size,
        accumulation_steps=accumulation_steps,
        steps=steps,
        dtype=dtype,
        gradient_checkpointing=gradient_checkpointing,
    )
    path = bench_train(instructions, setting, layouts=layout or tuple(LAYOUTS), repeats=repeats, say=print)
    print(f"written to {path}")


if __name__ == "__main__":
    try:
        app(prog_name="python -m bench")
    except CodeActError as error:
        sys.exit(f"error: {error}")
