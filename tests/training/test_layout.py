"""A training is fitted to the memory there is before it starts: the batch goes down, the samples of a step stay."""

import pytest
import torch
from tiny_models import make_rows, save_tiny_base, write_rows
from transformers import AutoModelForCausalLM, LlamaConfig

from codeact_lib.config import load_profile
from codeact_lib.errors import ModelError
from codeact_lib.modeling.load import load_base_model
from codeact_lib.pipeline.estimates import Costs, Machine, model_shape
from codeact_lib.training import fine_tune
from codeact_lib.training.memory import (
    SHORTEST,
    BatchLayout,
    fit_layout,
    memory_by_slots,
    plan_line,
    smaller_layouts,
    without_weights,
)

T4 = 15.6e9


def fitted(model, memory, **changes):
    """The plan for a model of the colab-qlora profile, every micro-batch full."""
    profile = load_profile("colab-qlora", {"models": [model], **changes})
    shapes = {spec.name: model_shape(spec) for spec in profile.models}
    costs = Costs(profile, None, Machine("T4", 1, "given"), shapes)
    steps = profile.per_device_train_batch_size, profile.gradient_accumulation_steps

    def needs(layout):
        return costs.memory_by_slots(model)(layout.per_device_train_batch_size * layout.max_length)

    return fit_layout(BatchLayout(*steps, profile.max_length), needs, memory, "T4")


def test_smaller_layouts_keep_the_samples_of_a_step_and_shorten_them_last():
    layouts = list(smaller_layouts(BatchLayout(6, 4, 1024)))
    assert [x.per_device_train_batch_size for x in layouts if x.max_length == 1024] == [6, 4, 3, 2, 1]
    assert {x.per_device_train_batch_size * x.gradient_accumulation_steps for x in layouts} == {24}
    shorter = [x.max_length for x in layouts if x.per_device_train_batch_size == 1][1:]
    assert shorter == sorted(shorter, reverse=True) and shorter[0] == 896 and shorter[-1] == SHORTEST
    assert {x.per_device_train_batch_size for x in smaller_layouts(BatchLayout(6, 4, 1024), batches=False)} == {6}


@pytest.mark.parametrize("model", ["deepseek-coder-1.3b", "deepseek-coder-6.7b"])
def test_both_models_of_the_colab_profile_fit_a_t4_as_they_are(model):
    layout, plan = fitted(model, T4)
    assert layout == BatchLayout(8, 8, 1024) and plan["lowered"] == ""
    assert plan["predicted_bytes"] < 0.9 * T4


def test_a_smaller_card_lowers_the_batch_then_the_length_and_says_so():
    layout, plan = fitted("deepseek-coder-6.7b", 8e9)
    assert layout.per_device_train_batch_size < 8 and layout.max_length == 1024
    assert layout.per_device_train_batch_size * layout.gradient_accumulation_steps == 64
    assert plan_line(plan, "T4").startswith("memory plan: per_device_train_batch_size 8 -> ")
    layout, plan = fitted("deepseek-coder-6.7b", 6.2e9, max_length=4096)
    assert layout.per_device_train_batch_size == 1 and layout.max_length < 4096
    assert "samples are cut shorter" in plan_line(plan, "T4")
    with pytest.raises(ModelError, match="even 1 sample of .* tokens .*smaller model"):
        fitted("deepseek-coder-6.7b", 4e9)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_activations_are_estimated_as_autograd_keeps_them(tmp_path, tuning):
    sizes = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 3, "num_attention_heads": 4}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=64, **sizes)).save_pretrained(tmp_path)
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    options = {"tuning": tuning, "lora_r": 1, "lora_target_modules": targets}
    model = load_base_model(tmp_path, attn_implementation="sdpa", **options).train()
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(64, (2, 64))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.get_base_model().model if tuning == "lora" else model.model
        output = hidden(input_ids=ids, use_cache=False).last_hidden_state
    assert output.requires_grad
    estimate = memory_by_slots(without_weights(tmp_path), tuning=tuning, targets=targets, lora_r=1)
    none, all_ = (estimate(slots)["activations"] for slots in (0, ids.numel()))
    assert 0.7 < (all_ - none) / sum(kept.values()) < 1.6


def test_training_with_a_lowered_batch_is_the_same_training(tmp_path):
    settings = {
        "train_jsonl": write_rows(tmp_path / "train.jsonl", make_rows()),
        "model_path": save_tiny_base(tmp_path / "base"),
        "template": "deepseek-coder",
        "max_length": 320,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "logging_steps": 1,
    }
    asked = fine_tune(**settings, output_dir=tmp_path / "asked", device_memory=1e12)
    enough = asked.memory_plan["predicted_bytes"]
    lowered = fine_tune(**settings, output_dir=tmp_path / "lowered", device_memory=enough)  # but without the headroom
    assert asked.memory_plan["lowered"] == "" and lowered.memory_plan["predicted_bytes"] < enough
    assert lowered.memory_plan["lowered"].startswith("per_device_train_batch_size 8 -> ")
    assert lowered.optimizer_steps == asked.optimizer_steps
    curves = ([point["loss"] for point in report.loss_curve] for report in (asked, lowered))
    assert next(curves) == pytest.approx(next(curves), abs=1e-4)
