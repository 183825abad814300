"""Outputs as plain JSON and back: what crosses the border between a solution and its judge.

None, bool, text, finite and other floats and small ints are themselves; everything else is a list [kind, content].
Subclasses lose their class (a solution's own ``__eq__`` stays behind), what is no data becomes an `Opaque`.

>>> decode(encode((1, {"a": {2}})))
(1, {'a': {2}})
"""

import hashlib
import marshal
from collections import Counter
from dataclasses import dataclass

LARGE = 1 << 17  # bytes from which on an output is told by its digest: ten million words would take a minute as text
SMALL = 1 << 62  # JSON text of longer ints may exceed the limit Python sets on decimal digits
DEPTH = 200
# How the text of an answer ends (`answers`): looked at as text, for a solution wrote it.
ANSWERED, OUT_OF_TIME = '"why": ""}', '"why": "timeout"}'


class Opaque:
    """Stands for an output that is no plain data; equals nothing but itself. ``kind`` is the name of its type."""

    def __init__(self, kind):
        self.kind = kind


@dataclass(frozen=True)
class Digest:
    """Stands for a large output; equals the digest of an output of the same content and types."""

    sha256: str


def digest(value):
    """`Digest` of plain data, None for what is no plain data. marshal is only written here, never read."""
    try:
        return Digest(hashlib.sha256(marshal.dumps(value, 0)).hexdigest())
    except ValueError:
        return None


def encode_output(value):
    """`encode`, but a large output becomes its `digest`."""
    try:
        data = marshal.dumps(value, 0)
    except ValueError:
        return encode(value)
    return ["digest", hashlib.sha256(data).hexdigest()] if len(data) > LARGE else encode(value)


def encode(value, depth=DEPTH):
    """``value`` as JSON-able data. Never raises for what a solution may return; too deep counts as no data."""
    if value is None or value is True or value is False:
        return value
    if depth == 0:
        return ["opaque", "nested"]
    for kind, write in WRITERS:
        if isinstance(value, kind):
            return write(value, depth - 1)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return ["ndarray", encode(value.tolist(), depth - 1)] if getattr(value, "ndim", 0) else encode(value.item())
    return ["opaque", type(value).__name__]


def _int(value, depth):
    value = int(value)
    return value if -SMALL < value < SMALL else ["int", hex(value)]


def _sequence(kind):
    return lambda value, depth: [kind, [encode(entry, depth) for entry in value]]


def _mapping(kind):
    return lambda value, depth: [kind, [[encode(k, depth), encode(v, depth)] for k, v in value.items()]]


WRITERS = (
    (str, lambda value, depth: str.__str__(value)),
    (int, _int),
    (float, lambda value, depth: float.__float__(value)),
    (list, _sequence("list")),
    (tuple, _sequence("tuple")),
    (Counter, _mapping("Counter")),
    (dict, _mapping("dict")),
    (set, _sequence("set")),
    (frozenset, _sequence("frozenset")),
    (complex, lambda value, depth: ["complex", [value.real, value.imag]]),
    ((bytes, bytearray), lambda value, depth: ["bytes", bytes(value).hex()]),
)


def decode(data):
    """The value that `encode` wrote; ValueError, TypeError or RecursionError for anything `encode` cannot write."""
    if not isinstance(data, list):
        return data
    kind, content = data
    if kind not in READERS:
        raise ValueError(f"no kind of output is called {kind!r}")
    return READERS[kind](content)


def _entries(content):
    return [decode(entry) for entry in content]


def _pairs(content):
    return {decode(k): decode(v) for k, v in content}


def _ndarray(content):
    import numpy

    return numpy.array(decode(content))


READERS = {
    "int": lambda content: int(content, 16),
    "list": _entries,
    "tuple": lambda content: tuple(_entries(content)),
    "set": lambda content: set(_entries(content)),
    "frozenset": lambda content: frozenset(_entries(content)),
    "dict": _pairs,
    "Counter": lambda content: Counter(_pairs(content)),
    "complex": lambda content: complex(*content),
    "bytes": bytes.fromhex,
    "ndarray": _ndarray,
    "opaque": Opaque,
    "digest": Digest,
}
