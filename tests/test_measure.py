"""Useful floating-point operations are those of the matrices, counted here by PyTorch itself."""

import pytest
import torch
from tiny_models import tiny_config, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM as Auto

from codeact_lib.measure import model_flops, peak_flops_per_second, peak_of
from codeact_lib.modeling.load import load_base_model


@pytest.mark.parametrize("tied", [False, True])
def test_the_operations_are_those_that_pytorch_counts(tied):
    config = tiny_config()
    config.tie_word_embeddings = tied
    model, n = Auto.from_config(config, attn_implementation="eager").train(), 48
    ids = torch.randint(3, 64, (1, n))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    causal_half = 3 * 2 * config.num_hidden_layers * config.hidden_size * n * n  # eager computes the other half too
    assert model_flops(model, n, n * n) + causal_half == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_weights_that_stand_still_save_a_third(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    full = model_flops(tiny_model(), 100, 1000)
    assert model_flops(load_base_model(tmp_path, tuning="lora", lora_r=1), 100, 1000) / full == pytest.approx(
        2 / 3, rel=0.1
    )


def test_four_bit_weights_count_as_many_as_they_stand_for(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    lora, qlora = (load_base_model(tmp_path, tuning=tuning, lora_r=1) for tuning in ("lora", "qlora"))
    assert model_flops(qlora, 100, 1000) == model_flops(lora, 100, 1000)


def test_the_peak_is_that_of_the_gpu_by_name_and_unknown_without_one():
    assert peak_of("NVIDIA H100 PCIe") == 756e12 and peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA L40S") == 362e12 and peak_of("Tesla T4") == 65e12 and peak_of("NVIDIA Z9") is None
    assert peak_flops_per_second(half_precision=False) is None
