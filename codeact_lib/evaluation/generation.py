"""Greedy solutions of benchmark tasks: the instruction a task is asked with, and batched decoding that can be resumed.

Importing this module needs neither torch nor transformers; they are loaded when `generate_solutions` is called.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

from codeact_lib.artifacts import atomic_write, sha256_json
from codeact_lib.errors import ModelError
from codeact_lib.evaluation.decoding import StopStrings, greedy_decode
from codeact_lib.evaluation.vllm import VllmModel
from codeact_lib.measure import unless_out_of_memory
from codeact_lib.prompts import PROTOCOLS, benchmark_instruction, get_protocol, get_template, task_kind

PROTOCOLS |= {
    f"{p.name}+imports": replace(p, name=f"{p.name}+imports", imports_in_front=True) for p in PROTOCOLS.values()
}


# ------------------------------------------------------------------------------------------------ decoding
def generate_solutions(
    model,
    tokenizer,
    tasks,
    template,
    *,
    protocol="authors",
    max_new_tokens=1024,
    batch_size=32,
    output_path,
    model_key="",
    trained_with=None,
    progress=print,
) -> list[dict]:
    """One greedy solution per task, appended to ``output_path`` batch by batch; what already stands there is kept.

    Args:
        model: a Hugging Face causal LM (with or without an unmerged adapter) in eval mode, or what
            `codeact_lib.evaluation.judge.vllm.load_vllm` returns.
        tasks: dicts with task_id, prompt, entry_point.
        template: the `codeact_lib.prompts.PromptTemplate` the model was trained with, or its name.
        protocol: a key of `PROTOCOLS`.
        max_new_tokens: tokens after the opening of the answer; the authors' value is 1024.
        batch_size: rows decoded together, halved whenever memory does not suffice. In float32 it does not change the
            text but for ties within rounding.
        output_path: JSONL of {"task_id", "solution", "raw", "n_tokens", "seconds", "key"}, and where the text may
            depend on it (no float32, 4 bits, or vLLM) also {"engine", "dtype", "batch_size"}. A line counts only if its
            ``key`` (of prompt, protocol, limits and ``model_key``) is the one wanted now; half a line at the end, of a
            run that was killed, is removed. ``seconds`` is the task's share of its batch: their sum is the time of
            generation, however often it was interrupted.
        model_key: what identifies the weights, e.g. the sha256 of the model file.
        trained_with: sha256 of the template the model was trained with, None where it was not trained here.
        progress: called with a line of text now and then, None for silence.

    Returns:
        {"task_id", "solution", "raw"} in the order of ``tasks``; ``raw`` is all that was generated, ``solution`` what
        stands before the first stop string.

    Raises:
        ModelError: ``trained_with`` is not the hash of ``template``, or memory does not suffice for one answer.
    """
    rules, template = get_protocol(protocol), get_template(template)
    require_template(template, trained_with)
    prompts = {t["task_id"]: _prompt_text(t, template, protocol) for t in tasks}
    settings = [rules.opening, rules.stop, max_new_tokens, model_key]
    keys = {task_id: sha256_json([prompt, *settings]) for task_id, prompt in prompts.items()}
    done = _resume(Path(output_path), keys)
    encoded = {k: _encode(tokenizer, prompts[k], rules.opening) for k in prompts if k not in done}
    waiting, decode = sorted(encoded, key=lambda task_id: len(encoded[task_id]), reverse=True), None
    report = _Progress(len(waiting), len(done), progress)
    while waiting:
        batch = waiting[:batch_size]
        decode = decode or _decoder(model, tokenizer, rules.stop, max_new_tokens)
        start = time.monotonic()
        answers = unless_out_of_memory(decode, [encoded[k] for k in batch])
        if answers is None:
            batch_size = _smaller(len(batch), report)
            continue
        waiting = waiting[len(batch) :]
        facts = {"seconds": round((time.monotonic() - start) / len(batch), 4), **_stamp(model, batch_size)}
        lines = []
        for task_id, tokens in zip(batch, answers, strict=True):
            raw = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            done[task_id] = {"task_id": task_id, "solution": cut(raw, rules.stop), "raw": raw}
            lines.append({**done[task_id], "n_tokens": len(tokens), **facts, "key": keys[task_id]})
        _append(output_path, lines)
        report(len(batch))
    return [{name: done[t["task_id"]][name] for name in ("task_id", "solution", "raw")} for t in tasks]


def _smaller(batch_size, report) -> int:
    """Half the batch, once memory was out; ModelError where that was a single answer."""
    if batch_size == 1:
        raise ModelError("memory is out for a single answer: take a smaller max_new_tokens, model, or a larger GPU")
    if report.say:
        report.say(f"memory is out with {batch_size} answers at a time: going on with {batch_size // 2}")
    return batch_size // 2


def _append(path, rows):
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def require_template(template, trained_with) -> None:
    """Refuse to ask a model in another way than it was trained: that costs accuracy without a word of warning.

    Raises:
        ModelError: ``trained_with`` (a sha256, or None for an untouched base model) is not the hash of ``template``.
    """
    if trained_with not in (None, template.sha256):
        raise ModelError(
            f"The model was trained with another prompt template (sha256 {trained_with[:12]}) than {template.name!r} "
            f"as it is now ({template.sha256[:12]}): train it again, or name the template it was trained with."
        )


def _decoder(model, tokenizer, stop, max_new_tokens):
    """A function from prompts (lists of token ids) to answers (the same), by vLLM or by `decoding`."""
    if isinstance(model, VllmModel):
        return lambda prompts: model.greedy(prompts, max_new_tokens, stop)
    import torch

    stops = StopStrings(tokenizer, stop)
    return torch.inference_mode()(lambda prompts: greedy_decode(model, tokenizer, prompts, max_new_tokens, stops))


def _stamp(model, batch_size):
    """What the text may depend on beside weights and prompt: in half precision a batch rounds otherwise than a row.

    So does a base in 4 bits on a GPU, where one row is multiplied by another kernel than several.
    """
    dtype, engine = str(model.dtype).removeprefix("torch."), getattr(model, "engine_name", "transformers")
    packed = getattr(model, "is_loaded_in_4bit", False)
    exact = (dtype, engine, packed) == ("float32", "transformers", False)
    return {} if exact else {"engine": engine, "dtype": dtype, "batch_size": batch_size}


def encode_task(tokenizer, task, template, protocol="authors") -> list[int]:
    """Token ids of a task up to the answer. Prompt and opening apart, as prompt and response are in training."""
    return _encode(tokenizer, _prompt_text(task, get_template(template), protocol), PROTOCOLS[protocol].opening)


def _prompt_text(task, template, protocol):
    return template.prompt(benchmark_instruction(task_kind(task), task["prompt"], protocol))


def _encode(tokenizer, prompt, opening):
    """Token ids up to the answer. Prompt and opening apart, as prompt and response are in training."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, opening)]
    return bos + list(ids[0]) + list(ids[1])


def cut(text, stop):
    """``text`` before the first of the strings ``stop``."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


def _resume(path, keys):
    """{task id: line} of what ``path`` already holds for ``keys``; anything else in the file is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    done, kept = {}, []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # half a line: the task is generated again
        task_id = row.get("task_id") if isinstance(row, dict) else None
        known = isinstance(task_id, str) and task_id in keys
        if line.endswith("\n") and known and task_id not in done and row.get("key") == keys[task_id]:
            done[task_id] = row
            kept.append(line)
    if kept != lines:
        with atomic_write(path) as file:
            file.writelines(kept)
    return done


class _Progress:
    """Says every few seconds how far it is and how long it will take."""

    def __init__(self, total, resumed, say, every=5.0):
        self.total, self.say, self.every, self.done = total, say, every, 0
        self.start = self.last = time.monotonic()
        if say and resumed:
            say(f"{resumed} solutions were there already, {total} to go")

    def __call__(self, more):
        now, self.done = time.monotonic(), self.done + more
        if self.say and (now - self.last >= self.every or self.done == self.total):
            rate = self.done / max(now - self.start, 1e-9)
            self.say(f"{self.done}/{self.total} solutions, {rate:.1f}/s, {(self.total - self.done) / rate:.0f} s left")
            self.last = now
