"""Packed samples train exactly as unpacked ones, and whatever would break that silently is refused aloud."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from tiny_models import save_deepseek_tokenizer, save_tiny_base, tiny_config, tiny_model
from transformers import AutoModelForCausalLM as Auto
from transformers import GemmaConfig, MistralConfig, Qwen2Config

from codeact_lib.errors import ModelError
from codeact_lib.modeling import loss as loss_module
from codeact_lib.modeling.attention import (
    FLASH,
    SEGMENTS,
    check_segment_support,
    flash_varlen_arguments,
    segment_bounds,
)
from codeact_lib.modeling.load import compute_device, load_base_model, load_tokenizer
from codeact_lib.modeling.loss import head_loss, supervised_loss, use_supervised_loss
from codeact_lib.packing.collate import DynamicPackCollator
from codeact_lib.packing.plan import PaddingStrategy

LENGTHS = [4, 3, 5, 11, 7, 6]


def make_features(lengths=LENGTHS, n_prompt=2, seed=0):
    rng = np.random.default_rng(seed)
    samples = [rng.integers(3, 64, n).tolist() for n in lengths]
    return [{"input_ids": ids, "labels": [-100] * n_prompt + ids[n_prompt:]} for ids in samples]


def n_supervised(features):
    return sum(label != -100 for feature in features for label in feature["labels"])


def gradient(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def unpacked(kind, features):
    """The naive way: each sample alone, full logits, transformers' slowest attention."""
    model, total = tiny_model(kind, "eager"), 0.0
    for feature in features:
        ids, labels = torch.tensor([feature["input_ids"]]), torch.tensor(feature["labels"])
        logits = model(ids, use_cache=False).logits[0, :-1]
        total = total + F.cross_entropy(logits, labels[1:], reduction="sum") / n_supervised(features)
    total.backward()
    return total.item(), gradient(model)


def packed(kind, attention, features, collator, checkpointing=False):
    model = tiny_model(kind, attention)
    if checkpointing:
        model.gradient_checkpointing_enable()
    loss = supervised_loss(model, collator(features), n_supervised(features))
    loss.backward()
    return loss.item(), gradient(model)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", [SEGMENTS, "sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_every_isolated_layout_has_the_loss_and_the_gradient_of_unpacked_samples(kind, attention, checkpointing):
    features = make_features()
    loss, grad = unpacked(kind, features)
    for strategy in PaddingStrategy:
        got, got_grad = packed(kind, attention, features, DynamicPackCollator(0, 16, strategy), checkpointing)
        assert got == pytest.approx(loss, abs=1e-5), strategy
        assert (got_grad - grad).norm() < 1e-5 * grad.norm(), strategy


def flash_by_definition(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, **options):
    """What FlashAttention's variable-length kernel computes, (tokens, heads, head_dim); the kernel needs a GPU."""
    assert cu_seqlens_q.dtype == torch.int32 and torch.equal(cu_seqlens_q, cu_seqlens_k) and options["causal"]
    sizes = cu_seqlens_q.diff().tolist()
    assert cu_seqlens_q[0] == 0 and sum(sizes) == len(q) and max(sizes) == max_seqlen_q == max_seqlen_k
    samples = zip(*(x.transpose(0, 1).split(sizes, dim=1) for x in (q, k, v)), strict=True)
    scale = options["softmax_scale"]
    attended = [F.scaled_dot_product_attention(*s, is_causal=True, scale=scale, enable_gqa=True) for s in samples]
    return torch.cat(attended, dim=1).transpose(0, 1)


def no_plain_kernel(*args, **kwargs):
    raise AssertionError("the kernel that knows of no samples was called")


def test_flash_attention_is_told_where_every_sample_of_every_row_begins(monkeypatch):
    """All of transformers' path to the kernel is real; only the kernel itself is stood in for."""
    from transformers import modeling_flash_attention_utils as flash

    kernels = no_plain_kernel, flash_by_definition, None, None, None
    monkeypatch.setattr(flash, "_lazy_imports", lambda *args, **kwargs: kernels)
    monkeypatch.setattr(flash, "_loaded_implementation", None)
    features = make_features()
    loss, grad = unpacked("llama", features)
    for strategy in PaddingStrategy:
        model = tiny_model("llama", "sdpa")
        model.config._attn_implementation = FLASH  # set_attn_implementation would ask for the package
        got = supervised_loss(model, DynamicPackCollator(0, 16, strategy)(features), n_supervised(features))
        got.backward()
        assert got.item() == pytest.approx(loss, abs=1e-5), strategy
        assert (gradient(model) - grad).norm() < 1e-5 * grad.norm(), strategy


def test_the_arguments_of_flash_attention_count_all_rows_as_one():
    told = flash_varlen_arguments(torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]))
    assert told["cu_seq_lens_q"].tolist() == told["cu_seq_lens_k"].tolist() == [0, 3, 5, 9, 10]
    assert told["max_length_q"] == told["max_length_k"] == 4


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_papers_pack_lets_samples_see_each_other(kind):
    features = make_features()
    loss, grad = unpacked(kind, features)
    got, got_grad = packed(kind, "sdpa", features, DynamicPackCollator(0, 16, "dynamic_pack", isolate=False))
    assert abs(got - loss) > 1e-4
    assert (got_grad - grad).norm() > 0.1 * grad.norm()


@pytest.mark.parametrize("strategy", ["traditional", "dynamic"])
def test_padding_changes_nothing_with_or_without_isolation(strategy):
    features = make_features()
    loss, _ = unpacked("llama", features)
    for isolate in (True, False):
        got, _ = packed("llama", "sdpa", features, DynamicPackCollator(0, 16, strategy, isolate))
        assert got == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("leak", [{"attention_mask": True}, {"use_cache": True}])
def test_an_attention_mask_or_a_cache_would_undo_isolation_in_transformers(leak):
    """Why the collator emits no mask and the loss forces use_cache off: both leaks are real in this version."""
    model = tiny_model("llama", "sdpa").eval()
    batch = DynamicPackCollator(0, 16, "flat")(make_features())
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    extra = {"attention_mask": torch.ones_like(batch["input_ids"])} if "attention_mask" in leak else leak
    isolated = model(**inputs, use_cache=False).logits
    leaking = model(**inputs, **{"use_cache": False, **extra}).logits
    assert (isolated - leaking).abs().max() > 1e-3


def test_samples_are_found_where_positions_stop_counting_up():
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
    assert segment_bounds(positions) == [[(0, 3), (3, 5), (5, 6)], [(0, 6)]]
    assert segment_bounds(torch.zeros(1, 3, dtype=torch.long)) == [[(0, 1), (1, 2), (2, 3)]]


def test_the_attention_finds_the_samples_by_itself_in_a_plain_forward_pass():
    batch = DynamicPackCollator(0, 16, "flat")(make_features())
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    logits = [
        tiny_model("llama", attention).eval()(**inputs, use_cache=False).logits for attention in (SEGMENTS, "sdpa")
    ]
    assert torch.allclose(*logits, atol=1e-5)


def test_a_cache_and_a_hiding_mask_are_refused_by_the_segment_attention():
    model = tiny_model("llama", SEGMENTS).eval()
    ids = torch.randint(3, 64, (2, 6))
    with pytest.raises(ModelError, match="set_attn_implementation"):
        model.generate(ids, max_new_tokens=3, do_sample=False)
    with pytest.raises(ModelError, match="hide padding"):
        model(ids, attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1]] * 2), use_cache=False)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (MistralConfig(sliding_window=8), "attention window"),
        (Qwen2Config(use_sliding_window=True, sliding_window=8, max_window_layers=1), "sliding_attention"),
    ],
)
def test_models_with_a_sliding_window_are_refused(config, problem):
    with pytest.raises(ModelError, match=problem):
        check_segment_support(config)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_with_transformers_own_masks_a_sliding_window_stays_inside_its_sample(attention):
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    config = MistralConfig(sliding_window=3, num_attention_heads=4, num_key_value_heads=2, **small)
    model, features = Auto.from_config(config, attn_implementation=attention), make_features()
    alone = sum(
        supervised_loss(model, DynamicPackCollator(0, 16, "dynamic")([feature]), n_supervised(features))
        for feature in features
    )
    for strategy in PaddingStrategy:
        packed = supervised_loss(model, DynamicPackCollator(0, 16, strategy)(features), n_supervised(features))
        assert packed.item() == pytest.approx(alone.item(), abs=1e-5), strategy


def test_models_without_a_window_in_use_are_accepted():
    for config in (tiny_config(), tiny_config("gpt2"), MistralConfig(sliding_window=None), Qwen2Config()):
        check_segment_support(config)


def test_a_window_that_reaches_the_attention_anyway_is_refused_there():
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    config = MistralConfig(sliding_window=4, num_attention_heads=4, num_key_value_heads=2, **small)
    model = Auto.from_config(config, attn_implementation=SEGMENTS)
    with pytest.raises(ModelError, match="sliding window"):
        model(torch.randint(3, 64, (1, 6)), use_cache=False)


# ---- loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_chunked_loss_is_the_loss_of_the_full_logits(monkeypatch, fused, with_bias):
    monkeypatch.setattr(loss_module, "SMALL", 0)
    monkeypatch.setattr(loss_module, "CHUNK", 16)
    if not fused:
        monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    torch.manual_seed(0)
    head, hidden, target = torch.nn.Linear(32, 64, bias=with_bias), torch.randn(50, 32), torch.randint(64, (50,))
    results = []
    for loss in (head_loss, lambda h, head, t: F.cross_entropy(head(h), t, reduction="sum")):
        head.zero_grad()
        x = hidden.clone().requires_grad_()
        value = loss(x, head, target)
        (value / 50).backward()
        results.append([value.detach(), x.grad, *(p.grad.clone() for p in head.parameters())])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*results, strict=True))


def test_in_half_precision_the_sum_is_kept_in_single_precision(monkeypatch):
    monkeypatch.setattr(loss_module, "SMALL", 0)
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(32, 64, bias=False).bfloat16(), torch.randn(2000, 32).bfloat16()
    target = torch.randint(64, (2000,))
    loss = head_loss(hidden, head, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(F.cross_entropy(head(hidden).float(), target, reduction="sum").item(), rel=1e-5)


def test_micro_batches_divided_by_the_tokens_of_the_step_equal_one_large_batch():
    features, collator = make_features(), DynamicPackCollator(0, 16, "flat")
    n = n_supervised(features)
    model = tiny_model("llama", SEGMENTS)
    parts = [features[:1], features[1:4], features[4:]]
    losses = [supervised_loss(model, collator(part), n) for part in parts]
    sum(losses).backward()
    loss, grad = unpacked("llama", features)
    assert sum(losses).item() == pytest.approx(loss, abs=1e-5)
    assert (gradient(model) - grad).norm() < 1e-5 * grad.norm()
    means = sum(supervised_loss(model, collator(part)) for part in parts) / 3
    assert abs(means.item() - loss) > 1e-4, "the mean of means weighs tokens of small micro-batches more"


@pytest.mark.parametrize("small", [0, 2**24])
def test_a_batch_with_nothing_supervised_costs_nothing_and_is_no_nan(monkeypatch, small):
    monkeypatch.setattr(loss_module, "SMALL", small)
    model = tiny_model("llama", SEGMENTS)
    batch = DynamicPackCollator(0, 16)([{"input_ids": [4, 5, 6], "labels": [-100] * 3}])
    loss = supervised_loss(model, batch)
    loss.backward()
    assert loss.item() == 0 and not gradient(model).any()


def test_logits_that_are_transformed_after_the_head_are_refused():
    head = torch.nn.Linear(4, 8)
    config = GemmaConfig(final_logit_softcapping=30.0)
    with pytest.raises(ModelError, match="final_logit_softcapping"):
        head_loss(torch.randn(2, 4), head, torch.tensor([1, 2]), config)


def test_a_model_told_to_use_it_returns_the_supervised_loss_and_is_otherwise_the_same():
    features = make_features()
    batch = DynamicPackCollator(0, 16)(features)
    model = tiny_model("llama", SEGMENTS)
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    logits = model(**inputs, use_cache=False).logits
    expected = supervised_loss(model, batch, 7)
    use_supervised_loss(model)
    assert torch.equal(model(**batch, num_items_in_batch=7).loss, expected)
    assert torch.equal(model(**inputs, use_cache=False).logits, logits)


# ---- loading -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_base(tmp_path_factory.mktemp("base"))


def test_a_full_model_trains_every_weight_in_single_precision(base):
    model = load_base_model(base)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert not model.training and model.config.use_cache is False
    assert load_base_model(base, dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("tuning", ["lora", "qlora"])
def test_adapters_train_and_the_base_stands_still(base, tuning):
    model = load_base_model(base, tuning=tuning, attn_implementation=SEGMENTS, lora_dropout=0.0).train()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    features = make_features()
    supervised_loss(model, DynamicPackCollator(0, 16)(features), n_supervised(features)).backward()
    grads = [p.grad for name, p in model.named_parameters() if "lora_B" in name]
    assert grads and all(grad is not None and grad.any() for grad in grads)


def test_qlora_holds_the_base_in_four_bits_with_double_quantisation(base):
    config = load_base_model(base, tuning="qlora").config.quantization_config
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant


def test_a_saved_adapter_loads_with_its_base_from_its_own_folder(base, tmp_path):
    model = load_base_model(base, tuning="lora")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path)
    ids = torch.randint(3, 64, (1, 9))
    again = load_base_model(tmp_path)
    assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-6)
    assert torch.allclose(load_base_model(base, adapter=tmp_path)(ids).logits, model(ids).logits, atol=1e-6)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)


def test_a_tokenizer_without_a_padding_token_pads_with_its_end_token(base, tmp_path):
    tokenizer = load_tokenizer(base)
    assert tokenizer.pad_token_id == 2
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token_id == tokenizer.eos_token_id


def test_a_tokenizer_of_the_deepseek_kind_keeps_blanks_tabs_and_line_breaks(tmp_path):
    """transformers 5.15.0, 5.20.2 and 5.21.1 lose them with these very files; 5.22.0 and 5.23.0 do not."""
    tokenizer = load_tokenizer(save_deepseek_tokenizer(tmp_path))
    text = "### Instruction:\nSort  a\tlist.\n\n    return x\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_tokenizer_whose_configuration_asks_for_bos_puts_it_in_front(tmp_path):
    """transformers 5.23 drops `add_bos_token` of these files; `encode` of the library stays without special tokens."""
    tokenizer = load_tokenizer(save_deepseek_tokenizer(tmp_path))
    plain = tokenizer("def add", add_special_tokens=False)["input_ids"]
    assert tokenizer("def add")["input_ids"] == [tokenizer.bos_token_id, *plain]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": False}))
    assert load_tokenizer(tmp_path)("def add")["input_ids"] == plain


def test_a_tokenizer_that_loses_blanks_is_refused_with_the_versions_at_fault(tmp_path):
    save_deepseek_tokenizer(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    saved["pre_tokenizer"] = {"type": "WhitespaceSplit"}  # what those versions made of the file
    saved["decoder"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    message = rf"lose its blanks.*transformers {transformers.__version__}.*pip install -U 'transformers>=5\.22'"
    with pytest.raises(ModelError, match=message):
        load_tokenizer(tmp_path)


def test_one_function_chooses_cuda_then_mps_then_cpu(monkeypatch):
    assert compute_device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert compute_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert compute_device() == torch.device("cuda", 3)


@pytest.mark.parametrize("load", [load_base_model, load_tokenizer])
def test_a_model_that_is_not_there_is_named(load, tmp_path):
    with pytest.raises(ModelError, match="no-such-folder"):
        load(tmp_path / "no-such-folder")


def test_wrong_wishes_are_answered_with_what_is_possible(base):
    with pytest.raises(ModelError, match="choose full, lora or qlora"):
        load_base_model(base, tuning="prefix")
    with pytest.raises(ModelError, match="lora_target_modules"):
        load_base_model(base, tuning="lora", lora_target_modules=["no_such_layer"])
