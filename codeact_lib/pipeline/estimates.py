"""What a profile will cost before any of it is run: GPU hours, memory and disk, each with the formula it comes from."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
import yaml
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from codeact_lib import measure
from codeact_lib.artifacts import RunPaths
from codeact_lib.config import ModelSpec, Profile, Run
from codeact_lib.errors import CodeActError
from codeact_lib.training.launch import accelerate_config_path
from codeact_lib.training.memory import HEADROOM, BatchLayout, fit_layout, memory_by_slots, without_weights

# Nothing here is measured. A number is a formula applied to these published sizes and assumptions, and is printed with
# both. What a data set really holds is taken from 01_cluster as soon as that has run.
FIGURES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
GPUS = {name: row for name, row in measure.GPUS.items() if "memory" in row}
MFU = FIGURES["utilisation"]
PADDING = FIGURES["padding"]


@dataclass(frozen=True)
class Machine:
    """The GPUs an estimate is for: a name of `GPUS`, how many, and whether that was seen or assumed."""

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
    machine = machine_for(profile, gpu)
    costs = Costs(profile, paths, machine, shapes)
    yield f"estimates (nothing of this is measured) for {machine.count} x {machine.gpu}, {machine.basis}"
    yield from costs.run_lines()
    yield from costs.memory_lines()
    yield costs.disk_line()
    yield from costs.basis_lines()


def machine_for(profile: Profile, gpu: str = "") -> Machine:
    """The GPUs to plan for: named, else those here, else what the profile was written for."""
    count = 1  # processes of a training: what the accelerate configuration names, one without a launcher
    if profile.launcher == "accelerate" and profile.accelerate_config:
        text = accelerate_config_path(profile.accelerate_config).read_text(encoding="utf-8")
        count = int(yaml.safe_load(text).get("num_processes") or 1)
    wanted = gpu
    basis = "as asked for"
    if not gpu and torch.cuda.is_available():
        wanted = torch.cuda.get_device_name()
        basis = "the GPU here"
    for name in GPUS:
        if name.lower() in wanted.lower():
            return Machine(name, count, basis)
    if gpu:
        raise CodeActError(f"--gpu {gpu}: no figures for this GPU; known are {', '.join(GPUS)}.")
    assumed = "A100" if profile.tuning == "full" else "T4"
    return Machine(assumed, count, "assumed, as no known GPU is here (--gpu NAME)")


def model_shape(spec: ModelSpec) -> PreTrainedConfig | None:
    """A configuration of the model by its published shape or from its folder; None where neither is at hand."""
    if spec.path in FIGURES["shapes"]:
        return LlamaConfig(**FIGURES["shapes"][spec.path])
    options = {"revision": spec.revision, "local_files_only": True, "trust_remote_code": False}
    try:
        return AutoConfig.from_pretrained(spec.path, **options)
    except (OSError, ValueError):
        return None


@dataclass
class Costs:
    """Hours, bytes and their basis for one profile on one machine."""

    profile: Profile
    paths: RunPaths
    machine: Machine
    shapes: Mapping[str, PreTrainedConfig]  # model -> its configuration

    def __post_init__(self) -> None:
        self.gpu = GPUS[self.machine.gpu]
        self.memory = self.gpu["memory"]
        self.mfu = MFU[self.profile.tuning]
        self.speed = self.gpu["tflops"] * 1e12 * self.mfu
        self.models = {name: without_weights(shape) for name, shape in self.shapes.items()}
        self.weights = {name: model.num_parameters() for name, model in self.models.items()}
        self.runs = [run for run in self.profile.runs() if run.model in self.shapes]
        # Operations a weight and token in training: forward 2, backward 4 (2 past frozen weights), forward again 2.
        # FSDP shares weights, gradients and optimizer; an adapter's base stands whole on every GPU.
        self.passes = 4
        self.shards = 1
        if self.profile.tuning == "full":
            self.passes = 6
            self.shards = self.machine.count
        self.again = 2 * self.profile.gradient_checkpointing
        self.operations = self.passes + self.again

    @cached_property
    def sizes(self) -> dict[str, DataSize]:
        """Data set -> its size as read by 01_cluster, else as published; without those of which neither is known."""
        found = {}
        for spec in self.profile.datasets:
            published = FIGURES["data_sets"].get(spec.path)
            if self.paths.examples(spec.name).exists():
                texts = pd.read_parquet(self.paths.examples(spec.name), columns=["instruction", "response"])
                tokens = texts.map(len).sum().sum() / FIGURES["characters_per_token"]
                found[spec.name] = DataSize(len(texts), tokens / len(texts), "read by 01_cluster")
            elif published:
                rows = min(published["rows"], self.profile.n_rows_limit or published["rows"])
                found[spec.name] = DataSize(rows, published["tokens"], "published rows, assumed tokens a row")
        return found

    def training_seconds(self, run: Run) -> float:
        """Slots x operations x weights / (speed x GPUs), slots being the tokens of all epochs with padding."""
        size = self.sizes[str(run.dataset)]
        padding = PADDING.get(str(run.strategy), PADDING["dynamic_pack"])  # the last for a strategy of one's own
        slots = size.rows * (run.ratio or 1.0) * size.tokens * self.profile.num_train_epochs / (1 - padding)
        return slots * self.operations * self.weights[run.model] / (self.speed * self.machine.count)

    def generation_seconds(self, model: str) -> float:
        """Decoding steps x (the weights read once in 16 bits + overhead), on one GPU, every answer at its longest."""
        batches = 0
        for name in self.profile.benchmarks:
            tasks = FIGURES["tasks"].get(name.partition("@")[0], 160)
            batches += math.ceil(min(tasks, self.profile.benchmark_limit or tasks) / self.profile.generation_batch_size)
        step = 2 * self.weights[model] / self.gpu["bandwidth"] + FIGURES["step_overhead"]
        return batches * self.profile.max_new_tokens * step

    def run_lines(self) -> Iterator[str]:
        """A line for each training, with what the paper reports for it, and the sum of everything."""
        seconds = {"training": 0.0, "IFD scoring": 0.0, "embedding": 0.0, "generation": 0.0}
        scored = set()
        for run in self.runs:
            seconds["generation"] += self.generation_seconds(run.model)
            size = self.sizes.get(str(run.dataset))
            if size is None:
                continue
            each = self.training_seconds(run)
            gpu_seconds = each * self.machine.count
            seconds["training"] += gpu_seconds
            if (run.dataset, run.model) not in scored:
                # two forward passes, with the instruction and without, of 2 operations a weight and token
                seconds["IFD scoring"] += 2 * 2 * self.weights[run.model] * size.rows * size.tokens / self.speed
                scored.add((run.dataset, run.model))
            cost = f"{size.rows * (run.ratio or 1.0):,.0f} rows, {each / 60:,.0f} min = {gpu_seconds / 3600:.1f} GPU h"
            yield f"  {run.run_id}: {cost} (estimate){self._reported(run)}"
        for spec in self.profile.datasets:
            if spec.name not in self.sizes:
                yield f"  {spec.name}: not estimated before 01_cluster has read it, its size is not known"
        for size in self.sizes.values():
            seconds["embedding"] += 2 * FIGURES["embedding_weights"] * size.rows * size.tokens / self.speed
        yield f"  GPU hours (estimate): {sum(seconds.values()) / 3600:,.1f} ({_listed(seconds, 3600)})"

    def _reported(self, run: Run) -> str:
        """What the paper says a training took, where its table has this model, data set and arm."""
        arms = {("full", 1.0, "dynamic"): "false", ("cdas", 0.4, "dynamic_pack"): "true"}
        codeact = arms.get((str(run.policy), run.ratio or 1.0, str(run.strategy)))
        model = self.profile.model(run.model)
        wanted = [self.profile.dataset(str(run.dataset)).reported_as, model.reported_as, model.size, codeact]
        path = self.paths.root / "results" / "reported" / "rq1.csv"
        if path.exists():
            for row in pd.read_csv(path, dtype=str).to_dict("records"):
                if [row["dataset"], row["model"], row["size"], row["codeact"]] == wanted:
                    return f"; the paper reports {row['training_time_min']} min and {row['peak_memory_gib']} GiB"
        return ""

    def memory_by_slots(self, model: str) -> Callable[[float], dict[str, float]]:
        """`training.memory.memory_by_slots` of a training of this profile."""
        profile = self.profile
        return memory_by_slots(
            self.models[model],
            tuning=profile.tuning,
            targets=profile.lora_target_modules,
            lora_r=profile.lora_r,
            optim=str(profile.training_arguments.get("optim", "adamw")),
            ranks=self.shards,
            gradient_checkpointing=profile.gradient_checkpointing,
            half_precision=profile.bf16 or profile.fp16,
        )

    def memory_lines(self) -> Iterator[str]:
        """The predicted peak of each model with full micro-batches, and what would be done about it."""
        for name in dict.fromkeys(run.model for run in self.runs):
            by_slots = self.memory_by_slots(name)
            parts = by_slots(self.profile.per_device_train_batch_size * self.profile.max_length)
            peak = f"{sum(parts.values()) / 1e9:.1f} of {self.memory / 1e9:.1f} GB"
            yield f"  memory per GPU (estimate), {name}: {peak} ({_listed(parts, 1e9)})"
            yield f"    {self.training_fit(by_slots)}"
            yield f"    {self.evaluation_fit(name, parts['weights'])}"

    def training_fit(self, by_slots: Callable[[float], dict[str, float]]) -> str:
        """What the planner of a training would do where micro-batches are full."""

        def needs(layout: BatchLayout) -> dict[str, float]:
            return by_slots(layout.per_device_train_batch_size * layout.max_length)

        batch = (self.profile.per_device_train_batch_size, self.profile.gradient_accumulation_steps)
        layout = BatchLayout(*batch, self.profile.max_length)
        try:
            lowered = fit_layout(layout, needs, self.memory, self.machine.gpu)[1]["lowered"]
        except CodeActError as error:
            return f"does not fit: {error}"
        if lowered:
            return f"full micro-batches would be lowered: {lowered}; training plans with its own samples"
        return "fits as it is"

    def evaluation_fit(self, name: str, training_weights: float) -> str:
        """Whether evaluation fits: weights, and keys and values (16 bits) of a batch of answers at their longest."""
        config = self.shapes[name]
        batch = self.profile.generation_batch_size
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        per_token = 2 * 2 * config.num_hidden_layers * heads * (config.hidden_size // config.num_attention_heads)
        answer = (self.profile.max_new_tokens + FIGURES["prompt_tokens"]) * per_token
        weights = training_weights if self.profile.tuning == "qlora" else 2 * self.weights[name]
        line = f"evaluation (estimate): weights {weights / 1e9:.1f} + {batch} answers {batch * answer / 1e9:.1f} GB"
        if weights + answer > HEADROOM * self.memory:
            line += ": scoring and evaluation do not fit at any batch size, take a larger GPU"
        elif weights + batch * answer > HEADROOM * self.memory:
            line += ": not at once, generation will lower its batch"
        return line

    def disk_line(self) -> str:
        """What the hub's cache, the trained models, the checkpoints of one training and the embeddings take."""
        # what is trained takes as much as its gradients, which are in 32 bits
        trained = {name: self.memory_by_slots(name)(0)["gradients"] * self.shards for name in self.shapes}
        parts = {
            "models from the hub": sum(2 * weights for weights in self.weights.values()),
            "trained models": sum(trained[run.model] for run in self.runs if not run.is_base),
            # three of them, each with the two moments of AdamW beside the weights
            "checkpoints of a training under way": 3 * 3 * max(trained.values(), default=0),
            "embeddings": sum(size.rows * FIGURES["embedding_width"] * 4 for size in self.sizes.values()),
        }
        return f"  disk (estimate): {sum(parts.values()) / 1e9:,.1f} GB ({_listed(parts, 1e9)})"

    def basis_lines(self) -> Iterator[str]:
        """The formula and the assumptions behind each number above."""
        strategies = dict.fromkeys(run.strategy for run in self.runs if run.strategy in PADDING)
        sizes = [f"{name} {s.rows:,} rows of {s.tokens:.0f} tokens, {s.basis}" for name, s in self.sizes.items()]
        facts = {
            "data": "; ".join(sizes),
            "strategies": ", ".join(f"{name} {PADDING[name]:.0%}" for name in strategies),
            "bandwidth": self.gpu["bandwidth"] / 1e12,
        }
        yield "  basis"
        for line in FIGURES["basis"]:
            yield f"    {line.format(costs=self, **facts, **FIGURES)}"


def _listed(parts: Mapping[str, float], unit: float) -> str:
    return ", ".join(f"{name} {value / unit:,.1f}" for name, value in parts.items())
