"""Programs put into words and into code: docstrings, phrases of several registers, and Python in several styles."""

import random
from collections.abc import Callable

from codeact_lib.mini.operations import Constant, Operation, Program

IRREGULAR = {"multiply": "multiplies", "be": "is"}
ITEM_NAMES = {"ints": ("n", "x", "v", "num", "value"), "words": ("w", "word", "s", "item")}
LIST_NAMES = ("result", "items", "out", "selected", "current")


def third_person(phrase: str) -> str:
    """ "keep the even numbers" -> "keeps the even numbers"."""
    verb, _, rest = phrase.partition(" ")
    if verb in IRREGULAR:
        verb = IRREGULAR[verb]
    else:
        verb += "es" if verb.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{verb} {rest}".strip()


def step_phrases(program: Program, rng: random.Random) -> list[str]:
    """One imperative phrase a step, ending in a phrase that says what is returned."""
    phrases = [rng.choice(o.phrases).format(k=k) for o, k in zip(program.chain, program.constants, strict=True)]
    if program.chain[-1].gives in ("ints", "words"):
        phrases.append("return the resulting list")
    return phrases


def noun_phrase(program: Program) -> str:
    """The whole program as one nested noun phrase: "the sum of the squares of the even numbers in nums"."""
    phrase = program.source.noun.format(p=program.parameter)
    for operation, constant in zip(program.chain, program.constants, strict=True):
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
    return f"From {program.source.noun.format(p=program.parameter)}, {sequence_phrase(program, rng, form=str)}."


def write_steps(program: Program, rng: random.Random, sloppy: bool = False) -> list[str]:
    """One assignment a step and a return: the plain style, also used for canonical solutions."""
    name = rng.choice([n for n in LIST_NAMES if n != program.parameter])
    x = program.source.expression.format(p=program.parameter)
    lines = []
    if x != program.parameter and (len(program.chain) > 1 or program.chain[0].needs_name):
        lines.append(f"{name} = {x}")
        x = name
    for operation, constant in zip(program.chain, program.constants, strict=True):
        written = operation.write(x, _item(operation, rng, (name, program.parameter)), constant, sloppy)
        lines.append(f"{name} = {written}")
        x = name
    lines[-1] = f"return {written}"
    return lines


def write_loops(program: Program, rng: random.Random, sloppy: bool = False) -> list[str]:
    """Filters and maps as explicit loops, the rest as assignments."""
    x = program.source.expression.format(p=program.parameter)
    lines = []
    for i, (operation, constant) in enumerate(zip(program.chain, program.constants, strict=True)):
        name = f"step{i + 1}"
        if operation.needs_name and not x.isidentifier():
            lines.append(f"items = {x}")
            x = "items"
        if operation.expression or (sloppy and operation.sloppy):
            lines.append(f"{name} = {operation.write(x, 'v', constant, sloppy)}")
        else:
            v = _item(operation, rng, (name, x, program.parameter))
            lines += _loop(operation, name, x, v, constant)
        x = name
    return [*lines, f"return {x}"]


def _loop(operation: Operation, name: str, x: str, v: str, k: Constant) -> list[str]:
    lines = [f"{name} = []", f"for {v} in {x}:"]
    indent = "    "
    if operation.keep:
        lines.append(f"    if {operation.keep.format(v=v, k=k)}:")
        indent += "    "
    return [*lines, f"{indent}{name}.append({operation.each.format(v=v, k=k)})"]


def write_expression(program: Program, rng: random.Random, sloppy: bool = False) -> list[str]:
    """Everything in one return expression; falls back to steps where a list must have a name."""
    if any(o.needs_name and not (sloppy and o.sloppy) for o in program.chain) or program.steps > 3:
        return write_steps(program, rng, sloppy)
    x = program.source.expression.format(p=program.parameter)
    for operation, constant in zip(program.chain, program.constants, strict=True):
        x = operation.write(x, _item(operation, rng, (program.parameter,)), constant, sloppy)
    return [f"return {x}"]


def _item(operation: Operation, rng: random.Random, taken: tuple[str, ...]) -> str:
    return rng.choice([name for name in ITEM_NAMES[operation.takes] if name not in taken])


STYLES = {"steps": write_steps, "loops": write_loops, "expression": write_expression}


def write_function(
    program: Program, rng: random.Random, style: str = "steps", sloppy: bool = False, doc: str | None = None
) -> str:
    """The program as Python source. `style` is a key of STYLES; `doc` becomes the docstring."""
    code = f"def {program.name}({program.parameter}):\n"
    if doc:
        code += f'    """{doc}"""\n'
    for line in STYLES[style](program, rng, sloppy):
        code += f"    {line}\n"
    return code
