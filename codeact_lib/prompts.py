"""One prompt template per model family, the same object for scoring, training and evaluation.

A template is a prefix and a suffix around the instruction; the response follows the suffix directly:

    ### Instruction:            <- prefix
    Sort a list of words.       <- instruction
    ### Response:               <- suffix, ends with a newline
    ```python ...               <- response, supervised, closed by the end-of-sequence token

Training and evaluating with different prompts costs accuracy without a word of warning, so every stage takes its
template from `TEMPLATES` and records `PromptTemplate.sha256`.
"""

import hashlib
from dataclasses import dataclass

from codeact_lib.errors import DataError, ModelError
from codeact_lib.extensions import is_own, load_own

IGNORE_INDEX = -100  # the label that cross-entropy skips


@dataclass(frozen=True)
class PromptTemplate:
    """Text before and after the instruction.

    `name` is the key in `TEMPLATES`; `prefix` and `suffix` are used verbatim, no stripping.
    """

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


# The two training templates and the prompt of the authors' IFD scores (CodeACT, arXiv 2408.02193, set-up).
TEMPLATES = {
    template.name: template
    for template in (
        PromptTemplate("deepseek-coder", "### Instruction:\n", "\n### Response:\n"),
        PromptTemplate("codellama", "[INST] ", " [/INST]"),
        PromptTemplate("ifd-authors", "Question:\n", "\n\nAnswer:\n"),
    )
}


def get_template(template) -> PromptTemplate:
    """Return `template` itself when it is a `PromptTemplate`, else the one of that name ("module:object": your own).

    Raises DataError naming the known templates when there is none.
    """
    template = load_own(template) if is_own(template) else template
    if isinstance(template, PromptTemplate):
        return template
    if template not in TEMPLATES:
        raise DataError(f"unknown prompt template {template!r}: choose one of {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[template]


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of `text` alone, without any special token."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def tokenize_example(tokenizer, template, instruction: str, response: str, max_length: int) -> dict:
    """Turn one instruction and its response into token ids and labels.

    Prompt and response are tokenised apart, so the response has the same ids whatever stands in front of it (byte-pair
    merges across the boundary would change them). The row is BOS (if the tokenizer has one), prompt, response, EOS.
    Labels are -100 on BOS and prompt: the loss is on the response and its EOS only (CodeACT, arXiv 2408.02193).

    Returns a dict with `input_ids` and `labels` (equal length, at most `max_length`), `n_prompt` (tokens before the
    response, BOS included) and `status`:

    - "ok";
    - "truncated": the response end was cut to fit, so there is no EOS;
    - "prompt_too_long": the prompt leaves no room for a response token, nothing is supervised;
    - "empty": the instruction or the response has no text, nothing is supervised.

    Raises ModelError when the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no end-of-sequence token, so a model could not learn to stop: set eos_token"
        )
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    prompt_ids = bos + encode(tokenizer, get_template(template).prompt(instruction))
    answer_ids = encode(tokenizer, response) + [tokenizer.eos_token_id]
    n_prompt = len(prompt_ids)
    status = "truncated" if n_prompt + len(answer_ids) > max_length else "ok"
    if n_prompt >= max_length:
        status = "prompt_too_long"
    if not instruction.strip() or not response.strip():
        status, answer_ids = "empty", []
    input_ids = (prompt_ids + answer_ids)[:max_length]
    labels = ([IGNORE_INDEX] * n_prompt + answer_ids)[:max_length]
    return {"input_ids": input_ids, "labels": labels, "n_prompt": n_prompt, "status": status}
