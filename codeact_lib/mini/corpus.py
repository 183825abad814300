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

from codeact_lib.errors import DataError
from codeact_lib.mini import stdlib, text
from codeact_lib.mini.benchmark import example_input, humaneval_prompt, run_program, task_inputs
from codeact_lib.mini.operations import Program, sample_program
from codeact_lib.prompts import benchmark_instruction

CORPORA = ("mini-evol", "mini-oss")
N_ROWS = 1200
MISMATCHED = 0.02  # share of mini-evol rows whose response answers another instruction
STDLIB_SHARE = 0.2  # share of mini-oss rows taken from the standard library
SLOPPY = 0.15  # share of generated responses that overlook edge cases


def build_corpus(name: str, n_rows: int | None = None, seed: int = 0):
    """An instruction set as a frame with columns example_id, instruction, response, dataset.

    `name` is "mini-evol" or "mini-oss". Rows are the same for the same name, size and seed. Raises DataError for
    another name.
    """
    import pandas as pd

    if name not in CORPORA:
        raise DataError(
            f"unknown built-in instruction set {name!r}: choose one of {', '.join(CORPORA)}, or give a file"
        )
    n_rows = N_ROWS if n_rows is None else n_rows
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


# --- mini-evol -------------------------------------------------------------------------------------------------------


def evol_pairs(rng: random.Random, n_rows: int) -> list[tuple[str, str]]:
    """(instruction, response) pairs: 1 to 4 steps, seeds and their evolved forms."""
    pairs = []
    for _ in range(n_rows):
        program = sample_program(rng, rng.choices((1, 2, 3, 4), (20, 28, 30, 22))[0])
        pairs.append((evol_instruction(program, rng), fenced(response_code(program, rng))))
    return mismatch(pairs, rng)


def mismatch(pairs, rng: random.Random) -> list[tuple[str, str]]:
    """Exchange the responses of a few rows among themselves."""
    chosen = rng.sample(range(len(pairs)), int(len(pairs) * MISMATCHED) // 2 * 2)
    pairs = list(pairs)
    for a, b in zip(chosen[::2], chosen[1::2], strict=True):
        pairs[a], pairs[b] = (pairs[a][0], pairs[b][1]), (pairs[b][0], pairs[a][1])
    return pairs


def evol_instruction(program: Program, rng: random.Random) -> str:
    """One of the registers of an evolved instruction set; longer programs are told as evolutions of shorter ones."""
    forms = (say_plainly, say_nested, say_as_list, say_evolved, ask_to_complete, ask_with_examples, ask_by_example)
    weights = (18, 12, 16, 22 if program.steps > 1 else 6, 8, 8, 16)
    return rng.choices(forms, weights)[0](program, rng)


def signature(program: Program) -> str:
    return f"`{program.name}({program.parameter})`"


def say_plainly(program: Program, rng: random.Random) -> str:
    opening = rng.choice(
        ("Write a Python function", "Create a function", "Implement a Python function", "Please write a function")
    )
    return (
        f"{opening} {signature(program)} that takes {program.source.phrase} and {text.sequence_phrase(program, rng)}."
    )


def say_nested(program: Program, rng: random.Random) -> str:
    if program.steps > 3:
        return say_plainly(program, rng)
    opening = rng.choice(("Write a function", "Define a Python function", "Give me a function"))
    tail = f"`{program.parameter}` is {program.source.phrase}."
    return f"{opening} {signature(program)} that returns {text.noun_phrase(program)}. {tail}"


def say_as_list(program: Program, rng: random.Random) -> str:
    opening = rng.choice(("Develop a function named", "Write a Python function called", "Design a function named"))
    steps = "\n".join(
        f"{i}. {phrase[0].upper()}{phrase[1:]}." for i, phrase in enumerate(text.step_phrases(program, rng), 1)
    )
    parameter = f"with one parameter `{program.parameter}`, {program.source.phrase}"
    return f"{opening} `{program.name}` {parameter}. It should:\n{steps}"


def say_evolved(program: Program, rng: random.Random) -> str:
    """A seed task and the requirements that were added to it one after another."""
    phrases = text.step_phrases(program, rng)
    seed = f"Write a function {signature(program)} for {program.source.phrase} that has to {phrases[0]}."
    added = (
        "Now make it harder: after that, {}.",
        "Add one more requirement: then {}.",
        "Extend the task: next, {}.",
        "Finally, {}.",
    )
    return " ".join(
        [
            seed,
            *(rng.choice(added[:3]).format(p) for p in phrases[1:-1]),
            *(added[3].format(p) for p in phrases[1:][-1:]),
        ]
    )


def ask_to_complete(program: Program, rng: random.Random) -> str:
    head = f'def {program.name}({program.parameter}):\n    """{text.docstring(program, rng)}"""'
    return benchmark_instruction("humaneval", head)


def ask_with_examples(program: Program, rng: random.Random) -> str:
    """A signature with a docstring and examples, as HumanEval asks."""
    return benchmark_instruction("humaneval", humaneval_prompt(program, task_inputs(program, rng)[0][:2], rng))


def ask_by_example(program: Program, rng: random.Random) -> str:
    """A text followed by an assertion, as MBPP asks."""
    value = example_input(program.source.name, rng)
    test = f"assert {program.name}({value!r}) == {run_program(program, value)!r}"
    sentence = f"Write a function to {text.sequence_phrase(program, rng, form=str)}, given {program.source.phrase}."
    return benchmark_instruction("mbpp", f"{sentence}\n{test}")


def response_code(program: Program, rng: random.Random) -> str:
    style = rng.choices(("steps", "loops", "expression"), (55, 20, 25))[0]
    return text.write_function(program, rng, style, sloppy=rng.random() < SLOPPY)


# --- mini-oss --------------------------------------------------------------------------------------------------------


def oss_pairs(rng: random.Random, n_rows: int) -> list[tuple[str, str]]:
    """Descriptions of existing code: documented standard-library functions among generated ones."""
    documented = list(stdlib.short_functions("instructions"))
    rng.shuffle(documented)
    library = [(say_documented(*entry, rng), fenced(entry[2])) for entry in documented[: int(n_rows * STDLIB_SHARE)]]
    generated = []
    while len(library) + len(generated) < n_rows:
        program = sample_program(rng, rng.choices((1, 2, 3, 4), (22, 30, 28, 20))[0])
        generated.append((oss_instruction(program, rng), fenced(response_code(program, rng))))
    pairs = library + generated
    rng.shuffle(pairs)
    return pairs


def oss_instruction(program: Program, rng: random.Random) -> str:
    """The registers of OSS-Instruct: a problem made from a piece of code."""
    forms = (say_with_docstring, say_as_problem, say_nested, ask_to_complete, ask_with_examples, ask_by_example)
    return rng.choices(forms, (26, 26, 10, 10, 10, 18))[0](program, rng)


def say_with_docstring(program: Program, rng: random.Random) -> str:
    opening = rng.choice(
        ("Implement the function that this description belongs to.", "Write the Python function described here.")
    )
    return f"{opening}\n{program.name}({program.parameter}): {text.docstring(program, rng)}"


def say_as_problem(program: Program, rng: random.Random) -> str:
    opening = rng.choice(
        ("You are working on a data tool.", "You are given a task from a code base.", "A program needs a helper.")
    )
    return (
        f"{opening} Your task is to implement {signature(program)}, "
        f"where `{program.parameter}` is {program.source.phrase}. "
        f"The function {text.sequence_phrase(program, rng)}."
    )


def say_documented(name: str, doc: str, code: str, rng: random.Random) -> str:
    opening = rng.choice(
        ("Implement the function that this description belongs to.", "Write the Python function described here.")
    )
    head = code[code.index("def ") + 4 : code.index(":\n")] if ":\n" in code else name
    return f"{opening}\n{' '.join(head.split())}: {doc}"


# --- pre-training ----------------------------------------------------------------------------------------------------


def pretraining_texts(rng: random.Random):
    """An endless stream of (prompt, text) documents for the base model; `prompt` is an instruction or "" for plain
    code.

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
    style = rng.choices(("steps", "loops", "expression"), (55, 20, 25))[0]
    form = rng.random()
    if form < 0.4:
        return text.write_function(program, rng, style, doc=doc)
    code = text.write_function(program, rng, style)
    if form < 0.7:
        return f"# {program.name}: {doc}\n{code}"
    return f"# {doc}\n{code}"
