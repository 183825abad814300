"""The grammar of the mini corpus: operations on lists that chain into functions of one to four steps.

An `Operation` knows how it is said (imperative phrases and a noun phrase) and how it is written (a Python
expression). A `Program` is a source (what the function receives), a chain of operations and the constants they need;
from it come instructions, docstrings, code in several styles, and test inputs. Complexity is real: the number of
chained steps is what makes a row hard.

Benchmark chains never occur in training text: `is_held_out` sends one chain in six, by a hash of its operation names
alone, to the benchmark.
"""

import hashlib
import random
from dataclasses import dataclass
from functools import partial

HOLD_OUT_EVERY = 6  # one operation chain in six belongs to the benchmark
# Written alike for integers and words, so they count as one in the hold-out; so do those with the prefix "words_".
TWINS = {"alphabetical": "ascending"}

Constant = int | str | None


@dataclass(frozen=True)
class Operation:
    """One step. Types are "ints", "words" (lists), "int", "str" (final results).

    `each`/`keep` describe a comprehension over items `{v}`; otherwise `expression` is a template over the list `{x}`.
    `{k}` is a constant. `sloppy` is how a careless author writes it: right on ordinary inputs, wrong or raising on
    edge cases.
    """

    name: str
    takes: str
    gives: str
    phrases: tuple[str, ...]
    noun: str
    each: str = "{v}"
    keep: str = ""
    expression: str = ""
    sloppy: str = ""
    constants: tuple[Constant, ...] = ()
    family: str = ""

    def write(self, x: str, v: str, k: Constant, sloppy: bool = False) -> str:
        """This step as a Python expression over the list expression `x` with item variable `v` and constant `k`."""
        if sloppy and self.sloppy:
            return self.sloppy.format(x=x, v=v, k=k)
        if self.expression:
            return self.expression.format(x=x, v=v, k=k)
        condition = f" if {self.keep}" if self.keep else ""
        return f"[{self.each} for {{v}} in {{x}}{condition}]".format(x=x, v=v, k=k)

    @property
    def needs_name(self) -> bool:
        """Whether the list is mentioned twice, so that it must be a variable and not an expression."""
        return self.expression.count("{x}") > 1


def _step(
    form: str,
    name: str,
    takes: str,
    phrases: tuple[str, str],
    noun: str,
    code: str,
    constants: tuple[Constant, ...] = (),
    *,
    family: str = "",
    gives: str = "",
    sloppy: str = "",
) -> Operation:
    """An operation whose `code` is its `keep`, `each` or `expression`; no chain has two of a family side by side."""
    family = family or {"keep": f"keep-{name}", "each": f"map-{name}", "expression": "slice"}[form]
    written: dict[str, str] = {form: code, "sloppy": sloppy}
    return Operation(name, takes, gives or takes, phrases, noun, constants=constants, family=family, **written)


_keep = partial(_step, "keep")
_map = partial(_step, "each")
_list = partial(_step, "expression")

SMALL = (2, 3, 4, 5)
BOUNDS = (1, 2, 3, 4, 5, 7, 10)
LETTERS = tuple("abcdeilmnoprst")

OPERATIONS = (
    # integers: filters
    _keep("even", "ints", ("keep only the even numbers", "select the numbers divisible by two"), "the even numbers in {x}", "{v} % 2 == 0"),
    _keep("odd", "ints", ("keep only the odd numbers", "throw away the even numbers"), "the odd numbers in {x}", "{v} % 2 != 0", sloppy="[{v} for {v} in {x} if {v} & 1]"),
    _keep("positive", "ints", ("keep only the positive numbers", "drop everything that is not above zero"), "the positive numbers in {x}", "{v} > 0"),
    _keep("negative", "ints", ("keep only the negative numbers", "select the numbers below zero"), "the negative numbers in {x}", "{v} < 0"),
    _keep("nonzero", "ints", ("remove the zeros", "drop every zero"), "the nonzero numbers in {x}", "{v} != 0"),
    _keep("above", "ints", ("keep the numbers greater than {k}", "select the values above {k}"), "the numbers greater than {k} in {x}", "{v} > {k}", BOUNDS),
    _keep("below", "ints", ("keep the numbers less than {k}", "drop the values of {k} or more"), "the numbers less than {k} in {x}", "{v} < {k}", BOUNDS),
    _keep("multiple", "ints", ("keep the multiples of {k}", "select the numbers divisible by {k}"), "the multiples of {k} in {x}", "{v} % {k} == 0", (3, 4, 5, 7)),
    _keep("not_multiple", "ints", ("remove the multiples of {k}", "drop the numbers divisible by {k}"), "the numbers in {x} that are not divisible by {k}", "{v} % {k} != 0", (3, 4, 5, 7)),
    # integers: maps
    _map("square", "ints", ("square each number", "replace every number by its square"), "the squares of {x}", "{v} * {v}"),
    _map("cube", "ints", ("cube each number", "raise every number to the third power"), "the cubes of {x}", "{v} ** 3"),
    _map("double", "ints", ("double each number", "multiply every number by two"), "the doubles of {x}", "2 * {v}"),
    _map("negate", "ints", ("negate each number", "flip the sign of every number"), "the negatives of {x}", "-{v}"),
    _map("absolute", "ints", ("take the absolute value of each number", "make every number non-negative by dropping its sign"), "the absolute values of {x}", "abs({v})"),
    _map("add", "ints", ("add {k} to each number", "increase every number by {k}"), "{x} with {k} added to each", "{v} + {k}", (1, 2, 3, 5, 10)),
    _map("subtract", "ints", ("subtract {k} from each number", "decrease every number by {k}"), "{x} with {k} subtracted from each", "{v} - {k}", (1, 2, 3, 5, 10)),
    _map("times", "ints", ("multiply each number by {k}", "scale every number by {k}"), "{x} multiplied by {k}", "{v} * {k}", (3, 4, 5, 10)),
    _map("modulo", "ints", ("take each number modulo {k}", "replace every number by its remainder after division by {k}"), "the remainders of {x} modulo {k}", "{v} % {k}", (2, 3, 4, 5, 7, 10)),
    _map("halve", "ints", ("halve each number, rounding down", "divide every number by two with floor division"), "the halves, rounded down, of {x}", "{v} // 2", sloppy="[int({v} / 2) for {v} in {x}]"),
    _map("at_most", "ints", ("cap each number at {k}", "replace the numbers above {k} by {k}"), "{x} capped at {k}", "min({v}, {k})", (3, 5, 10)),
    # integers: order, slices, neighbours
    _list("ascending", "ints", ("sort the numbers in ascending order", "order the numbers from smallest to largest"), "{x} in ascending order", "sorted({x})", family="order"),
    _list("descending", "ints", ("sort the numbers in descending order", "order the numbers from largest to smallest"), "{x} in descending order", "sorted({x}, reverse=True)", family="order"),
    _list("reversed", "ints", ("reverse the list", "turn the order around"), "{x} in reverse order", "{x}[::-1]", family="order"),
    _list("first", "ints", ("take the first {k} numbers", "keep only the first {k} entries"), "the first {k} of {x}", "{x}[:{k}]", SMALL),
    _list("last", "ints", ("take the last {k} numbers", "keep only the last {k} entries"), "the last {k} of {x}", "{x}[-{k}:]", SMALL),
    _list("every_second", "ints", ("take every second number, starting with the first", "keep the numbers at even positions"), "every second one of {x}", "{x}[::2]"),
    _list("skip_first", "ints", ("drop the first number", "skip the first entry"), "all but the first of {x}", "{x}[1:]"),
    _list("skip_last", "ints", ("drop the last number", "leave out the final entry"), "all but the last of {x}", "{x}[:-1]"),
    _list("distinct", "ints", ("remove duplicates, keeping the first occurrence", "drop repeated numbers"), "the distinct values in {x}", "list(dict.fromkeys({x}))", family="distinct", sloppy="sorted(set({x}))"),
    _list("differences", "ints", ("take the differences between neighbours", "subtract from each number the one before it"), "the differences between neighbours in {x}", "[b - a for a, b in zip({x}, {x}[1:])]", family="neighbours"),
    _list("running_sum", "ints", ("compute the running sums", "replace each number by the sum up to it"), "the running sums of {x}", "[sum({x}[:i + 1]) for i in range(len({x}))]", family="neighbours"),
    # integers: results
    _list("sum", "ints", ("return the sum", "add them up"), "the sum of {x}", "sum({x})", family="result", gives="int"),
    _list("largest", "ints", ("return the largest, or 0 if there is none", "give back the maximum (0 for an empty list)"), "the largest of {x} (0 if there is none)", "max({x}, default=0)", family="result", gives="int", sloppy="max({x})"),
    _list("smallest", "ints", ("return the smallest, or 0 if there is none", "give back the minimum (0 for an empty list)"), "the smallest of {x} (0 if there is none)", "min({x}, default=0)", family="result", gives="int", sloppy="min({x})"),
    _list("count", "ints", ("return how many there are", "count them"), "the number of {x}", "len({x})", family="result", gives="int"),
    _list("count_distinct", "ints", ("return how many different values there are", "count the distinct values"), "the number of different values in {x}", "len(set({x}))", family="result", gives="int"),
    _list("spread", "ints", ("return the difference between the largest and the smallest, or 0 if there is none", "give back the maximum minus the minimum (0 for an empty list)"), "the difference between the largest and the smallest of {x} (0 if there is none)", "max({x}) - min({x}) if {x} else 0", family="result", gives="int", sloppy="max({x}) - min({x})"),
    _list("mean", "ints", ("return the average rounded down, or 0 if there is none", "give back the mean with floor division (0 for an empty list)"), "the average, rounded down, of {x} (0 if there is none)", "sum({x}) // len({x}) if {x} else 0", family="result", gives="int", sloppy="sum({x}) // len({x})"),
    # words: filters
    _keep("longer", "words", ("keep the words longer than {k} letters", "select the words with more than {k} letters"), "the words with more than {k} letters in {x}", "len({v}) > {k}", SMALL),
    _keep("shorter", "words", ("keep the words shorter than {k} letters", "select the words with fewer than {k} letters"), "the words with fewer than {k} letters in {x}", "len({v}) < {k}", (3, 4, 5, 6)),
    _keep("vowel_start", "words", ("keep the words that start with a lowercase vowel", "select the words whose first letter is a lowercase vowel"), "the words in {x} that start with a lowercase vowel", '{v}.startswith(("a", "e", "i", "o", "u"))', sloppy='[{v} for {v} in {x} if {v}[0] in "aeiou"]'),
    _keep("starts", "words", ('keep the words that start with "{k}"', 'select the words beginning with "{k}"'), 'the words in {x} that start with "{k}"', '{v}.startswith("{k}")', LETTERS, sloppy='[{v} for {v} in {x} if {v}[0] == "{k}"]'),
    _keep("ends", "words", ('keep the words that end with "{k}"', 'select the words ending in "{k}"'), 'the words in {x} that end with "{k}"', '{v}.endswith("{k}")', LETTERS, sloppy='[{v} for {v} in {x} if {v}[-1] == "{k}"]'),
    _keep("contains", "words", ('keep the words that contain "{k}"', 'select the words with the letter "{k}" in them'), 'the words in {x} that contain "{k}"', '"{k}" in {v}', LETTERS),
    _keep("lacks", "words", ('remove the words that contain "{k}"', 'drop the words with the letter "{k}" in them'), 'the words in {x} without the letter "{k}"', '"{k}" not in {v}', LETTERS),
    _keep("palindrome", "words", ("keep the palindromes", "select the words that read the same backwards"), "the palindromes in {x}", "{v} == {v}[::-1]"),
    # words: maps
    _map("upper", "words", ("turn each word into upper case", "write every word in capitals"), "{x} in upper case", "{v}.upper()"),
    _map("capital", "words", ("capitalize each word", "make the first letter of every word a capital"), "{x} with capital first letters", "{v}.capitalize()"),
    _map("backwards", "words", ("reverse each word", "spell every word backwards"), "{x} spelled backwards", "{v}[::-1]"),
    _map("initial", "words", ("take the first letter of each word", "cut every word down to its first letter"), "the first letters of {x}", "{v}[:1]", sloppy="[{v}[0] for {v} in {x}]"),
    _map("prefix", "words", ("take the first {k} letters of each word", "cut every word down to {k} letters"), "the first {k} letters of each of {x}", "{v}[:{k}]", (2, 3, 4)),
    _map("twice", "words", ("repeat each word twice", "write every word two times in a row"), "{x} each repeated twice", "{v} * 2"),
    _map("append", "words", ('append "{k}" to each word', 'add the letter "{k}" to the end of every word'), '{x} with "{k}" appended', '{v} + "{k}"', LETTERS),
    # words: order and slices
    _list("alphabetical", "words", ("sort the words alphabetically", "put the words in alphabetical order"), "{x} in alphabetical order", "sorted({x})", family="order"),
    _list("by_length", "words", ("sort the words by length", "order the words from shortest to longest"), "{x} ordered by length", "sorted({x}, key=len)", family="order"),
    _list("words_reversed", "words", ("reverse the list", "turn the order around"), "{x} in reverse order", "{x}[::-1]", family="order"),
    _list("words_first", "words", ("take the first {k} words", "keep only the first {k} entries"), "the first {k} of {x}", "{x}[:{k}]", SMALL),
    _list("words_last", "words", ("take the last {k} words", "keep only the last {k} entries"), "the last {k} of {x}", "{x}[-{k}:]", SMALL),
    _list("words_every_second", "words", ("take every second word, starting with the first", "keep the words at even positions"), "every second one of {x}", "{x}[::2]"),
    _list("words_skip_first", "words", ("drop the first word", "skip the first entry"), "all but the first of {x}", "{x}[1:]"),
    _list("words_distinct", "words", ("remove duplicates, keeping the first occurrence", "drop repeated words"), "the distinct values in {x}", "list(dict.fromkeys({x}))", family="distinct", sloppy="sorted(set({x}))"),
    # words to integers
    _map("lengths", "words", ("replace each word by its length", "take the length of every word"), "the lengths of {x}", "len({v})", gives="ints"),
    _map("vowels", "words", ("count the lowercase vowels in each word", "replace every word by its number of lowercase vowels"), "the lowercase vowel counts of {x}", 'sum(c in "aeiou" for c in {v})', gives="ints"),
    # words: results
    _list("join_space", "words", ("join them with spaces", "return them as one string separated by spaces"), "{x} joined with spaces", '" ".join({x})', family="result", gives="str"),
    _list("join_dash", "words", ("join them with dashes", "return them as one string separated by dashes"), "{x} joined with dashes", '"-".join({x})', family="result", gives="str"),
    _list("words_count", "words", ("return how many there are", "count them"), "the number of {x}", "len({x})", family="result", gives="int"),
    _list("longest", "words", ('return the longest, or "" if there is none', "give back the first of the longest words (empty string for an empty list)"), 'the longest of {x} ("" if there is none)', 'max({x}, key=len, default="")', family="result", gives="str", sloppy="max({x}, key=len)"),
    _list("shortest", "words", ('return the shortest, or "" if there is none', "give back the first of the shortest words (empty string for an empty list)"), 'the shortest of {x} ("" if there is none)', 'min({x}, key=len, default="")', family="result", gives="str", sloppy="min({x}, key=len)"),
    _list("total_length", "words", ("return their total length", "add up their lengths"), "the total length of {x}", "sum(len({v}) for {v} in {x})", family="result", gives="int"),
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """What the function receives: parameter names, how it is described, and the expression that makes a list of it."""

    name: str
    gives: str
    parameters: tuple[str, ...]
    phrase: str
    noun: str
    expression: str


SOURCES = (
    Source("ints", "ints", ("nums", "numbers", "values", "xs", "data"), "a list of integers", "{p}", "{p}"),
    Source("words", "words", ("words", "names", "items", "tokens"), "a list of words", "{p}", "{p}"),
    Source("text", "words", ("text", "sentence", "line"), "a string of words separated by spaces", "the words of {p}", "{p}.split()"),
    Source("digits", "ints", ("n", "number"), "a non-negative integer (work on its digits)", "the digits of {p}", "[int(d) for d in str({p})]"),
    Source("dict_values", "ints", ("table", "scores", "counts"), "a dictionary from words to integers (work on its values)", "the values of {p}", "list({p}.values())"),
    Source("dict_keys", "words", ("table", "scores", "counts"), "a dictionary from words to integers (work on its keys)", "the keys of {p}", "list({p})"),
)  # fmt: skip
SOURCE_WEIGHTS = (40, 30, 10, 8, 6, 6)

VERBS = (
    "get find make build compute collect process solve extract transform select handle pick apply run scan check "
    "update parse reduce clean merge shape prepare derive convert arrange measure"
).split()
NOUNS = (
    "items values data list result numbers words series batch records output entries sequence report summary group "
    "table score keys marks stock cart orders levels prices names codes inputs rows"
).split()


@dataclass(frozen=True)
class Program:
    """A source, a chain of operations with constants, and the names used when it is written out."""

    source: Source
    chain: tuple[Operation, ...]
    constants: tuple[Constant, ...]
    parameter: str
    name: str

    @property
    def steps(self) -> int:
        return len(self.chain)

    @property
    def chain_names(self) -> tuple[str, ...]:
        return tuple(operation.name for operation in self.chain)


def is_held_out(chain_names: tuple[str, ...]) -> bool:
    """Whether this chain of operation names belongs to the benchmark, whatever its source and constants."""
    names = (TWINS.get(name, name.removeprefix("words_")) for name in chain_names)
    digest = hashlib.sha256(">".join(names).encode()).digest()
    return digest[0] % HOLD_OUT_EVERY == 0


def sample_chain(rng: random.Random, start: str, steps: int) -> tuple[Operation, ...]:
    """A random well-typed chain of `steps` operations from a list of type `start`; results stand only at the end."""
    chain: list[Operation] = []
    current = start
    family = "none"
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
    parts = [rng.choice(VERBS), rng.choice(NOUNS)]
    if rng.random() < 0.35:
        parts.append(rng.choice(NOUNS))
    if rng.random() < 0.15:
        parts.append(str(rng.randint(1, 99)))
    return "_".join(parts)


def sample_program(rng: random.Random, steps: int, held_out: bool | None = False) -> Program:
    """A random program of `steps` operations: of the training side (False), the benchmark's (True) or either (None)."""
    while True:
        source = rng.choices(SOURCES, SOURCE_WEIGHTS)[0]
        chain = sample_chain(rng, source.gives, steps)
        if held_out is None or is_held_out(tuple(step.name for step in chain)) == held_out:
            constants = tuple(rng.choice(step.constants) if step.constants else None for step in chain)
            return Program(source, chain, constants, rng.choice(source.parameters), sample_name(rng))
