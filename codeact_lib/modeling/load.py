"""Base models and tokenizers: from a folder, the hub or the package, with adapters or in 4 bits.

model = load_base_model("deepseek-ai/deepseek-coder-1.3b-base", attn_implementation="codeact_segments")
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from codeact_lib.artifacts import MINI_BASE_DIR
from codeact_lib.errors import ModelError
from codeact_lib.hub import hub_error, pinned_revision
from codeact_lib.modeling.attention import SEGMENTS, check_segment_support

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MINI_BASE = "mini-base"

PathLike = str | os.PathLike[str]


# ---- where and what ------------------------------------------------------------------------------------------------
def resolve_path(path: PathLike) -> str:
    """The folder or hub id behind a model path; "mini-base" is the model that ships with the package."""
    return str(MINI_BASE_DIR if str(path) == MINI_BASE else path)


def compute_device() -> torch.device:
    """Where scoring, training and generation work: a CUDA GPU (of several, this process's), mps, or the cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_tokenizer(path: PathLike, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder or hub id; one without a padding token pads with its end token.

    Raises ModelError when it cannot be loaded, and when it does not give back the blanks of a piece of code.
    """
    path = resolve_path(path)
    commit = pinned_revision(path, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=commit, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise hub_error(error, path, revision, "tokenizer") from error
    _check_blanks_survive(tokenizer, path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_blanks_survive(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Raise ModelError when indentation, tabs or line breaks are gone after encoding and decoding.

    transformers 5.0 to 5.21 lose all of them with DeepSeek-Coder's tokenizer, and report no error: everything would be
    scored and trained on text without blanks (huggingface/transformers#46489; 5.22 is right).
    """
    code = "def f(x):\n    if x:\n\t\treturn  x\n\n"
    ids = tokenizer(code, add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if decoded.strip() != code.strip():  # a sentencepiece tokenizer may add a blank in front
        raise ModelError(
            f"the tokenizer of {path} turns {code!r} into {decoded!r}: text would lose its blanks. Versions here: "
            f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}; 5.0 to 5.21 of the former "
            "are known for it: pip install -U 'transformers>=5.22'"
        )


# ---- models --------------------------------------------------------------------------------------------------------
def load_base_model(
    path: PathLike,
    *,
    revision: str | None = None,
    tuning: str = "full",
    dtype: torch.dtype | str | None = None,
    attn_implementation: str | None = None,
    adapter: PathLike | None = None,
    lora_r: int = 8,
    lora_alpha: int = 16,
    lora_dropout: float = 0.1,
    lora_target_modules: Sequence[str] = LORA_TARGETS,
    dequantize: bool = False,
    four_bits: bool = False,
) -> PreTrainedModel:
    """Load a causal language model for training or scoring.

    `path` is a folder, a hub id or "mini-base"; a folder holding a saved adapter loads its base model, in 4 bits if the
    training left word beside it that it was held so (`recorded_tuning`), and the adapter.
    `tuning` is "full" (all weights train), "lora" (adapters on frozen weights) or "qlora" (the same on weights held in
    4 bits: NF4, double quantisation). `dtype` is a torch dtype or its name, float32 by default. `adapter` is a folder
    with a LoRA adapter to apply for inference; with tuning "qlora" it is applied to the base in 4 bits, and with
    `dequantize` to those weights unpacked to floating point again. `four_bits` holds a model without an adapter as
    QLoRA would: to score or judge the base that a QLoRA training starts from. The LoRA defaults are the authors'
    (CodeACT, arXiv 2408.02193).

    Returns the model in eval mode with `use_cache` off (a cache would silently undo the isolation of packed samples).
    Raises ModelError when it cannot be loaded or cannot do what is asked.
    """
    if tuning not in ("full", "lora", "qlora"):
        raise ModelError(f"unknown tuning {tuning!r}: choose full, lora or qlora")
    if adapter is None and (Path(path) / "adapter_config.json").is_file():
        adapter = path
        if tuning == "full":
            tuning = recorded_tuning(adapter) or "full"
        path, revision = adapter_base(adapter)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype)
    dtype = dtype or torch.float32
    options: dict[str, Any] = {"dtype": dtype}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if tuning == "qlora" or four_bits:
        options["quantization_config"] = _nf4(dtype)
    model = _from_pretrained(resolve_path(path), revision, options)
    if dequantize and tuning == "qlora":
        model = model.dequantize(dtype=dtype)
    if attn_implementation == SEGMENTS:
        check_segment_support(model.config)
    model.config.use_cache = False
    if adapter is not None:
        return _with_adapter(model, adapter)
    if tuning == "full":
        return model.eval()
    lora = {"r": lora_r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout}
    model = _with_new_adapter(model, path, tuning, target_modules=list(lora_target_modules), **lora)
    # The adapter refers to its base by the name that was asked for, not by where it lies on this machine.
    model.peft_config["default"].base_model_name_or_path = str(path)
    model.peft_config["default"].revision = revision
    return model.eval()


def _from_pretrained(path: str, revision: str | None, options: dict[str, Any]) -> PreTrainedModel:
    # A commit, not a branch: of "main" transformers would look for weights that a bot has converted.
    commit = pinned_revision(path, revision)
    if commit is not None:
        options["revision"] = commit
    try:
        return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False, use_safetensors=True, **options)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise hub_error(error, path, commit) from error


def _nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    try:
        import bitsandbytes  # noqa: F401  (transformers would only say so after reading the weights)
    except ImportError as error:
        raise ModelError("tuning 'qlora' needs bitsandbytes: pip install 'codeact_lib[qlora]'") from error
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _with_new_adapter(model: PreTrainedModel, path: PathLike, tuning: str, **lora: Any) -> Any:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if tuning == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(task_type="CAUSAL_LM", **lora)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"LoRA finds nothing to adapt in {path}: set lora_target_modules ({error})") from error


def _with_adapter(model: PreTrainedModel, adapter: PathLike) -> Any:
    from peft import PeftModel

    try:
        model = PeftModel.from_pretrained(model, str(adapter))
    except (OSError, ValueError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"cannot load the adapter in {adapter}: {first_line}") from error
    evaluation_mode(model)
    return model


def adapter_base(adapter: PathLike) -> tuple[str, str | None]:
    """Path and revision of the base model that an adapter folder names."""
    config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    return config["base_model_name_or_path"], config.get("revision")


def recorded_tuning(adapter: PathLike) -> str | None:
    """The tuning that the training wrote into train_metrics.json beside an adapter folder; None where that is not.

    A QLoRA adapter has learnt to correct the base model as it looks in 4 bits, so that is the base it is judged on.
    """
    metrics = Path(adapter).parent / "train_metrics.json"
    if not metrics.is_file():
        return None
    return json.loads(metrics.read_text(encoding="utf-8"))["tuning"]


def evaluation_mode(model: nn.Module) -> None:
    """`model.eval()`, but for 4-bit layers: they would repack their weights for inference on a CPU, past training."""
    model.eval()
    for module in model.modules():
        module.training = hasattr(getattr(module, "weight", None), "quant_state")
