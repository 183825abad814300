"""Programs put into words and into code: docstrings, phrases of several registers, and Python in several styles."""

import random
from collections.abc import Callable, Collection

from codeact_lib.mini.operations import Operation, Program

ITEM_NAMES = {"ints": ("n", "x", "v", "num", "value"), "words": ("w", "word", "s", "item")}
LIST_NAMES = ("result", "items", "out", "selected", "current")


# ---- words ---------------------------------------------------------------------------------------------------------
def third_person(phrase: str) -> str:
    """ "keep the even numbers" -> "keeps the even numbers"."""
    verb, _, rest = phrase.partition(" ")
    irregular = {"multiply": "multiplies", "be": "is"}
    ending = "es" if verb.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{irregular.get(verb, verb + ending)} {rest}".strip()


def step_phrases(program: Program, rng: random.Random) -> list[str]:
    """One imperative phrase a step, ending in a phrase that says what is returned."""
    phrases = [rng.choice(operation.phrases).format(k=constant) for operation, constant in program.steps]
    if program.chain[-1].gives in ("ints", "words"):
        phrases.append("return the resulting list")
    return phrases


def noun_phrase(program: Program) -> str:
    """The whole program as one nested noun phrase: "the sum of the squares of the even numbers in nums"."""
    phrase = program.list_noun
    for operation, constant in program.steps:
        phrase = operation.noun.format(x=phrase, k=constant)
    return phrase


def sequence_phrase(program: Program, rng: random.Random, form: Callable[[str], str] = third_person) -> str:
    """The steps in order in one sentence: "keeps the even numbers, then squares each number, and returns the sum"."""
    phrases = [form(phrase) for phrase in step_phrases(program, rng)]
    if len(phrases) == 1:
        return phrases[0]
    linker = rng.choice((", then ", ", next ", " and then "))
    ending = rng.choice((", and ", " and finally ", ", and at the end "))
    return f"{linker.join(phrases[:-1])}{ending}{phrases[-1]}"


def docstring(program: Program, rng: random.Random) -> str:
    """A one-line description as authors write it above or inside a function."""
    if rng.random() < 0.5:
        return f"Return {noun_phrase(program)}."
    return f"From {program.list_noun}, {sequence_phrase(program, rng, form=str)}."


# ---- code ----------------------------------------------------------------------------------------------------------
def write_steps(program: Program, rng: random.Random, sloppy: bool = False) -> list[str]:
    """One assignment a step and a return: the plain style, also used for canonical solutions."""
    name = rng.choice([name for name in LIST_NAMES if name != program.parameter])
    x = program.list_expression
    lines = []
    if x != program.parameter and (len(program.chain) > 1 or program.chain[0].needs_name):
        lines.append(f"{name} = {x}")
        x = name
    for operation, constant in program.steps:
        written = operation.write(x, item_name(operation, rng, (name, program.parameter)), constant, sloppy)
        lines.append(f"{name} = {written}")
        x = name
    lines[-1] = f"return {written}"
    return lines


def write_loops(program: Program, rng: random.Random, sloppy: bool = False) -> list[str]:
    """Filters and maps as explicit loops, the rest as assignments."""
    x = program.list_expression
    lines = []
    for number, (operation, constant) in enumerate(program.steps, 1):
        name = f"step{number}"
        if operation.needs_name and not x.isidentifier():
            lines.append(f"items = {x}")
            x = "items"
        if operation.expression or (sloppy and operation.sloppy):
            lines.append(f"{name} = {operation.write(x, 'v', constant, sloppy)}")
        else:
            item = item_name(operation, rng, (name, x, program.parameter))
            lines += [f"{name} = []", f"for {item} in {x}:"]
            append = f"    {name}.append({operation.each.format(v=item, k=constant)})"
            if operation.keep:
                lines.append(f"    if {operation.keep.format(v=item, k=constant)}:")
                append = f"    {append}"
            lines.append(append)
        x = name
    return [*lines, f"return {x}"]


def write_expression(program: Program, rng: random.Random, sloppy: bool = False) -> list[str]:
    """Everything in one return expression; falls back to steps where a list must have a name."""
    must_have_names = any(step.needs_name and not (sloppy and step.sloppy) for step in program.chain)
    if must_have_names or len(program.chain) > 3:
        return write_steps(program, rng, sloppy)
    x = program.list_expression
    for operation, constant in program.steps:
        x = operation.write(x, item_name(operation, rng, (program.parameter,)), constant, sloppy)
    return [f"return {x}"]


def item_name(operation: Operation, rng: random.Random, taken: Collection[str]) -> str:
    """A name for one item of the list that `operation` takes, none of those `taken`."""
    return rng.choice([name for name in ITEM_NAMES[operation.takes] if name not in taken])


STYLES = {"steps": write_steps, "loops": write_loops, "expression": write_expression}


def write_function(
    program: Program, rng: random.Random, style: str = "steps", sloppy: bool = False, doc: str | None = None
) -> str:
    """The program as Python source. `style` is a key of STYLES; `doc` becomes the docstring."""
    lines = STYLES[style](program, rng, sloppy)
    if doc:
        lines.insert(0, f'"""{doc}"""')
    body = "".join(f"    {line}\n" for line in lines)
    return f"def {program.signature}:\n{body}"
