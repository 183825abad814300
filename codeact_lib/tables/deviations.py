"""Where this project departs from the paper and from its authors' code: one list, for the document and for the reports.

    python -m codeact_lib.tables.deviations      # writes docs/deviations.md

``DEVIATIONS`` says why, one entry a point; ``SWITCHES`` says for every profile key that changes the method what the
paper or the released code has, so that values are read from the profiles and never copied. Keys that only change speed,
names or where things go stand in ``NO_METHOD``; together the two name every key of a profile.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from codeact_lib.artifacts import atomic_write, project_root
from codeact_lib.config import load_profile, profile_names

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Deviation:
    """A point where paper, authors' code and this project differ.

    switches: profile keys that decide, of ``SWITCHES``. elsewhere: what decides outside of profiles, in Markdown: a
    folder, a command, a function, a field of the metrics.
    """

    point: int
    paper: str
    authors: str
    ours: str
    effect: str
    switches: tuple[str, ...] = ()
    elsewhere: str = ""


@dataclass(frozen=True)
class Switch:
    """A profile key that changes the method, and what the paper or the released code has for it."""

    key: str
    subject: str
    theirs: object = NOT_STATED


DEVIATIONS = (
    Deviation(
        1,
        "DeepSeek-Coder-6.7B on EVOL-Instruct: HumanEval 58.5 → 67.1",
        "The follow-up reports 67.7 for the same full-data baseline",
        "Print *paper*, *follow-up* and *measured* apart, each with its own bold; no number is a target",
        "The headline +8.6 points becomes -0.6",
        elsewhere="the files of `results/reported/`",
    ),
    Deviation(
        2,
        "MBPP+ scores, no version given",
        "EvalPlus 0.2.1: MBPP+ v0.1.0, 399 tasks",
        "EvalPlus 0.3.1: v0.2.0, 378 tasks; version and task count on every measured row; † on reported rows that fit "
        "only the other version, ‡ on numbers that are no k/n, § on measured rows of another version than the rest",
        "About 4 points between versions; they are never mixed in one comparison",
        ("benchmarks", "benchmark_limit"),
        "`mbpp@v0.1.0` asks for the old version",
    ),
    Deviation(
        3,
        "One run, point values",
        "One run, point values",
        "k/n, a 95% interval and a paired test between the arms; several training runs if asked for, then mean ± "
        "spread",
        "On 164 tasks one standard error at 60% is 3.8 points",
        ("seeds",),
        "`codeact run --grid full`",
    ),
    Deviation(
        4,
        "Training time -78%",
        "Compares 40% of the data *with* packing to all data *without*; IFD scoring not counted",
        "A cost ledger with scoring and break-even, and any cell of the 2×2 {full, 40%} × {dynamic padding, "
        "Dynamic Pack}",
        "Separates what the selection saves (×0.4) from what packing saves (×0.5 to 0.7)",
        ("arms",),
        "`codeact run --grid full`",
    ),
    Deviation(
        5,
        "Dynamic Pack joins samples in a row; attention not discussed",
        "Positions run on over the row and attention is plain causal: a sample sees its neighbours",
        "Positions restart and each sample attends to itself only, equal to the unpacked loss; packing over the whole "
        "optimizer step and balanced packing also offered",
        "Without isolation logits of later samples move by up to 2.1 and the gradient by 45%",
        ("isolate", "packing_scope", "preset"),
        "strategy `balanced_pack` of an arm",
    ),
    Deviation(
        6,
        "IFD = PPL(answer given instruction) / PPL(answer)",
        "Batch of one in fp16; prompt and answer tokenised jointly in one pass and apart in the other; without a "
        "BOS the "
        'first token is skipped; a failure scores 0, "easiest", and counts; rows with an empty side are dropped',
        "The training template; answer ids equal in both passes; a start token in the direct pass; a status per row, "
        "failures never chosen; NLL sums and counts stored, so the ratio of losses can be had too",
        "Another ranking at the edges; failed rows no longer swell the quota of a cluster",
        ("preset", "ifd_dtype", "invalid_rows", "scorer"),
        "`ifd.ifd_from_nll`",
    ),
    Deviation(
        7,
        "Loss not discussed",
        "Averages the means of the micro-batches of a step",
        "Divides by the supervised tokens of the whole step, over micro-batches and processes",
        "Every supervised token weighs the same, however the step is cut",
        ("preset",),
        "`loss_normalization` of `training.fine_tune`",
    ),
    Deviation(
        8,
        "Peak GPU memory",
        "A monitor empties the CUDA cache on every step",
        "Reads the allocator's own peak once at the end; without a GPU the growth of resident memory in a fresh "
        "process; `peak_memory_kind` in the metrics says which",
        "Neither the speed nor the peak is changed by looking",
        ("training_arguments",),
        "`torch_empty_cache_steps: 1` among them empties the cache as theirs does",
    ),
    Deviation(
        9,
        "One prompt format per model",
        "DeepSeek is trained with its own template and evaluated with the tokenizer's chat template",
        "One template object scores, trains and evaluates; the wording of the evaluation requests is our own",
        "The prompt a model is judged on is the one it was trained on; the reading of an answer alone is worth 3.7 "
        "points",
        ("models", "protocol"),
        "`template` of an entry of `models`",
    ),
    Deviation(
        10,
        "No random baseline",
        "None",
        "A random 40% with the same packing in the default grid of mini; longest, IFD-only and stratified policies on "
        "request",
        "Only with it can a gain be credited to CDAS",
        ("arms",),
        "`codeact run --grid full`",
    ),
    Deviation(
        11,
        "Decontamination not discussed",
        "None",
        "Training rows that hold a benchmark task or nearly one are reported by 01_cluster and 03_sample and can "
        "be left out; the mini benchmark is held out by construction",
        "82 of 164 HumanEval problems were found solvable straight from a public EVOL-type set (ise-uiuc/magicoder, "
        "issue 40)",
        elsewhere="`data.find_leaks`, `overlap.drop_leaks`, `codeact select --drop-leaks`",
    ),
    Deviation(
        12,
        "pass@1 by EvalPlus",
        "Counts what EvalPlus says",
        "A pass counts only if the solution gives the same answers in a process that never held the expected outputs; "
        "what is left is listed as `unconfirmed`, and EvalPlus's own count stands beside as `plain`",
        "None on honest code: all canonical solutions are confirmed (164 and 378). EvalPlus alone counts each of ten "
        "kinds of faked passes",
        ("min_time_limit",),
        "`evaluation.evaluate_solutions`",
    ),
)

# Every profile key that changes the method, in the order of a profile, with the paper's or the authors' value.
SWITCHES = (
    Switch("preset", "Habits of the released code", "authors"),
    Switch("datasets", "Instruction sets", ["EVOL-Instruct", "OSS-Instruct"]),
    Switch("models", "Base models", ["CodeLlama 7B", "CodeLlama 13B", "DeepSeek-Coder 6.7B"]),
    Switch("arms", "Arms compared", ["full 100% dynamic", "cdas 40% dynamic_pack"]),
    Switch("seeds", "Training runs an arm", 1),
    Switch("benchmarks", "Benchmarks", ["humaneval", "mbpp@v0.1.0"]),
    Switch("invalid_rows", "Rows with an empty side", "drop"),
    Switch("n_rows_limit", "First rows only", None),
    Switch("benchmark_limit", "First tasks only", None),
    Switch("embedding_model", "Embedding model", "all-mpnet-base-v2"),
    Switch("n_clusters", "Clusters", 10),
    Switch("cluster_random_state", "Random state of K-Means", 42),
    Switch("scorer", "Another model scores IFD", None),
    Switch("ifd_dtype", "Precision of IFD scoring", "float16"),
    Switch("tuning", "Tuning", "full"),
    Switch("lora_r", "LoRA rank", 8),
    Switch("lora_alpha", "LoRA alpha", 16),
    Switch("lora_dropout", "LoRA dropout", 0.1),
    Switch(
        "lora_target_modules",
        "LoRA projections",
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ),
    Switch("max_length", "Maximum length", 2048),
    Switch("num_train_epochs", "Epochs", 3.0),
    Switch("per_device_train_batch_size", "Samples per device and step", 16),
    Switch("gradient_accumulation_steps", "Accumulation steps", 4),
    Switch("learning_rate", "Learning rate", 5e-5),
    Switch("lr_scheduler_type", "Schedule", "cosine"),
    Switch("warmup_steps", "Warm-up steps", 15),
    Switch("weight_decay", "Weight decay"),
    Switch("max_grad_norm", "Gradient clipping"),
    Switch("bf16", "bfloat16 training", True),
    Switch("fp16", "float16 training", False),
    Switch("attn_implementation", "Attention kernel", "flash_attention_2"),
    Switch("isolate", "Isolation of packed samples", False),
    Switch("packing_scope", "Packed together", "batch"),
    Switch("overlong", "Samples over the maximum"),
    Switch("training_arguments", "Other trainer arguments", {"torch_empty_cache_steps": 1}),
    Switch("protocol", "Prompt of the evaluation", "authors"),
    Switch("max_new_tokens", "New tokens at most", 1024),
    Switch("min_time_limit", "Seconds a task may take at least"),
)
LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")  # without effect in full fine-tuning

# Keys that change speed, names and places, and no result.
NO_METHOD = (
    *("name", "description", "seed", "grid", "grids", "evaluate_base", "embedding_batch_size", "ifd_tokens_per_batch"),
    *("gradient_checkpointing", "save_steps", "logging_steps", "launcher", "accelerate_config", "torch_threads"),
    *("generation_engine", "generation_batch_size", "isolation", "eval_parallel"),
)


def deviations_in_force(profile) -> pd.DataFrame:
    """Where a profile departs from the paper: rows of docs/deviations.md, subject, switch, both values, effect.

    A switch whose value the paper does not state, or that has no effect in this profile, is left out.
    """
    rows = []
    for switch in SWITCHES:
        here = _value(profile, switch.key)
        idle = profile.tuning == "full" and switch.key in LORA
        if idle or switch.theirs == NOT_STATED or _same(switch, here):
            continue
        points = _points(switch.key)
        effects = ". ".join(entry.effect for entry in DEVIATIONS if entry.point in points)
        row = {"point": ", ".join(map(str, points)) or "-", "subject": switch.subject, "switch": switch.key}
        rows.append(row | {"paper": _words(switch.theirs), "here": _words(here), "effect": effects or "scale only"})
    return pd.DataFrame(rows, columns=["point", "subject", "switch", "paper", "here", "effect"])


def _points(key: str) -> list[int]:
    return [entry.point for entry in DEVIATIONS if key in entry.switches]


def _value(profile, key: str):
    """A key as it takes effect, short enough for a table; the preset ``authors`` overrules two others."""
    if profile.preset == "authors" and key in ("isolate", "packing_scope"):
        return {"isolate": False, "packing_scope": "batch"}[key]
    value = getattr(profile, key)
    short = {
        "arms": lambda arms: [f"{arm.policy} {arm.ratio:.0%} {arm.strategy}" for arm in arms],
        "models": lambda specs: [f"{spec.label} {spec.size}" for spec in specs],
        "datasets": lambda specs: [spec.label for spec in specs],
        "seeds": len,
        "scorer": lambda spec: spec and spec.path,
        "benchmarks": lambda names: [Path(name).name for name in names],
        "embedding_model": lambda name: Path(name).name,
    }
    return short[key](value) if key in short else value


def _same(switch: Switch, here) -> bool:
    return here == switch.theirs


def _words(value) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {entry}" for key, entry in value.items()) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


# The document

HEAD = """# Where this reproduction departs from the paper, and why

Written by `python -m codeact_lib.tables.deviations` from that module and the profiles; edit those.

Two presets cut across the profiles: `preset: authors` repeats the habits of the authors' released code (points 5, 6
and 7), `preset: corrected` (the default) does what the column "We do" says. "Switch" names the profile keys that
decide, with the value that gives the authors' behaviour where one value does (`codeact run --set key=value`, or a line
of the profile), and what decides outside of profiles. The report of a run lists what is in force in it. Sources: the
paper, arXiv 2408.02193; the authors' follow-up, arXiv 2504.12687; the behaviour of their released code.
"""
VALUES_HEAD = """## Every switch and its value

All profile keys that change the method, with what the paper or the released code has and what each shipped profile has.
Where mini and colab-qlora differ without a row above it is a matter of size: a laptop cannot train a 7B model.
Keys that are not listed change speed, names or places only.
"""


def deviations_document() -> str:
    """The text of docs/deviations.md."""
    profiles = {name: load_profile(name) for name in sorted(profile_names(), key=lambda name: name != "paper")}
    columns = ["#", "Paper says", "Authors' code does", "We do", "Switch", "Effect"]
    rows = [[str(e.point), e.paper, e.authors, e.ours, _switch_cell(e), e.effect] for e in DEVIATIONS]
    parts = [HEAD, _pipe_table(columns, rows), VALUES_HEAD]
    columns = ["Switch", "What it is", "Paper or authors' code", *profiles, "Row"]
    rows = []
    for switch in SWITCHES:
        values = [_words(_value(profile, switch.key)) for profile in profiles.values()]
        points = ", ".join(map(str, _points(switch.key)))
        rows.append([f"`{switch.key}`", switch.subject, _words(switch.theirs), *values, points])
    return "\n".join([*parts, _pipe_table(columns, rows)])


def _switch_cell(entry: Deviation) -> str:
    theirs = {switch.key: switch.theirs for switch in SWITCHES}
    keys = []
    for key in entry.switches:
        simple = theirs[key] != NOT_STATED and isinstance(theirs[key], str | bool | int | float)
        keys.append(f"`{key}: {_words(theirs[key])}`" if simple else f"`{key}`")
    return "; ".join([", ".join(keys), entry.elsewhere]).strip("; ")


def _pipe_table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    with atomic_write(project_root() / "docs" / "deviations.md") as document:
        document.write(deviations_document())
