"""Outputs as plain JSON and back: what crosses the border between a solution and its judge.

None, bool, text, finite and other floats and small ints are themselves; everything else is a list [kind, content].
Subclasses lose their class (a solution's own `__eq__` stays behind), what is no data becomes an `Opaque`.

>>> decode(encode((1, {"a": {2}})))
(1, {'a': {2}})
"""

import hashlib
import marshal
from collections import Counter, deque
from collections.abc import Iterator, ValuesView
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Any

LARGE = 1 << 17  # bytes from which on an output is told by its digest: ten million words would take a minute as text
HUGE = 8 << 20  # bytes from which on the order of sets and dicts and the last digits of floats count
SMALL = 1 << 62  # JSON text of longer ints may exceed the limit Python sets on decimal digits
DEPTH = 200
# How the text of an answer ends (`answers`): looked at as text, for a solution wrote it.
ANSWERED = '"why": ""}'
OUT_OF_TIME = '"why": "timeout"}'

MOST_ENTRIES = 1 << 20  # of an iterator, which need not end
SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
UNCHANGED = (str, int, type(None))
VIEWS = {"keys": type({}.keys()), "items": type({}.items())}


class Opaque:
    """Stands for an output that is no plain data; equals nothing but itself."""


@dataclass(frozen=True)
class Digest:
    """Stands for a large output; equals the digest of an output of the same content and types."""

    sha256: str


def encode_output(value: Any, large: int = LARGE) -> Any:
    """`encode`, but an output of more than `large` bytes becomes a digest. marshal is only written here, never read."""
    try:
        data = marshal.dumps(value, 2)  # the last version without references: equal values give equal bytes
    except ValueError:
        return encode(value)
    if len(data) <= large:
        return encode(value)
    # One output of Mbpp/255 has six million floats, to look at each would take longer than it may.
    if len(data) <= HUGE:
        data = marshal.dumps(canonical(value), 2)
    return ["digest", hashlib.sha256(data).hexdigest()]


def canonical(value: Any) -> Any:
    """Equal for outputs that EvalPlus would call equal: no order of sets and dicts, floats to nine digits."""
    match value:
        case list() | tuple():
            # most entries of a large output need no look of their own: Mbpp/255 has a million in one
            return type(value)([entry if type(entry) in UNCHANGED else canonical(entry) for entry in value])
        case set() | frozenset():
            return ["set", sorted(marshal.dumps(canonical(entry), 2) for entry in value)]
        case dict():
            pairs = ((canonical(key), canonical(entry)) for key, entry in value.items())
            return ["dict", sorted(marshal.dumps(pair, 2) for pair in pairs)]
        case bool():
            return int(value)
        case float():
            # EvalPlus compares floats to 1e-7; the last digits of two right answers differ by their order of summation.
            rounded = float(f"{value:.9g}")
            return int(rounded) if rounded.is_integer() else rounded
    return value


def encode(value: Any, depth: int = DEPTH) -> Any:
    """`value` as JSON-able data. Never raises for what a solution may return; too deep counts as no data."""
    if value is None or value is True or value is False:
        return value
    if depth == 0:
        return ["opaque", "nested"]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int(value)
        return number if -SMALL < number < SMALL else ["int", hex(number)]
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", bytes(value).hex()]
    for kind, entries in (SEQUENCES | VIEWS).items():
        if isinstance(value, entries):
            return [kind, [encode(entry, depth - 1) for entry in value]]
    if isinstance(value, range):
        return ["range", encode([value.start, value.stop, value.step])]
    if isinstance(value, Fraction):
        return ["Fraction", encode([value.numerator, value.denominator])]
    if isinstance(value, Decimal):
        return ["Decimal", str(value)]
    if isinstance(value, (Iterator, ValuesView, deque)):  # where EvalPlus wants a set, anything will do
        return ["iterator", [encode(entry, depth - 1) for entry in islice(value, MOST_ENTRIES)]]
    if isinstance(value, dict):
        kind = "Counter" if isinstance(value, Counter) else "dict"
        return [kind, [[encode(k, depth - 1), encode(v, depth - 1)] for k, v in value.items()]]
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):  # numpy may not be there to be asked
        if getattr(value, "ndim", 0):
            return ["ndarray", encode(value.tolist(), depth - 1)]
        return encode(value.item())
    return ["opaque", type(value).__name__]


def decode(data: Any) -> Any:
    """The value that `encode` wrote; ValueError, TypeError or RecursionError for anything `encode` cannot write."""
    if not isinstance(data, list):
        return data
    kind, content = data
    match kind:
        case "list" | "tuple" | "set" | "frozenset":
            return SEQUENCES[kind](map(decode, content))
        case "dict":
            return {decode(k): decode(v) for k, v in content}
        case "keys":
            return dict.fromkeys(map(decode, content)).keys()
        case "items":
            return dict(map(decode, content)).items()
        case "iterator":
            return map(decode, content)
        case "range":
            return range(*decode(content))
        case "Fraction":
            return Fraction(*decode(content))
        case "Decimal":
            return Decimal(content)
        case "Counter":
            return Counter(decode(["dict", content]))
        case "int":
            return int(content, 16)
        case "complex":
            return complex(*content)
        case "bytes":
            return bytes.fromhex(content)
        case "ndarray":
            import numpy

            return numpy.array(decode(content))
        case "opaque":
            return Opaque()
        case "digest":
            return Digest(content)
    raise ValueError(f"no kind of output is called {kind!r}")
