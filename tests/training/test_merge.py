"""A merged model answers as base and adapter did, and a QLoRA adapter goes onto the base it was trained on."""

import json

import pytest
import torch
from tiny_models import tiny_config, tiny_tokenizer
from transformers import AutoModelForCausalLM as Auto

from codeact_lib.errors import ArtifactError, ModelError
from codeact_lib.evaluation.generation import generate_solutions
from codeact_lib.modeling.load import evaluation_mode, load_base_model, load_tokenizer
from codeact_lib.training.checkpoints import merge_adapter


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Weights large enough that four bits round them visibly."""
    folder, tokenizer = tmp_path_factory.mktemp("base"), tiny_tokenizer()
    config = tiny_config(vocab_size=len(tokenizer))
    config.hidden_size, config.intermediate_size, config.head_dim, config.initializer_range = 64, 128, 16, 0.2
    torch.manual_seed(0)
    Auto.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(base, folder, tuning):
    """As a training leaves it: adapter, tokenizer, and the metrics beside them."""
    model = load_base_model(base, tuning=tuning)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder / "model")
    load_tokenizer(base).save_pretrained(folder / "model")
    (folder / "train_metrics.json").write_text(json.dumps({"tuning": tuning}))
    return folder / "model"


@torch.no_grad()
def logits(model):
    evaluation_mode(model)
    return model(input_ids=torch.arange(3, 40)[None], use_cache=False).logits


@pytest.mark.parametrize("tuning", ["lora", "qlora"])
def test_a_merged_model_answers_as_base_and_adapter_did(base, tmp_path, tuning):
    adapter = make_adapter(base, tmp_path, tuning)
    error = merge_adapter(adapter, tmp_path / "merged")
    merged = load_base_model(tmp_path / "merged")
    together = logits(load_base_model(base, tuning=tuning, adapter=adapter))
    assert (
        error < 1e-3
        and not hasattr(merged, "peft_config")
        and merged.config.to_dict().get("quantization_config") is None
    )
    assert (logits(merged) - together).abs().max() < 1e-3 * together.abs().max()
    assert load_tokenizer(tmp_path / "merged").eos_token == "</s>"


def test_an_adapter_trained_on_four_bits_is_not_merged_onto_the_full_weights(base, tmp_path):
    """What a plain merge would do: the logits are far from those that were trained."""
    adapter = make_adapter(base, tmp_path, "qlora")
    trained = logits(load_base_model(base, tuning="qlora", adapter=adapter))
    wrong = logits(load_base_model(base, adapter=adapter).merge_and_unload())
    assert (wrong - trained).abs().max() > 0.02 * trained.abs().max()


@pytest.mark.parametrize("tuning", ["lora", "qlora"])
def test_an_adapter_folder_is_loaded_and_asked_on_the_base_it_was_trained_on(base, tmp_path, tuning):
    adapter = make_adapter(base, tmp_path, tuning)
    loaded = load_base_model(adapter)
    assert torch.equal(logits(loaded), logits(load_base_model(base, tuning=tuning, adapter=adapter)))
    assert getattr(loaded, "is_loaded_in_4bit", False) == (tuning == "qlora")
    merge_adapter(adapter, tmp_path / "merged")
    task = {"task_id": "MiniMbpp/9000", "prompt": '"""\nAdd two numbers.\n"""', "entry_point": "add"}
    asked = [[task], "deepseek-coder"]
    texts = [
        generate_solutions(
            model, load_tokenizer(base), *asked, max_new_tokens=24, output_path=tmp_path / name, progress=None
        )
        for name, model in (("a.jsonl", loaded), ("b.jsonl", load_base_model(tmp_path / "merged")))
    ]
    assert texts[0] == texts[1]
    assert ("batch_size" in (tmp_path / "a.jsonl").read_text()) == (tuning == "qlora")


def test_a_base_in_four_bits_is_the_one_a_qlora_training_starts_from(base):
    held = load_base_model(base, four_bits=True)
    assert held.is_loaded_in_4bit and not hasattr(held, "peft_config")
    assert torch.equal(logits(held), logits(load_base_model(base, tuning="qlora")))  # a new adapter changes nothing yet


def test_logits_that_change_stop_the_merge_and_leave_nothing(base, tmp_path, monkeypatch):
    adapter = make_adapter(base, tmp_path, "lora")
    config = json.loads((adapter / "adapter_config.json").read_text())
    calls = []

    def changed_in_between(*arguments, **options):
        calls.append(options)
        if len(calls) == 2:  # the adapter's strength differs when it is loaded to be merged
            (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1000}))
        return load_base_model(*arguments, **options)

    monkeypatch.setattr("codeact_lib.training.checkpoints.load_base_model", changed_in_between)
    with pytest.raises(ModelError, match="logits differ by"):
        merge_adapter(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_cannot_be_merged_is_said(base, tmp_path):
    with pytest.raises(ArtifactError, match="holds no adapter"):
        merge_adapter(base, tmp_path / "merged")
    adapter = make_adapter(base, tmp_path, "lora")
    with pytest.raises(ArtifactError, match="exists"):
        merge_adapter(adapter, tmp_path)
    (tmp_path / "train_metrics.json").unlink()
    with pytest.raises(ArtifactError, match="lora or qlora"):
        merge_adapter(adapter, tmp_path / "merged")
