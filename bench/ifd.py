"""`python -m bench ifd`: the scorer against the loop everyone starts with, on the same rows and the same random model.

Four contenders: the naive loop and ours, each on rows at full length (up to 2048 tokens) and cut short (96). The naive
loop is a batch of one through the model's own loss, as released IFD tools work. Both score what the `authors` preset
says, tokenising included, and their scores must agree: how fast a wrong scorer is does not matter.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import processors
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.harness import Say, Work, compare, contest, write_bench
from codeact_lib.data.instructions import load_instructions
from codeact_lib.errors import CodeActError
from codeact_lib.ifd.score import score_ifd
from codeact_lib.mini.tokenizer import byte_level_bpe
from codeact_lib.prompts import TEMPLATES

# "small" suits two CPU cores, "1.3b" has the shape of DeepSeek-Coder-1.3B and wants a GPU. The weights are random:
# neither speed nor memory depends on what they know.
SHAPES = {
    "small": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4},
    "1.3b": {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "num_attention_heads": 16},
}
VOCABULARY = 32_256
LENGTHS = {"full-length": 2048, "short": 96}
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}  # relative; half precision rounds, batched or not


def run_bench(
    data: str | Path,
    *,
    response_column: str,
    n_rows: int,
    size: str,
    dtype: str,
    tokens_per_batch: int | None = None,
    repeats: int = 3,
    folder: str | Path | None = None,
    say: Say = print,
) -> Path:
    """Measure, check that the scores agree, write `results/bench/ifd.{json,md}`; returns the path of the JSON file.

    `data` is an instruction file, of which `n_rows` rows, evenly spaced, are scored. Raises CodeActError where the two
    scorers differ by more than `TOLERANCE`.
    """
    tables = []
    with tempfile.TemporaryDirectory() as work:
        n_rows = _prepare(data, response_column, n_rows, Path(work))
        for length, max_length in LENGTHS.items():
            arguments = {"work": work, "size": size, "dtype": dtype, "max_length": max_length}
            contenders = {
                f"naive loop, {length}": (f"{__name__}:naive", arguments),
                f"ours, {length}": (f"{__name__}:ours", {**arguments, "tokens_per_batch": tokens_per_batch}),
            }
            table = compare(contest(contenders, repeats=repeats, say=say), baseline=f"naive loop, {length}")
            tables.append(table.assign(largest_relative_difference=_difference(work, max_length, TOLERANCE[dtype])))
    about = {"model": f"random Llama, {size}: {SHAPES[size]}, vocabulary {VOCABULARY:,}, {dtype}"}
    about |= {"rows": f"{n_rows} of {Path(data).name}, {', '.join(f'{n} to {m} tokens' for n, m in LENGTHS.items())}"}
    about |= {"speedup, memory_ratio": "against the naive loop on the same rows, medians of the rounds"}
    return write_bench("ifd", pd.concat(tables, ignore_index=True), about, folder=folder)


def _prepare(data: str | Path, response_column: str, n_rows: int, work: Path) -> int:
    """Leave the rows, and a tokenizer trained on the whole set, where every contender finds them."""
    examples, _ = load_instructions(data, response_column=response_column)
    texts = (examples["instruction"] + "\n" + examples["response"]).tolist()
    _train_tokenizer(texts).save_pretrained(work)
    chosen = np.unique(np.linspace(0, len(examples) - 1, n_rows).astype(int))
    examples.iloc[chosen].to_parquet(work / "rows.parquet")
    return len(chosen)


def _train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with BOS in front, as Llama's and DeepSeek's are."""
    tokenizer = byte_level_bpe(texts, VOCABULARY, ("<s>", "</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def _difference(work: str, max_length: int, tolerance: float) -> float:
    naive_scores = np.load(Path(work) / f"naive-{max_length}.npy")
    scores = np.load(Path(work) / f"ours-{max_length}.npy")
    largest = float(np.max(np.abs(scores - naive_scores) / np.maximum(np.abs(naive_scores), 1e-9)))
    if not largest <= tolerance:
        raise CodeActError(
            f"The scorer differs from the naive loop by {largest:.2g} (relative) at {max_length} tokens."
        )
    return largest


# ---- contenders: set up, then return the work ----------------------------------------------------------------------
def naive(**arguments: Any) -> Work:
    """One row after the other, one sequence at a time, logits at every position."""
    model, tokenizer, rows = _load(**arguments)
    max_length = arguments["max_length"]

    def score() -> list[float]:
        return [_naive_ifd(model, tokenizer, row, max_length) for row in rows.itertuples()]

    return lambda: _measured("naive", arguments, score)


def ours(tokens_per_batch: int | None = None, **arguments: Any) -> Work:
    """`score_ifd`."""
    model, tokenizer, rows = _load(**arguments)
    options = {"max_length": arguments["max_length"], "preset": "authors", "tokens_per_batch": tokens_per_batch}

    def score() -> pd.Series:
        return score_ifd(model, tokenizer, rows, TEMPLATES["ifd-authors"], **options)["ifd"]

    return lambda: _measured("ours", arguments, score)


def _load(work: str, size: str, dtype: str, **_: Any) -> tuple[Any, Any, pd.DataFrame]:
    """Model, tokenizer and rows, after a short forward pass: what that loads and compiles is nobody's work."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=4096, **SHAPES[size])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
        with torch.inference_mode():
            model(torch.arange(8)[None])
    return model, AutoTokenizer.from_pretrained(work), pd.read_parquet(Path(work) / "rows.parquet")


def _measured(name: str, arguments: dict[str, Any], score: Callable[[], Sequence[float]]) -> dict[str, Any]:
    """Score, leave the scores for the comparison, and say how fast it was."""
    cpu = time.process_time()
    started = time.perf_counter()
    scores = np.asarray(score(), dtype=np.float64)
    seconds = time.perf_counter() - started
    np.save(Path(arguments["work"]) / f"{name}-{arguments['max_length']}.npy", scores)
    return {"cpu_seconds": time.process_time() - cpu, "rows_per_second": len(scores) / seconds}


@torch.inference_mode()
def _naive_ifd(model: Any, tokenizer: Any, row: Any, max_length: int) -> float:
    """IFD as released tools compute it: two calls of the model with labels, each on a batch of one; a failure is 0."""
    prompt = TEMPLATES["ifd-authors"].prompt(row.instruction)
    n_prompt = len(tokenizer(prompt, truncation=True, max_length=max_length)["input_ids"])
    alone = _ids(tokenizer, row.response, max_length - n_prompt + 1, model.device)
    joint = _ids(tokenizer, prompt + row.response, max_length, model.device)
    labels = joint.clone()
    labels[:, :n_prompt] = -100
    losses = [model(joint, labels=labels).loss, model(alone, labels=alone).loss]
    score = float(torch.exp(losses[0]) / torch.exp(losses[1]))
    return score if np.isfinite(score) else 0.0


def _ids(tokenizer: Any, text: str, max_length: int, device: torch.device) -> torch.Tensor:
    ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
    return torch.tensor([ids], device=device)
