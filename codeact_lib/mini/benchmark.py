"""The held-out benchmark of the mini profile, in EvalPlus's schema: 160 HumanEval-like and 160 MBPP-like tasks."""

import json
import random
from typing import Any

from codeact_lib.errors import DataError
from codeact_lib.mini import text
from codeact_lib.mini.operations import GRAMMAR, Program, sample_program

BENCHMARKS = ("mini-humaneval", "mini-mbpp")
N_TASKS = 160
# A task has a few ordinary inputs and, as in EvalPlus, many stricter ones: empty and one-element collections, repeats,
# zeros, negatives, the empty string.
N_BASE = 4
N_PLUS = 28
# Of one to four steps. The base model has seen one and two: most tasks ask for a little more than it can do.
STEP_WEIGHTS = (20, 42, 26, 12)
VOCABULARY: list[str] = GRAMMAR["vocabulary"]

Task = dict[str, Any]  # a task in EvalPlus's fields
Inputs = list[list[Any]]  # one list of arguments an input; here always of one argument


def build_benchmark(name: str) -> list[Task]:
    """The tasks of "mini-humaneval" or "mini-mbpp" as dicts of EvalPlus's fields. DataError for another name."""
    if name not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        raise DataError(f"unknown built-in benchmark {name!r}: choose one of {known}, or give a JSONL file")
    rng = random.Random(f"{name}-0")
    tasks: list[Task] = []
    seen = set()
    while len(tasks) < N_TASKS:
        program = sample_program(rng, rng.choices((1, 2, 3, 4), STEP_WEIGHTS)[0], held_out=True)
        base, plus = task_inputs(program, rng)
        results = {repr(run_program(program, *arguments)) for arguments in base}
        key = (program.chain_names, program.constants)
        # Fewer than three different results: a constant answer would pass most of the base inputs.
        if key not in seen and len(results) >= 3:
            seen.add(key)
            tasks.append(make_task(name, len(tasks), program, base, plus, rng))
    return tasks


def make_task(name: str, index: int, program: Program, base: Inputs, plus: Inputs, rng: random.Random) -> Task:
    """Task number `index` of a benchmark, its inputs given."""
    if name == "mini-humaneval":
        task_id = f"MiniHumanEval/{index}"
        prompt = humaneval_prompt(program, base[: 2 * (index % 2)], rng)  # every other task has two examples
        # The canonical solution is the body that continues the prompt; of an MBPP task it is the whole function.
        solution = "".join(f"    {line}\n" for line in text.write_steps(program, random.Random(0)))
    else:
        task_id = f"MiniMbpp/{9000 + index}"
        prompt = f'"""\n{mbpp_text(program, base[0][0], rng)}\n"""\n'
        solution = text.write_function(program, random.Random(0))
    return {
        "task_id": task_id,
        "prompt": prompt,
        "entry_point": program.name,
        "canonical_solution": solution,
        "contract": "",
        "base_input": base,
        "plus_input": plus,
        "atol": 0,
    }


def humaneval_prompt(program: Program, inputs: Inputs, rng: random.Random) -> str:
    """A signature and a docstring, with an example for each of `inputs`."""
    doc = text.docstring(program, rng)
    for (value,) in inputs:
        doc += f"\n    >>> {program.name}({value!r})\n    {run_program(program, value)!r}"
    if inputs:
        doc += "\n    "
    return f'def {program.signature}:\n    """{doc}"""\n'


def mbpp_text(program: Program, value: Any, rng: random.Random) -> str:
    """What an MBPP-like task asks: a sentence, and an assertion on `value`."""
    steps = text.sequence_phrase(program, rng, form=str)
    test = f"assert {program.name}({value!r}) == {run_program(program, value)!r}"
    return f"Write a function to {steps}, given {program.source.phrase}.\n{test}"


def run_program(program: Program, value: Any) -> Any:
    """The result of the canonical solution. Only code from our own grammar is executed here."""
    namespace: dict[str, Any] = {}
    exec(text.write_function(program, random.Random(0)), namespace)
    return namespace[program.name](value)


def task_inputs(program: Program, rng: random.Random) -> tuple[Inputs, Inputs]:
    """(base inputs, plus inputs), each input a list with the one argument."""
    source = program.source.name
    base = [[example_input(source, rng)] for _ in range(N_BASE)]
    plus = [[value] for value in edge_inputs(source, rng)]
    while len(plus) < N_PLUS:
        plus.append([example_input(source, rng, size=rng.randint(1, 12))])
    return base, plus


def example_input(source: str, rng: random.Random, size: int | None = None) -> Any:
    """An ordinary argument for a source; collections of 4 to 7 entries unless `size` says otherwise."""
    if size is None:
        size = rng.randint(4, 7)
    if source == "ints":
        return [rng.randint(-10, 20) for _ in range(size)]
    if source == "words":
        return [rng.choice(VOCABULARY) for _ in range(size)]
    if source == "text":
        return " ".join(rng.choice(VOCABULARY) for _ in range(size))
    if source == "digits":
        return rng.randint(10 ** (size - 1), 10**size - 1)
    return {word: rng.randint(-10, 20) for word in rng.sample(VOCABULARY, size)}


def edge_inputs(source: str, rng: random.Random) -> list[Any]:
    """Arguments on which careless code fails: those of `grammar.yaml`, its three place holders filled with words."""
    word, other = rng.sample(VOCABULARY, 2)
    values = json.dumps(GRAMMAR["edge_inputs"][source])
    return json.loads(values.replace("LOUD", word.upper()).replace("WORD", word).replace("OTHER", other))
