"""Join a LoRA adapter with its base model, and prove that the result answers as the two did."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from codeact_lib.errors import ArtifactError, ModelError
from codeact_lib.modeling.load import adapter_base, evaluation_mode, load_base_model, load_tokenizer, recorded_tuning

TOLERANCE = 1e-2  # of the largest logit: rounding of a merged weight, far below what the wrong base does


def merge_adapter(adapter: str | Path, output_dir: str | Path, *, tuning: str | None = None) -> float:
    """Write the merged model and its tokenizer to `output_dir`; return the largest difference of a logit.

    `tuning` is "lora" or "qlora", by default what the training's `train_metrics.json` beside the adapter says. Raises
    ModelError when the logits of base and adapter and those of the merged model differ, on fixed tokens, by more than a
    hundredth of the largest, and writes nothing then; ArtifactError when `adapter` holds none, or `output_dir` exists.
    """
    adapter = Path(adapter)
    output_dir = Path(output_dir)
    if not (adapter / "adapter_config.json").is_file():
        raise ArtifactError(f"{adapter} holds no adapter: give the model/ folder of a LoRA or QLoRA training")
    if output_dir.exists():
        raise ArtifactError(f"{output_dir} exists: choose another folder, or delete it first")
    tuning = tuning or recorded_tuning(adapter)
    if tuning is None:
        raise ArtifactError(
            f"{adapter.parent / 'train_metrics.json'} is missing: say by tuning= whether the adapter was trained with "
            "lora or qlora"
        )
    path, revision = adapter_base(adapter)
    options: dict[str, Any] = {
        "revision": revision,
        "adapter": adapter,
        "tuning": tuning,
        "attn_implementation": "sdpa",
    }
    load = partial(load_base_model, path, **options)
    before = fixed_logits(load())
    # A QLoRA adapter has learnt to correct the base model as it looks in 4 bits. It belongs onto those weights,
    # unpacked again to floating point; onto the original ones it would correct rounding errors that are not there.
    merged = load(dequantize=True).merge_and_unload()
    error = float((fixed_logits(merged) - before).abs().max() / before.abs().max())
    if not error <= TOLERANCE:
        raise ModelError(f"the merged model's logits differ by {error:.1%} of the largest: is tuning {tuning!r} right?")
    unfinished = output_dir.with_name(f".{output_dir.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    merged.config.use_cache = True  # it was off for training only
    merged.save_pretrained(unfinished)
    load_tokenizer(adapter).save_pretrained(unfinished)
    unfinished.rename(output_dir)
    return error


@torch.no_grad()
def fixed_logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits of fixed tokens, in float32."""
    evaluation_mode(model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (2, 32), generator=generator).to(model.device)
    return model(input_ids=ids, use_cache=False).logits.float()
