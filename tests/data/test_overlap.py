"""Near duplicates against a plain loop; leaks of copied prompts, solutions and renamed programs."""

import itertools
import random
import re

import pandas as pd
import pytest

from codeact_lib.data.overlap import LEAK_COLUMNS, NearDuplicates, drop_leaks, find_leaks, leak_table

# ---- near duplicates


def grams(text):
    tokens = re.findall(r"\w+|[^\w\s]", text.lower())
    return {tuple(tokens[i : i + 5]) for i in range(max(len(tokens) - 4, 1))}


def naive_near_duplicates(texts, threshold):
    """Every text against every text kept before it."""
    kept, found = [], {}
    for i, text in enumerate(texts):
        scores = {j: len(grams(text) & grams(texts[j])) / len(grams(text) | grams(texts[j])) for j in kept}
        best = max(scores, key=scores.get, default=None)
        if best is not None and scores[best] >= threshold:
            found[i] = scores[best]
        else:
            kept.append(i)
    return found


def mutated(words, share, rng):
    return [rng.choice("abcdefgh") * 3 if rng.random() < share else word for word in words]


def test_near_duplicates_are_those_of_a_plain_loop():
    rng = random.Random(0)
    originals = [[f"w{rng.randrange(3000)}" for _ in range(rng.randrange(3, 120))] for _ in range(60)]
    # changed words spoil five grams each: the similarities spread over the whole range
    texts = [" ".join(mutated(words, share, rng)) for words in originals for share in (0, 0.002, 0.01, 0.05)]
    seen = NearDuplicates(0.7)
    found = {i: hit for i, text in enumerate(texts) if (hit := seen.add(i, text))}
    for i, (earlier, similarity) in found.items():  # nothing is called a near duplicate that is none
        a, b = grams(texts[i]), grams(texts[earlier])
        assert similarity == len(a & b) / len(a | b) >= 0.7 and earlier < i
    expected = naive_near_duplicates(texts, 0.7)
    assert {i for i, similarity in expected.items() if similarity > 0.75} <= set(found)
    assert len(set(expected) ^ set(found)) <= 0.02 * len(texts)  # MinHash may miss one close to the threshold
    assert 60 < len(expected) < 200


def test_one_changed_number_or_sign_is_enough_to_differ_in_a_short_text():
    seen = NearDuplicates(0.8)
    texts = ["Add 2 numbers", "Add 3 numbers", "return a + b", "return a - b", "", "!"]
    assert [seen.add(i, text) for i, text in enumerate(texts)] == [None] * 6
    assert seen.add(6, "add 2 NUMBERS ") == (0, 1.0)


def test_a_threshold_outside_its_range_is_refused():
    for threshold in (0, 1.01):
        with pytest.raises(ValueError, match="threshold must lie in"):
            NearDuplicates(threshold)


# ---- leaks

TASK = {
    "task_id": "Mini/0",
    "prompt": 'def f(xs):\n    """Return the sum of the squares of the even numbers in the list, or zero if none."""\n',
    "canonical_solution": "    return sum(x * x for x in xs if x % 2 == 0)\n",
}


def leaks_of(instruction, response="pass", **options):
    examples = pd.DataFrame([{"example_id": "e", "instruction": instruction, "response": response}])
    return find_leaks(examples, [TASK], **options)


def test_a_copied_prompt_is_found_through_case_and_punctuation():
    copied = "RETURN the SUM of the squares; of the even numbers\nin the list -- or zero, if none!!"
    found = leaks_of("Please: " + copied, n=8)
    assert found[["example_id", "task_id", "part"]].values.tolist() == [["e", "Mini/0", "prompt"]]
    assert found["share"][0] > 0.7


def test_a_copied_solution_is_found_in_the_response():
    found = leaks_of("Do it", "def g(xs):\n  return sum(x*x for x in xs if x%2==0)", n=8)
    assert found["part"].tolist() == ["canonical_solution", "syntax tree"] and found["share"].tolist() == [1, 1]


def test_a_related_row_and_a_short_task_are_no_leak():
    assert leaks_of("Return the sum of the odd numbers in the list and the mean of the squares").empty
    assert leaks_of("pass", n=100).empty  # no text of the task has 100 words
    assert list(leaks_of("x").columns) == ["example_id", "task_id", "part", "share"]


# ---- syntax trees

PRIMES = {
    "task_id": "Mini/1",
    "prompt": 'def is_prime(n: int) -> bool:\n    """Whether n is prime."""\n',
    "canonical_solution": "    if n < 2:\n        return False\n    for d in range(2, n):\n"
    "        if n % d == 0:\n            return False\n    return True\n",
}
RENAMED = """```python
import math

def check(number):
    'Another docstring.'
    if number < 2:
        return False
    for divisor in range(2, number):  # a comment
        if number % divisor == 0: return False
    return True
```"""


def tree_leaks(response, task=PRIMES):
    examples = pd.DataFrame([{"example_id": "e", "instruction": "Primes?", "response": response}])
    found = find_leaks(examples, [task])
    return dict(zip(found["part"], found["share"], strict=True))


def test_a_program_with_other_names_comments_and_docstring_is_found():
    assert tree_leaks(RENAMED) == {"syntax tree": 1.0}
    assert tree_leaks(RENAMED.replace("```python", "").replace("```", "")) == {"syntax tree": 1.0}


def test_a_program_with_a_statement_more_is_found_in_part():
    longer = RENAMED.replace("    return True", "    print(number)\n    return True")
    assert 0.5 < tree_leaks(longer)["syntax tree"] < 1


@pytest.mark.parametrize(("old", "new"), [("range(2", "range(3"), ("return False", "return None"), ("%", "//")])
def test_a_program_with_other_values_or_operators_shares_less(old, new):
    assert tree_leaks(RENAMED.replace(old, new)).get("syntax tree", 0) < 0.75


@pytest.mark.parametrize(
    "code", ["", "def f(:", "print 'python 2'", "(" * 5000, "x = '\\d'", "\0", "lambda: " * 3000 + "1"]
)
def test_what_is_no_program_is_no_leak_and_no_error(code):
    assert tree_leaks(f"```python\n{code}\n```") == {}
    broken = {**PRIMES, "canonical_solution": code}
    assert tree_leaks(RENAMED, broken).get("syntax tree") is None


# ---- sets and subsets


def test_the_table_counts_rows_and_tasks_of_each_set_and_dropping_leaves_none():
    responses = [RENAMED, "pass", RENAMED + " ", "no code"]
    examples = pd.DataFrame({"example_id": list("abcd"), "instruction": "Write it", "response": responses})
    leaks = find_leaks(examples, [PRIMES, TASK])
    table = leak_table({"mini": leaks, "other": find_leaks(examples, [])}, {"all": list("abcd"), "chosen": ["b", "c"]})
    assert table.values.tolist() == [
        ["mini", "all", 4, 2, 0.5, 1],
        ["mini", "chosen", 2, 1, 0.5, 1],
        ["other", "all", 4, 0, 0, 0],
        ["other", "chosen", 2, 0, 0, 0],
    ]
    clean = drop_leaks(examples, leaks)
    assert clean["example_id"].tolist() == ["b", "d"] and clean.index.tolist() == [0, 1]
    assert find_leaks(clean, [PRIMES, TASK]).empty


def test_every_mini_task_is_found_in_a_row_that_copies_it():
    from codeact_lib.evaluation.benchmarks import load_benchmark

    tasks = load_benchmark("mini-humaneval").tasks[:40]
    rows = [
        {"example_id": task["task_id"], "instruction": task["prompt"], "response": task["canonical_solution"]}
        for task in tasks
    ]
    found = find_leaks(pd.DataFrame(rows), tasks)
    own = found[found["example_id"] == found["task_id"]]
    long_enough = {task["task_id"] for task in tasks if len(re.findall(r"[a-z0-9]+", task["prompt"].lower())) >= 10}
    assert set(own["task_id"]) >= long_enough and len(long_enough) > 30
    assert list(found.columns) == LEAK_COLUMNS
    assert all(a >= b for a, b in itertools.pairwise(found["share"]))
