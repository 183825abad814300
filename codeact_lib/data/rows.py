"""The forms in which instruction rows come in: two text columns, Alpaca's three, or a list of chat messages.

Whatever a row looks like, CodeACT scores one instruction and one response of it:

- columns: the two texts as they are;
- Alpaca: where ``input`` holds text, the instruction is ``instruction``, a line break, ``input`` (as in LLaMA-Factory);
- chat: the first message of the user and the assistant's message right after it.
"""
# System messages and later turns are not scored, because IFD is defined for one question and its answer; they stay in
# the row and in what is exported.

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

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
    input: str | None = None  # Alpaca's, added to the instruction where it holds text
    messages: str | None = None  # a list of chat messages, of which the first turn is taken


class Message(TypedDict):
    """One message of a chat, under OpenAI's names."""

    role: str
    content: str


def detect_columns(keys: Collection[str]) -> Columns | None:
    """The `Columns` that the usual key names suggest, or None.

    >>> detect_columns(["id", "instruction", "input", "output"])
    Columns(instruction='instruction', response='output', input='input', messages=None)
    """

    def first_of(*names: str) -> str | None:
        return next((name for name in names if name in keys), None)

    # A chat before columns: sets of chats often carry their first prompt in a column of its own beside it.
    messages = first_of(*MESSAGES_NAMES)
    if messages:
        return Columns(messages=messages)
    instruction = first_of(*INSTRUCTION_NAMES)
    response = first_of(*RESPONSE_NAMES)
    if instruction and response:
        return Columns(instruction, response, first_of("input"))
    return None


def row_texts(row: Mapping[str, Any], columns: Columns) -> tuple[str, str]:
    """Instruction and response of a row, two texts that are not blank. Raises `Unusable`."""
    if columns.messages:
        return _first_turn(_messages(row, columns.messages), columns.messages)
    texts = []
    for key in (columns.instruction, columns.response):
        text = _text(row, key)
        if not text.strip():
            raise Unusable(f"empty: {key}")
        texts.append(text)
    instruction, response = texts
    if columns.input and columns.input in row:
        extra = _text(row, columns.input)
        if extra.strip():
            instruction = f"{instruction}\n{extra}"
    return instruction, response


def conversation(row: Mapping[str, Any], columns: Columns) -> list[Message]:
    """The whole row as messages: every turn of a chat, or one question and its answer."""
    if columns.messages:
        return _messages(row, columns.messages)
    instruction, response = row_texts(row, columns)
    return [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]


def _text(row: Mapping[str, Any], key: str) -> str:
    """The text under a key, empty where there is none."""
    if key not in row:
        raise Unusable(f"missing key: {key}")
    value = row[key]
    # null in JSON, NaN in the columns of a frame: nobody wrote a text there.
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if not isinstance(value, str):
        raise Unusable(f"not text: {key} is {type(value).__name__}")
    return value


def _messages(row: Mapping[str, Any], key: str) -> list[Message]:
    """Messages under OpenAI's names, from those or from ShareGPT's (`from`/`value`, `human`/`gpt`)."""
    if key not in row:
        raise Unusable(f"missing key: {key}")
    # Parquet and the hub give lists as arrays.
    if not isinstance(row[key], (list, tuple, np.ndarray)):
        raise Unusable(f"not a chat: {key} is {type(row[key]).__name__}")
    messages: list[Message] = []
    for number, message in enumerate(row[key], 1):
        name = f"message {number} of {key}"
        if not isinstance(message, dict):
            raise Unusable(f"not a chat: {name} is {type(message).__name__}")
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if not isinstance(role, str):
            raise Unusable(f"not a chat: {name} has no role")
        if not isinstance(content, str):
            raise Unusable(f"not text: {name} is {type(content).__name__}")
        messages.append({"role": _ROLES.get(role, role), "content": content})
    return messages


def _first_turn(messages: list[Message], key: str) -> tuple[str, str]:
    roles = [message["role"] for message in messages]
    asked = roles.index("user") if "user" in roles else len(roles)
    if roles[asked : asked + 2] != ["user", "assistant"]:
        raise Unusable(f"no first turn: {key} holds no user message with an assistant message right after it")
    question = messages[asked]["content"]
    answer = messages[asked + 1]["content"]
    for name, text in (("question", question), ("answer", answer)):
        if not text.strip():
            raise Unusable(f"empty: the first {name} of {key}")
    return question, answer
