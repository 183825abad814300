"""Score rows by one process or by several that share them: `score_rows`, or from the shell

    torchrun --nproc-per-node 8 -m codeact_lib.ifd data.jsonl --model deepseek-ai/deepseek-coder-6.7b-base \\
        --template deepseek-coder --max-length 2048 --dtype bfloat16 --shards ifd/shards --out ifd.parquet

`accelerate launch -m codeact_lib.ifd ...` does the same, `python -m` takes one process. The scores do not depend on how
many there are; killed at any moment, the same command (with as many processes as one likes) resumes from the shards.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel

from codeact_lib.artifacts import write_frame
from codeact_lib.errors import ModelError
from codeact_lib.ifd.score import score_ifd
from codeact_lib.modeling.load import compute_device, load_base_model, load_tokenizer
from codeact_lib.processes import child_environment, pass_lines_on, start

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

    The options are those of `score_ifd`, and of `load_base_model` for the scorer. Besides,

    - `max_length` None is `DEFAULT_MAX_LENGTH`, or what the model reads if that is less;
    - `processes` None is one for each GPU, whose lines `say` takes; a model in 4 bits is scored by this one alone;
    - `loaded` is the scorer, where the caller has it in memory.
    """
    tokenizer = load_tokenizer(model, revision=revision)
    scorer = loaded or load_base_model(model, revision=revision, dtype=dtype)
    if max_length is None:
        # Some architectures have no such limit, and no such key.
        window = getattr(scorer.config, "max_position_embeddings", None)
        max_length = min(DEFAULT_MAX_LENGTH, window or DEFAULT_MAX_LENGTH)
    options: dict[str, Any] = {"max_length": max_length, "preset": preset, "tokens_per_batch": tokens_per_batch}
    n_processes = processes or max(torch.cuda.device_count(), 1)
    if n_processes > 1 and not getattr(scorer, "is_loaded_in_4bit", False):
        data = Path(shard_dir) / "rows.parquet"
        write_frame(data, examples)
        arguments = {"data": data, "model": model, "revision": revision, "template": template, "dtype": dtype}
        score_in_processes({**arguments, "shards": shard_dir, **options}, n_processes, say)
    if loaded is None:
        scorer = scorer.to(compute_device())
    # After several processes this call finds everything in the shards.
    return score_ifd(scorer, tokenizer, examples, template, shard_dir=shard_dir, progress=True, **options)


def score_in_processes(arguments: Mapping[str, Any], n_processes: int, say: Callable[[str], object]) -> None:
    """Run `python -m codeact_lib.ifd` with these options in processes launched by torchrun; they leave the shards.

    `say` gets the lines that tell how far it is. Raises ModelError with the first error that was printed.
    """
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
        # The first: after one process has failed, torchrun ends the others and prints a summary of its own.
        errors = [line for line in lines if "error: " in line.lower()] or lines or ["killed"]
        raise ModelError(f"scoring in {n_processes} processes ended with exit code {status}: {errors[0]}")
