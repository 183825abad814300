"""What is reported and what was measured, one `Line` each: a reported row, or an arm with all of its seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from codeact_lib.artifacts import project_root, read_frame, read_json, sha256_file
from codeact_lib.errors import ArtifactError
from codeact_lib.evaluation.records import Judged, RunRecord, Side, is_sealed
from codeact_lib.statistics import pass_interval, seed_average

TEXTS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("texts.yaml").read_text(encoding="utf-8"))
NOT_RUN = "not run"
# Several runs, seeds or counts stand in one field, so that an arm is one row however many seeds it has.
BETWEEN_RUNS = "; "

KINDS = ("humaneval", "mbpp")  # of benchmarks
# column of a score -> kind of benchmark and side of its tests
BENCHMARKS: dict[str, tuple[str, Side]] = {
    "humaneval": ("humaneval", "base"),
    "humaneval_plus": ("humaneval", "plus"),
    "mbpp": ("mbpp", "base"),
    "mbpp_plus": ("mbpp", "plus"),
}
SCORES = list(BENCHMARKS)
HEADINGS = dict(zip(SCORES, ("HumanEval", "HumanEval+", "MBPP", "MBPP+"), strict=True))
# column of an average -> its name in train_metrics.json and the unit there is in one of the column's
AVERAGES = {
    "training_time_min": ("seconds", 60),
    "peak_memory_gib": ("peak_memory_bytes", 2**30),
    "padding_pct": ("padding_rate", 0.01),
}
EFFICIENCY = ["training_time_min", "peak_memory_gib"]

Stamp = tuple[str, str, int]  # a benchmark's name, version and number of tasks
# policy, ratio, strategy: None of a base model
Arm = tuple[str | None, float | None, str | None]
BASELINE: Arm = ("full", 1.0, "dynamic")
CODEACT: Arm = ("cdas", 0.4, "dynamic_pack")
RANDOM: Arm = ("random", 0.4, "dynamic_pack")
# arms with a name of their own: in words, and short
LABELS: dict[Arm, tuple[str, str]] = {
    (None, None, None): ("base model, not fine-tuned", "base model"),
    BASELINE: ("full data, dynamic padding", "full data"),
    CODEACT: ("CodeACT (CDAS 40% + Dynamic Pack)", "CodeACT"),
}


def load_reported(folder: str | Path | None = None) -> dict[str, pd.DataFrame]:
    """The paper's tables `rq1` and `rq2` and the authors' `followup` (2504.12687); `ArtifactError` if one is gone."""
    folder = Path(folder or project_root() / "results" / "reported")
    return {name: read_frame(folder / f"{name}.csv") for name in ("rq1", "rq2", "followup")}


def with_endings(columns: Iterable[str], *endings: str) -> list[str]:
    """Names of columns of a CSV: each of these with each of the endings."""
    return [f"{column}{ending}" for column in columns for ending in endings]


def followup_pairs(followup: pd.DataFrame) -> pd.DataFrame:
    """The follow-up's scores with full data and with 40% (`codeact`), of which it gives no time and memory."""
    rows = followup[(followup["table"] == "pass_at_one") & followup["ratio"].isin([1.0, 0.4])]
    # it says CodeLlama-Python for the paper's CodeLlama
    paper_model = rows["model"].str.replace("-Python", "")
    return rows.drop(columns=EFFICIENCY).assign(codeact=rows["ratio"] < 1, paper_model=paper_model)


def load_metrics(folder: str | Path, run_ids: Iterable[str] | None = None) -> list[RunRecord]:
    """Metrics records of a profile in the order of `run_ids` (default: by name); runs without a file are left out.

    Each record gains `metrics_sha256`, the hash of its file, which the report prints. Raises `ArtifactError` for a
    file that lacks a part or whose content no longer has the hash that 05_eval sealed it with.
    """
    paths = sorted(Path(folder).glob("*.json"))
    if run_ids is not None:
        paths = [Path(folder, f"{run_id}.json") for run_id in run_ids]
    records = []
    for path in paths:
        if not path.is_file():
            continue
        record = read_json(path)
        missing = [key for key in ("run_id", "model", "policy", "train", "benchmarks") if key not in record]
        if missing:
            raise ArtifactError(f"{path} lacks {', '.join(missing)}: delete it and run 05_eval of this run again.")
        if not is_sealed(record):
            raise ArtifactError(
                f"{path} was altered after 05_eval wrote it: its content and its record_sha256 differ. Restore it, or "
                "delete it and run 05_eval of this run again."
            )
        records.append(record | {"metrics_sha256": sha256_file(path)})
    return records


# ---- a record in words -----------------------------------------------------------------------------------------------


def arm_of(record: RunRecord) -> Arm:
    """`(policy, ratio, strategy)`; compare with `BASELINE`, `CODEACT` and `RANDOM`."""
    return record["policy"], record["ratio"], record["strategy"]


def arm_label(record: RunRecord, short: bool = False) -> str:
    """A run's arm in words, e.g. "CodeACT (CDAS 40% + Dynamic Pack)", short "CodeACT"; the same for all its seeds."""
    if arm_of(record) in LABELS:
        long, brief = LABELS[arm_of(record)]
        return brief if short else long
    data, strategy = arm_words(record)
    if not short:
        return f"{data} + {strategy}"
    # packed is the rule for a part of the data, padded for all of it
    if record["strategy"] == "dynamic_pack":
        return f"{data}, packed" if record["policy"] == "full" else data
    return f"{data}, padded" if record["strategy"] == "dynamic" else f"{data}, {strategy}"


def arm_words(record: RunRecord) -> tuple[str, str]:
    """Data and padding strategy in words, e.g. "CDAS 40%" and "Dynamic Pack"; a user's own under their names."""
    policy = record["policy"] or ""
    strategy = record["strategy"] or ""
    data = {"full": "full data", "cdas": "CDAS", "ifd": "IFD only"}.get(policy, policy)
    if record["ratio"] != 1:
        data = f"{data} {record['ratio']:.0%}"
    return data, TEXTS["strategies"].get(strategy, strategy)


def setting(record: RunRecord) -> str:
    """Base model and data set of a run in words."""
    return f"{record['model']['label']}, {record['dataset_label'] or 'no fine-tuning'}"


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
    note = f"Hardware: {'; '.join(dict.fromkeys(map(hardware, metrics)))}."
    trained = filter(None, map(itemgetter("train"), metrics))
    kinds = dict.fromkeys(map(itemgetter("peak_memory_kind"), trained))
    if kinds:
        note += f" Peak memory is {', '.join(TEXTS['memory'].get(kind, str(kind)) for kind in kinds)}."
    return [note]


def benchmark_stamp(record: RunRecord) -> str:
    """Name, version and number of tasks of each benchmark of a run, e.g. "mini-mbpp v1 (160 tasks)"."""
    return "; ".join(f"{name} {b['version']} ({b['n']} tasks)" for name, b in record["benchmarks"].items())


def benchmarks_used(runs: Sequence[RunRecord]) -> dict[str, Stamp | None]:
    """By kind: name, version and number of tasks; None where the seeds of an arm do not agree."""
    used: dict[str, Stamp | None] = {}
    for run in runs:
        for name, judged in run["benchmarks"].items():
            stamp = (name, judged["version"], judged["n"])
            if used.setdefault(judged["kind"], stamp) != stamp:
                used[judged["kind"]] = None
    return used


def benchmarks_of(runs: Iterable[RunRecord], kind: str) -> list[Judged]:
    """What each run scored on its benchmark of that kind (`humaneval`, `mbpp`), nothing of those not judged on one."""
    found = []
    for run in runs:
        of_kind = [judged for judged in run["benchmarks"].values() if judged["kind"] == kind]
        found += of_kind[:1]
    return found


def n_solved(verdicts: Mapping[str, Mapping[str, Any]], side: Side) -> int:
    """How many tasks were solved under one side of the tests."""
    return sum(verdict[side] in (True, "pass") for verdict in verdicts.values())


# ---- lines -----------------------------------------------------------------------------------------------------------


class Average(NamedTuple):
    """Mean over seeds and sample standard deviation; NaN: unknown, and the deviation of one seed."""

    mean: float = math.nan
    sd: float = math.nan


class Score(NamedTuple):
    """pass@1 of a line under one kind of tests."""

    # in %: mean over seeds, NaN where they were judged on different tasks, and sample standard deviation
    rate: float
    sd: float = math.nan
    # tasks solved and judged by each seed, and the ends of the 95% interval in %, where measured
    k: Sequence[int] = ()
    n: Sequence[int] = ()
    low: float = math.nan
    high: float = math.nan
    # whether k and n are those of the verdicts
    agrees: bool = True


@dataclass(frozen=True)
class Line:
    """One line of a table: what is reported of an arm, or what was measured, as means over the seeds in `runs`."""

    # "paper", "follow-up" or "measured"
    source: str = "measured"
    # by column of `SCORES`, without those that are not known; memory in GiB, padding in % of the token slots
    scores: Mapping[str, Score] = field(default_factory=dict)
    averages: Mapping[str, Average] = field(default_factory=lambda: dict.fromkeys(AVERAGES, Average()))
    runs: Sequence[RunRecord] = ()
    # what the line is, by column of its CSV, and the marks of scores that must not be trusted (`cells.marked`)
    names: Mapping[str, Any] = field(default_factory=dict)
    marks: Mapping[str, str] = field(default_factory=dict)

    def named(self, **names: Any) -> Line:
        """The line under other names."""
        return replace(self, names=names)

    @property
    def status(self) -> str:
        """ "reported", "measured" or `NOT_RUN`."""
        if self.source != "measured":
            return "reported"
        return "measured" if self.runs else NOT_RUN

    @property
    def record(self) -> RunRecord:
        """The record that stands for the arm: the seeds differ in nothing that names it."""
        return self.runs[0]

    @property
    def run_id(self) -> str | None:
        """Ids of the runs of a measured line in one field, in the order of the seeds."""
        return BETWEEN_RUNS.join(map(itemgetter("run_id"), self.runs)) or None

    def rate(self, column: str) -> float:
        """pass@1 in %, NaN where it is not known."""
        return self.scores.get(column, Score(math.nan)).rate

    def columns(self) -> dict[str, Any]:
        """The line as flat columns: `humaneval`, `humaneval_sd`, `_k`, `_n`, `_low`, `_high`; without unknown ones."""
        row: dict[str, Any] = {**self.names, "source": self.source, "status": self.status}
        for column, average in self.averages.items():
            row |= {column: average.mean, f"{column}_sd": average.sd}
        for column, score in self.scores.items():
            row |= {column: score.rate, f"{column}_sd": score.sd}
            row |= {f"{column}_low": score.low, f"{column}_high": score.high}
            # of several seeds the tasks solved by each
            for part, counts in (("k", score.k), ("n", score.n)):
                if counts:
                    row[f"{column}_{part}"] = counts[0] if len(counts) == 1 else BETWEEN_RUNS.join(map(str, counts))
        if self.runs:
            # what every measured number is to be read with: versions, hardware, seeds, and ids to follow it by
            row["n_train"] = self.record["n_train"]
            row["benchmark_versions"] = " / ".join(dict.fromkeys(map(benchmark_stamp, self.runs)))
            row["hardware"] = " / ".join(dict.fromkeys(map(hardware, self.runs)))
            row["peak_memory_kind"] = (self.record["train"] or {}).get("peak_memory_kind")
            row["n_seeds"] = len(self.runs)
            row["seeds"] = BETWEEN_RUNS.join(map(str, map(itemgetter("seed"), self.runs)))
            row["run_id"] = self.run_id
        row["marks"] = "; ".join(map(" ".join, self.marks.items()))
        return row


def reported_lines(rows: pd.DataFrame, source: str) -> list[Line]:
    """Rows of `load_reported`, each under all of its columns as names."""
    lines = []
    for row in rows.to_dict("records"):
        scores = {column: Score(row[column]) for column in SCORES if pd.notna(row.get(column))}
        averages = {column: Average(row.get(column, math.nan)) for column in AVERAGES}
        lines.append(Line(source, scores, averages, names=row))
    return lines


def measured_line(runs: Sequence[RunRecord]) -> Line:
    """The runs of one arm (its seeds) as one line."""
    used = benchmarks_used(runs)
    scores = {}
    for column, (kind, side) in BENCHMARKS.items():
        judged = benchmarks_of(runs, kind)
        if len(judged) == len(runs):
            scores[column] = _score(judged, side, comparable=used[kind] is not None)
    averages = {}
    for column, (fact, unit) in AVERAGES.items():
        trained = filter(None, map(itemgetter("train"), runs))
        averages[column] = average(round(train[fact] / unit, 5) for train in trained if train.get(fact) is not None)
    return Line("measured", scores, averages, runs)


def _score(seeds: Sequence[Judged], side: Side, comparable: bool) -> Score:
    counts = pd.DataFrame(map(itemgetter(side), seeds))
    ks = counts["k"].tolist()
    ns = counts["n"].tolist()
    verdicts = list(map(itemgetter("verdicts"), seeds))
    agrees = ns == list(map(len, verdicts)) and ks == [n_solved(seed, side) for seed in verdicts]
    if not comparable:  # means over different tasks mean nothing
        return Score(math.nan, k=ks, n=ns, agrees=agrees)
    # Of one seed Wilson's interval, of several the bootstrap's over tasks: 10 ms for three seeds of 160 tasks, too
    # little to be kept from one table to the next.
    low, high = pass_interval(ks[0], ns[0])
    if len(seeds) > 1:
        found = seed_average(verdicts, side)
        low, high = found["low"], found["high"]
    rate = average(100 * counts["k"] / ns[0], digits=4)
    return Score(*rate, ks, ns[:1], round(100 * low, 2), round(100 * high, 2), agrees)


def average(values: Iterable[float | None], digits: int = 5) -> Average:
    """Mean and sample standard deviation of the values that are known."""
    # pandas leaves out what is NaN, and has NaN for the mean of nothing and for the deviation of one
    known = pd.Series(list(values), dtype=float)
    return Average(round(known.mean(), digits), round(known.std(), digits))


def relative_change(before: Line, after: Line, column: str, more: float = 0.0) -> float:
    """Percent by which an average of `after`, and `more`, differs from that of `before`; NaN where one is unknown."""
    return round(100 * ((after.averages[column].mean + more) / before.averages[column].mean - 1), 3)


def measured_lines(metrics: Iterable[RunRecord]) -> list[Line]:
    """A line an arm, in order of appearance, under what names an arm in the CSVs."""
    # Runs that differ by nothing but their seed are one arm, in the order of their seeds: a table never has more rows
    # because more was run.
    arms: dict[tuple, list[RunRecord]] = {}
    for record in metrics:
        key = (record["profile"], record["model"]["name"], record["dataset"], *arm_of(record))
        arms.setdefault(key, []).append(record)
    lines = []
    for runs in arms.values():
        line = measured_line(sorted(runs, key=itemgetter("seed")))
        names = dict(zip(("policy", "ratio", "strategy"), arm_of(line.record), strict=True))
        names |= dict.fromkeys(("data_set", "setting"), setting(line.record))
        names |= {"arm": arm_label(line.record), "short": arm_label(line.record, short=True)}
        lines.append(line.named(**names))
    return lines


def by_setting(lines: Iterable[Line]) -> list[tuple[RunRecord, dict[Arm, Line]]]:
    """Measured lines of fine-tuned arms, by profile, model and data set, with a record for what they share."""
    settings: dict[tuple, tuple[RunRecord, dict[Arm, Line]]] = {}
    for line in lines:
        record = line.record
        if record["dataset"] is not None:
            key = (record["profile"], record["model"]["name"], record["dataset"])
            _, arms = settings.setdefault(key, (record, {}))
            arms[arm_of(record)] = line
    return list(settings.values())
