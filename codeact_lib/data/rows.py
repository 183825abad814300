"""The forms in which instruction rows come in.

Two text columns, Alpaca's three (an optional ``input`` beside the instruction), or a list of chat messages.

Whatever a row looks like, CodeACT scores one instruction and one response of it:

- columns: the two texts as they are;
- Alpaca: where ``input`` holds text, the instruction is ``instruction``, a line break, ``input`` (as in LLaMA-Factory);
- chat: the first message of the user and the assistant's message right after it. System messages and later turns
  are not scored; they stay in the row and in what is exported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

INSTRUCTION_NAMES = ("instruction", "prompt", "question", "problem", "query")
RESPONSE_NAMES = ("response", "output", "completion", "answer", "solution")
MESSAGES_NAMES = ("messages", "conversations", "conversation")
_ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's words for OpenAI's


class Unusable(ValueError):
    """A row that holds no instruction and response; the text is the reason, as in a validation report."""


@dataclass(frozen=True)
class Columns:
    """Which key of a row holds what. With ``messages`` the others are not looked at."""

    instruction: str = "instruction"
    response: str = "response"
    input: str | None = None
    messages: str | None = None


def detect_columns(keys):
    """The ``Columns`` that the usual key names suggest, or ``None``.

    >>> detect_columns(["id", "instruction", "input", "output"])
    Columns(instruction='instruction', response='output', input='input', messages=None)
    """
    first = {
        kind: next((name for name in names if name in keys), None)
        for kind, names in (("i", INSTRUCTION_NAMES), ("r", RESPONSE_NAMES), ("m", MESSAGES_NAMES))
    }
    if first["m"]:
        return Columns(messages=first["m"])
    if first["i"] and first["r"]:
        return Columns(first["i"], first["r"], "input" if "input" in keys else None)
    return None


# ---------------------------------------------------------------------------------------------- in
def row_texts(row, columns):
    """(instruction, response) of a row (a dict), two texts that are not blank. Raises ``Unusable``."""
    if columns.messages:
        return _first_turn(_messages(row, columns.messages), columns.messages)
    instruction, response = (_text(row, key) for key in (columns.instruction, columns.response))
    if columns.input and not _is_missing(row.get(columns.input)):
        extra = _text(row, columns.input, may_be_blank=True)
        instruction = f"{instruction}\n{extra}" if extra.strip() else instruction
    return instruction, response


def conversation(row, columns):
    """The whole row as ``[{"role", "content"}, ...]``: every turn of a chat, or one question and its answer."""
    if columns.messages:
        return _messages(row, columns.messages)
    instruction, response = row_texts(row, columns)
    return [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]


def _text(row, key, may_be_blank=False):
    if key not in row:
        raise Unusable(f"missing key: {key}")
    value = row[key]
    if _is_missing(value):
        raise Unusable(f"empty: {key}")
    if not isinstance(value, str):
        raise Unusable(f"not text: {key} is {type(value).__name__}")
    if not value.strip() and not may_be_blank:
        raise Unusable(f"empty: {key}")
    return value


def _is_missing(value):
    return value is None or (isinstance(value, float) and value != value)  # null; how CSV and parquet give no text


def _messages(row, key):
    """Messages under OpenAI's names, from those or from ShareGPT's (``from``/``value``, ``human``/``gpt``)."""
    if key not in row:
        raise Unusable(f"missing key: {key}")
    if not isinstance(row[key], (list, tuple, np.ndarray)):
        raise Unusable(f"not a chat: {key} is {type(row[key]).__name__}")
    return [_message(message, f"message {number} of {key}") for number, message in enumerate(row[key], 1)]


def _message(message, name):
    if not isinstance(message, dict):
        raise Unusable(f"not a chat: {name} is {type(message).__name__}")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if not isinstance(role, str):
        raise Unusable(f"not a chat: {name} has no role")
    if not isinstance(content, str):
        raise Unusable(f"not text: {name} is {type(content).__name__}")
    return {"role": _ROLES.get(role, role), "content": content}


def _first_turn(messages, key):
    asked = next((i for i, message in enumerate(messages) if message["role"] == "user"), len(messages))
    turn = messages[asked : asked + 2]
    if [message["role"] for message in turn] != ["user", "assistant"]:
        raise Unusable(f"no first turn: {key} holds no user message with an assistant message right after it")
    for name, message in zip(("question", "answer"), turn, strict=True):
        if not message["content"].strip():
            raise Unusable(f"empty: the first {name} of {key}")
    return turn[0]["content"], turn[1]["content"]
