"""Greedy solutions of benchmark tasks: one prompt at a time by transformers' `generate`, and in batches by ours."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bench.harness import Work, compare, contest, write_bench
from codeact_lib.errors import CodeActError
from codeact_lib.evaluation.benchmarks import load_benchmark
from codeact_lib.evaluation.generation import cut, encode_task, generate_solutions
from codeact_lib.modeling.load import load_base_model, load_tokenizer
from codeact_lib.prompts import PROTOCOLS

BASELINE = "one prompt at a time"


def bench_generate(
    *,
    model: str = "mini-base",
    template: str = "deepseek-coder",
    benchmark: str = "mini-humaneval",
    limit: int = 80,
    batch_size: int = 80,
    max_new_tokens: int = 160,
    repeats: int = 3,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Measure both, require the same text of them, and write results/bench/generate.json.

    Args:
        model: path or name of a model; float32.
        template: its prompt template.
        benchmark, limit: the first `limit` tasks of a benchmark.
        batch_size, max_new_tokens: of generation.
        repeats, folder: rounds of the contest, and where its results go.

    Returns:
        The table of `bench.harness.compare`.

    Raises:
        CodeActError: the two gave different text.
    """
    what = {"model": model, "template": template, "benchmark": benchmark, "limit": limit}
    what["max_new_tokens"] = max_new_tokens
    contenders = {
        BASELINE: ("bench.generate:prepare_single", what),
        f"batches of {batch_size}": ("bench.generate:prepare_batches", {**what, "batch_size": batch_size}),
    }
    rows = contest(contenders, repeats=repeats)
    if rows["text_sha256"].nunique() != 1:
        raise CodeActError("The batches gave other text than one prompt at a time: this must not be, please report it.")
    table = compare(rows, BASELINE)
    write_bench("generate", table, {**what, "same text": True}, folder)
    return table


def prepare_single(model: str, template: str, benchmark: str, limit: int, max_new_tokens: int) -> Work:
    """transformers' own `generate` with its key-value cache and stop strings, a prompt after the other."""
    loaded, tokenizer, tasks = _load(model, benchmark, limit)
    stop = PROTOCOLS["codeact"].stop["humaneval"]
    rules = {"do_sample": False, "max_new_tokens": max_new_tokens, "stop_strings": list(stop), "tokenizer": tokenizer}

    @torch.inference_mode()
    def work() -> dict[str, Any]:
        texts = []
        for task in tasks:
            ids = torch.tensor([encode_task(tokenizer, task, template)])
            answer = loaded.generate(ids, attention_mask=torch.ones_like(ids), **rules)[0, ids.shape[1] :]
            text = tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            texts.append(cut(text, stop))
        return _facts(texts)

    return work


def prepare_batches(
    model: str, template: str, benchmark: str, limit: int, max_new_tokens: int, batch_size: int
) -> Work:
    """`codeact_lib.generation.generate_solutions`, with its file."""
    loaded, tokenizer, tasks = _load(model, benchmark, limit)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "progress": None}

    def work() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "samples.jsonl"
            rows = generate_solutions(loaded, tokenizer, tasks, template, output_path=path, **options)
        return _facts([row["solution"] for row in rows])

    return work


def _load(model: str, benchmark: str, limit: int) -> tuple[Any, Any, list[dict[str, Any]]]:
    loaded = load_base_model(model, dtype="float32", attn_implementation="sdpa").eval()
    return loaded, load_tokenizer(model), load_benchmark(benchmark, limit).tasks


def _facts(texts: list[str]) -> dict[str, Any]:
    return {"tasks": len(texts), "text_sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest()}
