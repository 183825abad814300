"""`python -m bench train`: one training, every way to lay it out, side by side.

The same model, the same samples in the same optimizer steps, each contender in a fresh process. The loss of the first
step, before any weight has moved, shows which layouts train the same function: `loss_difference` is what sets it apart
from the loss of the samples one by one.

Without an architecture the model is a small Llama (hidden 256, 6 layers, 32,000 tokens) that two CPU cores can train;
with one, that of the paper's size, random-initialised: time and memory do not depend on what the weights are.
"""

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from bench.harness import Say, Work, compare, contest, write_bench
from bench.packing import tokenize_instructions
from codeact_lib.errors import CodeActError, DataError
from codeact_lib.modeling.load import load_base_model
from codeact_lib.modeling.loss import supervised_loss
from codeact_lib.packing.collate import DynamicPackCollator
from codeact_lib.packing.plan import plan_micro_batches
from codeact_lib.prompts import IGNORE_INDEX

Tokenized = tuple[list[int], int]  # ids, and how many of them are the prompt
Feature = dict[str, Any]
Batches = list[dict[str, Any]]  # the micro-batches of one optimizer step

SMALL = "small"
ARCHITECTURES = {  # the published configurations of the models, as keywords of LlamaConfig
    "tiny": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=32_000),
    SMALL: dict(hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=8, vocab_size=32_000),
    "deepseek-coder-1.3b": dict(
        hidden_size=2048, intermediate_size=5504, num_hidden_layers=24, num_attention_heads=16, vocab_size=32_256
    ),
    "deepseek-coder-6.7b": dict(
        hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32_256
    ),
}
LAYOUTS = {  # strategy, isolate, attention, packed over the window
    "traditional": ("traditional", True, "sdpa", False),
    "dynamic padding": ("dynamic", True, "sdpa", False),
    "Dynamic Pack (paper)": ("dynamic_pack", False, "sdpa", False),
    "balanced, isolated": ("balanced_pack", True, "codeact_segments", False),
    "balanced over the window": ("balanced_pack", True, "codeact_segments", True),
    "flat, segments": ("flat", True, "codeact_segments", False),
}
LOSSES = {"plain loss": False, "supervised positions": True}
BASELINE = "Dynamic Pack (paper), plain loss"
TRAINED = "trained"
EPOCHS, EVOL_ROWS, RATIO = 3, 78_000, 0.4  # RQ1: three epochs over EVOL-Instruct, or 40% of it
# What RQ1 reports of the architecture it shares with this bench: EVOL-Instruct, 8 GPUs, minutes and gigabytes.
REPORTED = {"deepseek-coder-6.7b": {"full, dynamic padding": (259, 50.75), "40%, Dynamic Pack": (58, 37.23)}}


@dataclass
class Setting:
    """What all contenders share."""

    architecture: str = SMALL
    random_init: bool = True
    max_length: int = 1024
    batch_size: int = 16
    accumulation_steps: int = 1
    steps: int = 1
    dtype: str = "float32"
    gradient_checkpointing: bool = False
    seed: int = 0


def bench_train(
    path: str | Path,
    setting: Setting,
    *,
    repeats: int = 3,
    layouts: Sequence[str] = tuple(LAYOUTS),
    folder: str | Path | None = None,
    say: Say = print,
) -> Path:
    """Train on the instructions of a JSONL file in every layout with both losses; return the JSON file of the results.

    Each work is `setting.steps` optimizer steps of AdamW. `seconds` are of all steps, `seconds_per_step` of one,
    `rq1_hours_*`, for the architecture of RQ1 alone, what three epochs over 78,000 rows (and over 40% of them) would
    take on this one device at the measured samples per second. A contender that the GPU has no room for stays in the
    table, without numbers: its `outcome` says so.
    """
    samples = sample_steps(path, setting)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "samples.json"
        source.write_text(json.dumps(samples))
        rows = contest(_contenders(source, setting, layouts), repeats=repeats, say=say)
    return write_bench(_file_name(setting), make_table(rows, setting), _about(setting, samples), folder)


def _contenders(source: Path, setting: Setting, layouts: Sequence[str]) -> dict[str, tuple[str, dict[str, Any]]]:
    unknown = sorted(set(layouts) - set(LAYOUTS))
    if unknown:
        raise CodeActError(f"no layout {unknown[0]!r}: choose one of {', '.join(LAYOUTS)}")
    shared = {"source": str(source), "setting": asdict(setting)}
    contenders = {}
    for layout in layouts:
        for loss, supervised in LOSSES.items():
            arguments = {**shared, "layout": layout, "supervised": supervised}
            contenders[f"{layout}, {loss}"] = ("bench.train:prepare", arguments)
    return contenders


def _file_name(setting: Setting) -> str:
    return "train" if setting.architecture == SMALL else f"train-{Path(setting.architecture).name}"


def make_table(rows: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """Contenders side by side, how far each loss is from the unpacked one, and hours of RQ1 for its architecture.

    `rows` is a frame as `contest` returns it. Raises CodeActError when the GPU had no room for any of them.
    """
    trained = rows["outcome"] == TRAINED
    if not trained.any():
        raise CodeActError("no layout fits the GPU: take gradient_checkpointing, a smaller batch_size or architecture")
    rows = rows.assign(**rows[["seconds", "peak_memory_bytes"]].where(trained))
    table = compare(rows, BASELINE if BASELINE in set(rows["contender"]) else rows["contender"].iloc[0])
    n_samples = setting.steps * setting.batch_size * setting.accumulation_steps
    table.insert(2, "seconds_per_step", table["seconds"] / setting.steps)
    table["loss_difference"] = table["loss"] - table["unpacked_loss"]
    if not _reported(setting):
        return table
    hours = table["seconds"] / n_samples * EPOCHS * EVOL_ROWS / 3600
    return table.assign(rq1_hours_full=hours, rq1_hours_40_percent=hours * RATIO)


def _reported(setting: Setting) -> dict[str, tuple[int, float]]:
    """What RQ1 reports of this architecture, whether it is named or loaded from a hub."""
    return REPORTED.get(Path(setting.architecture).name.removesuffix("-base"), {})


def _about(setting: Setting, samples: list[Tokenized]) -> dict[str, Any]:
    arms = _reported(setting).items()
    reports = ", ".join(f"{arm}: {time} min, {memory} GiB on 8 GPUs" for arm, (time, memory) in arms)
    lengths = [len(ids) for ids, _ in samples]
    mean = f"{np.mean(lengths):.0f} tokens on average, {max(lengths)} at most"
    about = {**asdict(setting), "samples": f"{len(samples)}, {mean}"}
    return {**about, "reported in RQ1 (arXiv 2408.02193)": reports} if reports else about


def sample_steps(path: str | Path, setting: Setting) -> list[Tokenized]:
    """Token ids and prompt lengths of the samples of all steps, in a seeded order."""
    if not Path(path).is_file():
        raise DataError(f"{path} does not exist: give a JSONL file of instructions")
    rows = [(ids, n_prompt) for ids, n_prompt in tokenize_instructions(path) if n_prompt < setting.max_length]
    wanted = setting.steps * setting.batch_size * setting.accumulation_steps
    if len(rows) < wanted:
        raise DataError(f"{path} has {len(rows)} usable rows, {wanted} are needed: take fewer steps")
    order = np.random.default_rng(setting.seed).permutation(len(rows))[:wanted]
    return [rows[i] for i in order]


def prepare(source: str, setting: dict[str, Any], layout: str, supervised: bool) -> Work:
    """A contender: model, optimizer and batches set up; the work is the optimizer steps.

    A GPU is warmed up by one step more: its libraries set themselves up on first use. On a CPU that would hide memory,
    which is counted from the resting process.
    """
    shared = Setting(**setting)
    strategy, isolate, attention, over_window = LAYOUTS[layout]
    model = _new_model(shared, attention)
    collator = DynamicPackCollator(0, shared.max_length, strategy, isolate)
    parts = _steps(json.loads(Path(source).read_text()), shared)
    steps = [_micro_batches(part, collator, shared, over_window) for part in parts]
    facts = {"unpacked_loss": _unpacked_loss(model, parts[0]), **_padding(steps)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)  # as TrainingArguments choose it
    if model.device.type == "cuda":
        _losses(model, optimizer, steps[:1], supervised, learn=False)

    def work() -> dict[str, Any]:
        losses = _losses(model, optimizer, steps, supervised)
        if not losses:
            return {**facts, "outcome": "out of memory"}
        return {**facts, "outcome": TRAINED, "loss": losses[0]}

    return work


def _new_model(setting: Setting, attention: str) -> PreTrainedModel:
    """In training mode, with the same weights in every process."""
    torch.manual_seed(setting.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, setting.dtype)
    if setting.random_init:
        with torch.device(device):
            config = LlamaConfig(**_configuration(setting), use_cache=False)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    else:
        model = load_base_model(setting.architecture, dtype=dtype, attn_implementation=attention).to(device)
    if setting.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model.train()


def _configuration(setting: Setting) -> dict[str, int]:
    if setting.architecture not in ARCHITECTURES:
        raise CodeActError(f"no architecture {setting.architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
    return {**ARCHITECTURES[setting.architecture], "max_position_embeddings": max(2048, setting.max_length)}


def _steps(samples: Iterable[Tokenized], setting: Setting) -> list[list[Feature]]:
    """The samples of each step as features, responses cut at the maximum length."""
    features: list[Feature] = []
    for ids, n_prompt in samples:
        labels = [IGNORE_INDEX] * n_prompt + ids[n_prompt:]
        if n_prompt < setting.max_length:
            features.append({"input_ids": ids[: setting.max_length], "labels": labels[: setting.max_length]})
    size = setting.batch_size * setting.accumulation_steps
    return [features[start : start + size] for start in range(0, len(features), size)]


def _micro_batches(
    features: list[Feature], collator: DynamicPackCollator, setting: Setting, over_window: bool
) -> Batches:
    lengths = [len(feature["input_ids"]) for feature in features]
    batch_size = None if over_window else setting.batch_size
    plan = plan_micro_batches(lengths, collator.max_length, collator.strategy, batch_size=batch_size)
    batches = []
    for rows in plan:
        tokens = sum(lengths[i] for i in chain.from_iterable(rows))
        batches.append({**collator.lay_out(features, rows), "tokens": tokens})
    return batches


def _padding(steps: list[Batches]) -> dict[str, float]:
    batches = list(chain.from_iterable(steps))
    tokens = sum(batch["tokens"] for batch in batches)
    sizes = [batch["input_ids"].numel() for batch in batches]
    rows = sum(len(batch["input_ids"]) for batch in batches)
    return {"padding_rate": 1 - tokens / sum(sizes), "rows": rows, "largest_batch": max(sizes)}


def _losses(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    steps: list[Batches],
    supervised: bool,
    learn: bool = True,
) -> list[float]:
    """The loss of each optimizer step; none when the GPU has no room for them."""
    try:
        return [_step(model, optimizer, step, supervised, learn) for step in steps]
    except torch.OutOfMemoryError:
        return []


def _step(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, micro_batches: Batches, supervised: bool, learn: bool
) -> float:
    """One optimizer step; the loss is that of all its supervised tokens."""
    n_items = sum(int((batch["labels"] != IGNORE_INDEX).sum()) for batch in micro_batches)
    total = 0.0
    for batch in micro_batches:
        inputs = {name: value.to(model.device) for name, value in batch.items() if name != "tokens"}
        if supervised:
            loss = supervised_loss(model, inputs, n_items)
        else:
            loss = model(**inputs, num_items_in_batch=n_items, use_cache=False).loss
        loss.backward()
        total = total + loss.detach()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if learn:
        optimizer.step()
    optimizer.zero_grad()
    return float(total)


@torch.no_grad()
def _unpacked_loss(model: PreTrainedModel, features: list[Feature]) -> float:
    """The loss of the first step, sample by sample, with the model's own forward pass and plain causal attention."""
    attention = model.config._attn_implementation
    total = 0.0
    n_items = 0
    model.set_attn_implementation("sdpa")
    for feature in features:
        ids = torch.tensor([feature["input_ids"]], device=model.device)
        labels = torch.tensor([feature["labels"]], device=model.device)
        total += float(model(input_ids=ids, labels=labels, num_items_in_batch=1, use_cache=False).loss)
        n_items += int((labels[:, 1:] != IGNORE_INDEX).sum())
    model.set_attn_implementation(attention)
    return total / n_items
