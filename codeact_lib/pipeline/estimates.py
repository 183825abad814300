"""What a profile will cost before any of it is run: GPU hours, memory and disk, each with the formula it comes from.

Nothing here is measured. A number is a formula applied to published sizes (of models, data sets and GPUs) and to the
assumptions that stand in this file by name, and is printed with both. What a data set really holds is taken from
`01_cluster` as soon as that has run.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from codeact_lib.artifacts import RunPaths
from codeact_lib.config import ModelSpec, Profile, Run
from codeact_lib.errors import CodeActError
from codeact_lib.measure import peak_of
from codeact_lib.training.launch import accelerate_config_path
from codeact_lib.training.memory import HEADROOM, BatchLayout, fit_layout, memory_by_slots

# Published configurations (config.json on the hub), so that planning asks no network: keywords of LlamaConfig.
SHAPES = {
    "codellama/CodeLlama-7b-Python-hf": (4096, 11_008, 32, 32, 32_000),
    "codellama/CodeLlama-13b-Python-hf": (5120, 13_824, 40, 40, 32_000),
    "deepseek-ai/deepseek-coder-1.3b-base": (2048, 5504, 24, 16, 32_256),
    "deepseek-ai/deepseek-coder-6.7b-base": (4096, 11_008, 32, 32, 32_256),
}
# Rows as published. Tokens of prompt and answer are an assumption, from rows of the set at 3.3 characters a token.
DATA_SETS = {"nickrosh/Evol-Instruct-Code-80k-v1": (78_264, 400), "ise-uiuc/Magicoder-OSS-Instruct-75K": (75_197, 310)}
CHARACTERS_PER_TOKEN = 3.3
TASKS = {"humaneval": 164, "mbpp": 378}
GPUS = {"H200": (141e9, 4.8e12), "H100": (80e9, 3.35e12), "A100": (80e9, 2.0e12), "T4": (15.6e9, 0.32e12)}  # bytes, B/s
# Share of the peak that tokens and padding together reach: 0.3 to 0.45 is usual where all weights are trained, less
# where 4-bit weights are unpacked anew in every pass.
MFU = {"full": 0.35, "lora": 0.3, "qlora": 0.2}
PADDING = {"dynamic": 0.45, "traditional": 0.80, "dynamic_pack": 0.16, "balanced_pack": 0.05, "flat": 0.0}
PROMPT_TOKENS = 400  # of a benchmark task with its instruction
STEP_OVERHEAD = 0.025  # seconds a decoding step takes however small the model is
EMBEDDING_PARAMETERS, EMBEDDING_WIDTH = 110e6, 768  # all-mpnet-base-v2


@dataclass(frozen=True)
class Machine:
    """The GPUs an estimate is for: name in `GPUS`, how many, and whether that was seen or assumed."""

    gpu: str
    count: int
    basis: str


class DataSize(NamedTuple):
    """Rows of a data set, tokens a row, and where that is known from."""

    rows: int
    tokens: float
    basis: str


def cost_lines(profile: Profile, paths: RunPaths, gpu: str = "") -> Iterator[str]:
    """The estimates of a profile as lines of text; `gpu` names one of `GPUS`, else that of this machine is taken."""
    shapes = {}
    for spec in profile.models:
        shape = model_shape(spec)
        if shape is None:
            yield f"{spec.name}: costs are not estimated, its configuration is neither known nor in a folder or cache"
        else:
            shapes[spec.name] = shape
    if not shapes:
        return
    costs = Costs(profile, paths, machine_for(profile, gpu), shapes)
    machine = costs.machine
    yield f"estimates (nothing of this is measured) for {machine.count} x {machine.gpu}, {machine.basis}"
    yield from costs.run_lines()
    yield from costs.memory_lines()
    yield costs.disk_line()
    yield from costs.basis_lines()


# ---- what is known ---------------------------------------------------------------------------------------------------


def machine_for(profile: Profile, gpu: str = "") -> Machine:
    """The GPUs to plan for: named, else those here, else what the profile was written for."""
    count = 1  # processes of a training: what the accelerate configuration names, one without a launcher
    if profile.launcher == "accelerate" and profile.accelerate_config:
        text = accelerate_config_path(profile.accelerate_config).read_text(encoding="utf-8")
        count = int(yaml.safe_load(text).get("num_processes") or 1)
    wanted = gpu
    if not gpu and torch.cuda.is_available():
        wanted = torch.cuda.get_device_name()
    known = [name for name in GPUS if name.lower() in wanted.lower()]
    if known:
        return Machine(known[0], count, "as asked for" if gpu else "the GPU here")
    if gpu:
        raise CodeActError(f"--gpu {gpu}: no figures for this GPU; known are {', '.join(GPUS)}.")
    assumed = "A100" if profile.tuning == "full" else "T4"
    return Machine(assumed, count, "assumed, as no known GPU is here (--gpu NAME)")


def model_shape(spec: ModelSpec) -> PreTrainedConfig | None:
    """A configuration of the model by its published shape or from its folder; None where neither is at hand."""
    if Path(spec.path).is_absolute() and not (Path(spec.path) / "config.json").is_file():
        return None
    if spec.path in SHAPES:
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        return LlamaConfig(**dict(zip(names, SHAPES[spec.path], strict=True)))
    options = {"revision": spec.revision, "local_files_only": True, "trust_remote_code": False}
    try:
        return AutoConfig.from_pretrained(spec.path, **options)
    except (OSError, ValueError):
        return None


def data_size(profile: Profile, paths: RunPaths, name: str) -> DataSize | None:
    """Size of a data set: as read by 01_cluster, else as published; None if unknown."""
    examples, spec = paths.examples(name), profile.dataset(name)
    if examples.exists():
        frame = pd.read_parquet(examples, columns=["instruction", "response"])
        characters = frame["instruction"].str.len().sum() + frame["response"].str.len().sum()
        return DataSize(len(frame), characters / CHARACTERS_PER_TOKEN / len(frame), "read by 01_cluster")
    if spec.path not in DATA_SETS:
        return None
    rows, tokens = DATA_SETS[spec.path]
    return DataSize(min(rows, profile.n_rows_limit or rows), tokens, "published rows, assumed tokens a row")


def parameters(config: PreTrainedConfig) -> int:
    """Number of weights of a causal language model, from its configuration (built without storage)."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


# ---- the estimates ---------------------------------------------------------------------------------------------------


class Costs:
    """Hours, bytes and their basis for one profile on one machine; `shapes`: model -> its configuration."""

    def __init__(
        self, profile: Profile, paths: RunPaths, machine: Machine, shapes: Mapping[str, PreTrainedConfig]
    ) -> None:
        self.profile = profile
        self.paths = paths
        self.machine = machine
        self.shapes = shapes
        self.memory, self.bandwidth = GPUS[machine.gpu]
        self.peak = peak_of(machine.gpu) or float("nan")  # every GPU of GPUS has one
        self.utilization = MFU[profile.tuning]
        self.weights = {name: parameters(shape) for name, shape in shapes.items()}
        self.runs = [run for run in profile.runs() if run.model in shapes]
        # operations a weight and token in training: forward 2, backward 4 (2 past frozen weights), forward again 2
        self.flops_per_weight = 6 if profile.tuning == "full" else 4
        if profile.gradient_checkpointing:
            self.flops_per_weight += 2
        # FSDP shares weights, gradients and optimizer; an adapter's base stands whole on every GPU
        self.shards = machine.count if profile.tuning == "full" else 1

    @cached_property
    def sizes(self) -> dict[str, DataSize | None]:
        names = dict.fromkeys(run.dataset for run in self.runs if run.dataset)
        return {name: data_size(self.profile, self.paths, name) for name in names}

    @property
    def known_sizes(self) -> dict[str, DataSize]:
        return {name: size for name, size in self.sizes.items() if size}

    # ---- time

    def training_seconds(self, run: Run) -> float:
        """Slots x operations x weights / (peak x MFU x GPUs), slots being the tokens of all epochs with padding."""
        size = self.known_sizes[str(run.dataset)]
        padding = PADDING.get(str(run.strategy), PADDING["dynamic_pack"])  # the last for a strategy of one's own
        slots = size.rows * (run.ratio or 1.0) * size.tokens * self.profile.num_train_epochs / (1 - padding)
        operations = slots * self.flops_per_weight * self.weights[run.model]
        return operations / (self.peak * self.utilization * self.machine.count)

    def scoring_seconds(self, dataset: str, model: str) -> float:
        """Two forward passes (with the instruction and without) over all tokens, 2 operations a weight and token."""
        size = self.known_sizes[dataset]
        operations = 2 * 2 * size.rows * size.tokens * self.weights[model]
        return operations / (self.peak * self.utilization * self.machine.count)

    def embedding_seconds(self, size: DataSize) -> float:
        """One forward pass of the embedding model over all tokens, on one GPU."""
        return 2 * EMBEDDING_PARAMETERS * size.rows * size.tokens / (self.peak * self.utilization)

    def generation_seconds(self, model: str) -> float:
        """Decoding steps x (the weights read once in 16 bits + overhead), on one GPU, every answer at its longest."""
        profile = self.profile
        batches = 0
        for name in profile.benchmarks:
            tasks = min(TASKS.get(name.partition("@")[0], 160), profile.benchmark_limit or 10**9)
            batches += math.ceil(tasks / profile.generation_batch_size)
        return batches * profile.max_new_tokens * (2 * self.weights[model] / self.bandwidth + STEP_OVERHEAD)

    def run_lines(self) -> Iterator[str]:
        """A line for each training, with what the paper reports for it, and the sum of everything."""
        gpus = self.machine.count
        trained = [run for run in self.runs if run.dataset in self.known_sizes]
        for run in trained:
            rows = self.known_sizes[str(run.dataset)].rows * (run.ratio or 1.0)
            seconds = self.training_seconds(run)
            cost = f"{rows:,.0f} rows, {seconds / 60:,.0f} min = {seconds * gpus / 3600:.1f} GPU h (estimate)"
            yield f"  {run.run_id}: {cost}{_reported(self.profile, self.paths, run)}"
        for name in [name for name, size in self.sizes.items() if size is None]:
            yield f"  {name}: not estimated before 01_cluster has read it, its size is not known"
        scored = dict.fromkeys((str(run.dataset), run.model) for run in trained)
        seconds_of = {
            "training": gpus * sum(self.training_seconds(run) for run in trained),
            "IFD scoring": gpus * sum(self.scoring_seconds(*pair) for pair in scored),
            "embedding": sum(self.embedding_seconds(size) for size in self.known_sizes.values()),
            "generation": sum(self.generation_seconds(run.model) for run in self.runs),
        }
        yield f"  GPU hours (estimate): {sum(seconds_of.values()) / 3600:,.1f} ({_listed(seconds_of, 3600)})"

    # ---- memory

    def memory_by_slots(self, model: str) -> Callable[[float], dict[str, float]]:
        """`training.memory.memory_by_slots` of a training of this profile."""
        profile = self.profile
        dtype = torch.float32
        if profile.tuning != "full" and profile.bf16:
            dtype = torch.bfloat16
        elif profile.tuning != "full" and profile.fp16:
            dtype = torch.float16
        return memory_by_slots(
            self.shapes[model],
            tuning=profile.tuning,
            targets=tuple(profile.lora_target_modules),
            lora_r=profile.lora_r,
            dtype=dtype,
            optim=str(profile.training_arguments.get("optim", "adamw")),
            ranks=self.shards,
            gradient_checkpointing=profile.gradient_checkpointing,
            half_precision=profile.bf16 or profile.fp16,
        )

    def memory_for(self, model: str) -> dict[str, float]:
        """Bytes by purpose of a training of this profile, its micro-batches full."""
        return self.memory_by_slots(model)(self.profile.per_device_train_batch_size * self.profile.max_length)

    def memory_lines(self) -> Iterator[str]:
        """The predicted peak of each model with full micro-batches, and what the planner would do about it."""
        for name in dict.fromkeys(run.model for run in self.runs):
            parts = self.memory_for(name)
            peak = f"{sum(parts.values()) / 1e9:.1f} of {self.memory / 1e9:.1f} GB"
            yield f"  memory per GPU (estimate), {name}: {peak} ({_listed(parts, 1e9)})"
            yield f"    {self.training_fit(name)}"
            yield f"    {self.evaluation_fit(name)}"

    def training_fit(self, name: str) -> str:
        """What the planner of a training would do where micro-batches are full."""
        profile = self.profile
        by_slots = self.memory_by_slots(name)

        def need(layout: BatchLayout) -> float:
            return sum(by_slots(layout.per_device_train_batch_size * layout.max_length).values())

        layout = BatchLayout(
            profile.per_device_train_batch_size, profile.gradient_accumulation_steps, profile.max_length
        )
        try:
            _, plan = fit_layout(layout, need, self.memory, self.machine.gpu)
        except CodeActError as error:
            return f"does not fit: {error}"
        if plan["lowered"]:
            return f"full micro-batches would be lowered: {plan['lowered']}; training plans with its own samples"
        return "fits as it is"

    def evaluation_fit(self, name: str) -> str:
        """Whether evaluation fits: weights, and keys and values (16 bits) of a batch of answers at their longest."""
        config = self.shapes[name]
        batch = self.profile.generation_batch_size
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        per_token = 2 * 2 * config.num_hidden_layers * heads * (config.hidden_size // config.num_attention_heads)
        answer = (self.profile.max_new_tokens + PROMPT_TOKENS) * per_token
        weights = float(2 * self.weights[name])
        if self.profile.tuning == "qlora":
            weights = self.memory_for(name)["weights"]
        usable = HEADROOM * self.memory
        line = f"evaluation (estimate): weights {weights / 1e9:.1f} + {batch} answers {batch * answer / 1e9:.1f} GB"
        if weights + answer > usable:
            return f"{line}: scoring and evaluation do not fit at any batch size, take a larger GPU"
        if weights + batch * answer > usable:
            return f"{line}: not at once, generation will lower its batch"
        return line

    # ---- disk

    def disk_line(self) -> str:
        """What the hub's cache, the trained models, the checkpoints of one training and the embeddings take."""
        trained = {name: self.memory_for(name)["gradients"] * self.shards / 4 for name in self.shapes}
        parts = {
            "models from the hub": sum(2 * weights for weights in self.weights.values()),
            "trained models": sum(4 * trained[run.model] for run in self.runs if not run.is_base),
            "checkpoints of a training under way": 3 * 12 * max(trained.values(), default=0),
            "embeddings": sum(size.rows * EMBEDDING_WIDTH * 4 for size in self.known_sizes.values()),
        }
        return f"  disk (estimate): {sum(parts.values()) / 1e9:,.1f} GB ({_listed(parts, 1e9)})"

    # ---- where the numbers come from

    def basis_lines(self) -> Iterator[str]:
        """The formula and the assumptions behind each number above."""
        strategies = dict.fromkeys(run.strategy for run in self.runs if run.strategy in PADDING)
        padding = ", ".join(f"{name} {PADDING[name]:.0%}" for name in strategies)
        sizes = [f"{name} {s.rows:,} rows of {s.tokens:.0f} tokens, {s.basis}" for name, s in self.known_sizes.items()]
        passes = 6 if self.profile.tuning == "full" else 4
        again = ", 2 for gradient checkpointing" if self.profile.gradient_checkpointing else ""
        yield "  basis"
        yield f"    data: {'; '.join(sizes)}; an arm keeps at most ratio x rows"
        yield (
            f"    training: tokens x epochs / (1 - padding) x {self.flops_per_weight} x weights / (peak x utilisation "
            f"x GPUs); {passes} for forward and backward{again}"
        )
        yield (
            f"    peak {self.peak / 1e12:.0f} TFLOP/s (data sheet), utilisation {self.utilization:.0%} (assumed), "
            f"padding {padding} (assumed; about the means of arXiv 2504.12687)"
        )
        yield "    IFD scoring: 4 x weights x tokens, two forward passes; embedding: 2 x 110M weights x tokens"
        yield (
            f"    generation: batches x max_new_tokens x (2 bytes x weights / {self.bandwidth / 1e12:.2g} TB/s + "
            f"{STEP_OVERHEAD * 1000:.0f} ms), on one GPU, every answer at its longest; judging takes no GPU"
        )
        yield (
            "    memory: weights + gradients + optimizer (16 bytes a trained weight, shared by the GPUs under FSDP) + "
            "activations of per_device_train_batch_size x max_length tokens; evaluation: 2 bytes a weight (4 bits for "
            f"qlora), and keys and values of {PROMPT_TOKENS} + max_new_tokens tokens an answer"
        )
        yield "    disk: 2 bytes a weight of the hub's, 4 a trained weight that is kept, 3 x 12 for checkpoints"


def _listed(parts: Mapping[str, float], unit: float) -> str:
    return ", ".join(f"{name} {value / unit:,.1f}" for name, value in parts.items())


def _reported(profile: Profile, paths: RunPaths, run: Run) -> str:
    """What the paper says a training took, where its table has this model, data set and arm."""
    model, dataset = profile.model(run.model), profile.dataset(str(run.dataset))
    codeact: dict[tuple, str] = {("full", 1.0, "dynamic"): "false", ("cdas", 0.4, "dynamic_pack"): "true"}
    wanted = (dataset.reported_as, model.reported_as, model.size, codeact.get((run.policy, run.ratio, run.strategy)))
    path = paths.root / "results" / "reported" / "rq1.csv"
    if None in wanted or not path.exists():
        return ""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if (row["dataset"], row["model"], row["size"], row["codeact"]) == wanted:
                return f"; the paper reports {row['training_time_min']} min and {row['peak_memory_gb']} GB"
    return ""
