"""Base models, attention for packed rows, and a loss that computes no logit it does not need.

*Attention.* `codeact_segments` is registered with transformers as an attention implementation. It finds where samples
start in a packed row (where `position_ids` stop counting up) and runs causal scaled-dot-product attention on each
sample alone: no (L, L) mask is ever built, and cost grows with the sum of squared sample lengths, not of row lengths.

*Loss.* In instruction tuning only response tokens are supervised, often fewer than half, yet the language-model head
is usually applied to every slot: at 32,000 entries a token that is most of the memory. `supervised_loss` applies it to
the supervised positions only, in chunks.

    model = load_base_model("deepseek-ai/deepseek-coder-1.3b-base", attn_implementation="codeact_segments")
    loss = supervised_loss(model, collator(features), num_items_in_batch=n_supervised)
"""

import json
import os
from pathlib import Path

import tokenizers
import torch
import torch.nn.functional as F
import transformers
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import is_flash_attn_2_available

from codeact_lib.errors import ModelError
from codeact_lib.hub import hub_error, pinned_revision
from codeact_lib.prompts import IGNORE_INDEX

SEGMENTS = "codeact_segments"
FLASH = "flash_attention_2"
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MINI_BASE = "mini-base"
CHUNK = 512  # supervised positions whose logits exist at one time, once there are too many for
SMALL = 2**24  # logits (64 MiB in float32), which are cheaper to hold than to compute twice


# ---- attention -----------------------------------------------------------------------------------------------------


def segment_bounds(position_ids) -> list[list[tuple[int, int]]]:
    """Start and end of every sample in each row of `position_ids` (rows, length).

    A sample starts at the row's first slot and wherever the position is not one more than the one before it.
    """
    rows, length = position_ids.shape
    starts = (position_ids[:, 1:] != position_ids[:, :-1] + 1).nonzero().tolist()  # one transfer from the device
    cuts = [[0] for _ in range(rows)]
    for row, index in starts:
        cuts[row].append(index + 1)
    return [list(zip(cut, [*cut[1:], length], strict=True)) for cut in cuts]


def segment_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Causal attention inside each sample of packed rows; the signature is that of transformers' AttentionInterface.

    `query` is (rows, heads, length, head_dim), `key` and `value` may have fewer heads (grouped-query attention). The
    samples come from the keyword `segments` (as `segment_bounds` returns them) or else from `position_ids`. Returns
    (rows, length, heads, head_dim) and None. Raises ModelError for anything it would compute wrongly: a mask, a
    key-value cache, a sliding window, soft-capped or non-causal attention.
    """
    _refuse_other_attention(module, query, key, attention_mask, kwargs)
    segments = kwargs.get("segments")
    if segments is None:
        if kwargs.get("position_ids") is None:
            raise ModelError(f"{SEGMENTS} needs position_ids, which this architecture does not hand to its attention")
        segments = segment_bounds(kwargs["position_ids"].expand(query.shape[0], -1))
    options = {"dropout_p": dropout, "scale": scaling, "is_causal": True, "enable_gqa": key.shape[1] != query.shape[1]}
    if all(len(row) == 1 for row in segments):
        return _causal_attention(query, key, value, options).transpose(1, 2), None
    samples = zip(*(_samples(tensor, segments) for tensor in (query, key, value)), strict=True)
    attended = torch.cat([_causal_attention(q, k, v, options).transpose(1, 2) for q, k, v in samples], dim=1)
    return attended.view(query.shape[0], query.shape[2], *attended.shape[2:]), None


def _samples(tensor, segments):
    """The samples of (rows, heads, length, head_dim), each (1, heads, tokens, head_dim).

    Views made by `split`, whose gradients are put side by side once; those of slices would each be a tensor of the
    full size, and all of them added up.
    """
    sizes = [[end - start for start, end in row] for row in segments]
    return [sample for row, parts in zip(tensor.split(1), sizes, strict=True) for sample in row.split(parts, dim=2)]


def _causal_attention(query, key, value, options):
    """Causal attention among all slots of (rows, heads, length, head_dim), in the kernel that fits the device."""
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, **options)
    # in half precision a CPU compiles, and keeps, kernels for every sample length it meets
    dtype, query, key, value = query.dtype, query.float(), key.float(), value.float()
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(query, key, value, **options).to(dtype)


def _refuse_other_attention(module, query, key, attention_mask, kwargs) -> None:
    problem = None
    if attention_mask is not None:
        problem = "an attention mask was passed"
    elif query.shape[2] != key.shape[2]:
        problem = "a key-value cache is in use (generation): call model.set_attn_implementation('sdpa') first"
    elif kwargs.get("sliding_window") is not None or kwargs.get("softcap") is not None:
        problem = "the model uses a sliding window or soft-capped attention"
    elif kwargs.get("position_bias") is not None or not getattr(module, "is_causal", True):
        problem = "the attention is not plain causal attention"
    if problem:
        raise ModelError(f"{SEGMENTS} attends causally inside each packed sample and nothing else, but {problem}")


def _no_mask(*args, attention_mask=None, **kwargs):
    """The mask builder beside `segment_attention`: none is built, and one that hides something is refused."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ModelError(f"{SEGMENTS} cannot hide padding by an attention mask: pad on the right and pass position_ids")


AttentionInterface.register(SEGMENTS, segment_attention)
AttentionMaskInterface.register(SEGMENTS, _no_mask)


def check_segment_support(config) -> None:
    """Raise ModelError unless packed samples of this architecture can be isolated by `codeact_segments`."""
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    soft_cap = getattr(config, "attn_logit_softcapping", None)
    problem = None
    if layer_types != {"full_attention"}:
        problem = f"layers of type {', '.join(sorted(layer_types - {'full_attention'}))}"
    elif window is not None or getattr(config, "attention_chunk_size", None) is not None:
        problem = "a sliding or chunked attention window"
    elif soft_cap is not None or getattr(config, "alibi", False):
        problem = "soft-capped or position-biased attention"
    if problem:
        raise ModelError(
            f"{config.model_type} has {problem}, which {SEGMENTS} would compute wrongly: "
            "use attn_implementation='sdpa' or 'eager', or strategy 'dynamic'"
        )


def flash_attention_runs_here(half_precision: bool) -> bool:
    """Whether FlashAttention can serve: its package is installed, a GPU is there, and the precision is a half one."""
    return half_precision and torch.cuda.is_available() and is_flash_attn_2_available()


# ---- loading -------------------------------------------------------------------------------------------------------


def resolve_path(path) -> str:
    """The folder or hub id behind a model path; "mini-base" is the model that ships with the package."""
    if str(path) != MINI_BASE:
        return str(path)
    from codeact_lib.mini import base_model_dir

    return str(base_model_dir())


def compute_device() -> torch.device:
    """Where scoring, training and generation work: a CUDA GPU (of several, this process's), mps, or the cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_tokenizer(path, revision=None):
    """Load the tokenizer of a model folder or hub id; one without a padding token pads with its end token.

    Raises ModelError when it cannot be loaded, and when it does not give back the blanks of a piece of code.
    """
    path = resolve_path(path)
    options = {"revision": pinned_revision(path, revision), "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise hub_error(error, path, revision, "tokenizer") from error
    _check_blanks_survive(tokenizer, path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_blanks_survive(tokenizer, path) -> None:
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


def load_base_model(
    path,
    *,
    revision=None,
    tuning="full",
    dtype=None,
    attn_implementation=None,
    adapter=None,
    lora_r=8,
    lora_alpha=16,
    lora_dropout=0.1,
    lora_target_modules=LORA_TARGETS,
    dequantize=False,
    four_bits=False,
):
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
        adapter, tuning = path, (recorded_tuning(path) or tuning) if tuning == "full" else tuning
        path, revision = adapter_base(path)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32
    options = {"dtype": dtype, "attn_implementation": attn_implementation, "revision": revision}
    if tuning == "qlora" or four_bits:
        options["quantization_config"] = _nf4(dtype)
    model = _from_pretrained(path, options)
    if dequantize and tuning == "qlora":
        model = model.dequantize(dtype=dtype)
    if attn_implementation == SEGMENTS:
        check_segment_support(model.config)
    model.config.use_cache = False
    if adapter is not None:
        return _with_adapter(model, adapter)
    if tuning != "full":
        model = _with_new_adapter(model, path, revision, tuning, lora_r, lora_alpha, lora_dropout, lora_target_modules)
    return model.eval()


def _from_pretrained(path, options):
    path = resolve_path(path)
    # A commit, not a branch: of "main" transformers would look for weights that a bot has converted.
    options = options | {"revision": pinned_revision(path, options["revision"])}
    options = {name: value for name, value in options.items() if value is not None}
    try:
        return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False, use_safetensors=True, **options)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise hub_error(error, path, options.get("revision")) from error


def _nf4(dtype):
    try:
        import bitsandbytes  # noqa: F401  (transformers would only say so after reading the weights)
        from transformers import BitsAndBytesConfig
    except ImportError as error:
        raise ModelError("tuning 'qlora' needs bitsandbytes: pip install 'codeact_lib[qlora]'") from error
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _with_new_adapter(model, path, revision, tuning, r, alpha, dropout, target_modules):
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if tuning == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(target_modules)
    )
    try:
        model = get_peft_model(model, lora)
    except ValueError as error:
        raise ModelError(f"LoRA finds nothing to adapt in {path}: set lora_target_modules ({error})") from error
    # The adapter refers to its base by the name that was asked for, not by where it lies on this machine.
    model.peft_config["default"].base_model_name_or_path = str(path)
    model.peft_config["default"].revision = revision
    return model


def _with_adapter(model, adapter):
    from peft import PeftModel

    try:
        model = PeftModel.from_pretrained(model, str(adapter))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the adapter in {adapter}: {_first_line(error)}") from error
    evaluation_mode(model)
    return model


def adapter_base(adapter):
    """Path and revision of the base model that an adapter folder names."""
    config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    return config["base_model_name_or_path"], config.get("revision")


def recorded_tuning(adapter):
    """The tuning that the training wrote into train_metrics.json beside an adapter folder; None where that is not.

    A QLoRA adapter has learnt to correct the base model as it looks in 4 bits, so that is the base it is judged on.
    """
    metrics = Path(adapter).parent / "train_metrics.json"
    return json.loads(metrics.read_text(encoding="utf-8"))["tuning"] if metrics.is_file() else None


def evaluation_mode(model) -> None:
    """`model.eval()`, but for 4-bit layers: they would repack their weights for inference on a CPU, past training."""
    model.eval()
    for module in model.modules():
        module.training = hasattr(getattr(module, "weight", None), "quant_state")


def _first_line(error) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# ---- loss ----------------------------------------------------------------------------------------------------------


def supervised_loss(model, batch, num_items_in_batch=None):
    """Cross-entropy of the next token at the supervised positions of a batch.

    `batch` holds `input_ids`, `labels` (rows, length) and the model's other inputs. The sum of the losses is divided
    by `num_items_in_batch`: pass the number of supervised tokens of the whole optimizer step, over all micro-batches
    and ranks, and every token weighs the same however the step was cut (dividing by the micro-batch's own count, which
    is what None does, gives tokens of small micro-batches more weight). Returns a float32 scalar with gradient; a
    batch without a supervised position gives a connected 0, not NaN.

    Equal to the loss of the model's own forward pass; the head runs on the supervised positions only.
    """
    batch = dict(batch)
    labels = batch.pop("labels")
    core = _causal_lm(model)
    total, count = _summed_loss(core, labels, batch)
    return total / (num_items_in_batch if num_items_in_batch is not None else max(count, 1))


def use_supervised_loss(model):
    """Make `model(..., labels=...)` return `supervised_loss`, so that any Hugging Face Trainer trains with it.

    The forward pass is replaced on the model itself, inside whatever wraps it (PEFT, mixed precision, DDP): their hooks
    still run. Without labels the model behaves as before. Returns the model.
    """
    core = _causal_lm(model)
    plain_forward = core.forward

    def forward(input_ids=None, labels=None, num_items_in_batch=None, **kwargs):
        if labels is None:
            return plain_forward(input_ids=input_ids, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if value is not None and name != "return_dict"}
        batch = {"input_ids": input_ids, "labels": labels, **kwargs}
        return CausalLMOutputWithPast(loss=supervised_loss(core, batch, num_items_in_batch))

    core.forward = forward
    core.accepts_loss_kwargs = True
    return model


def _causal_lm(model):
    """The causal language model inside DDP and PEFT wrappers (adapters are part of its layers)."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def _summed_loss(core, labels, inputs):
    """Sum of the losses at supervised positions, and how many there are."""
    target = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)  # position t predicts label t + 1
    hidden = core.get_decoder()(**_isolated(inputs, core.config), use_cache=False).last_hidden_state
    target = target.to(hidden.device)
    keep = target != IGNORE_INDEX
    target = target[keep]
    return head_loss(hidden[keep], core.get_output_embeddings(), target, core.config), len(target)


def _isolated(inputs, config) -> dict:
    """The decoder's inputs in the form in which its attention tells packed samples apart."""
    if inputs.get("position_ids") is None:
        return inputs
    positions = inputs["position_ids"].expand(inputs["input_ids"].shape[0], -1)
    if config._attn_implementation == SEGMENTS:
        return {**inputs, "segments": segment_bounds(positions)}  # found once, not once a layer
    if "flash" in str(config._attn_implementation):
        return {**inputs, **flash_varlen_arguments(positions)}
    return inputs


def flash_varlen_arguments(position_ids) -> dict:
    """What FlashAttention's variable-length kernel must be told to keep packed samples apart.

    The rows of `position_ids` (rows, length) count as one long row: `cu_seq_lens_q` and `cu_seq_lens_k` are where in it
    each sample starts, and its end (samples + 1, int32); `max_length_q` and `max_length_k` the longest sample. The
    names are those of transformers' FlashAttentionKwargs. Left to find the samples by itself, transformers looks for
    them only in a batch of one row, and asks the device in every layer.
    """
    bounds, length = segment_bounds(position_ids), position_ids.shape[1]
    starts = [row * length + start for row, samples in enumerate(bounds) for start, _ in samples]
    lengths = torch.tensor([*starts, position_ids.numel()], dtype=torch.int32, device=position_ids.device)
    longest = max(end - start for samples in bounds for start, end in samples)
    return {"cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths, "max_length_q": longest, "max_length_k": longest}


def head_loss(hidden, head, target, config=None):
    """Summed cross-entropy of `target` (n,) under `head` applied to `hidden` (n, d), logits never held all at once.

    Raises ModelError for models that transform their logits after the head (soft cap, scaling): the loss would differ.
    """
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ModelError(f"{config.model_type} transforms its logits ({name}), which supervised_loss does not do")
    weight, bias = head.weight, getattr(head, "bias", None)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    else:
        hidden = hidden.to(weight.dtype)
    if len(target) * len(weight) <= SMALL:
        return _chunk_loss(hidden, weight, bias, target)
    if hidden.dtype == torch.float32 and hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK, chunking_method=None)
        return F.linear_cross_entropy(hidden, weight, target, linear_bias=bias, reduction="sum", options=options)
    return _chunked_loss(hidden, weight, bias, target)


def _chunked_loss(hidden, weight, bias, target):
    """The same in plain PyTorch: float32 sums over chunks whose logits are computed again in the backward pass.

    For older PyTorch, and for half precision, where the fused loss would come back rounded to half precision.
    """
    pieces = zip(hidden.split(CHUNK), target.split(CHUNK), strict=True)
    return sum(checkpoint(_chunk_loss, h, weight, bias, t, use_reentrant=False) for h, t in pieces)


def _chunk_loss(hidden, weight, bias, target):
    with torch.autocast(hidden.device.type, enabled=False):
        return F.cross_entropy(F.linear(hidden, weight, bias).float(), target, reduction="sum")
