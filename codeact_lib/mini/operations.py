"""The grammar of the mini corpus: operations on lists that chain into functions of one to four steps.

An `Operation` knows how it is said (imperative phrases and a noun phrase) and how it is written (a Python expression);
`grammar.yaml` beside this file has all of them. A `Program` is a source (what the function receives), a chain of
operations and the constants they need; from it come instructions, docstrings, code in several styles, and test inputs.
Complexity is real: the number of chained steps is what makes a row hard.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

# One chain in six, by a hash of its operation names alone, belongs to the benchmark and occurs in no training text.
HOLD_OUT_EVERY = 6
# Written alike for integers and words, so they count as one in the hold-out; so do those with the prefix "words_".
TWINS = {"alphabetical": "ascending"}

Constant = int | str | None


@dataclass(frozen=True)
class Operation:
    """One step. Types are "ints", "words" (lists), "int", "str" (final results); `grammar.yaml` explains the fields."""

    name: str
    takes: str
    gives: str
    family: str
    phrases: Sequence[str]
    noun: str
    each: str = "{v}"
    keep: str = ""
    expression: str = ""
    sloppy: str = ""
    constants: Sequence[Constant] = ()

    def write(self, x: str, v: str, k: Constant, sloppy: bool = False) -> str:
        """This step as a Python expression over the list expression `x` with item variable `v` and constant `k`."""
        template = self.expression
        if sloppy and self.sloppy:
            template = self.sloppy
        elif not template:
            condition = f" if {self.keep}" if self.keep else ""
            template = f"[{self.each} for {{v}} in {{x}}{condition}]"
        return template.format(x=x, v=v, k=k)

    @property
    def needs_name(self) -> bool:
        """Whether the list is mentioned twice, so that it must be a variable and not an expression."""
        return self.expression.count("{x}") > 1


@dataclass(frozen=True)
class Source:
    """What the function receives: parameter names, how it is described, and the expression that makes a list of it."""

    name: str
    gives: str
    parameters: Sequence[str]
    phrase: str
    noun: str
    expression: str
    weight: int  # how often a program draws it


# 600 lines take PyYAML's parser in C 14 ms and the one in Python 90 ms; not every build of PyYAML has the former.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
GRAMMAR = yaml.load(Path(__file__).with_name("grammar.yaml").read_text(encoding="utf-8"), Loader=_LOADER)
# An operation of no family is one of its own.
OPERATIONS = [Operation(**{"gives": row["takes"], "family": row["name"], **row}) for row in GRAMMAR["operations"]]
SOURCES = [Source(**row) for row in GRAMMAR["sources"]]


@dataclass(frozen=True)
class Program:
    """A source, a chain of operations with constants, and the names used when it is written out."""

    source: Source
    chain: tuple[Operation, ...]
    constants: tuple[Constant, ...]
    parameter: str
    name: str

    @property
    def steps(self) -> list[tuple[Operation, Constant]]:
        """Each operation with its constant."""
        return list(zip(self.chain, self.constants, strict=True))

    @property
    def chain_names(self) -> tuple[str, ...]:
        """Names of the operations: what decides whether the program is held out."""
        return tuple(operation.name for operation in self.chain)

    @property
    def signature(self) -> str:
        """Name and parameter, as in the line that defines it."""
        return f"{self.name}({self.parameter})"

    @property
    def list_expression(self) -> str:
        """The Python expression of the list that the first operation takes."""
        return self.source.expression.format(p=self.parameter)

    @property
    def list_noun(self) -> str:
        """That list in words."""
        return self.source.noun.format(p=self.parameter)


def is_held_out(chain_names: Sequence[str]) -> bool:
    """Whether this chain of operation names belongs to the benchmark, whatever its source and constants."""
    names = [TWINS.get(name, name.removeprefix("words_")) for name in chain_names]
    digest = hashlib.sha256(">".join(names).encode()).digest()
    return digest[0] % HOLD_OUT_EVERY == 0


def sample_chain(rng: random.Random, start: str, steps: int) -> tuple[Operation, ...]:
    """A random well-typed chain of `steps` operations from a list of type `start`; results stand only at the end."""
    chain: list[Operation] = []
    current = start
    family = ""
    while len(chain) < steps:
        last = len(chain) == steps - 1
        choices = []
        for operation in OPERATIONS:
            fits = operation.takes == current and (last or operation.gives in ("ints", "words"))
            if fits and operation not in chain and operation.family != family:
                choices.append(operation)
        if last and rng.random() < 0.5:  # half of all functions end in a single result
            choices = [operation for operation in choices if operation.family == "result"] or choices
        chain.append(rng.choice(choices))
        current = chain[-1].gives
        family = chain[-1].family
    return tuple(chain)


def sample_name(rng: random.Random) -> str:
    """A function name that says nothing about the steps, so that it has to be copied from the instruction."""
    parts = [rng.choice(GRAMMAR["verbs"]), rng.choice(GRAMMAR["nouns"])]
    if rng.random() < 0.35:
        parts.append(rng.choice(GRAMMAR["nouns"]))
    if rng.random() < 0.15:
        parts.append(str(rng.randint(1, 99)))
    return "_".join(parts)


def sample_program(rng: random.Random, steps: int, held_out: bool | None = False) -> Program:
    """A random program of `steps` operations: of the training side (False), the benchmark's (True) or either (None)."""
    while True:
        source = rng.choices(SOURCES, [source.weight for source in SOURCES])[0]
        chain = sample_chain(rng, source.gives, steps)
        if held_out is None or is_held_out([operation.name for operation in chain]) == held_out:
            # Every draw stands where it stood: another order would be other rows, and another data set.
            constants = tuple(rng.choice(step.constants) if step.constants else None for step in chain)
            return Program(source, chain, constants, rng.choice(source.parameters), sample_name(rng))
