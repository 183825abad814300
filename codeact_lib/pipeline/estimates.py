"""What a profile will cost before any of it is run: GPU hours, memory and disk, each with the formula it comes from.

Nothing here is measured. A number is a formula applied to published sizes (of models, data sets and GPUs) and to the
assumptions that stand in this file by name, and is printed with both. What a data set really holds is taken from
`01_cluster` as soon as that has run.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from codeact_lib.config import MINI_MODEL
from codeact_lib.errors import CodeActError

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


def estimate_lines(tasks, gpu=""):
    """The estimates of a plan (`pipeline.plan`) as lines of text; none for the mini model, whose runs take minutes."""
    profile, paths = tasks[0].profile, tasks[0].paths
    if all(spec.path == MINI_MODEL for spec in profile.models):
        return
    shapes = {spec.name: shape for spec in profile.models if (shape := model_shape(spec)) is not None}
    for spec in profile.models:
        if spec.name not in shapes:
            yield f"{spec.name}: costs are not estimated, its configuration is neither known nor in a folder or cache"
    if not shapes:
        return
    costs = Costs(profile, paths, machine_for(profile, gpu), shapes)
    machine = costs.machine
    yield f"estimates (nothing of this is measured) for {machine.count} x {machine.gpu}, {machine.basis}"
    yield from costs.run_lines()
    yield from costs.memory_lines()
    yield costs.disk_line()
    yield from costs.basis_lines()


# ---------------------------------------------------------------------------------------------- what is known


def machine_for(profile, gpu=""):
    """The GPUs to plan for: named, else those here, else what the profile was written for."""
    count = _processes(profile)
    if gpu:
        name = next((known for known in GPUS if known.lower() in gpu.lower()), None)
        if name is None:
            raise CodeActError(f"--gpu {gpu}: no figures for this GPU; known are {', '.join(GPUS)}.")
        return Machine(name, count, "as asked for")
    import torch

    here = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    name = next((known for known in GPUS if known in here), None)
    if name:
        return Machine(name, count, "the GPU here")
    return Machine("A100" if profile.tuning == "full" else "T4", count, "assumed, as no known GPU is here (--gpu NAME)")


def _processes(profile):
    """Processes of a training: what the accelerate configuration names, one without a launcher."""
    if profile.launcher != "accelerate" or not profile.accelerate_config:
        return 1
    from codeact_lib.training.launch import accelerate_config_path

    text = accelerate_config_path(profile.accelerate_config).read_text(encoding="utf-8")
    return int(yaml.safe_load(text).get("num_processes") or 1)


def model_shape(spec):
    """A configuration of the model by its published shape or from its folder; None where neither is at hand."""
    if Path(spec.path).is_absolute() and not (Path(spec.path) / "config.json").is_file():
        return None
    from transformers import AutoConfig, LlamaConfig

    if spec.path in SHAPES:
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        return LlamaConfig(**dict(zip(names, SHAPES[spec.path], strict=True)))
    try:
        return AutoConfig.from_pretrained(
            spec.path, revision=spec.revision, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError):
        return None


def data_size(profile, paths, name):
    """``(rows, tokens a row, basis)`` of a data set: as read by 01_cluster, else as published; None if unknown."""
    examples, spec = paths.examples(name), profile.dataset(name)
    if examples.exists():
        import pandas as pd

        frame = pd.read_parquet(examples, columns=["instruction", "response"])
        characters = frame["instruction"].str.len().sum() + frame["response"].str.len().sum()
        return len(frame), characters / CHARACTERS_PER_TOKEN / len(frame), "read by 01_cluster"
    if spec.path not in DATA_SETS:
        return None
    rows, tokens = DATA_SETS[spec.path]
    return min(rows, profile.n_rows_limit or rows), tokens, "published rows, assumed tokens a row"


def parameters(config):
    """Number of weights of a causal language model, from its configuration (built without storage)."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


# ---------------------------------------------------------------------------------------------- the estimates


class Costs:
    """Hours, bytes and their basis for one profile on one machine; ``shapes``: model -> its configuration."""

    def __init__(self, profile, paths, machine, shapes):
        from codeact_lib.measure import peak_of

        self.profile, self.paths, self.machine = profile, paths, machine
        self.memory, self.bandwidth = GPUS[machine.gpu]
        self.peak = peak_of(machine.gpu) or float("nan")  # every GPU of GPUS has one
        self.utilization = MFU[profile.tuning]
        self.shapes = shapes
        self.weights = {name: parameters(shape) for name, shape in shapes.items()}
        self.runs = [run for run in profile.runs() if run.model in self.shapes]

    @cached_property
    def sizes(self):
        """{data set: (rows, tokens a row, basis) or None}."""
        names = dict.fromkeys(run.dataset for run in self.runs if run.dataset)
        return {name: data_size(self.profile, self.paths, name) for name in names}

    @cached_property
    def flops_per_weight(self):
        """Operations a weight and token in training: forward 2, backward 4 (2 past frozen weights), forward again 2."""
        return (6 if self.profile.tuning == "full" else 4) + (2 if self.profile.gradient_checkpointing else 0)

    def training_seconds(self, run):
        """Slots x operations x weights / (peak x MFU x GPUs), slots being the tokens of all epochs with padding."""
        rows, per_row, _ = self.sizes[run.dataset]
        padding = PADDING.get(run.strategy, PADDING["dynamic_pack"])  # the last for a strategy of one's own
        slots = rows * run.ratio * per_row * self.profile.num_train_epochs / (1 - padding)
        return (
            slots
            * self.flops_per_weight
            * self.weights[run.model]
            / (self.peak * self.utilization * self.machine.count)
        )

    def scoring_seconds(self, dataset, model):
        """Two forward passes (with the instruction and without) over all tokens, 2 operations a weight and token."""
        rows, per_row, _ = self.sizes[dataset]
        return 2 * 2 * rows * per_row * self.weights[model] / (self.peak * self.utilization * self.machine.count)

    def generation_seconds(self, model):
        """Decoding steps x (the weights read once in 16 bits + overhead), on one GPU, every answer at its longest."""
        profile, most = self.profile, self.profile.benchmark_limit or 10**9
        tasks = [min(TASKS.get(name.partition("@")[0], 160), most) for name in profile.benchmarks]
        steps = sum(-(-n // profile.generation_batch_size) for n in tasks) * profile.max_new_tokens
        return steps * (2 * self.weights[model] / self.bandwidth + STEP_OVERHEAD)

    # ---- time

    def run_lines(self):
        """A line for each training, with what the paper reports for it, and the sum of everything."""
        trained = [run for run in self.runs if run.dataset and self.sizes[run.dataset]]
        for run in trained:
            rows, seconds = self.sizes[run.dataset][0], self.training_seconds(run)
            cost = (
                f"{rows * run.ratio:,.0f} rows, {seconds / 60:,.0f} min = {self._hours(seconds):.1f} GPU h (estimate)"
            )
            yield f"  {run.run_id}: {cost}{_reported(self.profile, self.paths, run)}"
        for name in (name for name, size in self.sizes.items() if size is None):
            yield f"  {name}: not estimated before 01_cluster has read it, its size is not known"
        scored = dict.fromkeys((run.dataset, run.model) for run in trained)
        hours = {
            "training": sum(self._hours(self.training_seconds(run)) for run in trained),
            "IFD scoring": sum(self._hours(self.scoring_seconds(*pair)) for pair in scored),
            "embedding": sum(self._embedding_hours(size) for size in self.sizes.values() if size),
            "generation": sum(self.generation_seconds(run.model) / 3600 for run in self.runs),
        }
        parts = ", ".join(f"{name} {number:.1f}" for name, number in hours.items())
        yield f"  GPU hours (estimate): {sum(hours.values()):,.1f} ({parts})"

    def _hours(self, seconds):
        return seconds * self.machine.count / 3600

    def _embedding_hours(self, size):
        return 2 * EMBEDDING_PARAMETERS * size[0] * size[1] / (self.peak * self.utilization) / 3600

    # ---- memory

    def memory_for(self, model, batch=None, max_length=None):
        """`preflight.memory_estimate` of a training of this profile, its micro-batches full."""
        import torch

        from codeact_lib.training.memory import memory_estimate

        profile = self.profile
        half = torch.bfloat16 if profile.bf16 else torch.float16 if profile.fp16 else None
        return memory_estimate(
            self.shapes[model],
            tuning=profile.tuning,
            targets=tuple(profile.lora_target_modules),
            lora_r=profile.lora_r,
            dtype=torch.float32 if profile.tuning == "full" else half or torch.float32,
            optim=str(profile.training_arguments.get("optim", "adamw")),
            slots=(batch or profile.per_device_train_batch_size) * (max_length or profile.max_length),
            ranks=self._shards(),
            gradient_checkpointing=profile.gradient_checkpointing,
            half_precision=half is not None,
        )

    def _shards(self):
        return self.machine.count if self.profile.tuning == "full" else 1

    def memory_lines(self):
        """The predicted peak of each model with full micro-batches, and what the planner would do about it."""
        for name in dict.fromkeys(run.model for run in self.runs):
            parts = self.memory_for(name)
            shares = ", ".join(f"{part} {size / 1e9:.1f}" for part, size in parts.items())
            peak = sum(parts.values()) / 1e9
            yield f"  memory per GPU (estimate), {name}: {peak:.1f} of {self.memory / 1e9:.1f} GB ({shares})"
            yield f"    {self._fitted(name)}"
            yield f"    {self._answering(name)}"

    def _answering(self, name):
        """Whether evaluation fits: weights, and keys and values (16 bits) of a batch of answers at their longest."""
        from codeact_lib.training.memory import HEADROOM

        config, batch = self.shapes[name], self.profile.generation_batch_size
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        per_token = 2 * 2 * config.num_hidden_layers * heads * (config.hidden_size // config.num_attention_heads)
        weights = self.memory_for(name)["weights"] if self.profile.tuning == "qlora" else 2 * self.weights[name]
        usable = HEADROOM * self.memory
        cache = batch * (self.profile.max_new_tokens + PROMPT_TOKENS) * per_token
        verdict = "" if weights + cache <= usable else ": not at once, generation will lower its batch"
        if weights + cache / batch > usable:
            verdict = ": scoring and evaluation do not fit at any batch size, take a larger GPU"
        return f"evaluation (estimate): weights {weights / 1e9:.1f} + {batch} answers {cache / 1e9:.1f} GB{verdict}"

    def _fitted(self, name):
        from codeact_lib.training.memory import BatchLayout, fit_layout

        profile = self.profile
        steps = profile.per_device_train_batch_size, profile.gradient_accumulation_steps
        none, one = (sum(self.memory_for(name, 1, length).values()) for length in (1, 2))

        def need(layout):  # the estimate is linear in slots
            return none + (layout.per_device_train_batch_size * layout.max_length - 1) * (one - none)

        try:
            _, plan = fit_layout(BatchLayout(*steps, profile.max_length), need, self.memory, self.machine.gpu)
        except CodeActError as error:
            return f"does not fit: {error}"
        if plan["lowered"]:
            return f"full micro-batches would be lowered: {plan['lowered']}; training plans with its own samples"
        return "fits as it is"

    # ---- disk

    def disk_line(self):
        """What the hub's cache, the trained models, the checkpoints of one training and the embeddings take."""
        trained = {name: self.memory_for(name)["gradients"] * self._shards() / 4 for name in self.shapes}
        parts = {
            "models from the hub": sum(2 * self.weights[name] for name in self.weights),
            "trained models": sum(4 * trained[run.model] for run in self.runs if not run.is_base),
            "checkpoints of a training under way": 3 * 12 * max(trained.values(), default=0),
            "embeddings": sum(size[0] * EMBEDDING_WIDTH * 4 for size in self.sizes.values() if size),
        }
        shown = ", ".join(f"{name} {size / 1e9:,.1f}" for name, size in parts.items())
        return f"  disk (estimate): {sum(parts.values()) / 1e9:,.1f} GB ({shown})"

    # ---- where the numbers come from

    def basis_lines(self):
        """The formula and the assumptions behind each number above."""
        padding = ", ".join(
            f"{name} {PADDING[name]:.0%}" for name in dict.fromkeys(r.strategy for r in self.runs) if name in PADDING
        )
        data = "; ".join(f"{name} {s[0]:,} rows of {s[1]:.0f} tokens, {s[2]}" for name, s in self.sizes.items() if s)
        yield "  basis"
        yield f"    data: {data}; an arm keeps at most ratio x rows"
        yield (
            f"    training: tokens x epochs / (1 - padding) x {self.flops_per_weight} x weights / (peak x utilisation "
            f"x GPUs); {6 if self.profile.tuning == 'full' else 4} for forward and backward"
            + (", 2 for gradient checkpointing" if self.profile.gradient_checkpointing else "")
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


def _reported(profile, paths, run):
    """What the paper says a training took, where its table has this model, data set and arm."""
    model, dataset = profile.model(run.model), profile.dataset(run.dataset)
    codeact = {("full", 1.0, "dynamic"): "false", ("cdas", 0.4, "dynamic_pack"): "true"}
    wanted = (dataset.reported_as, model.reported_as, model.size, codeact.get((run.policy, run.ratio, run.strategy)))
    path = paths.root / "results" / "reported" / "rq1.csv"
    if None in wanted or not path.exists():
        return ""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if (row["dataset"], row["model"], row["size"], row["codeact"]) == wanted:
                return f"; the paper reports {row['training_time_min']} min and {row['peak_memory_gb']} GB"
    return ""
