"""Greedy solutions of benchmark tasks, in batches that can be resumed; importing this needs no torch."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from codeact_lib.artifacts import append_jsonl, make_folder, resume_jsonl, sha256_json, write_jsonl
from codeact_lib.errors import ModelError
from codeact_lib.evaluation.benchmarks import Task
from codeact_lib.evaluation.decoding import GreedyModel, TransformersModel
from codeact_lib.measure import unless_out_of_memory
from codeact_lib.processes import Progress
from codeact_lib.prompts import PromptTemplate, get_protocol, get_template, prompt_ids, task_kind, task_prompt


class Solution(TypedDict):
    """A model's answer to one task."""

    task_id: str
    solution: str  # what stands before the first stop string; under a raw protocol behind the task's own text
    raw: str  # all that was generated


def generate_solutions(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    template: PromptTemplate | str,
    *,
    protocol: str = "codeact",
    max_new_tokens: int = 1024,
    batch_size: int = 32,
    output_path: Path | str,
    model_key: str = "",
    trained_with: str | None = None,
    progress: Callable[[str], object] | None = print,
) -> list[Solution]:
    """One greedy solution per task, appended to `output_path` batch by batch; what already stands there is kept.

    Args:
        model: a Hugging Face causal LM (with or without an unmerged adapter) in eval mode, or a `decoding.GreedyModel`
            such as `vllm.load_vllm` returns.
        tokenizer: the model's.
        tasks: dicts with task_id, prompt, entry_point, all of one kind.
        template: the `PromptTemplate` the model was trained with, or its name.
        protocol: a key of `prompts.PROTOCOLS`.
        max_new_tokens: tokens after the opening of the answer.
        batch_size: rows decoded together, halved whenever memory does not suffice. In float32 it does not change the
            text but for ties within rounding.
        output_path: JSONL of {"task_id", "solution", "raw", "n_tokens", "seconds", "key"}, and where the text may
            depend on it (no float32, 4 bits, or vLLM) also {"engine", "dtype", "batch_size"}. A line counts only if its
            `key` (of prompt, protocol, limits and `model_key`) is the one wanted now. `seconds` is the task's share of
            its batch: their sum is the time of generation, however often it was interrupted.
        model_key: what identifies the weights, e.g. the sha256 of the model file.
        trained_with: sha256 of the template the model was trained with, None where it was not trained here.
        progress: called with a line of text now and then, None for silence.

    Returns the solutions in the order of `tasks`.

    Raises:
        ModelError: `trained_with` is not the hash of `template`, or memory does not suffice for one answer.
    """
    rules = get_protocol(protocol)
    template = get_template(template)
    require_template(template, trained_with)
    stop = rules.stop[task_kind(tasks[0])] if tasks else ()
    prompts = {task["task_id"]: task_prompt(task, template, protocol) for task in tasks}
    keys = {}
    for task_id, prompt in prompts.items():
        keys[task_id] = sha256_json([prompt, rules.opening, stop, max_new_tokens, model_key])
    output_path = Path(output_path)
    make_folder(output_path.parent)
    done = _resume(output_path, keys)
    encoded = {}
    for task in tasks:
        if task["task_id"] not in done:
            encoded[task["task_id"]] = encode_task(tokenizer, task, template, protocol)
    if progress and done:
        progress(f"{len(done)} solutions were there already, {len(encoded)} to go")
    if encoded and not isinstance(model, GreedyModel):
        model = TransformersModel(model, tokenizer, stop)

    def decode(batch: list[str]) -> list[list[int]]:
        return model.greedy([encoded[task_id] for task_id in batch], max_new_tokens, stop)

    # The longest first: a batch of equals has little padding, and whether memory suffices shows at once.
    waiting = sorted(encoded, key=lambda task_id: len(encoded[task_id]), reverse=True)
    with Progress("", len(waiting), "solutions", progress) as report:
        while waiting:
            batch = waiting[:batch_size]
            start = time.monotonic()
            answers = unless_out_of_memory(decode, batch)
            if answers is None:
                if len(batch) == 1:
                    raise ModelError(
                        "memory is out for a single answer: take a smaller max_new_tokens, model, or a larger GPU"
                    )
                batch_size = len(batch) // 2
                if progress:
                    progress(f"memory is out with {len(batch)} answers at a time: going on with {batch_size}")
                continue
            facts: dict[str, Any] = {"seconds": round((time.monotonic() - start) / len(batch), 4)}
            if model.stamp:
                facts |= {**model.stamp, "batch_size": batch_size}
            lines = []
            for task_id, tokens in zip(batch, answers, strict=True):
                raw = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                front = prompts[task_id] if rules.raw else ""
                done[task_id] = Solution(task_id=task_id, solution=front + cut(raw, stop), raw=raw)
                lines.append({**done[task_id], "n_tokens": len(tokens), **facts, "key": keys[task_id]})
            append_jsonl(output_path, lines)
            waiting = waiting[len(batch) :]
            report.advance(len(batch))
    return [done[task["task_id"]] for task in tasks]


def require_template(template: PromptTemplate, trained_with: str | None) -> None:
    """ModelError if `trained_with` (a sha256, None for an untouched base model) is not the hash of `template`."""
    # To ask a model in another way than it was trained costs accuracy without a word of warning.
    if trained_with not in (None, template.sha256):
        raise ModelError(
            f"The model was trained with another prompt template (sha256 {trained_with[:12]}) than {template.name!r} "
            f"as it is now ({template.sha256[:12]}): train it again, or name the template it was trained with."
        )


def encode_task(tokenizer: Any, task: Task, template: PromptTemplate | str, protocol: str = "codeact") -> list[int]:
    """Token ids of a task up to the answer."""
    # Prompt and opening are tokenised apart, as prompt and response are in training.
    return prompt_ids(tokenizer, task_prompt(task, get_template(template), protocol), get_protocol(protocol).opening)


def cut(text: str, stop: Sequence[str]) -> str:
    """`text` before the first of the strings `stop`."""
    ends = [text.find(string) for string in stop if string in text]
    return text[: min(ends, default=len(text))]


def _resume(path: Path, keys: dict[str, str]) -> dict[str, Solution]:
    """What `path` already holds for `keys`, by task id; anything else in the file is removed."""
    kept = []
    done: dict[str, Solution] = {}
    for record in resume_jsonl(path, ("task_id", "key", "solution", "raw")):
        task_id = record["task_id"]
        if task_id in keys and record["key"] == keys[task_id] and task_id not in done:
            kept.append(record)
            done[task_id] = Solution(task_id=task_id, solution=record["solution"], raw=record["raw"])
    # Always, for only then is the file free of lines that are no records: the judge refuses those.
    write_jsonl(path, kept)
    return done
