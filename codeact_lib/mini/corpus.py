"""The two instruction sets of the mini profile, and the text its base model is pre-trained on.

`mini-evol` resembles EVOL-Instruct: short seed tasks, many of them evolved by added requirements into longer, harder
ones; one pair in fifty is mismatched (the response answers another row), the noise that IFD should find. `mini-oss`
resembles OSS-Instruct: descriptions of code that exists, one row in five a documented function of the Python standard
library (stored in `stdlib_texts`, with its licence), the rest generated in that register.

Rows are made from a seed, the same on every Python. No row shares an operation chain or a normalised body with the
benchmark.
"""

import ast
import builtins
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from codeact_lib.errors import DataError
from codeact_lib.mini import stdlib, text
from codeact_lib.mini.benchmark import example_input, humaneval_prompt, mbpp_text, task_inputs
from codeact_lib.mini.operations import Program, sample_program
from codeact_lib.prompts import benchmark_instruction

if TYPE_CHECKING:
    import pandas as pd

Pair = tuple[str, str]  # instruction, response

CORPORA = ("mini-evol", "mini-oss")
N_ROWS = 1200
MISMATCHED = 0.02  # share of mini-evol rows whose response answers another instruction
STDLIB_SHARE = 0.2  # share of mini-oss rows taken from the standard library
SLOPPY = 0.15  # share of generated responses that overlook edge cases
STYLE_WEIGHTS = {"steps": 55, "loops": 20, "expression": 25}
DESCRIBED = ("Implement the function that this description belongs to.", "Write the Python function described here.")


def build_corpus(name: str, n_rows: int | None = None, seed: int = 0) -> "pd.DataFrame":
    """An instruction set as a frame with columns example_id, instruction, response, dataset.

    `name` is "mini-evol" or "mini-oss". Rows are the same for the same name, size and seed. Raises DataError for
    another name.
    """
    import pandas as pd

    if name not in CORPORA:
        raise DataError(
            f"unknown built-in instruction set {name!r}: choose one of {', '.join(CORPORA)}, or give a file"
        )
    if n_rows is None:
        n_rows = N_ROWS
    rng = random.Random(f"{name}-{seed}")
    pairs = evol_pairs(rng, n_rows) if name == "mini-evol" else oss_pairs(rng, n_rows)
    width = len(str(max(N_ROWS, n_rows)))
    rows = [(f"{name}-{i:0{width}d}", instruction, response, name) for i, (instruction, response) in enumerate(pairs)]
    return pd.DataFrame(rows, columns=["example_id", "instruction", "response", "dataset"])


def fenced(code: str) -> str:
    """Code as a Markdown block, the form in which responses are given and asked for."""
    return f"```python\n{code.rstrip()}\n```"


def normalised_body(source: str) -> str:
    """The first function of `source` without names, docstring and layout: equal if equal things are written alike."""
    function = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    if ast.get_docstring(function) is not None:
        function.body = function.body[1:]
    names: dict[str, str] = {}
    for node in ast.walk(ast.Module(function.body, [])):
        if isinstance(node, ast.Name) and node.id not in dir(builtins):
            node.id = names.setdefault(node.id, f"v{len(names)}")
    return ast.dump(ast.Module(function.body, []))


# ---- mini-evol -----------------------------------------------------------------------------------------------------
def evol_pairs(rng: random.Random, n_rows: int) -> list[Pair]:
    """(instruction, response) pairs: 1 to 4 steps, seeds and their evolved forms."""
    instructions = []
    responses = []
    for _ in range(n_rows):
        program = sample_program(rng, rng.choices((1, 2, 3, 4), (20, 28, 30, 22))[0])
        instructions.append(evol_instruction(program, rng))
        responses.append(fenced(response_code(program, rng)))
    chosen = rng.sample(range(n_rows), int(n_rows * MISMATCHED) // 2 * 2)
    for a, b in zip(chosen[::2], chosen[1::2], strict=True):  # two mismatched rows have each other's response
        responses[a], responses[b] = responses[b], responses[a]
    return list(zip(instructions, responses, strict=True))


def evol_instruction(program: Program, rng: random.Random) -> str:
    """One of the registers of an evolved instruction set; longer programs are told as evolutions of shorter ones."""
    forms = (say_plainly, say_nested, say_as_list, say_evolved, ask_to_complete, ask_with_examples, ask_by_example)
    weights = (18, 12, 16, 22 if program.steps > 1 else 6, 8, 8, 16)
    return rng.choices(forms, weights)[0](program, rng)


def signature(program: Program) -> str:
    return f"`{program.name}({program.parameter})`"


def say_plainly(program: Program, rng: random.Random) -> str:
    forms = ("Write a Python function", "Create a function", "Implement a Python function", "Please write a function")
    start = f"{rng.choice(forms)} {signature(program)} that takes {program.source.phrase}"
    return f"{start} and {text.sequence_phrase(program, rng)}."


def say_nested(program: Program, rng: random.Random) -> str:
    if program.steps > 3:
        return say_plainly(program, rng)
    opening = rng.choice(("Write a function", "Define a Python function", "Give me a function"))
    tail = f"`{program.parameter}` is {program.source.phrase}."
    return f"{opening} {signature(program)} that returns {text.noun_phrase(program)}. {tail}"


def say_as_list(program: Program, rng: random.Random) -> str:
    opening = rng.choice(("Develop a function named", "Write a Python function called", "Design a function named"))
    parameter = f"with one parameter `{program.parameter}`, {program.source.phrase}"
    request = f"{opening} `{program.name}` {parameter}. It should:"
    for i, phrase in enumerate(text.step_phrases(program, rng), 1):
        request += f"\n{i}. {phrase[0].upper()}{phrase[1:]}."
    return request


def say_evolved(program: Program, rng: random.Random) -> str:
    """A seed task and the requirements that were added to it one after another."""
    added = ("Now make it harder: after that, {}.", "Add one more requirement: then {}.", "Extend the task: next, {}.")
    first, *more = text.step_phrases(program, rng)
    told = [f"Write a function {signature(program)} for {program.source.phrase} that has to {first}."]
    for phrase in more[:-1]:
        told.append(rng.choice(added).format(phrase))
    if more:
        told.append(f"Finally, {more[-1]}.")
    return " ".join(told)


def ask_to_complete(program: Program, rng: random.Random) -> str:
    head = f'def {program.name}({program.parameter}):\n    """{text.docstring(program, rng)}"""'
    return benchmark_instruction("humaneval", head)


def ask_with_examples(program: Program, rng: random.Random) -> str:
    """A signature with a docstring and examples, as HumanEval asks."""
    base, _ = task_inputs(program, rng)
    return benchmark_instruction("humaneval", humaneval_prompt(program, base[:2], rng))


def ask_by_example(program: Program, rng: random.Random) -> str:
    """A text followed by an assertion, as MBPP asks."""
    value = example_input(program.source.name, rng)
    return benchmark_instruction("mbpp", mbpp_text(program, value, rng))


def response_code(program: Program, rng: random.Random) -> str:
    style = any_style(rng)
    return text.write_function(program, rng, style, sloppy=rng.random() < SLOPPY)


def any_style(rng: random.Random) -> str:
    return rng.choices(tuple(STYLE_WEIGHTS), tuple(STYLE_WEIGHTS.values()))[0]


# ---- mini-oss ------------------------------------------------------------------------------------------------------
def oss_pairs(rng: random.Random, n_rows: int) -> list[Pair]:
    """Descriptions of existing code: documented standard-library functions among generated ones."""
    documented = list(stdlib.short_functions("instructions"))
    rng.shuffle(documented)
    pairs = []
    for name, doc, code in documented[: int(n_rows * STDLIB_SHARE)]:
        pairs.append((say_documented(name, doc, code, rng), fenced(code)))
    while len(pairs) < n_rows:
        program = sample_program(rng, rng.choices((1, 2, 3, 4), (22, 30, 28, 20))[0])
        pairs.append((oss_instruction(program, rng), fenced(response_code(program, rng))))
    rng.shuffle(pairs)
    return pairs


def oss_instruction(program: Program, rng: random.Random) -> str:
    """The registers of OSS-Instruct: a problem made from a piece of code."""
    forms = (say_with_docstring, say_as_problem, say_nested, ask_to_complete, ask_with_examples, ask_by_example)
    return rng.choices(forms, (26, 26, 10, 10, 10, 18))[0](program, rng)


def say_with_docstring(program: Program, rng: random.Random) -> str:
    return f"{rng.choice(DESCRIBED)}\n{program.name}({program.parameter}): {text.docstring(program, rng)}"


def say_as_problem(program: Program, rng: random.Random) -> str:
    scenes = ("You are working on a data tool.", "You are given a task from a code base.", "A program needs a helper.")
    return (
        f"{rng.choice(scenes)} Your task is to implement {signature(program)}, "
        f"where `{program.parameter}` is {program.source.phrase}. "
        f"The function {text.sequence_phrase(program, rng)}."
    )


def say_documented(name: str, doc: str, code: str, rng: random.Random) -> str:
    head = name
    if ":\n" in code:
        head = code[code.index("def ") + 4 : code.index(":\n")]
    return f"{rng.choice(DESCRIBED)}\n{' '.join(head.split())}: {doc}"


# ---- pre-training --------------------------------------------------------------------------------------------------
def pretraining_texts(rng: random.Random) -> Iterator[Pair]:
    """An endless stream of (prompt, text) for the base model; `prompt` is an instruction or "" for plain code.

    A quarter is bare code, half says in a comment or docstring what the code does (so that the model learns that text
    explains code), one document in six answers a short instruction (so that it has seen the format, but only easy
    tasks), the rest are functions of the standard library.
    """
    library = [code for _, _, code in stdlib.short_functions("pretraining")]
    while True:
        kind = rng.random()
        if kind < 0.08:
            yield "", rng.choice(library)
        elif kind < 0.33:
            yield "", bare_code(rng)
        elif kind < 0.83:
            yield "", explained_code(rng)
        else:
            program = sample_program(rng, rng.choices((1, 2), (75, 25))[0])
            ask = rng.choices((say_plainly, ask_to_complete, ask_by_example), (60, 20, 20))[0]
            yield ask(program, rng), fenced(response_code(program, rng))


def bare_code(rng: random.Random) -> str:
    program = sample_program(rng, rng.choices((1, 2, 3, 4), (25, 30, 25, 20))[0])
    code = response_code(program, rng)
    return f"__all__ = ['{program.name}']\n\n{code}" if rng.random() < 0.5 else code


def explained_code(rng: random.Random) -> str:
    program = sample_program(rng, rng.choices((1, 2, 3), (50, 35, 15))[0])
    doc = text.docstring(program, rng)
    style = any_style(rng)
    form = rng.random()
    if form < 0.4:
        return text.write_function(program, rng, style, doc=doc)
    code = text.write_function(program, rng, style)
    if form < 0.7:
        return f"# {program.name}: {doc}\n{code}"
    return f"# {doc}\n{code}"
