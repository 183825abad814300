"""The two instruction sets of the mini profile, and the text its base model is pre-trained on.

`mini-evol` resembles EVOL-Instruct: short seed tasks, many of them evolved by added requirements into longer, harder
ones; one pair in fifty is mismatched (the response answers another row), the noise that IFD should find. `mini-oss`
resembles OSS-Instruct: descriptions of code that exists, one row in five a documented function of the Python standard
library (stored in `stdlib_texts`, with its licence), the rest generated in that register.
"""

import json
import random
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from codeact_lib.errors import DataError
from codeact_lib.mini import text
from codeact_lib.mini.benchmark import example_input, humaneval_prompt, mbpp_text, task_inputs
from codeact_lib.mini.operations import GRAMMAR, Program, sample_program
from codeact_lib.prompts import benchmark_instruction

if TYPE_CHECKING:
    import pandas as pd

Pair = tuple[str, str]  # instruction, response

# Rows are made from a seed, the same on every Python (a test holds their hash: every number of `results/mini` rests on
# them). None shares an operation chain with the benchmark, nor code that is the same but for names.
CORPORA = ("mini-evol", "mini-oss")
N_ROWS = 1200
MISMATCHED = 0.02  # share of mini-evol rows whose response answers another instruction
STDLIB_SHARE = 0.2  # share of mini-oss rows taken from the standard library
SLOPPY = 0.15  # share of generated responses that overlook edge cases
STYLE_WEIGHTS = (55, 20, 25)  # of `text.STYLES`


def build_corpus(name: str, n_rows: int = N_ROWS, seed: int = 0) -> "pd.DataFrame":
    """An instruction set as a frame with columns example_id, instruction, response, dataset.

    `name` is "mini-evol" or "mini-oss". Rows are the same for the same name, size and seed. DataError for another name.
    """
    import pandas as pd

    make_pairs = {"mini-evol": evol_pairs, "mini-oss": oss_pairs}.get(name)
    if make_pairs is None:
        known = ", ".join(CORPORA)
        raise DataError(f"unknown built-in instruction set {name!r}: choose one of {known}, or give a file")
    frame = pd.DataFrame(make_pairs(random.Random(f"{name}-{seed}"), n_rows), columns=["instruction", "response"])
    width = len(str(max(N_ROWS, n_rows)))
    frame.insert(0, "example_id", [f"{name}-{i:0{width}d}" for i in range(n_rows)])
    return frame.assign(dataset=name)


@cache
def short_functions(use: str) -> list[tuple[str, str, str]]:
    """(name, first docstring paragraph or "", source without docstring) of functions of the Python standard library.

    `use` is "instructions" (documented functions only) or "pretraining"; the two come from different modules.
    """
    # Stored, not read from the running Python, so that every Python makes the same rows; `tools/mine_stdlib.py` wrote
    # them.
    path = Path(__file__).parent / "stdlib_texts" / "functions.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["name"], row["doc"], row["code"]) for row in rows if row["use"] == use]


# ---- the two sets --------------------------------------------------------------------------------------------------
def evol_pairs(rng: random.Random, n_rows: int) -> list[Pair]:
    """(instruction, response) pairs: 1 to 4 steps, seeds and their evolved forms."""
    forms = (say_plainly, say_nested, say_as_list, say_evolved, ask_to_complete, ask_with_examples, ask_by_example)
    instructions = []
    responses = []
    for _ in range(n_rows):
        program = sample_program(rng, rng.choices((1, 2, 3, 4), (20, 28, 30, 22))[0])
        # What has one step can hardly have evolved.
        weights = (18, 12, 16, 22, 8, 8, 16) if len(program.chain) > 1 else (18, 12, 16, 6, 8, 8, 16)
        instructions.append(rng.choices(forms, weights)[0](program, rng))
        responses.append(fenced(response_code(program, rng)))
    chosen = rng.sample(range(n_rows), int(n_rows * MISMATCHED) // 2 * 2)
    # Two mismatched rows have each other's response: good code, of the usual length, to another question.
    for a, b in zip(chosen[::2], chosen[1::2], strict=True):
        responses[a], responses[b] = responses[b], responses[a]
    return list(zip(instructions, responses, strict=True))


def oss_pairs(rng: random.Random, n_rows: int) -> list[Pair]:
    """Descriptions of existing code: documented standard-library functions among generated ones."""
    documented = short_functions("instructions").copy()
    rng.shuffle(documented)
    pairs: list[Pair] = []
    for name, doc, code in documented[: int(n_rows * STDLIB_SHARE)]:
        head = name
        if ":\n" in code:
            head = code[code.index("def ") + 4 : code.index(":\n")]
        opening = rng.choice(GRAMMAR["registers"]["docstring"]["openings"])
        pairs.append((f"{opening}\n{' '.join(head.split())}: {doc}", fenced(code)))
    forms = (say_with_docstring, say_as_problem, say_nested, ask_to_complete, ask_with_examples, ask_by_example)
    while len(pairs) < n_rows:
        program = sample_program(rng, rng.choices((1, 2, 3, 4), (22, 30, 28, 20))[0])
        instruction = rng.choices(forms, (26, 26, 10, 10, 10, 18))[0](program, rng)
        pairs.append((instruction, fenced(response_code(program, rng))))
    rng.shuffle(pairs)
    return pairs


def fenced(code: str) -> str:
    """Code as a Markdown block, the form in which responses are given and asked for."""
    return f"```python\n{code.rstrip()}\n```"


def response_code(program: Program, rng: random.Random) -> str:
    """A function in one of three styles, now and then one that overlooks edge cases."""
    style = rng.choices(list(text.STYLES), STYLE_WEIGHTS)[0]
    return text.write_function(program, rng, style, sloppy=rng.random() < SLOPPY)


# ---- the registers of an instruction ---------------------------------------------------------------------------------
def say(register: str, program: Program, rng: random.Random) -> str:
    """The opening of a register of `grammar.yaml`, and in its words what the program does."""
    words = GRAMMAR["registers"][register]
    facts = {"opening": rng.choice(words["openings"]), "program": program, "source": program.source}
    # Only what is said is drawn: another draw would be other rows from there on.
    if "{steps}" in words["text"]:
        facts["steps"] = text.sequence_phrase(program, rng)
    if "{doc}" in words["text"]:
        facts["doc"] = text.docstring(program, rng)
    return words["text"].format(**facts, noun=text.noun_phrase(program))


say_plainly = partial(say, "plain")
say_with_docstring = partial(say, "docstring")
say_as_problem = partial(say, "problem")


def say_nested(program: Program, rng: random.Random) -> str:
    """One noun phrase for everything; nested four deep, nobody would say it."""
    return say("nested" if len(program.chain) <= 3 else "plain", program, rng)


def say_as_list(program: Program, rng: random.Random) -> str:
    """The steps as a numbered list."""
    request = say("list", program, rng)
    for i, phrase in enumerate(text.step_phrases(program, rng), 1):
        request += f"\n{i}. {phrase[0].upper()}{phrase[1:]}."
    return request


def say_evolved(program: Program, rng: random.Random) -> str:
    """A seed task and the requirements that were added to it one after another."""
    first, *more = text.step_phrases(program, rng)
    told = [f"Write a function `{program.signature}` for {program.source.phrase} that has to {first}."]
    for phrase in more[:-1]:
        told.append(rng.choice(GRAMMAR["added"]).format(phrase))
    if more:
        told.append(f"Finally, {more[-1]}.")
    return " ".join(told)


def ask_to_complete(program: Program, rng: random.Random) -> str:
    """A signature with a docstring."""
    return benchmark_instruction("humaneval", humaneval_prompt(program, [], rng))


def ask_with_examples(program: Program, rng: random.Random) -> str:
    """The same with two examples, as HumanEval asks."""
    base, _ = task_inputs(program, rng)
    return benchmark_instruction("humaneval", humaneval_prompt(program, base[:2], rng))


def ask_by_example(program: Program, rng: random.Random) -> str:
    """A text followed by an assertion, as MBPP asks."""
    value = example_input(program.source.name, rng)
    return benchmark_instruction("mbpp", mbpp_text(program, value, rng))


# ---- pre-training --------------------------------------------------------------------------------------------------
def pretraining_texts(rng: random.Random) -> Iterator[Pair]:
    """An endless stream of (prompt, text) for the base model; `prompt` is an instruction or "" for plain code."""
    # A quarter is bare code, half says in a comment or docstring what the code does (so that the model learns that text
    # explains code), one document in six answers a short instruction (so that it has seen the format, but only easy
    # tasks), the rest are functions of the standard library.
    while True:
        kind = rng.random()
        if kind < 0.08:
            _, _, code = rng.choice(short_functions("pretraining"))
            yield "", code
        elif kind < 0.33:
            program = sample_program(rng, rng.choices((1, 2, 3, 4), (25, 30, 25, 20))[0])
            code = response_code(program, rng)
            if rng.random() < 0.5:
                code = f"__all__ = ['{program.name}']\n\n{code}"
            yield "", code
        elif kind < 0.83:
            yield "", explained_code(rng)
        else:
            program = sample_program(rng, rng.choices((1, 2), (75, 25))[0])
            ask = rng.choices((say_plainly, ask_to_complete, ask_by_example), (60, 20, 20))[0]
            yield ask(program, rng), fenced(response_code(program, rng))


def explained_code(rng: random.Random) -> str:
    """A function that says what it does: in its docstring, or in a comment above it, with its name or without."""
    program = sample_program(rng, rng.choices((1, 2, 3), (50, 35, 15))[0])
    doc = text.docstring(program, rng)
    style = rng.choices(list(text.STYLES), STYLE_WEIGHTS)[0]
    form = rng.random()
    if form < 0.4:
        return text.write_function(program, rng, style, doc=doc)
    comment = f"# {program.name}: {doc}" if form < 0.7 else f"# {doc}"
    return f"{comment}\n{text.write_function(program, rng, style)}"
