"""The embedded mini profile: its data teach, its benchmark is held out, its base model is what its recipe says."""

import ast
import builtins
import hashlib
import itertools
import json
import random
import re

import pytest

from codeact_lib.errors import DataError
from codeact_lib.mini import BENCHMARKS, CORPORA, MINI_BASE_DIR, build_benchmark, build_corpus
from codeact_lib.mini.benchmark import run_program
from codeact_lib.mini.corpus import evol_pairs, oss_pairs, pretraining_texts, short_functions
from codeact_lib.mini.operations import OPERATIONS, is_held_out, sample_chain, sample_program
from codeact_lib.mini.text import STYLES, write_function


@pytest.fixture(scope="module")
def benchmarks():
    return {name: build_benchmark(name) for name in BENCHMARKS}


@pytest.fixture(scope="module")
def corpora():
    return {name: build_corpus(name) for name in CORPORA}


def code_of(response: str) -> str:
    return re.fullmatch(r"```python\n(.*)\n```", response, re.DOTALL).group(1)


def test_every_response_is_one_fenced_block_of_valid_python(corpora):
    for corpus in corpora.values():
        for response in corpus.response:
            ast.parse(code_of(response))


def test_rows_are_the_same_for_the_same_seed_and_differ_for_another():
    assert build_corpus("mini-evol", 50).equals(build_corpus("mini-evol", 50))
    assert not build_corpus("mini-evol", 50).equals(build_corpus("mini-evol", 50, seed=1))


def test_rows_have_the_schema_unique_ids_and_text(corpora):
    for name, corpus in corpora.items():
        assert list(corpus.columns) == ["example_id", "instruction", "response", "dataset"]
        assert corpus.example_id.is_unique and len(corpus) == 1200 and set(corpus.dataset) == {name}
        assert corpus.instruction.str.strip().ne("").all() and corpus.response.str.strip().ne("").all()


def test_two_in_a_hundred_evolved_rows_are_mismatched():
    def mentions_other_name(instruction, response):
        return re.search(r"def (\w+)", response).group(1) not in instruction

    pairs = evol_pairs(random.Random("mini-evol-0"), 1200)
    asked_by_name = [p for p in pairs if "for this text" not in p[0] or "assert" in p[0]]
    mismatched = sum(mentions_other_name(*pair) for pair in asked_by_name)
    assert 0.012 * len(pairs) <= mismatched <= 0.022 * len(pairs)


def test_one_in_five_oss_rows_comes_from_the_standard_library():
    pairs = oss_pairs(random.Random(3), 500)
    library = {code.rstrip() for _, _, code in short_functions("instructions")}
    assert sum(code_of(response) in library for _, response in pairs) == 100


# Every number of results/mini rests on these texts: another hash is another data set, on whatever Python it comes out.
TEXTS = {
    "mini-evol": "8bdfc073675647baf2c792f8fd66b1a5fcd64847dc58f5826ccefe002cde56eb",
    "mini-oss": "421c4fa93973c191550a38197cfae5b849ed781bc5478dd70058a874f3e74ebf",
    "mini-humaneval": "143f4794b7510fdb56ab41523127bf20e341a8a53ad686619f882af53b478435",
    "mini-mbpp": "2d78cb1cffef087d90a379ab19caf75449f01f8cb0db70398335aa502f08e2bd",
    "pre-training": "a625368b1ddf95e429a71b8f442dd4849f173dff569809c21fcd690ef84d4d8e",
}


def test_rows_tasks_and_pre_training_texts_are_the_same_on_every_python():
    texts = {name: build_corpus(name).to_csv(index=False) for name in ("mini-evol", "mini-oss")}
    texts |= {name: json.dumps(build_benchmark(name)) for name in ("mini-humaneval", "mini-mbpp")}
    texts["pre-training"] = json.dumps(list(itertools.islice(pretraining_texts(random.Random(0)), 3000)))
    assert {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()} == TEXTS


def test_an_unknown_corpus_or_benchmark_is_named_with_the_choices():
    with pytest.raises(DataError, match="mini-evol, mini-oss"):
        build_corpus("mini-evil")
    with pytest.raises(DataError, match="mini-humaneval, mini-mbpp"):
        build_benchmark("mini-humanevil")


@pytest.mark.parametrize("style", STYLES)
def test_all_styles_of_a_program_compute_the_same(style):
    from codeact_lib.mini.benchmark import example_input

    rng = random.Random(style)
    for _ in range(300):
        program = sample_program(rng, rng.randint(1, 4), held_out=None)
        value = example_input(program.source.name, rng)
        namespace = {}
        exec(write_function(program, rng, style), namespace)
        assert namespace[program.name](value) == run_program(program, value)


def test_chains_have_the_asked_number_of_steps_and_fit_their_types():
    rng = random.Random(0)
    for steps in (1, 2, 3, 4) * 100:
        chain = sample_chain(rng, rng.choice(("ints", "words")), steps)
        assert len(chain) == steps
        assert all(a.gives == b.takes for a, b in zip(chain, chain[1:], strict=False))


def test_every_operation_occurs_in_training_even_if_its_lone_chain_is_held_out():
    rng = random.Random(0)
    seen = {name for _ in range(6000) for name in sample_program(rng, rng.randint(1, 3)).chain_names}
    assert seen == {operation.name for operation in OPERATIONS}


def test_the_benchmarks_have_160_tasks_each_with_base_and_stricter_plus_inputs(benchmarks):
    for tasks in benchmarks.values():
        assert len(tasks) == 160 == len({task["task_id"] for task in tasks})
        for task in tasks:
            assert len(task["base_input"]) == 4 and len(task["plus_input"]) == 28
            json.dumps(task)


def test_benchmark_chains_are_all_held_out_and_training_chains_never():
    rng = random.Random(1)
    for steps in (1, 2, 3, 4):
        assert all(is_held_out(sample_program(rng, steps, held_out=True).chain_names) for _ in range(30))
        assert not any(is_held_out(sample_program(rng, steps).chain_names) for _ in range(300))


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


def test_no_training_text_shares_a_normalised_body_with_the_benchmark(benchmarks, corpora):
    held_out = set()
    for tasks in benchmarks.values():
        for task in tasks:
            whole = task["canonical_solution"]
            held_out.add(normalised_body(whole if "def " in whole else task["prompt"] + whole))
    training = {normalised_body(code_of(response)) for corpus in corpora.values() for response in corpus.response}
    assert len(held_out) > 200 and not held_out & training
    stream = pretraining_texts(random.Random(2))
    texts = [text for _, text in (next(stream) for _ in range(4000))]
    bodies = {normalised_body(code_of(text) if text.startswith("```") else text) for text in texts}
    assert not held_out & bodies


def test_normalised_bodies_ignore_names_and_docstrings_but_not_constants():
    a = 'def f(xs):\n    """Doc."""\n    return [x + 1 for x in xs]\n'
    b = "def g(items):\n    return [item + 1 for item in items]\n"
    assert normalised_body(a) == normalised_body(b)
    assert normalised_body(a) != normalised_body(b.replace("1", "2"))
    assert normalised_body(a) != normalised_body(b.replace("[item", "sorted([item").replace("items]", "items])"))


def test_the_shipped_base_model_is_small_safe_and_matches_its_recipe():
    folder = MINI_BASE_DIR
    files = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "recipe.json", "README.md"} <= files
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8 * 2**20
    facts = json.loads((folder / "recipe.json").read_text())
    from dataclasses import asdict

    from codeact_lib.mini.base_model import Recipe

    assert facts["recipe"] == asdict(Recipe()) and facts["steps"] == facts["recipe"]["max_steps"]


def test_the_first_steps_of_the_recipe_reach_the_recorded_loss(tmp_path):
    """Fifty steps of the real recipe: the mean loss equals the card's first entry, up to rounding between machines."""
    from codeact_lib.mini import build_base_model

    facts = build_base_model(tmp_path / "model", steps=50)
    recorded = json.loads((MINI_BASE_DIR / "recipe.json").read_text())["loss_curve"][0]
    assert facts["steps"] == recorded["step"] == 50
    assert facts["last_loss"] == pytest.approx(recorded["loss"], abs=0.05)


def test_the_tokenizer_splits_numbers_into_digits_and_restores_text():
    from codeact_lib.modeling.load import load_tokenizer

    tokenizer = load_tokenizer("mini-base")
    text = 'def f(xs):\n    return [x * 1024 for x in xs if "é" != x]\n'
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode([i]) for i in ids if tokenizer.decode([i]).strip().isdigit()] == list("1024")
