"""Greedy solutions of benchmark tasks: the instruction a task is asked with, and batched decoding that can be resumed.

Importing this module needs neither torch nor transformers; they are loaded when `generate_solutions` is called.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

from codeact_lib.artifacts import atomic_write, sha256_json
from codeact_lib.errors import EvaluationError


@dataclass(frozen=True)
class Protocol:
    """How a task is put to the model and how its answer is read; named in every record, because it moves pass@1.

    The same completions scored 45/164 or 51/164 by the way the answer was read alone, so results of two protocols are
    never set side by side.

    Attributes:
        name: the name written into records and tables.
        instructions: task kind -> instruction text with one ``{prompt}``.
        opening: the words that open the assistant's turn, tokenised apart as a response is in training.
        stop: strings that end an answer; the answer is cut before the first of them.
        imports_in_front: judge the answer with the imports of its prompt in front of it. Six of 164 real answers only
            lacked ``from typing import List``.
    """

    name: str
    instructions: dict[str, str]
    opening: str
    stop: tuple[str, ...]
    imports_in_front: bool = False


# "authors": the two requests of CodeACT (arXiv 2408.02193) in our words. A completion is asked for by showing the
# function, a program by giving the text; both in a Markdown block, which is opened for the model.
# "evalplus": the request of EvalPlus's own chat runs (evalplus.codegen, Apache-2.0), word for word, for comparison
# with its leaderboard.
_EVALPLUS_REQUEST = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
    "```\n{prompt}\n```"
)
PROTOCOLS = {
    "authors": Protocol(
        name="authors",
        instructions={
            "humaneval": "Complete this Python function in a Markdown code block:\n```python\n{prompt}\n```",
            "mbpp": "Write a Python function in a Markdown code block for this text:\n{prompt}",
        },
        opening="```python\n",
        stop=("\n```",),
    ),
    "evalplus": Protocol(
        name="evalplus",
        instructions={"humaneval": _EVALPLUS_REQUEST, "mbpp": _EVALPLUS_REQUEST},
        opening=(
            "Below is a Python script with a self-contained function that solves the problem and passes corresponding "
            "tests:\n```python\n"
        ),
        stop=("\n```", "\nif __name__", "\ndef main(", "\nprint("),
    ),
}
PROTOCOLS |= {
    f"{p.name}+imports": replace(p, name=f"{p.name}+imports", imports_in_front=True) for p in PROTOCOLS.values()
}


def get_protocol(name) -> Protocol:
    """The protocol of that name; EvaluationError naming the known ones when there is none."""
    if name not in PROTOCOLS:
        raise EvaluationError(f"protocol: {name!r} is not known; use {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def benchmark_instruction(kind: str, prompt: str, protocol: str = "authors") -> str:
    """The instruction that asks for one benchmark task.

    Args:
        kind: "humaneval" (``prompt`` is a signature with its docstring) or "mbpp" (``prompt`` is a quoted text).
        prompt: the task's ``prompt`` field; the quotes around an MBPP text are taken off under "authors".
        protocol: a key of `PROTOCOLS`.

    >>> text = "'''\\nWrite a function to add.\\nassert add(1, 2) == 3\\n'''"
    >>> benchmark_instruction("mbpp", text).splitlines()[1:]
    ['Write a function to add.', 'assert add(1, 2) == 3']
    """
    text = prompt.strip()
    if protocol == "authors" and kind == "mbpp":
        text = re.sub(r'^("""|\'\'\')|("""|\'\'\')$', "", text).strip()
    return PROTOCOLS[protocol].instructions[kind].replace("{prompt}", text)


def task_kind(task: dict) -> str:
    """The kind "humaneval" or "mbpp": by the task id where it says so, else by whether the prompt has the function."""
    task_id = str(task["task_id"]).lower()
    for kind in ("humaneval", "mbpp"):
        if kind in task_id:
            return kind
    return "humaneval" if f"def {task['entry_point']}(" in task["prompt"] else "mbpp"


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
    progress=print,
) -> list[dict]:
    """One greedy solution per task, appended to ``output_path`` batch by batch; what already stands there is kept.

    Args:
        model: a Hugging Face causal LM (with or without an unmerged adapter) in eval mode.
        tasks: dicts with task_id, prompt, entry_point.
        template: the `codeact_lib.prompts.PromptTemplate` the model was trained with, or its name.
        protocol: a key of `PROTOCOLS`.
        max_new_tokens: tokens after the opening of the answer; the authors' value is 1024.
        batch_size: rows decoded together. In float32 it does not change the text but for ties within rounding.
        output_path: JSONL of {"task_id", "solution", "raw", "n_tokens", "seconds", "key"}. A line counts only if its
            ``key`` (of prompt, protocol, limits and ``model_key``) is the one wanted now; half a line at the end, of a
            run that was killed, is removed. ``seconds`` is the task's share of its batch: their sum is the time of
            generation, however often it was interrupted.
        model_key: what identifies the weights, e.g. the sha256 of the model file.
        progress: called with a line of text now and then, None for silence.

    Returns:
        {"task_id", "solution", "raw"} in the order of ``tasks``; ``raw`` is all that was generated, ``solution`` what
        stands before the first stop string.
    """
    import torch

    from codeact_lib.prompts import get_template

    rules, template = PROTOCOLS[protocol], get_template(template)
    prompts = {t["task_id"]: _prompt_text(t, template, protocol) for t in tasks}
    settings = [rules.opening, rules.stop, max_new_tokens, model_key]
    keys = {task_id: sha256_json([prompt, *settings]) for task_id, prompt in prompts.items()}
    done = _resume(Path(output_path), keys)
    encoded = {k: _encode(tokenizer, prompts[k], rules.opening) for k in prompts if k not in done}
    waiting = sorted(encoded, key=lambda task_id: len(encoded[task_id]), reverse=True)
    stops, report = StopStrings(tokenizer, rules.stop), _Progress(len(waiting), len(done), progress)
    with open(output_path, "a", encoding="utf-8") as file, torch.inference_mode():
        for first in range(0, len(waiting), batch_size):
            batch = waiting[first : first + batch_size]
            start = time.monotonic()
            answers = greedy_decode(model, tokenizer, [encoded[k] for k in batch], max_new_tokens, stops)
            share = round((time.monotonic() - start) / len(batch), 4)
            for task_id, tokens in zip(batch, answers, strict=True):
                raw = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                done[task_id] = {"task_id": task_id, "solution": cut(raw, rules.stop), "raw": raw}
                line = {**done[task_id], "n_tokens": len(tokens), "seconds": share, "key": keys[task_id]}
                file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
            report(first + len(batch))
    return [{name: done[t["task_id"]][name] for name in ("task_id", "solution", "raw")} for t in tasks]


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


class StopStrings:
    """Finds stop strings in growing token lists without decoding every row at every step.

    A stop string can be completed only by a token whose text holds the string's last character; only then are the last
    few tokens of that row decoded.
    """

    def __init__(self, tokenizer, stop):
        self.tokenizer, self.stop = tokenizer, stop
        last = {text[-1] if text.isascii() else "\ufffd" for text in stop} | {text[-1] for text in stop}
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
        self.closing = {i for i, text in enumerate(texts) if last.intersection(text)}
        self.window = max((len(text) for text in stop), default=0) + 8  # a token may be part of a character

    def reached(self, tokens):
        """Whether the last of ``tokens`` completes a stop string."""
        if tokens[-1] not in self.closing:
            return False
        tail = self.tokenizer.decode(tokens[-self.window :], clean_up_tokenization_spaces=False)
        # A window in the middle of the answer may lose a leading blank, never a newline; the opening ends in a newline,
        # so a stop string that starts with one may also be met by the very first tokens.
        text = "\n" + tail if len(tokens) <= self.window else tail
        return any(stop in text for stop in self.stop)


def greedy_decode(model, tokenizer, prompts, max_new_tokens, stops) -> list[list[int]]:
    """Greedy continuations of token lists, left padded, with a key-value cache that finished rows leave.

    Returns the new tokens of each prompt, ended by the end token (left out), a stop string (left in) or the limit.
    """
    import torch

    ends = _end_tokens(model, tokenizer)
    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, answers, alive = growing_cache(model), [[] for _ in prompts], list(range(len(prompts)))
    finished = set()
    for _ in range(max_new_tokens):
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        ids = output.logits[:, -1].argmax(-1, keepdim=True)
        for row, token in zip(alive, ids[:, 0].tolist(), strict=True):
            if row not in finished and _is_over(answers[row], token, ends, stops):
                finished.add(row)
        left = [at for at, row in enumerate(alive) if row not in finished]
        if not left:
            break
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        positions = positions[:, -1:] + 1
        if len(left) <= 0.8 * len(alive):  # taking rows out copies the cache: not for every single one
            keep = torch.tensor(left, device=model.device)
            cache.batch_select_indices(keep)
            ids, mask, positions, alive = ids[keep], mask[keep], positions[keep], [alive[at] for at in left]
    return answers


def _is_over(answer, token, ends, stops):
    """Append ``token`` to ``answer`` unless it is an end token; whether the answer is complete."""
    if token in ends:
        return True
    answer.append(token)
    return stops.reached(answer)


def _end_tokens(model, tokenizer):
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = configured if isinstance(configured, (list, tuple)) else [configured]
    return {token for token in (*several, tokenizer.eos_token_id) if token is not None}


def growing_cache(model):
    """A key-value cache that appends in place.

    The stock cache copies itself at every token: for 64 rows of 200 tokens that is more memory traffic than the rest of
    the step of a small model. Layers of another kind (sliding windows) are left as transformers makes them.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class GrowingLayer(DynamicLayer):
        """Keys and values (rows, heads, length, head_dim) as views into buffers that grow by half."""

        buffers = None

        def update(self, key_states, value_states, *args, **kwargs):
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            start = self.get_seq_length()
            end = start + key_states.shape[-2]
            if self.buffers is None or end > self.buffers[0].shape[-2]:
                self.buffers = [_grown(self.keys, key_states, end), _grown(self.values, value_states, end)]
            for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[:, :, start:end] = new
            self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
            return self.keys, self.values

        def batch_select_indices(self, indices):
            super().batch_select_indices(indices)
            self.buffers = None

    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _grown(old, new, length):
    """A buffer for half as much again as ``length`` tokens that starts with ``old``."""
    buffer = new.new_empty(*new.shape[:2], length + length // 2, new.shape[-1])
    if old.numel():
        buffer[:, :, : old.shape[-2]] = old
    return buffer


class _Progress:
    """Says every few seconds how far it is and how long it will take."""

    def __init__(self, total, resumed, say, every=5.0):
        self.total, self.say, self.every = total, say, every
        self.start = self.last = time.monotonic()
        if say and resumed:
            say(f"{resumed} solutions were there already, {total} to go")

    def __call__(self, done):
        now = time.monotonic()
        if self.say and (now - self.last >= self.every or done == self.total):
            rate = done / max(now - self.start, 1e-9)
            self.say(f"{done}/{self.total} solutions, {rate:.1f}/s, {(self.total - done) / rate:.0f} s left")
            self.last = now
