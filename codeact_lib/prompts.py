"""One prompt template per model family, the same object for scoring, training and evaluation.

A template is a prefix and a suffix around the instruction; the response follows the suffix directly:

    ### Instruction:            <- prefix
    Sort a list of words.       <- instruction
    ### Response:               <- suffix, ends with a newline
    ```python ...               <- response, supervised, closed by the end-of-sequence token
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

from codeact_lib.errors import DataError, EvaluationError, ModelError
from codeact_lib.extensions import is_own, load_own

if TYPE_CHECKING:  # a notebook that words a prompt need not wait for transformers
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100  # the label that cross-entropy skips
KINDS = ("humaneval", "mbpp")  # of benchmark tasks: a function to complete, a text to write a program for


@dataclass(frozen=True)
class PromptTemplate:
    """Text before and after the instruction, used verbatim; `name` is the key in `TEMPLATES`."""

    name: str
    prefix: str
    suffix: str

    def prompt(self, instruction: str) -> str:
        """Return the text a model sees before it answers `instruction`."""
        return self.prefix + instruction + self.suffix

    @property
    def sha256(self) -> str:
        """Hex digest of the template text (64 characters): two runs with equal digests used the same prompt."""
        return hashlib.sha256(f"{self.prefix}\0{self.suffix}".encode()).hexdigest()


# The two training templates and the prompt of the authors' IFD scores (CodeACT, arXiv 2408.02193, set-up). Training
# with one prompt and evaluating with another costs accuracy without a word of warning, so every stage takes its
# template from here and records its `sha256`.
TEMPLATES = {
    template.name: template
    for template in (
        PromptTemplate("deepseek-coder", "### Instruction:\n", "\n### Response:\n"),
        PromptTemplate("codellama", "[INST] ", " [/INST]"),
        PromptTemplate("ifd-authors", "Question:\n", "\n\nAnswer:\n"),
    )
}


def get_template(template: str | PromptTemplate) -> PromptTemplate:
    """Return `template` itself when it is a `PromptTemplate`, else the one of that name ("module:object": your own).

    Raises DataError naming the known templates when there is none.
    """
    if is_own(template):
        template = load_own(template)
    if isinstance(template, PromptTemplate):
        return template
    if template not in TEMPLATES:
        raise DataError(f"unknown prompt template {template!r}: choose one of {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[template]


# ---- token ids -----------------------------------------------------------------------------------------------------
def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text` alone, without any special token."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_ids(tokenizer: PreTrainedTokenizerBase, *texts: str) -> list[int]:
    """Token ids of a prompt: BOS, once, where the tokenizer has one, then each of `texts` tokenised apart."""
    ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for text in texts:
        ids += encode(tokenizer, text)
    return ids


class TokenizedExample(TypedDict):
    """One sample of a training."""

    input_ids: list[int]  # BOS (if the tokenizer has one), prompt, response, EOS; at most `max_length`
    labels: list[int]  # as many, -100 on BOS and prompt: the loss is on the response and its EOS only (the paper)
    n_prompt: int  # tokens before the response, BOS included
    status: str  # see `tokenize_example`


def tokenize_example(
    tokenizer: PreTrainedTokenizerBase, template: str | PromptTemplate, instruction: str, response: str, max_length: int
) -> TokenizedExample:
    """Turn one instruction and its response into token ids and labels, with a status:

    - "ok";
    - "truncated": the response end was cut to fit, so there is no EOS;
    - "prompt_too_long": the prompt leaves no room for a response token, nothing is supervised;
    - "empty": the instruction or the response has no text, nothing is supervised.

    Raises ModelError when the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no end-of-sequence token, so no model could learn to stop: set eos_token")
    # Tokenised apart, so that the response has the same ids whatever stands in front of it: byte-pair merges across the
    # boundary would change them.
    prompt = prompt_ids(tokenizer, get_template(template).prompt(instruction))
    answer = [*encode(tokenizer, response), tokenizer.eos_token_id]
    status = "ok"
    if not instruction.strip() or not response.strip():
        status = "empty"
        answer = []
    elif len(prompt) >= max_length:
        status = "prompt_too_long"
    elif len(prompt) + len(answer) > max_length:
        status = "truncated"
    return {
        "input_ids": (prompt + answer)[:max_length],
        "labels": ([IGNORE_INDEX] * len(prompt) + answer)[:max_length],
        "n_prompt": len(prompt),
        "status": status,
    }


# ---- requests of the benchmarks ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Protocol:
    """How a task is put to the model and how its answer is read; named in every record, because it moves pass@1."""

    # The same completions scored 45/164 or 51/164 by the way the answer was read alone, so results of two protocols are
    # never set side by side.

    name: str  # written into records and tables
    instructions: dict[str, str]  # task kind -> instruction text with one `{prompt}`
    opening: str  # the words that open the assistant's turn, tokenised apart as a response is in training
    stop: dict[str, tuple[str, ...]]  # task kind -> strings that end an answer, which is cut before the first of them
    # Nothing is asked: the model goes on with the task's own text, and that text stands in front of its solution.
    raw: bool = False
    # Judge an answer with the imports of its prompt in front: six of 164 only lacked `from typing import List`.
    imports_in_front: bool = False


# "codeact": the two requests of CodeACT (arXiv 2408.02193) in our words, and not the authors' prompt: wording, opening
# and stops differ (docs/deviations.md). A completion is asked for by showing the function, a program by giving the
# text; both in a Markdown block, which is opened for the model.
# "evalplus": the request of EvalPlus's own chat runs (evalplus.codegen, Apache-2.0), word for word, for comparison
# with its leaderboard; "raw": the way of its base models, with its stops.
_EVALPLUS_REQUEST = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
    "```\n{prompt}\n```"
)

_END_OF_PROGRAM = ("\nif __name__", "\ndef main(", "\nprint(")

PROTOCOLS = {
    "codeact": Protocol(
        name="codeact",
        instructions={
            "humaneval": "Complete this Python function in a Markdown code block:\n```python\n{prompt}\n```",
            "mbpp": "Write a Python function in a Markdown code block for this text:\n{prompt}",
        },
        opening="```python\n",
        stop=dict.fromkeys(KINDS, ("\n```",)),
    ),
    "evalplus": Protocol(
        name="evalplus",
        instructions={"humaneval": _EVALPLUS_REQUEST, "mbpp": _EVALPLUS_REQUEST},
        opening=(
            "Below is a Python script with a self-contained function that solves the problem and passes corresponding "
            "tests:\n```python\n"
        ),
        stop=dict.fromkeys(KINDS, ("\n```", *_END_OF_PROGRAM)),
    ),
}

for _plain in tuple(PROTOCOLS.values()):
    _twin = replace(_plain, name=f"{_plain.name}+imports", imports_in_front=True)
    PROTOCOLS[_twin.name] = _twin

PROTOCOLS["raw"] = Protocol(
    name="raw",
    instructions={},
    opening="",
    stop={
        "humaneval": (*_END_OF_PROGRAM, "\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert "),
        "mbpp": (*_END_OF_PROGRAM, '\n"""', "\nassert"),
    },
    raw=True,
)


def get_protocol(name: str) -> Protocol:
    """The protocol of that name; EvaluationError naming the known ones when there is none."""
    if name not in PROTOCOLS:
        raise EvaluationError(f"protocol: {name!r} is not known; use {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def task_prompt(task: Mapping[str, Any], template: PromptTemplate, protocol: str) -> str:
    """The text a model sees before it answers a benchmark task, without the opening of the answer."""
    if PROTOCOLS[protocol].raw:
        return task["prompt"].strip() + "\n"
    return template.prompt(benchmark_instruction(task_kind(task), task["prompt"], protocol))


def benchmark_instruction(kind: str, prompt: str, protocol: str = "codeact") -> str:
    """The instruction that asks for one benchmark task.

    Args:
        kind: "humaneval" (`prompt` is a signature with its docstring) or "mbpp" (`prompt` is a quoted text).
        prompt: the task's `prompt` field; the quotes around an MBPP text are taken off under "codeact".
        protocol: a key of `PROTOCOLS` that asks, so not "raw".

    >>> text = "'''\\nWrite a function to add.\\nassert add(1, 2) == 3\\n'''"
    >>> benchmark_instruction("mbpp", text).splitlines()[1:]
    ['Write a function to add.', 'assert add(1, 2) == 3']
    """
    text = prompt.strip()
    if protocol.startswith("codeact") and kind == "mbpp":
        text = re.sub(r'^("""|\'\'\')|("""|\'\'\')$', "", text).strip()
    return PROTOCOLS[protocol].instructions[kind].replace("{prompt}", text)


def task_kind(task: Mapping[str, Any]) -> str:
    """The kind "humaneval" or "mbpp": by the task id where it says so, else by whether the prompt has the function."""
    task_id = str(task["task_id"]).lower()
    for kind in KINDS:
        if kind in task_id:
            return kind
    return "humaneval" if f"def {task['entry_point']}(" in task["prompt"] else "mbpp"
