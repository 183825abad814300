"""Base models and tokenizers: from a folder, the hub or the package, with adapters or in 4 bits."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from codeact_lib.artifacts import MINI_BASE_DIR, read_json
from codeact_lib.errors import ModelError, first_line, require_package
from codeact_lib.hub import hub_error, pinned_revision
from codeact_lib.modeling.attention import SEGMENTS, check_segment_support

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MINI_BASE = "mini-base"

PathLike = str | os.PathLike[str]


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
    options: dict[str, Any] = {"revision": commit, "trust_remote_code": False}
    try:
        # transformers 5 leaves this key of DeepSeek-Coder's configuration out (as of 5.23) and adds no BOS, where 4.41
        # of the authors did: their IFD then differs by 2.7% in the median, on a model that was trained with a BOS.
        if get_tokenizer_config(path, **options).get("add_bos_token"):
            options["add_bos_token"] = True
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise hub_error(error, path, revision, "tokenizer") from error
    # transformers 5.0 to 5.21 lose indentation, tabs and line breaks with DeepSeek-Coder's tokenizer, and report no
    # error: everything would be scored and trained on text without blanks (huggingface/transformers#46489).
    code = "def f(x):\n    if x:\n\t\treturn  x\n\n"
    ids = tokenizer(code, add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if decoded.strip() != code.strip():  # a sentencepiece tokenizer may add a blank in front
        raise ModelError(
            f"the tokenizer of {path} turns {code!r} into {decoded!r}: text would lose its blanks. Versions here: "
            f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}; 5.0 to 5.21 of the former "
            "are known for it: pip install -U 'transformers>=5.22'"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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
    """Load a causal language model for training or scoring: in eval mode, with `use_cache` off.

    `path` is a folder, a hub id or "mini-base". A folder with a saved adapter loads its base model, in 4 bits if that
    is how it was trained (`recorded_tuning`), and the adapter. Raises ModelError when it cannot be loaded or cannot do
    what is asked.

    Args:
        tuning: "full" (all weights train), "lora" (adapters on frozen weights) or "qlora" (the same on weights held in
            4 bits: NF4, double quantisation).
        dtype: float32 by default.
        adapter: a folder with a LoRA adapter to apply for inference; with "qlora" onto the base in 4 bits.
        lora_r: this and the next three are the authors' by default (CodeACT, arXiv 2408.02193).
        dequantize: unpack weights of 4 bits to floating point again, to merge an adapter into them.
        four_bits: hold a model without an adapter as QLoRA would, to score or judge the base that it starts from.
    """
    if tuning not in ("full", "lora", "qlora"):
        raise ModelError(f"unknown tuning {tuning!r}: choose full, lora or qlora")
    if adapter is None and (Path(path) / "adapter_config.json").is_file():
        adapter = path
        # A QLoRA adapter has learnt to correct the base model as it looks in 4 bits: that is the base it is judged on.
        if tuning == "full":
            tuning = recorded_tuning(adapter) or "full"
        path, revision = adapter_base(adapter)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32
    options: dict[str, Any] = {"dtype": dtype}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if tuning == "qlora" or four_bits:
        require_package("bitsandbytes", "qlora")  # transformers would only say so after reading the weights
        nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
        options["quantization_config"] = transformers.BitsAndBytesConfig(load_in_4bit=True, **nf4)
    model = read_weights(resolve_path(path), revision, options)
    if dequantize and tuning == "qlora":
        model = model.dequantize(dtype=dtype)
    if attn_implementation == SEGMENTS:
        check_segment_support(model.config)
    model.config.use_cache = False  # a cache would silently undo the isolation of packed samples
    if adapter is not None:
        return with_adapter(model, adapter)
    if tuning != "full":
        lora = {"r": lora_r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout}
        model = with_new_adapter(model, path, tuning, target_modules=list(lora_target_modules), **lora)
        # The adapter refers to its base by the name that was asked for, not by where it lies on this machine.
        model.peft_config["default"].base_model_name_or_path = str(path)
        model.peft_config["default"].revision = revision
    return model.eval()


def read_weights(path: str, revision: str | None, options: dict[str, Any]) -> PreTrainedModel:
    """The model of a folder or hub id from its safetensors; ModelError when there is none that can be read."""
    # A commit, not a branch: of "main" transformers would look for weights that a bot has converted.
    commit = pinned_revision(path, revision)
    if commit is not None:
        options["revision"] = commit
    try:
        # Neither code of a stranger nor a pickle, which is code too, is ever loaded.
        return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False, use_safetensors=True, **options)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise hub_error(error, path, commit) from error


def with_new_adapter(model: PreTrainedModel, path: PathLike, tuning: str, **lora: Any) -> Any:
    """The model with a LoRA adapter to train; `lora` are fields of `peft.LoraConfig`."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if tuning == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    try:
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
    except ValueError as error:
        raise ModelError(f"LoRA finds nothing to adapt in {path}: set lora_target_modules ({error})") from error


def with_adapter(model: PreTrainedModel, adapter: PathLike) -> Any:
    """The model with the saved adapter of that folder, for inference."""
    from peft import PeftModel

    try:
        model = PeftModel.from_pretrained(model, str(adapter))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the adapter in {adapter}: {first_line(error)}") from error
    evaluation_mode(model)
    return model


def adapter_base(adapter: PathLike) -> tuple[str, str | None]:
    """Path and revision of the base model that an adapter folder names."""
    config = read_json(Path(adapter) / "adapter_config.json")
    return config["base_model_name_or_path"], config.get("revision")


def recorded_tuning(adapter: PathLike) -> str | None:
    """The tuning that the training wrote into train_metrics.json beside an adapter folder; None where that is not."""
    metrics = Path(adapter).parent / "train_metrics.json"
    return read_json(metrics)["tuning"] if metrics.is_file() else None


def evaluation_mode(model: nn.Module) -> None:
    """`model.eval()`, but for 4-bit layers."""
    # They would repack their weights for inference on a CPU, and could not be trained any more.
    model.eval()
    for module in model.modules():
        module.training = hasattr(getattr(module, "weight", None), "quant_state")
