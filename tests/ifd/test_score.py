"""The scorer against naive loops of one row at a time; killed, short of memory, and misled by its own files."""

import itertools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPO, held_elsewhere
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from bench import ifd as bench
from codeact_lib.errors import ArtifactError, CodeActError, DataError, ModelError
from codeact_lib.ifd import nll
from codeact_lib.ifd.__main__ import score_file
from codeact_lib.ifd.launch import score_in_processes
from codeact_lib.ifd.nll import plan_batches, score_batches
from codeact_lib.ifd.resume import scoring_seconds
from codeact_lib.ifd.score import IFD_COLUMNS, ifd_from_nll, score_ifd, scorer_agreement
from codeact_lib.mini.tokenizer import byte_level_bpe
from codeact_lib.modeling.load import load_base_model
from codeact_lib.modeling.loss import LOGIT_BLOCK, token_losses
from codeact_lib.prompts import TEMPLATES

TEMPLATE = TEMPLATES["deepseek-coder"]
MAX_LENGTH = 48
EXAMPLES = [
    {"example_id": "a", "instruction": "Add two numbers.", "response": "def add(a, b):\n    return a + b"},
    {"example_id": "b", "instruction": "Sort words", "response": "sorted(words)"},
    {"example_id": "long-answer", "instruction": "Count.", "response": "x = 1\n" * 60},
    {"example_id": "long-prompt", "instruction": "Count to nine. " * 40, "response": "range(9)"},
    {"example_id": "no-answer", "instruction": "Say nothing.", "response": " \n"},
    {"example_id": "no-question", "instruction": "", "response": "return 1"},
    {"example_id": "one-token", "instruction": "Letter?", "response": "q"},
    {"example_id": "space", "instruction": "Merge over the boundary", "response": "\n\n    return   a"},
    {"example_id": "unicode", "instruction": "Grüße 你好", "response": "print('ß')  # ✓"},
]


def make_tokenizer(bos=True, eos=True):
    """A byte-level BPE tokenizer without padding token; with BOS it puts it in front of every text."""
    texts = [TEMPLATE.prompt(row["instruction"]) + row["response"] for row in EXAMPLES]
    tokenizer = byte_level_bpe(texts + ["Question:\n\nAnswer:\n\n\n    return"] * 5, 330, ["<s>", "</s>"])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = {**({"bos_token": "<s>"} if bos else {}), **({"eos_token": "</s>"} if eos else {})}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def make_model(seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"vocab_size": 330, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    config = LlamaConfig(**{**settings, **heads, "tie_word_embeddings": True, "initializer_range": 0.3, **changes})
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model():
    return make_model()


# ---- independent naive versions: a batch of one, the model's own logits, nothing shared with the library


@torch.no_grad()
def naive_losses(model, ids):
    """NLL of every token but the first."""
    log_probabilities = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    return [-log_probabilities[t - 1, ids[t]].item() for t in range(1, len(ids))]


def naive_corrected(model, tokenizer, row, max_length):
    question, answer = row["instruction"], row["response"]
    if question.strip() == "" or answer.strip() == "":
        return 0, np.nan, np.nan, np.nan, "empty"
    bos = tokenizer.bos_token_id
    prompt = tokenizer.encode(f"### Instruction:\n{question}\n### Response:\n", add_special_tokens=False)
    prompt = prompt if bos is None else [bos] + prompt
    tokens = tokenizer.encode(answer, add_special_tokens=False)
    if len(prompt) >= max_length:
        return 0, np.nan, np.nan, np.nan, "prompt_too_long"
    status = "ok" if len(prompt) + len(tokens) <= max_length else "truncated"
    tokens = tokens[: max_length - len(prompt)]
    conditioned = sum(naive_losses(model, prompt + tokens)[len(prompt) - 1 :])
    direct = sum(naive_losses(model, [tokenizer.eos_token_id if bos is None else bos] + tokens))
    n = len(tokens)
    return n, conditioned, direct, np.exp(conditioned / n) / np.exp(direct / n), status


def naive_authors(model, tokenizer, row, max_length):
    """The seven points of the released code's behaviour that concern scores; every failure gives 0."""
    question, answer = row["instruction"], row["response"]
    if question == "" or answer == "":
        return np.nan
    prompt = f"Question:\n{question}\n\nAnswer:\n"
    try:
        n_prompt = len(tokenizer.encode(prompt, truncation=True, max_length=max_length))
        alone = tokenizer.encode(answer, truncation=True, max_length=max_length - n_prompt + 1)
        joint = tokenizer.encode(prompt + answer, truncation=True, max_length=max_length)
        direct = naive_losses(model, alone)
        conditioned = naive_losses(model, joint)[n_prompt - 1 :]
        score = np.exp(sum(conditioned) / len(conditioned)) / np.exp(sum(direct) / len(direct))
    except ZeroDivisionError:
        return 0.0
    return 0.0 if np.isnan(score) else score


# ---- scores


@pytest.mark.parametrize("bos", [True, False])
def test_corrected_scores_equal_a_naive_loop_on_every_row(model, bos):
    tokenizer = make_tokenizer(bos=bos)
    scores = score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, max_length=MAX_LENGTH)
    naive = [naive_corrected(model, tokenizer, row, MAX_LENGTH) for row in EXAMPLES]
    assert list(scores.columns) == IFD_COLUMNS
    assert scores["example_id"].tolist() == [row["example_id"] for row in EXAMPLES]
    assert scores["n_response_tokens"].tolist() == [row[0] for row in naive]
    assert scores["status"].tolist() == [row[4] for row in naive]
    for column, expected in zip(
        ["nll_conditioned", "nll_direct", "ifd"], list(zip(*naive, strict=True))[1:4], strict=True
    ):
        np.testing.assert_allclose(scores[column], expected, rtol=1e-4)
    assert set(scores["status"]) == {"ok", "truncated", "prompt_too_long", "empty"}


@pytest.mark.parametrize("bos", [True, False])
def test_authors_scores_equal_a_naive_loop_with_its_silent_zeros(model, bos):
    tokenizer = make_tokenizer(bos=bos)
    scores = score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, max_length=MAX_LENGTH, preset="authors")
    naive = [naive_authors(model, tokenizer, row, MAX_LENGTH) for row in EXAMPLES]
    np.testing.assert_allclose(scores["ifd"], naive, rtol=1e-4)
    by_id = scores.set_index("example_id")
    assert by_id.loc["long-prompt", ["ifd", "status"]].tolist() == [0.0, "prompt_too_long"]
    assert (by_id.loc["one-token", "ifd"] == 0) == (not bos)  # without BOS its only token is not scored
    assert by_id.loc["long-answer", "status"] == "truncated"


def test_both_ratios_of_the_authors_scores_follow_from_the_stored_sums(model, tokenizer):
    scores = score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, max_length=MAX_LENGTH, preset="authors")
    scored = scores[scores["nll_direct"].notna()]
    sums = scored["nll_conditioned"], scored["nll_direct"], scored["n_response_tokens"]
    np.testing.assert_allclose(ifd_from_nll(*sums), scored["ifd"], rtol=1e-12)
    means = []
    for i in scored.index:
        question, answer = EXAMPLES[i]["instruction"], EXAMPLES[i]["response"]
        prompt = f"Question:\n{question}\n\nAnswer:\n"
        n_prompt = len(tokenizer.encode(prompt, truncation=True, max_length=MAX_LENGTH))
        joint = tokenizer.encode(prompt + answer, truncation=True, max_length=MAX_LENGTH)
        alone = tokenizer.encode(answer, truncation=True, max_length=MAX_LENGTH - n_prompt + 1)
        means.append(np.mean(naive_losses(model, joint)[n_prompt - 1 :]) / np.mean(naive_losses(model, alone)))
    np.testing.assert_allclose(ifd_from_nll(*sums, kind="loss_ratio"), means, rtol=1e-4)


@pytest.mark.parametrize("tokens_per_batch", [1, 60, 100_000])
def test_the_batch_budget_and_the_order_of_rows_change_no_score(model, tokenizer, tokens_per_batch):
    whole = score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, max_length=MAX_LENGTH).set_index("example_id")
    options = {"max_length": MAX_LENGTH, "tokens_per_batch": tokens_per_batch}
    reverse = score_ifd(model, tokenizer, pd.DataFrame(EXAMPLES[::-1]), TEMPLATE, **options).set_index("example_id")
    np.testing.assert_allclose(reverse.loc[whole.index, "ifd"], whole["ifd"], rtol=1e-5)
    part = score_ifd(model, tokenizer, EXAMPLES[:3], TEMPLATE, **options)
    np.testing.assert_allclose(part["ifd"], whole["ifd"][:3], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_summed_in_full_precision(tokenizer, dtype):
    model = make_model(initializer_range=0.02)
    full = score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, max_length=MAX_LENGTH)
    half = score_ifd(model.to(dtype), tokenizer, EXAMPLES, TEMPLATE, max_length=MAX_LENGTH)
    np.testing.assert_allclose(half["nll_direct"], full["nll_direct"], rtol=5e-3)


def test_the_size_of_the_blocks_of_logits_changes_no_score(model, tokenizer, monkeypatch):
    whole = score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, max_length=MAX_LENGTH)
    for block in ((512, 7), (5, 1000), (1, 1)):
        monkeypatch.setitem(LOGIT_BLOCK, "cpu", block)
        scores = score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, max_length=MAX_LENGTH)
        np.testing.assert_allclose(scores["ifd"], whole["ifd"], rtol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of entries of the largest tensor that any operation made."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [each for each in torch.utils._pytree.tree_leaves(result) if isinstance(each, torch.Tensor)]
        self.entries = max([self.entries, *(each.numel() for each in made)])
        return result


def test_no_tensor_of_scoring_grows_with_vocabulary_times_length(tokenizer):
    n_positions, n_entries = LOGIT_BLOCK["cpu"]
    model = make_model(vocab_size=20_000, max_position_embeddings=1024)
    row = {"example_id": 0, "instruction": "Count.", "response": "x = 1\n" * 250}
    with LargestTensor() as largest:
        scores = score_ifd(model, tokenizer, [row], TEMPLATE, max_length=900)
    assert scores["n_response_tokens"][0] * 20_000 > 10 * n_positions * n_entries
    assert largest.entries <= max(n_positions * n_entries, 20_000 * 32)  # a block of logits, or the head's own weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_the_head_in_blocks_equals_cross_entropy_over_all_logits_at_once(dtype, bias):
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 3000, bias=bias, dtype=dtype)
    hidden, target = torch.randn(700, 16, dtype=dtype), torch.randint(0, 3000, (700,))
    with torch.inference_mode():
        expected = torch.nn.functional.cross_entropy(head(hidden).float(), target, reduction="none")
        nll_of_tokens = token_losses(hidden, head, target)
    assert nll_of_tokens.dtype == torch.float32
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(nll_of_tokens, expected, rtol=tolerance, atol=tolerance)


def test_a_model_that_caps_its_logits_is_scored_by_its_own_logits(tokenizer):
    torch.manual_seed(0)
    sizes = {"vocab_size": 330, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.5}
    model = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, final_logit_softcapping=2.0)).eval()
    scores = score_ifd(model, tokenizer, EXAMPLES[:2], TEMPLATE, max_length=MAX_LENGTH)
    naive = [naive_corrected(model, tokenizer, row, MAX_LENGTH)[3] for row in EXAMPLES[:2]]
    np.testing.assert_allclose(scores["ifd"], naive, rtol=1e-4)


def test_a_model_with_an_adapter_is_scored_with_its_adapter(tokenizer):
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "down_proj", "lm_head"]
    lora = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(make_model(tie_word_embeddings=False), lora).eval()
    scores = score_ifd(model, tokenizer, EXAMPLES[:2], TEMPLATE, max_length=MAX_LENGTH)
    naive = [naive_corrected(model, tokenizer, row, MAX_LENGTH)[3] for row in EXAMPLES[:2]]
    np.testing.assert_allclose(scores["ifd"], naive, rtol=1e-4)


def test_a_model_in_four_bits_with_an_adapter_is_scored_as_its_own_logits_say(tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    make_model(hidden_size=64, intermediate_size=128, tie_word_embeddings=False).save_pretrained(tmp_path)
    model = load_base_model(tmp_path, tuning="qlora")
    scores = score_ifd(model, tokenizer, EXAMPLES[:2], TEMPLATE, max_length=MAX_LENGTH)
    naive = [naive_corrected(model, tokenizer, row, MAX_LENGTH)[3] for row in EXAMPLES[:2]]
    np.testing.assert_allclose(scores["ifd"], naive, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_another_build_is_scored_as_its_own_logits_say(tokenizer, tied):
    torch.manual_seed(0)
    sizes = {"vocab_size": 330, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
    model = GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=tied)).eval()
    scores = score_ifd(model, tokenizer, EXAMPLES[:3], TEMPLATE, max_length=MAX_LENGTH)
    naive = [naive_corrected(model, tokenizer, row, MAX_LENGTH)[3] for row in EXAMPLES[:3]]
    np.testing.assert_allclose(scores["ifd"], naive, rtol=1e-4)


def test_the_weight_of_an_adapter_is_part_of_what_a_sum_belongs_to(tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    for alpha in (4, 400):
        torch.manual_seed(0)
        lora = LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj"], init_lora_weights=False)
        model = get_peft_model(make_model(), lora).eval()
        fresh = score_ifd(model, tokenizer, EXAMPLES[:2], TEMPLATE, max_length=MAX_LENGTH)
        shared = score_ifd(model, tokenizer, EXAMPLES[:2], TEMPLATE, max_length=MAX_LENGTH, shard_dir=tmp_path)
        pd.testing.assert_frame_equal(shared, fresh)


def test_a_row_whose_scores_are_not_finite_gets_the_status_nan(tokenizer):
    model = make_model()
    letter = tokenizer.encode("ß", add_special_tokens=False)[0]
    with torch.no_grad():
        model.get_input_embeddings().weight[letter] = float("nan")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.nan_to_num())
    scores = score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, max_length=MAX_LENGTH).set_index("example_id")
    assert scores.loc["unicode", "status"] == "nan" and np.isnan(scores.loc["unicode", "ifd"])
    assert scores.loc["a", "status"] == "ok"
    authors = score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, max_length=MAX_LENGTH, preset="authors")
    assert authors.set_index("example_id").loc["unicode", "ifd"] == 0


SHORT_OF_MEMORY = """
import json, resource, sys
sys.path[:0] = sys.argv[1].split(":")
import psutil, test_score
from codeact_lib import ifd
from codeact_lib.ifd import nll
tried, forward = [], nll._forward_nll
def limited(core, batch, token_nll):  # the texts are tokens by now: it is the model that lacks memory
    if not tried:
        limit = psutil.Process().memory_info().vms + int(sys.argv[2]) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    tried.append(len(batch) * len(batch[0].ids))
    return forward(core, batch, token_nll)
model, tokenizer, rows = test_score.make_model(), test_score.make_tokenizer(), test_score.LONG_ROWS
options = {"max_length": 10**6, "tokens_per_batch": 10**6}
ifd.score_ifd(model, tokenizer, rows[-2:], test_score.TEMPLATE, **options)
nll._forward_nll = limited
scores = ifd.score_ifd(model, tokenizer, rows, test_score.TEMPLATE, **options)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps([tried, scores["status"].tolist(), scores["ifd"].tolist()]))
"""
LONG_ROWS = [
    {"example_id": i, "instruction": "Count.", "response": "x = 1\n" * n} for i, n in enumerate([50_000] + [100] * 90)
]


def test_where_memory_is_really_short_batches_shrink_and_only_a_hopeless_row_is_given_up(model, tokenizer):
    expected = score_ifd(model, tokenizer, LONG_ROWS[1:], TEMPLATE, max_length=10**6)
    command = [sys.executable, "-c", SHORT_OF_MEMORY, HERE_AND_SHARED, "32"]
    process = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    tried, status, scores = json.loads(process.stdout.splitlines()[-1])
    assert status == ["oom"] + ["ok"] * 90
    np.testing.assert_allclose(scores[1:], expected["ifd"], rtol=1e-4)
    assert len(tried) > 4 and max(tried[3:]) <= tried[0] // 4


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 500), st.integers(5, 400))
def test_a_size_that_did_not_fit_is_never_tried_again_except_for_a_single_row(lengths, budget, memory):
    sequences = [nll.Sequence(i, "direct", np.zeros(n, np.int32), 1) for i, n in enumerate(lengths)]
    tried, failed = [], []

    def score(batch):
        tried.append((len(batch), len(batch) * max(len(sequence.ids) for sequence in batch)))
        if tried[-1][1] > memory:
            failed.append(tried[-1])
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is.")
        return [float(len(sequence.ids)) for sequence in batch]

    results = {}
    for batch, values in score_batches(score, plan_batches(sequences, budget)):
        results.update(zip([sequence.row for sequence in batch], values, strict=True))
    assert results == {i: float(n) if n <= memory else None for i, n in enumerate(lengths)}
    several = [slots for rows, slots in failed if rows > 1]
    assert all(later <= earlier // 2 for earlier, later in itertools.pairwise(several))


def test_an_error_that_is_not_about_memory_is_not_swallowed(model, tokenizer, monkeypatch):
    def broken(model, batch, token_nll):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(nll, "_forward_nll", broken)
    with pytest.raises(RuntimeError, match="device-side"):
        score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, max_length=MAX_LENGTH)


def test_scoring_leaves_the_model_in_the_mode_it_came_in(tokenizer):
    model = make_model().train()
    score_ifd(model, tokenizer, EXAMPLES[:1], TEMPLATE, max_length=MAX_LENGTH)
    assert model.training


# ---- bad input


def test_unusable_input_says_what_is_wrong(model, tokenizer):
    with pytest.raises(DataError, match="Example 0 has no 'response'"):
        score_ifd(model, tokenizer, [{"example_id": "a", "instruction": "x"}], TEMPLATE, max_length=MAX_LENGTH)
    with pytest.raises(DataError, match="repeats the example_id 'a'"):
        score_ifd(model, tokenizer, EXAMPLES + EXAMPLES[:1], TEMPLATE, max_length=MAX_LENGTH)
    with pytest.raises(ModelError, match="neither a BOS nor an EOS"):
        score_ifd(model, make_tokenizer(bos=False, eos=False), EXAMPLES, TEMPLATE, max_length=MAX_LENGTH)
    with pytest.raises(ValueError, match="corrected, authors"):
        score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, max_length=MAX_LENGTH, preset="naive")


def test_rows_without_text_are_recorded_and_no_rows_give_an_empty_frame(model, tokenizer):
    row = {"example_id": 7, "instruction": None, "response": float("nan")}
    assert score_ifd(model, tokenizer, [row], TEMPLATE, max_length=MAX_LENGTH)["status"].tolist() == ["empty"]
    assert list(score_ifd(model, tokenizer, [], TEMPLATE, max_length=MAX_LENGTH).columns) == IFD_COLUMNS


# ---- shards


def forward_counter(monkeypatch):
    """List that receives (example, pass) positions of every sequence that reaches the model."""
    reached, forward = [], nll._forward_nll

    def counted(model, batch, token_nll):
        reached.extend((sequence.row, sequence.name) for sequence in batch)
        return forward(model, batch, token_nll)

    monkeypatch.setattr(nll, "_forward_nll", counted)
    return reached


def test_a_second_call_scores_nothing_and_gives_identical_numbers(model, tokenizer, tmp_path, monkeypatch):
    options = {"max_length": MAX_LENGTH, "shard_dir": tmp_path}
    first = score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, **options)
    reached = forward_counter(monkeypatch)
    pd.testing.assert_frame_equal(score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, **options), first)
    assert reached == []


def test_the_seconds_of_all_attempts_add_up(model, tokenizer, tmp_path):
    options = {"max_length": MAX_LENGTH, "shard_dir": tmp_path}
    score_ifd(model, tokenizer, EXAMPLES[:4], TEMPLATE, **options)
    first = scoring_seconds(tmp_path)
    [path] = tmp_path.glob("seconds-*.jsonl")
    with open(path, "a") as file:
        file.write('{"seconds": 100.0}\n{"seconds": 12.')  # another attempt, and a number that a kill cut short
    score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, **options)
    assert 0 < first < scoring_seconds(tmp_path) - 100 < 60
    assert scoring_seconds(tmp_path / "none") == 0


def test_only_the_missing_sums_are_scored_and_a_half_line_is_cut_off(model, tokenizer, tmp_path, monkeypatch, capsys):
    options = {"max_length": MAX_LENGTH, "shard_dir": tmp_path, "tokens_per_batch": 60}
    first = score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, **options)
    [path] = tmp_path.glob("scores-*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:11])
    reached = forward_counter(monkeypatch)
    again = score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, **options)
    np.testing.assert_allclose(again["ifd"], first["ifd"], rtol=1e-6)
    assert len(reached) == len(set(reached)) == len(lines) - 5
    assert "cut off 11 bytes" in capsys.readouterr().out
    whole, repaired = (
        [json.loads(line)["tokens"] for line in text] for text in (lines, path.read_bytes().splitlines())
    )
    assert sorted(whole) == sorted(repaired)


def test_a_damaged_line_in_the_middle_is_scored_again(model, tokenizer, tmp_path, monkeypatch):
    options = {"max_length": MAX_LENGTH, "shard_dir": tmp_path}
    first = score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, **options)
    [path] = tmp_path.glob("scores-*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0\0\xff{\n", b'{"nll": 3}\n', b"7\n", *lines[3:]]))
    reached = forward_counter(monkeypatch)
    again = score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, **options)
    assert len(reached) == 1
    np.testing.assert_allclose(again["ifd"], first["ifd"], rtol=1e-6)


def test_sums_of_another_model_or_of_changed_texts_are_never_reused(model, tokenizer, tmp_path):
    options = {"max_length": MAX_LENGTH, "shard_dir": tmp_path}
    score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, **options)
    changed = [{**row, "response": row["response"] + " # changed"} for row in EXAMPLES]
    for other, rows, template, max_length in [
        (make_model(seed=1), EXAMPLES, TEMPLATE, MAX_LENGTH),
        (make_model(rope_theta=500.0), EXAMPLES, TEMPLATE, MAX_LENGTH),
        (model, changed, TEMPLATE, MAX_LENGTH),
        (model, EXAMPLES, TEMPLATES["codellama"], MAX_LENGTH),
        (model, EXAMPLES, TEMPLATE, MAX_LENGTH - 9),
    ]:
        fresh = score_ifd(other, tokenizer, rows, template, max_length=max_length)
        shared = score_ifd(other, tokenizer, rows, template, max_length=max_length, shard_dir=tmp_path)
        pd.testing.assert_frame_equal(shared, fresh)


HERE_AND_SHARED = f"{REPO}/tests/ifd:{REPO}/tests"
KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[2].split(":")
import test_score
from codeact_lib import ifd
from codeact_lib.ifd import nll
forward, calls = nll._forward_nll, []
def deadly(model, batch, token_nll):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(model, batch, token_nll)
nll._forward_nll = deadly
options = {"max_length": test_score.MAX_LENGTH, "tokens_per_batch": 60, "shard_dir": sys.argv[1]}
ifd.score_ifd(test_score.make_model(), test_score.make_tokenizer(), test_score.EXAMPLES, test_score.TEMPLATE, **options)
"""


def test_a_process_killed_in_a_batch_loses_that_batch_only(model, tokenizer, tmp_path, monkeypatch):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), HERE_AND_SHARED]
    process = subprocess.run(command, cwd=REPO, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    options = {"max_length": MAX_LENGTH, "tokens_per_batch": 60}
    undisturbed = score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, shard_dir=tmp_path / "whole", **options)
    [killed], [whole] = ([*(tmp_path / name).glob("scores-*.jsonl")] for name in ("killed", "whole"))
    done = killed.read_text().splitlines()
    assert done and done == whole.read_text().splitlines()[: len(done)]
    reached = forward_counter(monkeypatch)
    resumed = score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, shard_dir=tmp_path / "killed", **options)
    assert len(reached) == len(whole.read_text().splitlines()) - len(done)
    pd.testing.assert_frame_equal(resumed, undisturbed)
    assert all(json.loads(line)["nll"] > 0 for line in done)


# ---- one model for another


def frame_of(ifd, status="ok"):
    n = len(ifd)
    return pd.DataFrame({"example_id": range(n), "ifd": ifd, "status": status})


def hardest_half(scores):
    return np.argsort(-scores["ifd"].to_numpy(), kind="stable")[: len(scores) // 2]


def test_agreement_is_the_rank_correlation_and_the_shared_part_of_the_choice():
    small, large = frame_of([0.1, 0.2, 0.3, 0.4]), frame_of([0.1, 0.9, 0.5, 0.95])
    report = scorer_agreement(small, large, hardest_half)
    d = np.array([0, 1, 1, 0])  # differences of the ranks 1 2 3 4 and 1 3 2 4
    assert report["spearman"] == pytest.approx(1 - 6 * (d**2).sum() / (4 * 15))
    assert report["overlap"] == 0.5  # rows 3, 2 against 3, 1
    assert report["overlap_by_chance"] == 0.5
    assert report["n_rows"] == report["n_scored_by_both"] == 4
    same = scorer_agreement(large, large, hardest_half)
    assert same["spearman"] == pytest.approx(1) and same["overlap"] == 1


def test_agreement_leaves_out_rows_that_either_model_could_not_score():
    small = frame_of([0.1, np.nan, 0.3, 0.4, 0.5], ["ok", "oom", "ok", "truncated", "ok"])
    large = frame_of([0.2, 0.3, 0.4, 0.5, 0.0], ["ok", "ok", "ok", "ok", "nan"])
    report = scorer_agreement(small, large, hardest_half)
    assert report["n_rows"] == 5 and report["n_scored_by_both"] == 3
    assert report["spearman"] == pytest.approx(1)
    with pytest.raises(DataError, match="the same examples in the same order"):
        scorer_agreement(small, large[::-1].reset_index(drop=True), hardest_half)


def test_a_smaller_model_agrees_with_a_larger_one_as_far_as_a_naive_count_says(model, tokenizer):
    rows = [
        {**row, "example_id": f"{row['example_id']}-{n}", "response": row["response"] * n}
        for row in EXAMPLES
        for n in (1, 2, 3)
    ]
    small, large = (
        score_ifd(each, tokenizer, rows, TEMPLATE, max_length=MAX_LENGTH)
        for each in (make_model(seed=5, num_hidden_layers=1), model)
    )
    report = scorer_agreement(small, large, hardest_half)
    both = [i for i in range(len(rows)) if {small["status"][i], large["status"][i]} <= {"ok", "truncated"}]
    chosen = [set(sorted(both, key=lambda i: -scores["ifd"][i])[: len(both) // 2]) for scores in (small, large)]
    assert report["overlap"] == len(chosen[0] & chosen[1]) / len(chosen[1])
    ranks = [scores["ifd"][both].rank() for scores in (small, large)]
    assert report["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


# ---- several processes


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """A model folder and an instruction file, as `codeact_lib.ifd` takes them."""
    folder = tmp_path_factory.mktemp("scoring")
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    rows = [row for row in EXAMPLES if row["instruction"].strip() and row["response"].strip()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"data": folder / "rows.jsonl", "model": folder / "model", "max_length": MAX_LENGTH, "tokens_per_batch": 60}


def test_two_processes_score_as_one_does_and_share_the_work(on_disk, tmp_path, model, tokenizer, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    rows = [json.loads(line) for line in on_disk["data"].read_text("utf-8").splitlines()]
    options = {"max_length": MAX_LENGTH, "tokens_per_batch": 60, "shard_dir": tmp_path / "one"}
    one, said = score_ifd(model, tokenizer, rows, TEMPLATE, **options), []
    arguments = {**on_disk, "shards": tmp_path / "two", "out": tmp_path / "two.parquet"}
    score_in_processes(arguments, 2, said.append)
    assert "2 processes" in said[0] and "saved" in said[-1]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "two.parquet"), one, rtol=1e-6)
    shares = [len(path.read_text().splitlines()) for path in sorted((tmp_path / "two").glob("scores-*.jsonl"))]
    assert len(shares) == 2 and min(shares) > 3 and sum(shares) == 12  # six rows, two passes, none twice
    assert scoring_seconds(tmp_path / "two") > 0


def test_what_several_processes_left_half_done_one_goes_on_with(on_disk, tmp_path, model, tokenizer, monkeypatch):
    rows = [json.loads(line) for line in on_disk["data"].read_text("utf-8").splitlines()]
    options = {"max_length": MAX_LENGTH, "tokens_per_batch": 60, "shard_dir": tmp_path}
    whole = score_ifd(model, tokenizer, rows, TEMPLATE, **options)
    [path] = tmp_path.glob("scores-*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    path.with_name(path.name.replace("-0.jsonl", "-1.jsonl")).write_bytes(b"".join(lines[5:8]) + lines[9][:20])
    reached = forward_counter(monkeypatch)
    again = score_ifd(model, tokenizer, rows, TEMPLATE, **options)
    assert len(reached) == len(lines) - 6
    np.testing.assert_allclose(again["ifd"], whole["ifd"], rtol=1e-6)


def test_a_second_job_does_not_score_into_the_same_folder(on_disk, tmp_path, monkeypatch):
    monkeypatch.setattr("codeact_lib.artifacts.PATIENCE_SECONDS", 0.1)
    with held_elsewhere(tmp_path / ".lock"), pytest.raises(ArtifactError, match="Another process is scoring into"):
        score_file(str(on_disk["data"]), str(on_disk["model"]), tmp_path)


def test_a_model_that_cannot_be_loaded_is_one_clear_error(on_disk, tmp_path):
    arguments = {**on_disk, "model": tmp_path / "none", "shards": tmp_path / "shards"}
    with pytest.raises(ModelError, match="exit code 1: .*cannot load a model from"):
        score_in_processes(arguments, 1, print)


# ---- the bench


def test_the_bench_compares_two_ways_to_the_same_scores(tmp_path, monkeypatch):
    monkeypatch.setitem(bench.SHAPES, "small", {**bench.SHAPES["small"], "hidden_size": 32, "num_hidden_layers": 1})
    monkeypatch.setattr(bench, "VOCABULARY", 400)
    rows = [{"instruction": f"{row['instruction']} {n}", "output": row["response"]} for row in EXAMPLES for n in (1, 2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert bench._prepare(tmp_path / "rows.jsonl", "output", 9, tmp_path) == 9
    arguments = {"work": str(tmp_path), "size": "small", "dtype": "float32", "max_length": 64}
    for contender in (bench.naive, bench.ours):
        facts = contender(**arguments)()
        assert facts["rows_per_second"] > 0 and facts["cpu_seconds"] > 0
    assert bench._difference(tmp_path, 64, tolerance=1e-4) < 1e-4
    scores = np.load(tmp_path / "ours-64.npy")
    assert (scores > 0).sum() > 6
    np.save(tmp_path / "ours-64.npy", scores * 1.001)
    with pytest.raises(CodeActError, match="differs from the naive loop by 0.001"):
        bench._difference(tmp_path, 64, tolerance=1e-4)


# ---- small parts


@given(st.lists(st.integers(1, 50)), st.integers(1, 200))
def test_batches_hold_every_sequence_once_and_stay_in_the_budget(lengths, budget):
    batches = plan_batches([nll.Sequence(i, "direct", np.zeros(n, np.int32), 1) for i, n in enumerate(lengths)], budget)
    assert sorted(sequence.row for batch in batches for sequence in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[sequence.row] for sequence in batch) <= budget


def test_score_from_nll_gives_both_ratios_and_nan_without_tokens():
    conditioned, direct, n = (
        np.array([10.0, 30.0, 0.0, np.nan]),
        np.array([20.0, 20.0, 0.0, 5.0]),
        np.array([10, 10, 0, 2]),
    )
    expected = np.array([np.exp(1.0) / np.exp(2.0), np.exp(3.0) / np.exp(2.0), np.nan, np.nan])
    np.testing.assert_allclose(ifd_from_nll(conditioned, direct, n), expected)
    np.testing.assert_allclose(ifd_from_nll(conditioned, direct, n, kind="loss_ratio"), [0.5, 1.5, np.nan, np.nan])
    assert ifd_from_nll(10.0, 20.0, 10) == pytest.approx(np.exp(-1.0))
    with pytest.raises(ValueError, match="ppl_ratio or loss_ratio"):
        ifd_from_nll(1.0, 1.0, 1, kind="ratio")


def test_progress_says_how_far_it_is(model, tokenizer, capsys):
    score_ifd(model, tokenizer, EXAMPLES, TEMPLATE, max_length=MAX_LENGTH, progress=True)
    line = capsys.readouterr().out.splitlines()[-1]
    assert "6/6 rows" in line and "rows/s" in line and "0 s left" in line


REAL_DATA = os.environ.get("CODEACT_REAL_DATA")


@pytest.mark.skipif(not REAL_DATA, reason="CODEACT_REAL_DATA names no folder with real instruction rows")
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("preset", ["corrected", "authors"])
def test_real_rows_score_as_the_naive_loops_do(model, preset, bos):
    with open(os.path.join(REAL_DATA, "evol_instruct.jsonl"), encoding="utf-8") as file:
        records = [json.loads(line) for line in file][::4]  # 996 rows in six seconds; all 3983 agree as well
    rows = [{"example_id": i, "instruction": r["instruction"], "response": r["output"]} for i, r in enumerate(records)]
    tokenizer = make_tokenizer(bos=bos)
    scores = score_ifd(model, tokenizer, rows, TEMPLATE, max_length=120, preset=preset)
    if preset == "corrected":
        naive = [naive_corrected(model, tokenizer, row, 120)[3] for row in rows]
    else:
        naive = [naive_authors(model, tokenizer, row, 120) for row in rows]
    np.testing.assert_allclose(scores["ifd"], naive, rtol=1e-4)
    assert {"ok", "truncated", "prompt_too_long"} <= set(scores["status"])
    options = {"max_length": 120, "preset": preset, "tokens_per_batch": 1}
    alone = score_ifd(model, tokenizer, rows[::-1], TEMPLATE, **options)[::-1]
    np.testing.assert_allclose(alone["ifd"], scores["ifd"], rtol=1e-4)
