"""What cannot work is said before it costs anything: memory, disk, and packed samples that would see each other."""

import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_models import save_tiny_base, tiny_model
from transformers import AutoModelForCausalLM as Auto
from transformers import LlamaConfig, MistralConfig

from codeact_lib.errors import ArtifactError, ModelError
from codeact_lib.modeling import attention
from codeact_lib.modeling.attention import FLASH, SEGMENTS, flash_attention_runs_here
from codeact_lib.modeling.load import load_base_model
from codeact_lib.modeling.loss import use_supervised_loss
from codeact_lib.packing.collate import DynamicPackCollator
from codeact_lib.packing.plan import PaddingStrategy
from codeact_lib.training import memory, run
from codeact_lib.training.memory import check_disk, check_memory, memory_by_slots, without_weights
from codeact_lib.training.trainer import check_isolation, isolation_error


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_base(tmp_path_factory.mktemp("base"))


def make_samples(lengths=(6, 9, 5, 12)):
    ids = iter(range(3, 64))
    rows = [[next(ids) for _ in range(n)] for n in lengths]
    return [{"input_ids": row, "labels": [-100, *row[1:]]} for row in rows]


# ---- memory and disk -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["full", "lora", "qlora"])
def test_weights_gradients_and_optimizer_are_estimated_as_they_turn_out(base, tuning):
    targets = ("q_proj", "up_proj")
    estimate = memory_by_slots(without_weights(base), tuning=tuning, targets=targets, lora_r=8)(64)
    model = load_base_model(base, tuning=tuning, lora_target_modules=targets).train()
    ids = torch.randint(3, 64, (1, 16))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    optimizer.step()
    states = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    assert estimate["gradients"] == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert estimate["optimizer"] == sum(t.nbytes for t in states)
    if tuning != "qlora":  # the embeddings, which stay in floating point, are most of a model this small
        assert estimate["weights"] == sum(p.nbytes for p in model.parameters())


def test_a_7b_model_wants_the_published_sixteen_bytes_a_weight_and_shards_divide_it(tmp_path):
    LlamaConfig(vocab_size=32_000).save_pretrained(tmp_path)
    model = without_weights(tmp_path)
    whole = memory_by_slots(model, gradient_checkpointing=True)(4096)
    state = whole["weights"] + whole["gradients"] + whole["optimizer"]
    assert state == pytest.approx(16 * 6.738e9, rel=0.001)
    eighth = memory_by_slots(model, gradient_checkpointing=True, ranks=8)(4096)
    assert eighth["optimizer"] == whole["optimizer"] / 8 and eighth["activations"] == whole["activations"]
    assert memory_by_slots(model)(4096)["activations"] > 5 * whole["activations"]


def test_a_training_is_started_without_torch():
    code = "import sys, codeact_lib.training.launch; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_what_cannot_fit_is_refused_with_the_sum_and_what_may_be_tight_is_said():
    estimate = {"weights": 4e9, "gradients": 4e9, "optimizer": 8e9, "activations": 3e9}
    with pytest.raises(ModelError, match="19 GB .*optimizer 8.* of 15 GB on T4: it does not fit.*qlora"):
        check_memory(estimate, 15e9, "T4")
    assert "tight" in check_memory(estimate, 17e9, "T4") and "tight" not in check_memory(estimate, 20e9, "T4")


def test_a_disk_that_cannot_hold_the_checkpoints_is_refused_before_training(tmp_path, monkeypatch):
    estimate = {"weights": 4e9, "gradients": 4e9, "optimizer": 8e9, "activations": 0}
    need = 3 * 12e9 + 4e9  # two checkpoints, one being written, the model
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda path: SimpleNamespace(free=need - 1e6))
    with pytest.raises(ArtifactError, match="need 40.0 GB.*save_total_limit"):
        check_disk(tmp_path, estimate, keep=2)
    check_disk(tmp_path, estimate, keep=1)
    (tmp_path / "earlier checkpoint").write_bytes(bytes(1_000_000))
    check_disk(tmp_path, estimate, keep=2)


def test_the_free_space_is_that_of_the_folder(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(ArtifactError, match=f"{tmp_path} has"):
        check_disk(tmp_path, {"weights": 0, "gradients": free, "optimizer": free}, keep=1)


# ---- packed against unpacked ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", [SEGMENTS, "sdpa", "eager"])
def test_isolated_layouts_pass_the_start_up_test(kind, attention):
    model = use_supervised_loss(tiny_model(kind, attention))
    for strategy in PaddingStrategy:
        assert check_isolation(model, DynamicPackCollator(0, 32, strategy), make_samples()) < 1e-5
    assert model.training and all(module.training for module in model.modules())


class LeakyCollator(DynamicPackCollator):
    """Passes an attention mask of ones, which makes transformers forget that a row holds several samples."""

    def lay_out(self, features, rows):
        batch = super().lay_out(features, rows)
        return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


def test_a_leak_is_measured_and_refused():
    model = use_supervised_loss(tiny_model("llama", "sdpa"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # a model that minds its neighbours, as a trained one does
    assert isolation_error(model, LeakyCollator(0, 32), make_samples()) > 0.01
    with pytest.raises(ModelError, match="do not train as unpacked.*'sdpa'.*isolate: false"):
        check_isolation(model, LeakyCollator(0, 32), make_samples())


def test_samples_that_may_see_each_other_are_not_tested():
    model = use_supervised_loss(tiny_model())
    assert check_isolation(model, DynamicPackCollator(0, 32, isolate=False), make_samples()) is None


def test_the_start_up_test_leaves_the_four_bit_weights_as_they_were(base):
    """On a CPU the 4-bit layers repack their weights when run in evaluation mode, and training fails afterwards."""
    model = use_supervised_loss(load_base_model(base, tuning="qlora", attn_implementation=SEGMENTS).train())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert check_isolation(model, DynamicPackCollator(0, 32), make_samples()) < 1e-5
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(module.training for module in model.modules())


# ---- which attention -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "isolate", "flash", "window", "chosen"),
    [
        ("flat", True, False, None, SEGMENTS),
        ("flat", True, True, None, FLASH),
        ("flat", True, False, 8, "sdpa"),  # transformers' masks by position, which know of windows
        ("dynamic_pack", False, True, None, "sdpa"),  # the paper's form asks for plain causal attention
        ("dynamic", True, True, None, "sdpa"),  # one sample a row: its fast causal kernel needs no mask
    ],
)
def test_the_fastest_attention_that_keeps_samples_apart_is_chosen(
    monkeypatch, strategy, isolate, flash, window, chosen
):
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    model = Auto.from_config(
        MistralConfig(sliding_window=window, num_attention_heads=4, **config), attn_implementation="sdpa"
    )
    asked = ["sdpa"]
    monkeypatch.setattr(model, "set_attn_implementation", asked.append)  # the package is asked for there, and a GPU
    monkeypatch.setattr(run, "flash_attention_runs_here", lambda half_precision: flash and half_precision)
    run.choose_attention(model, PaddingStrategy(strategy), isolate, SimpleNamespace(bf16=True, fp16=False))
    assert asked[-1] == chosen


def test_flash_attention_is_not_taken_on_a_cpu_nor_in_single_precision(monkeypatch):
    assert not flash_attention_runs_here(half_precision=True) or torch.cuda.is_available()
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert flash_attention_runs_here(half_precision=True) and not flash_attention_runs_here(half_precision=False)
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: False)
    assert not flash_attention_runs_here(half_precision=True)
