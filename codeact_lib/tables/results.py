"""What is reported and what was measured, as flat rows: one a reported line, one an arm with all of its seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from codeact_lib.artifacts import project_root, read_frame, read_json, sha256_file
from codeact_lib.errors import ArtifactError
from codeact_lib.evaluation.records import is_sealed
from codeact_lib.statistics import pass_interval, seed_average

# kind of benchmark, base or plus tests, column, heading
BENCHMARKS = (
    ("humaneval", "base", "humaneval", "HumanEval"),
    ("humaneval", "plus", "humaneval_plus", "HumanEval+"),
    ("mbpp", "base", "mbpp", "MBPP"),
    ("mbpp", "plus", "mbpp_plus", "MBPP+"),
)
SCORES = [column for _, _, column, _ in BENCHMARKS]
HEADINGS = {column: heading for _, _, column, heading in BENCHMARKS}
KINDS = {column: kind for kind, _, column, _ in BENCHMARKS}
EFFICIENCY = ["training_time_min", "peak_memory_gb"]
BASELINE, CODEACT = ("full", 1.0, "dynamic"), ("cdas", 0.4, "dynamic_pack")
RANDOM = ("random", 0.4, "dynamic_pack")
STRATEGY_WORDS = {
    "traditional": "padding to the maximum",
    "dynamic": "dynamic padding",
    "dynamic_pack": "Dynamic Pack",
    "balanced_pack": "balanced pack",
    "flat": "flat rows",
}
BETWEEN_RUNS = "; "  # several runs, seeds or counts in one field


# Reading


def load_reported(folder: str | Path | None = None) -> dict[str, pd.DataFrame]:
    """The paper's tables ``rq1`` and ``rq2`` and the authors' ``followup`` (arXiv 2504.12687) as frames.

    Raises ``ArtifactError`` naming the file that is missing.
    """
    folder = Path(folder) if folder else project_root() / "results" / "reported"
    return {name: read_frame(folder / f"{name}.csv") for name in ("rq1", "rq2", "followup")}


def load_metrics(folder: str | Path, run_ids: Iterable[str] | None = None) -> list[dict]:
    """Metrics records of a profile in the order of ``run_ids`` (default: by name); runs without a file are left out.

    Each record gains ``metrics_sha256``, the hash of its file, which the report prints. Raises ``ArtifactError`` for a
    file that lacks a part or whose content no longer has the hash that 05_eval sealed it with.
    """
    folder = Path(folder)
    paths = [folder / f"{run_id}.json" for run_id in run_ids] if run_ids is not None else sorted(folder.glob("*.json"))
    return [_checked_record(path) for path in paths if path.is_file()]


def _checked_record(path: Path) -> dict:
    record = read_json(path)
    missing = [key for key in ("run_id", "model", "policy", "train", "benchmarks") if key not in record]
    if missing:
        raise ArtifactError(f"{path} lacks {', '.join(missing)}: delete it and run 05_eval of this run again.")
    if not is_sealed(record):
        raise ArtifactError(
            f"{path} was altered after 05_eval wrote it: its content and its record_sha256 differ. Restore it, or "
            "delete it and run 05_eval of this run again."
        )
    return record | {"metrics_sha256": sha256_file(path)}


# Records in words and in groups


def arm_label(record: dict, short: bool = False) -> str:
    """A run's arm in words, e.g. "CodeACT (CDAS 40% + Dynamic Pack)", short "CodeACT"; the same for all its seeds."""
    arm = arm_of(record)
    if record["policy"] is None:
        return "base model" if short else "base model, not fine-tuned"
    if arm == CODEACT:
        return "CodeACT" if short else "CodeACT (CDAS 40% + Dynamic Pack)"
    if arm == BASELINE:
        return "full data" if short else "full data, dynamic padding"
    data = data_words(record)
    if not short:
        return f"{data} + {strategy_words(record)}"
    # packed is the rule for a part of the data, padded for all of it
    if record["strategy"] == "dynamic_pack":
        return f"{data}, packed" if record["policy"] == "full" else data
    return f"{data}, padded" if record["strategy"] == "dynamic" else f"{data}, {strategy_words(record)}"


def data_words(record: dict) -> str:
    """Policy and share of the data, e.g. "CDAS 40%", "full data"."""
    name = {"full": "full data", "cdas": "CDAS", "ifd": "IFD only"}.get(record["policy"], record["policy"])
    return name if record["ratio"] == 1 else f"{name} {record['ratio']:.0%}"


def strategy_words(record: dict) -> str:
    """The padding strategy in words; one of a user's own under its name."""
    return STRATEGY_WORDS.get(record["strategy"], record["strategy"])


def arm_of(record: dict) -> tuple:
    """``(policy, ratio, strategy)``; compare with ``BASELINE``, ``CODEACT`` and ``RANDOM``."""
    return record["policy"], record["ratio"], record["strategy"]


def by_arm(metrics: list[dict]) -> list[list[dict]]:
    """Runs that differ by nothing but their seed, in the order of the seeds; arms in order of appearance."""
    arms: dict[tuple, list[dict]] = {}
    for record in metrics:
        key = (record["profile"], record["model"]["name"], record["dataset"], *arm_of(record))
        arms.setdefault(key, []).append(record)
    return [sorted(runs, key=lambda record: record["seed"]) for runs in arms.values()]


def by_setting(metrics: list[dict]) -> list[list[list[dict]]]:
    """Fine-tuned arms (lists of runs) by profile, base model and data set, in order of appearance."""
    settings: dict[tuple, list[list[dict]]] = {}
    for runs in by_arm(metrics):
        first = runs[0]
        if first["dataset"] is not None:
            settings.setdefault((first["profile"], first["model"]["name"], first["dataset"]), []).append(runs)
    return list(settings.values())


def find_arm(arms: list[list[dict]], arm: tuple) -> list[dict]:
    """The runs of one arm among those of a setting, nothing where it was not run."""
    return next((runs for runs in arms if arm_of(runs[0]) == arm), [])


def benchmark_of(record: dict, kind: str) -> dict | None:
    """What a run scored on the benchmark of that kind (``humaneval``, ``mbpp``), None where it was not judged."""
    return next((found for found in record["benchmarks"].values() if found["kind"] == kind), None)


def hardware(record: dict) -> str:
    """What a run ran on, as the tables say it: the GPU, or the CPU and its cores; and what shared it."""
    facts = record["provenance"]["environment"]
    jobs = record.get("concurrent_jobs", 1)
    beside = f", shared by {jobs} jobs (seconds are not those of a quiet machine)" if jobs > 1 else ""
    return (facts.get("gpu") or f"{facts.get('cpu') or 'CPU'}, {facts.get('cores')} cores") + beside


def hardware_notes(metrics: list[dict]) -> list[str]:
    """For the foot of a table of seconds or bytes: what they were measured on, and which memory was."""
    if not metrics:
        return []
    return [f"Hardware: {'; '.join(dict.fromkeys(hardware(r) for r in metrics))}. {_memory_note(metrics)}".strip()]


def _memory_note(metrics: list[dict]) -> str:
    words = {
        "cuda_allocated": "the peak of memory allocated on the GPU",
        "rss_growth": "how far the resident memory of a fresh training process grew (no GPU)",
    }
    kinds = dict.fromkeys(r["train"]["peak_memory_kind"] for r in metrics if r["train"])
    return f"Peak memory is {', '.join(words.get(kind, str(kind)) for kind in kinds)}." if kinds else ""


def place(record: dict) -> str:
    """``GPU`` or ``CPU``."""
    return "GPU" if record["provenance"]["environment"].get("gpu") else "CPU"


def setting(record: dict) -> str:
    """Base model and data set of a run in words."""
    return f"{record['model']['label']}, {record['dataset_label'] or 'no fine-tuning'}"


def benchmark_stamp(record: dict) -> str:
    """Name, version and number of tasks of each benchmark of a run, e.g. "mini-mbpp v1 (160 tasks)"."""
    parts = (f"{name} {b['version']} ({b['n']} tasks)" for name, b in record["benchmarks"].items())
    return "; ".join(parts)


def run_sources(metrics: list[dict]) -> dict[str, dict]:
    """Where the numbers of each run come from: its metrics file and hash, stage keys, versions and hardware."""
    return {
        record["run_id"]: {
            "metrics": f"metrics/{record['run_id']}.json",
            "sha256": record.get("metrics_sha256"),
            **record["provenance"],
        }
        for record in metrics
    }


# Measured rows


def measured_row(runs: dict | Sequence[dict]) -> dict:
    """One arm as flat columns: time in minutes, memory in GB (1e9 bytes), pass@1 in % with k, n and 95% interval.

    runs: the records of its seeds, or one of them. Of several seeds every number is the mean, ``<column>_sd`` their
    sample standard deviation (NaN for one), ``<column>_k`` lists the tasks solved by each, and the interval is the
    bootstrap's over tasks (``statistics.seed_average``); of one seed the interval is Wilson's. ``benchmarks_used`` and
    ``miscounted`` are for ``cells.cell_marks``.
    """
    runs = [runs] if isinstance(runs, dict) else list(runs)
    trainings = [run["train"] or {} for run in runs]
    row: dict[str, Any] = {"source": "measured", "status": "measured", "n_seeds": len(runs)}
    row |= {"run_id": BETWEEN_RUNS.join(run["run_id"] for run in runs)}
    row |= {"seeds": BETWEEN_RUNS.join(str(run["seed"]) for run in runs)}
    row |= mean_and_spread("training_time_min", [scaled(train.get("seconds"), 60) for train in trainings])
    row |= mean_and_spread("peak_memory_gb", [scaled(train.get("peak_memory_bytes"), 1e9) for train in trainings])
    row |= mean_and_spread("padding_pct", [scaled(train.get("padding_rate"), 0.01) for train in trainings])
    row |= {"peak_memory_kind": trainings[0].get("peak_memory_kind"), "n_train": runs[0]["n_train"]}
    row |= {"benchmark_versions": " / ".join(dict.fromkeys(map(benchmark_stamp, runs)))}
    row |= {"hardware": " / ".join(dict.fromkeys(map(hardware, runs)))}
    used, miscounted = _benchmarks_used(runs), set()
    for kind, side, column, _ in BENCHMARKS:
        found = [judged for run in runs if (judged := benchmark_of(run, kind))]
        if len(found) == len(runs):
            row |= _score(column, side, found, comparable=used[kind] is not None)
            if any(_is_miscounted(judged, side) for judged in found):
                miscounted.add(column)
    return row | {"benchmarks_used": used, "miscounted": miscounted}


def _benchmarks_used(runs: list[dict]) -> dict[str, tuple | None]:
    """kind -> (name, version, tasks); None where the seeds of an arm do not agree."""
    used: dict[str, tuple | None] = {}
    for run in runs:
        for name, judged in run["benchmarks"].items():
            stamp = (name, judged["version"], judged["n"])
            used[judged["kind"]] = stamp if used.setdefault(judged["kind"], stamp) == stamp else None
    return used


def _is_miscounted(judged: dict, side: str) -> bool:
    """Whether k is not the number of solved tasks, or n not the number of tasks."""
    solved = sum(verdict[side] in (True, "pass") for verdict in judged["verdicts"].values())
    return (judged[side]["k"], judged[side]["n"]) != (solved, len(judged["verdicts"]))


def _score(column: str, side: str, found: list[dict], comparable: bool) -> dict:
    counts = [judged[side] for judged in found]
    ks, n = [count["k"] for count in counts], counts[0]["n"]
    row = {f"{column}_k": ks[0] if len(ks) == 1 else BETWEEN_RUNS.join(map(str, ks))}
    if not comparable:  # means over different tasks mean nothing
        return row | {column: math.nan, f"{column}_n": BETWEEN_RUNS.join(str(count["n"]) for count in counts)}
    low, high = _interval([judged["verdicts"] for judged in found], ks, n, side)
    row |= mean_and_spread(column, [100 * k / n for k in ks], digits=4)
    return row | {f"{column}_n": n, f"{column}_low": round(100 * low, 2), f"{column}_high": round(100 * high, 2)}


def _interval(verdicts: list[dict], ks: list[int], n: int, side: str) -> tuple[float, float]:
    if len(ks) == 1:
        return pass_interval(ks[0], n)
    tasks = sorted(verdicts[0])
    return _seeds_interval(tuple(tuple(v[task][side] in (True, "pass") for task in tasks) for v in verdicts))


@lru_cache(maxsize=1024)
def _seeds_interval(solved: tuple[tuple[bool, ...], ...]) -> tuple[float, float]:
    """Kept: several tables and figures ask for the same arm, and the bootstrap takes a tenth of a second."""
    found = seed_average([dict(enumerate(flags)) for flags in solved])
    return found["low"], found["high"]


def mean_and_spread(column: str, values: Sequence[float], digits: int = 5) -> dict[str, float]:
    """``column`` and ``<column>_sd`` of the values that are known (NaN: none, or one for the spread)."""
    known = [value for value in values if not is_missing(value)]
    mean = round(statistics.mean(known), digits) if known else math.nan
    return {column: mean, f"{column}_sd": round(statistics.stdev(known), digits) if len(known) > 1 else math.nan}


def scaled(value: float | None, unit: float) -> float:
    """``value`` in another unit, NaN where there is none."""
    return math.nan if value is None else round(value / unit, 5)


def is_missing(value) -> bool:
    """None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def relative_change(before: float | None, after: float | None) -> float:
    """Percent by which ``after`` differs from ``before``; NaN where one of them is unknown."""
    if before is None or after is None or is_missing(before) or is_missing(after):
        return math.nan
    return round(100 * (float(after) / float(before) - 1), 3)
