"""Greedy solutions of benchmark tasks: one prompt at a time by transformers' ``generate``, and in batches by ours."""

import hashlib
import tempfile
from pathlib import Path

from bench.harness import compare, contest, write_bench
from codeact_lib.errors import CodeActError

BASELINE = "one prompt at a time"


def bench_generate(*, model="mini-base", template="deepseek-coder", benchmark="mini-humaneval", limit=80, **options):
    """Measure both, require the same text of them, and write results/bench/generate.json.

    Args:
        model: path or name of a model; float32.
        template: its prompt template.
        benchmark, limit: the first ``limit`` tasks of a benchmark.
        options: ``batch_size`` and ``max_new_tokens`` of generation, ``repeats`` of the contest, ``folder`` of results.

    Returns:
        The table of `bench.harness.compare`.

    Raises:
        CodeActError: the two gave different text.
    """
    size, tokens = options.get("batch_size", 80), options.get("max_new_tokens", 160)
    what = {"model": model, "template": template, "benchmark": benchmark, "limit": limit, "max_new_tokens": tokens}
    here = "bench.generate"
    contenders = {BASELINE: (f"{here}:prepare_single", what)}
    contenders[f"batches of {size}"] = (f"{here}:prepare_batches", {**what, "batch_size": size})
    rows = contest(contenders, repeats=options.get("repeats", 3))
    if rows["text_sha256"].nunique() != 1:
        raise CodeActError("The batches gave other text than one prompt at a time: this must not be, please report it.")
    table = compare(rows, BASELINE)
    write_bench("generate", table, {**what, "same text": True}, options.get("folder"))
    return table


def prepare_single(model, template, benchmark, limit, max_new_tokens):
    """transformers' own ``generate`` with its key-value cache and stop strings, a prompt after the other."""
    import torch

    from codeact_lib.evaluation.generation import cut, encode_task
    from codeact_lib.prompts import PROTOCOLS

    loaded, tokenizer, tasks = _load(model, benchmark, limit)
    stop = PROTOCOLS["authors"].stop
    rules = {"do_sample": False, "max_new_tokens": max_new_tokens, "stop_strings": list(stop), "tokenizer": tokenizer}

    @torch.inference_mode()
    def work():
        texts = []
        for task in tasks:
            ids = torch.tensor([encode_task(tokenizer, task, template)])
            answer = loaded.generate(ids, attention_mask=torch.ones_like(ids), **rules)[0, ids.shape[1] :]
            text = tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            texts.append(cut(text, stop))
        return _facts(texts)

    return work


def prepare_batches(model, template, benchmark, limit, max_new_tokens, batch_size):
    """`codeact_lib.generation.generate_solutions`, with its file."""
    from codeact_lib.evaluation.generation import generate_solutions

    loaded, tokenizer, tasks = _load(model, benchmark, limit)
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "progress": None}

    def work():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "samples.jsonl"
            rows = generate_solutions(loaded, tokenizer, tasks, template, output_path=path, **options)
        return _facts([row["solution"] for row in rows])

    return work


def _load(model, benchmark, limit):
    from codeact_lib.evaluation.benchmarks import load_benchmark
    from codeact_lib.modeling.load import load_base_model, load_tokenizer

    loaded = load_base_model(model, dtype="float32", attn_implementation="sdpa").eval()
    return loaded, load_tokenizer(model), load_benchmark(benchmark, limit).tasks


def _facts(texts):
    return {"tasks": len(texts), "text_sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest()}
