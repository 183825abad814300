"""What is reported and what was measured, one `ArmResult` a line: a reported row, or an arm with all of its seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import pandas as pd

from codeact_lib.artifacts import project_root, read_frame, read_json, sha256_file
from codeact_lib.errors import ArtifactError
from codeact_lib.evaluation.records import is_sealed
from codeact_lib.statistics import pass_interval, seed_average

Side = Literal["base", "plus"]  # which tests of a benchmark
Stamp = tuple[str, str, int]  # a benchmark's name, version and number of tasks


class Benchmark(NamedTuple):
    """A kind of benchmark under one side of its tests: the column of its scores, and their heading."""

    kind: str
    side: Side
    column: str
    heading: str


BENCHMARKS = (
    Benchmark("humaneval", "base", "humaneval", "HumanEval"),
    Benchmark("humaneval", "plus", "humaneval_plus", "HumanEval+"),
    Benchmark("mbpp", "base", "mbpp", "MBPP"),
    Benchmark("mbpp", "plus", "mbpp_plus", "MBPP+"),
)
SCORES = [benchmark.column for benchmark in BENCHMARKS]
HEADINGS = {benchmark.column: benchmark.heading for benchmark in BENCHMARKS}
KINDS = {benchmark.column: benchmark.kind for benchmark in BENCHMARKS}
EFFICIENCY = ["training_time_min", "peak_memory_gb"]
AVERAGES = [*EFFICIENCY, "padding_pct"]
Arm = tuple[str | None, float | None, str | None]  # policy, ratio, strategy
BASELINE: Arm = ("full", 1.0, "dynamic")
CODEACT: Arm = ("cdas", 0.4, "dynamic_pack")
RANDOM: Arm = ("random", 0.4, "dynamic_pack")
STRATEGY_WORDS = {
    "traditional": "padding to the maximum",
    "dynamic": "dynamic padding",
    "dynamic_pack": "Dynamic Pack",
    "balanced_pack": "balanced pack",
    "flat": "flat rows",
}
NOT_RUN = "not run"
BETWEEN_RUNS = "; "  # several runs, seeds or counts in one field


# ---- records, as 05_eval writes them ---------------------------------------------------------------------------------


class Judged(TypedDict):
    """What a run scored on one benchmark. Verdicts: task -> side -> "pass" or why not."""

    kind: str
    version: str
    n: int
    sha256: str
    base: dict[str, int]  # k solved of n
    plus: dict[str, int]
    verdicts: dict[str, dict[Side, Any]]
    protocol: NotRequired[str]
    isolation: NotRequired[str]
    seconds: dict[str, float | None]


class RunRecord(TypedDict):
    """The metrics record of one run: `evaluation.records.metrics_record` says what its fields mean."""

    run_id: str
    profile: str
    model: dict[str, Any]
    dataset: str | None
    dataset_label: str | None
    reported_as: str | None
    policy: str | None
    ratio: float | None
    strategy: str | None
    seed: int
    n_train: int | None
    n_total: int | None
    train: dict[str, Any] | None
    selection_cost: dict[str, float] | None
    concurrent_jobs: NotRequired[int]
    benchmarks: dict[str, Judged]
    provenance: dict[str, Any]
    metrics_sha256: NotRequired[str]


def load_reported(folder: str | Path | None = None) -> dict[str, pd.DataFrame]:
    """The paper's tables `rq1` and `rq2` and the authors' `followup` (arXiv 2504.12687) as frames.

    Raises `ArtifactError` naming the file that is missing.
    """
    folder = Path(folder) if folder else project_root() / "results" / "reported"
    return {name: read_frame(folder / f"{name}.csv") for name in ("rq1", "rq2", "followup")}


def load_metrics(folder: str | Path, run_ids: Iterable[str] | None = None) -> list[RunRecord]:
    """Metrics records of a profile in the order of `run_ids` (default: by name); runs without a file are left out.

    Each record gains `metrics_sha256`, the hash of its file, which the report prints. Raises `ArtifactError` for a
    file that lacks a part or whose content no longer has the hash that 05_eval sealed it with.
    """
    folder = Path(folder)
    paths = [folder / f"{run_id}.json" for run_id in run_ids] if run_ids is not None else sorted(folder.glob("*.json"))
    return [_checked_record(path) for path in paths if path.is_file()]


def _checked_record(path: Path) -> RunRecord:
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


# ---- records in words ------------------------------------------------------------------------------------------------


def arm_of(record: RunRecord) -> Arm:
    """`(policy, ratio, strategy)`; compare with `BASELINE`, `CODEACT` and `RANDOM`."""
    return record["policy"], record["ratio"], record["strategy"]


def arm_label(record: RunRecord, short: bool = False) -> str:
    """A run's arm in words, e.g. "CodeACT (CDAS 40% + Dynamic Pack)", short "CodeACT"; the same for all its seeds."""
    if record["policy"] is None:
        return "base model" if short else "base model, not fine-tuned"
    if arm_of(record) == CODEACT:
        return "CodeACT" if short else "CodeACT (CDAS 40% + Dynamic Pack)"
    if arm_of(record) == BASELINE:
        return "full data" if short else "full data, dynamic padding"
    data, strategy = data_words(record), strategy_words(record)
    if not short:
        return f"{data} + {strategy}"
    # packed is the rule for a part of the data, padded for all of it
    if record["strategy"] == "dynamic_pack":
        return f"{data}, packed" if record["policy"] == "full" else data
    return f"{data}, padded" if record["strategy"] == "dynamic" else f"{data}, {strategy}"


def data_words(record: RunRecord) -> str:
    """Policy and share of the data, e.g. "CDAS 40%", "full data"."""
    policy = record["policy"] or ""
    name = {"full": "full data", "cdas": "CDAS", "ifd": "IFD only"}.get(policy, policy)
    return name if record["ratio"] == 1 else f"{name} {record['ratio']:.0%}"


def strategy_words(record: RunRecord) -> str:
    """The padding strategy in words; one of a user's own under its name."""
    strategy = record["strategy"] or ""
    return STRATEGY_WORDS.get(strategy, strategy)


def setting(record: RunRecord) -> str:
    """Base model and data set of a run in words."""
    return f"{record['model']['label']}, {record['dataset_label'] or 'no fine-tuning'}"


def place(record: RunRecord) -> str:
    """`GPU` or `CPU`."""
    return "GPU" if record["provenance"]["environment"].get("gpu") else "CPU"


def hardware(record: RunRecord) -> str:
    """What a run ran on, as the tables say it: the GPU, or the CPU and its cores; and what shared it."""
    facts = record["provenance"]["environment"]
    machine = facts.get("gpu") or f"{facts.get('cpu') or 'CPU'}, {facts.get('cores')} cores"
    jobs = record.get("concurrent_jobs", 1)
    return f"{machine}, shared by {jobs} jobs (seconds are not those of a quiet machine)" if jobs > 1 else machine


def hardware_notes(metrics: Sequence[RunRecord]) -> list[str]:
    """For the foot of a table of seconds or bytes: what they were measured on, and which memory was."""
    if not metrics:
        return []
    words = {
        "cuda_allocated": "the peak of memory allocated on the GPU",
        "rss_growth": "how far the resident memory of a fresh training process grew (no GPU)",
    }
    note = f"Hardware: {'; '.join(dict.fromkeys(map(hardware, metrics)))}."
    kinds = dict.fromkeys(record["train"]["peak_memory_kind"] for record in metrics if record["train"])
    if kinds:
        note += f" Peak memory is {', '.join(words.get(kind, str(kind)) for kind in kinds)}."
    return [note]


def benchmark_stamp(record: RunRecord) -> str:
    """Name, version and number of tasks of each benchmark of a run, e.g. "mini-mbpp v1 (160 tasks)"."""
    return "; ".join(f"{name} {b['version']} ({b['n']} tasks)" for name, b in record["benchmarks"].items())


def benchmarks_of(runs: Iterable[RunRecord], kind: str) -> list[Judged]:
    """What each run scored on its benchmark of that kind (`humaneval`, `mbpp`), nothing of those not judged on one."""
    found = []
    for run in runs:
        of_kind = [judged for judged in run["benchmarks"].values() if judged["kind"] == kind]
        found += of_kind[:1]
    return found


def solved_tasks(judged: Judged, side: Side) -> dict[str, bool]:
    """Task -> whether it was solved."""
    return {task: verdict[side] in (True, "pass") for task, verdict in judged["verdicts"].items()}


def run_ids(runs: Iterable[RunRecord]) -> str:
    """The ids of runs in one field."""
    return BETWEEN_RUNS.join(run["run_id"] for run in runs)


def run_sources(metrics: Sequence[RunRecord]) -> dict[str, dict]:
    """Where the numbers of each run come from: its metrics file and hash, stage keys, versions and hardware."""
    sources = {}
    for record in metrics:
        file = {"metrics": f"metrics/{record['run_id']}.json", "sha256": record.get("metrics_sha256")}
        sources[record["run_id"]] = file | record["provenance"]
    return sources


# ---- lines of results ------------------------------------------------------------------------------------------------


class Average(NamedTuple):
    """Mean over seeds and sample standard deviation; NaN: unknown, and the deviation of one seed."""

    mean: float = math.nan
    sd: float = math.nan


@dataclass(frozen=True)
class Score:
    """pass@1 in %, with the tasks solved (`k`) and judged (`n`) by each seed and the 95% interval where measured.

    The rate is NaN where the seeds were judged on different tasks. agrees: whether k and n are those of the verdicts.
    """

    rate: float
    sd: float = math.nan
    k: tuple[int, ...] = ()
    n: tuple[int, ...] = ()
    low: float = math.nan
    high: float = math.nan
    agrees: bool = True


@dataclass(frozen=True)
class ArmResult:
    """One line of a table: what is reported of an arm, or what was measured, as means over the seeds in `runs`.

    source: "paper", "follow-up" or "measured". status: "reported", "measured" or `NOT_RUN`. scores: by column of
    `SCORES`, without those that are not known. averages: `training_time_min`, `peak_memory_gb` (of 1e9 bytes) and
    `padding_pct` (of the token slots).
    """

    source: str
    status: str
    scores: Mapping[str, Score] = field(default_factory=dict)
    averages: Mapping[str, Average] = field(default_factory=lambda: dict.fromkeys(AVERAGES, Average()))
    runs: Sequence[RunRecord] = ()

    @property
    def first(self) -> RunRecord:
        """The record that stands for the arm: the seeds differ in nothing that names it."""
        return self.runs[0]

    @property
    def run_id(self) -> str | None:
        """Ids of the runs of a measured line, in the order of the seeds."""
        return run_ids(self.runs) or None

    def columns(self) -> dict[str, Any]:
        """The line as flat columns: `humaneval`, `humaneval_sd`, `_k`, `_n`, `_low`, `_high` and so on.

        Of several seeds `<column>_k` lists the tasks solved by each. What is not known of the line has no key.
        """
        row: dict[str, Any] = {"source": self.source, "status": self.status}
        for column, average in self.averages.items():
            row |= {column: average.mean, f"{column}_sd": average.sd}
        for column, score in self.scores.items():
            row |= {column: score.rate, f"{column}_sd": score.sd}
            row |= {f"{column}_low": score.low, f"{column}_high": score.high}
            if score.k:
                row |= {f"{column}_k": _listed(score.k), f"{column}_n": _listed(score.n)}
        if self.runs:
            row["n_train"] = self.first["n_train"]
            row["benchmark_versions"] = " / ".join(dict.fromkeys(map(benchmark_stamp, self.runs)))
            row["hardware"] = " / ".join(dict.fromkeys(map(hardware, self.runs)))
            row["peak_memory_kind"] = (self.first["train"] or {}).get("peak_memory_kind")
            row["n_seeds"] = len(self.runs)
            row["seeds"] = BETWEEN_RUNS.join(str(run["seed"]) for run in self.runs)
            row["run_id"] = self.run_id
        return row


def _listed(counts: tuple[int, ...]) -> int | str:
    return counts[0] if len(counts) == 1 else BETWEEN_RUNS.join(map(str, counts))


def reported_result(row: Mapping[str, Any], source: str) -> ArmResult:
    """A row of `load_reported`, of which only scores, minutes and gigabytes are read."""
    scores = {column: Score(row[column]) for column in SCORES if not is_missing(row.get(column))}
    return ArmResult(source, "reported", scores, {column: Average(row.get(column, math.nan)) for column in AVERAGES})


def measured_result(runs: Sequence[RunRecord]) -> ArmResult:
    """The runs of one arm (its seeds) as one line.

    Of several seeds the interval is the bootstrap's over tasks (`statistics.seed_average`), of one seed Wilson's.
    """
    used = benchmarks_used(runs)
    scores = {}
    for kind, side, column, _ in BENCHMARKS:
        judged = benchmarks_of(runs, kind)
        if len(judged) == len(runs):
            scores[column] = _score(judged, side, comparable=used[kind] is not None)
    averages = {
        "training_time_min": _of_trainings(runs, "seconds", 60),
        "peak_memory_gb": _of_trainings(runs, "peak_memory_bytes", 1e9),
        "padding_pct": _of_trainings(runs, "padding_rate", 0.01),
    }
    return ArmResult("measured", "measured", scores, averages, runs)


def measured_row(runs: RunRecord | Sequence[RunRecord]) -> dict[str, Any]:
    """The flat columns (`ArmResult.columns`) of one arm: the records of its seeds, or one of them."""
    return measured_result([runs] if isinstance(runs, dict) else list(runs)).columns()


def benchmarks_used(runs: Sequence[RunRecord]) -> dict[str, Stamp | None]:
    """By kind; None where the seeds of an arm do not agree."""
    used: dict[str, Stamp | None] = {}
    for run in runs:
        for name, judged in run["benchmarks"].items():
            stamp = (name, judged["version"], judged["n"])
            same = used.setdefault(judged["kind"], stamp) == stamp
            used[judged["kind"]] = stamp if same else None
    return used


def _score(seeds: Sequence[Judged], side: Side, comparable: bool) -> Score:
    """pass@1 of the seeds of an arm on one benchmark."""
    ks = tuple(judged[side]["k"] for judged in seeds)
    ns = tuple(judged[side]["n"] for judged in seeds)
    solved = [solved_tasks(judged, side) for judged in seeds]
    agrees = all((k, n) == (sum(s.values()), len(s)) for k, n, s in zip(ks, ns, solved, strict=True))
    if not comparable:  # means over different tasks mean nothing
        return Score(math.nan, k=ks, n=ns, agrees=agrees)
    if len(seeds) == 1:
        low, high = pass_interval(ks[0], ns[0])
    else:  # 10 ms for three seeds of 160 tasks: too little to be kept from one table to the next
        found = seed_average(solved)
        low, high = found["low"], found["high"]
    rate = average([100 * k / ns[0] for k in ks], digits=4)
    return Score(*rate, ks, ns[:1], round(100 * low, 2), round(100 * high, 2), agrees)


def _of_trainings(runs: Sequence[RunRecord], key: str, unit: float) -> Average:
    """A fact of the trainings of an arm, divided by `unit`."""
    known = []
    for run in runs:
        value = (run["train"] or {}).get(key)
        if value is not None:
            known.append(round(value / unit, 5))
    return average(known)


def average(values: Iterable[float], digits: int = 5) -> Average:
    """Mean and sample standard deviation of the values that are known."""
    known = [value for value in values if not is_missing(value)]
    mean = round(statistics.mean(known), digits) if known else math.nan
    return Average(mean, round(statistics.stdev(known), digits) if len(known) > 1 else math.nan)


def is_missing(value: object) -> bool:
    """None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def relative_change(before: float, after: float) -> float:
    """Percent by which `after` differs from `before`; NaN where one of them is unknown."""
    return round(100 * (float(after) / float(before) - 1), 3)


# ---- groups ----------------------------------------------------------------------------------------------------------


def by_arm(metrics: Iterable[RunRecord]) -> list[list[RunRecord]]:
    """Runs that differ by nothing but their seed, in the order of the seeds; arms in order of appearance."""
    arms: dict[tuple, list[RunRecord]] = {}
    for record in metrics:
        key = (record["profile"], record["model"]["name"], record["dataset"], *arm_of(record))
        arms.setdefault(key, []).append(record)
    return [sorted(runs, key=lambda record: record["seed"]) for runs in arms.values()]


def by_setting(metrics: Iterable[RunRecord]) -> list[list[ArmResult]]:
    """Fine-tuned arms by profile, base model and data set, in order of appearance."""
    settings: dict[tuple, list[ArmResult]] = {}
    for runs in by_arm(record for record in metrics if record["dataset"] is not None):
        key = (runs[0]["profile"], runs[0]["model"]["name"], runs[0]["dataset"])
        settings.setdefault(key, []).append(measured_result(runs))
    return list(settings.values())


def find_arm(arms: Iterable[ArmResult], arm: Arm) -> ArmResult | None:
    """One arm among those of a setting, None where it was not run."""
    return next((found for found in arms if arm_of(found.first) == arm), None)
