"""Templates say exactly what the models were trained on, and tokenising keeps prompt and response apart."""

import pytest
from tiny_models import tiny_tokenizer

from codeact_lib.errors import DataError, ModelError
from codeact_lib.prompts import IGNORE_INDEX, TEMPLATES, PromptTemplate, encode, get_template, tokenize_example


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def test_each_template_wraps_the_instruction_in_its_familys_words():
    assert TEMPLATES["deepseek-coder"].prompt("Sort.") == "### Instruction:\nSort.\n### Response:\n"
    assert TEMPLATES["codellama"].prompt("Sort.") == "[INST] Sort. [/INST]"
    assert TEMPLATES["ifd-authors"].prompt("Sort.") == "Question:\nSort.\n\nAnswer:\n"


def test_braces_in_an_instruction_are_only_text():
    assert "{x: {}} %s" in TEMPLATES["codellama"].prompt("{x: {}} %s")


def test_the_digest_changes_with_the_text_and_with_nothing_else():
    assert PromptTemplate("a", "x", "y").sha256 == PromptTemplate("b", "x", "y").sha256
    assert len({template.sha256 for template in TEMPLATES.values()}) == len(TEMPLATES)
    assert PromptTemplate("a", "xy", "").sha256 != PromptTemplate("a", "x", "y").sha256


def test_an_unknown_template_is_named_with_the_known_ones():
    with pytest.raises(DataError, match="'alpaca'.*codellama, deepseek-coder"):
        get_template("alpaca")


def test_only_the_response_and_its_end_token_are_supervised(tokenizer):
    example = tokenize_example(tokenizer, "deepseek-coder", "Add one.", "return x", max_length=100)
    prompt = encode(tokenizer, TEMPLATES["deepseek-coder"].prompt("Add one."))
    answer = [*encode(tokenizer, "return x"), tokenizer.eos_token_id]
    assert example["input_ids"] == [tokenizer.bos_token_id, *prompt, *answer]
    assert example["labels"] == [IGNORE_INDEX] * (len(prompt) + 1) + answer
    assert (example["n_prompt"], example["status"]) == (len(prompt) + 1, "ok")


def test_the_response_has_the_same_tokens_after_every_prompt(tokenizer):
    answers = set()
    for instruction in ("a", "return", "def f(x): return x"):
        example = tokenize_example(tokenizer, "codellama", instruction, "return x", 200)
        answers.add(tuple(example["input_ids"][example["n_prompt"] :]))
    assert len(answers) == 1


def test_a_tokenizer_without_a_start_token_gets_none():
    tokenizer = tiny_tokenizer(bos_token=None)
    example = tokenize_example(tokenizer, "codellama", "a", "b", 100)
    assert example["input_ids"][: example["n_prompt"]] == encode(tokenizer, "[INST] a [/INST]")


def test_a_long_response_is_cut_at_its_end(tokenizer):
    whole = tokenize_example(tokenizer, "codellama", "a", "xyz" * 50, 1000)
    cut = tokenize_example(tokenizer, "codellama", "a", "xyz" * 50, 40)
    assert cut["status"] == "truncated"
    assert cut["input_ids"] == whole["input_ids"][:40] and cut["labels"] == whole["labels"][:40]


def test_a_row_that_fits_to_the_token_keeps_its_end_token(tokenizer):
    whole = tokenize_example(tokenizer, "codellama", "a", "xyz", 1000)
    exact = tokenize_example(tokenizer, "codellama", "a", "xyz", len(whole["input_ids"]))
    assert exact == whole and exact["input_ids"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("max_length", [5, 10, 17])
def test_a_prompt_that_fills_the_window_supervises_nothing(tokenizer, max_length):
    example = tokenize_example(tokenizer, "ifd-authors", "a" * 100, "b", max_length)
    assert example["status"] == "prompt_too_long"
    assert example["labels"] == [IGNORE_INDEX] * max_length and len(example["input_ids"]) == max_length


@pytest.mark.parametrize(("instruction", "response"), [("a", ""), ("a", " \n"), ("", "b"), ("  ", "b")])
def test_a_row_without_text_is_called_empty(tokenizer, instruction, response):
    example = tokenize_example(tokenizer, "codellama", instruction, response, 100)
    assert example["status"] == "empty" and set(example["labels"]) <= {IGNORE_INDEX}


def test_a_tokenizer_without_an_end_token_is_refused():
    with pytest.raises(ModelError, match="end-of-sequence"):
        tokenize_example(tiny_tokenizer(eos_token=None), "codellama", "a", "b", 100)
