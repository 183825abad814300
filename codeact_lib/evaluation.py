"""pass@1 by EvalPlus 0.3.1: judged in a box, counted outside it.

    benchmark = load_benchmark("mini-humaneval")
    result = evaluate_solutions("samples.jsonl", benchmark, output_dir="eval/my-run/mini-humaneval")
    print(result.base, result.plus, result.isolation)      # (71, 160) (64, 160) bubblewrap

The solutions run in a child process (`codeact_lib.judge`) inside the isolation that `codeact_lib.sandbox` offers; what
comes out is JSON, which is checked and counted here. No pickle of the box is ever read, EvalPlus is not imported here.
Nothing is reused: an old verdict file is removed before the judging starts.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from codeact_lib.artifacts import StageManifest, atomic_write, environment_facts, write_json
from codeact_lib.errors import EvaluationError
from codeact_lib.generation import task_kind
from codeact_lib.sandbox import choose_isolation, run_isolated

# name -> (file stem of EvalPlus, versions, the default first). MBPP+ v0.1.0 has 399 tasks and is the paper's, v0.2.0
# has 378, and the change is worth about 4 points: the version is part of every record.
EVALPLUS = {
    "humaneval": ("HumanEvalPlus", ("v0.1.10", "v0.1.9")),
    "mbpp": ("MbppPlus", ("v0.2.0", "v0.1.0")),
}
EVALPLUS_URL = "https://github.com/evalplus/{repo}_release/releases/download/{version}/{stem}.jsonl.gz"
FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")
STATUSES = ("pass", "fail", "timeout", "error")
FAILURES = ("", "wrong", "error", "timeout", "syntax", "empty", "missing", "crash")
TASK_SECONDS = 240.0  # EvalPlus itself ends a task after at most 2 x 62 s; the rest is for its expected outputs
JUDGE = Path(__file__).with_name("judge.py")


# ------------------------------------------------------------------------------------------------ benchmarks


@dataclass(frozen=True)
class Benchmark:
    """Tasks in EvalPlus's schema, all of one kind, with what identifies them."""

    name: str
    kind: str  # "humaneval" or "mbpp"
    version: str
    sha256: str  # of the tasks' content, whatever file they came from
    tasks: list[dict]


def load_benchmark(name_or_path, limit=None) -> Benchmark:
    """A benchmark by name or from a JSONL file in EvalPlus's schema.

    Args:
        name_or_path: "mini-humaneval", "mini-mbpp", "humaneval", "mbpp" (also "mbpp@v0.1.0"), or a path. The real ones
            are taken from EvalPlus's cache folder and fetched into it when they are not there.
        limit: only the first so many tasks; the hash is of those.

    Raises:
        EvaluationError: unknown name, missing or damaged file, a task without a needed field.
    """
    name = str(name_or_path)
    if name.startswith("mini-"):
        from codeact_lib.mini import build_benchmark

        tasks, version = build_benchmark(name), "mini"
    elif name.partition("@")[0] in EVALPLUS:
        name, path, version = _evalplus_file(*name.partition("@")[::2])
        tasks = _read_tasks(path)
    else:
        tasks, version = _read_tasks(Path(name)), f"file {Path(name).name}"
        name = Path(name).stem
    tasks = tasks[:limit]
    kind = _check_tasks(tasks, name)
    return Benchmark(name, kind, version, _content_hash(tasks), tasks)


def _content_hash(tasks):
    """sha256 of the tasks' canonical JSON; inputs of MBPP+ hold NaN and infinity, which strict JSON has no word for."""
    text = json.dumps(tasks, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _evalplus_file(name, version):
    """Where EvalPlus keeps a benchmark; fetched from its release page if it is not there."""
    stem, versions = EVALPLUS[name]
    version = version or versions[0]
    if version not in versions:
        raise EvaluationError(f"{name}: version {version} is not known; use {' or '.join(versions)}.")
    path = _evalplus_cache() / f"{stem}-{version}.jsonl"
    if not path.exists():
        _download(EVALPLUS_URL.format(repo=stem.lower(), version=version, stem=stem), path)
    return name, path, f"{stem} {version}"


def _evalplus_cache():
    """EvalPlus's own folder (appdirs.user_cache_dir), so that a benchmark is fetched once for both."""
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/evalplus"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evalplus"


def _download(url, path):
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            data = gzip.decompress(response.read())
    except (OSError, urllib.error.URLError, EOFError) as error:
        raise EvaluationError(
            f"{path} is missing and {url} cannot be fetched ({error}). Fetch it elsewhere, unpack it with gunzip and "
            f"put it at {path}; or name a JSONL file of your own, or the benchmarks mini-humaneval and mini-mbpp."
        ) from error
    with atomic_write(path, "wb") as file:
        file.write(data)


def _read_tasks(path):
    if not path.is_file():
        names = ", ".join(("mini-humaneval", "mini-mbpp", *EVALPLUS))
        raise EvaluationError(f"{path} is neither a benchmark ({names}) nor a file.")
    return [task for _, task in _read_jsonl(path)]


def _read_jsonl(path, repair=False):
    """[(line number, object)]; with ``repair`` a damaged last line (of a writer that was killed) is left out."""
    rows = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except ValueError as error:
            if repair and number == len(lines):
                break
            raise EvaluationError(f"{path}, line {number}: not JSON ({error}). Correct or remove the line.") from error
    return rows


def _check_tasks(tasks, name):
    """The kind of the tasks; every task must be complete, known once, and of that kind."""
    if not tasks:
        raise EvaluationError(f"Benchmark {name} holds no task.")
    for number, task in enumerate(tasks, 1):
        absent = [key for key in FIELDS if not isinstance(task, dict) or key not in task]
        if absent:
            raise EvaluationError(f"Benchmark {name}, task {number}: no field {absent[0]!r}; EvalPlus's schema has it.")
    kind = task_kind(tasks[0])
    for task in tasks:
        if task_kind(task) != kind:
            raise EvaluationError(
                f"Benchmark {name}: {task['task_id']} is not of kind {kind}; one file holds one kind."
            )
        if kind == "mbpp" and not str(task["task_id"]).rpartition("/")[2].isdigit():
            raise EvaluationError(f"Benchmark {name}: {task['task_id']} must end in /<number>; EvalPlus reads it.")
    twice = [task_id for task_id, n in Counter(task["task_id"] for task in tasks).items() if n > 1]
    if twice:
        raise EvaluationError(f"Benchmark {name}: {twice[0]} stands in it twice.")
    return kind


# ------------------------------------------------------------------------------------------------ the result


@dataclass
class PassAtOne:
    """pass@1 of one model on one benchmark, with everything that must be known to compare it.

    ``base`` and ``plus`` are (k, n): k of n tasks solved. ``plus`` means base and extra tests, as HumanEval+ does.
    ``verdicts``: task id -> {"base", "plus", "failure"}; a status is pass, fail, timeout or error (the judging itself
    was lost), ``failure`` one of wrong, error (it raised), timeout, syntax, empty, missing, crash, or "" when solved.
    """

    benchmark: str
    kind: str
    base: tuple[int, int]
    plus: tuple[int, int]
    verdicts: dict[str, dict]
    version: str
    sha256: str
    protocol: str
    isolation: str
    seconds: dict[str, float | None] = field(default_factory=dict)  # {"generate", "judge"}
    ignored: int = 0  # samples of tasks that are not in the benchmark

    def failures(self) -> dict[str, int]:
        """How many tasks failed in which way, most frequent first."""
        kinds = Counter(verdict["failure"] for verdict in self.verdicts.values())
        return {kind: n for kind, n in kinds.most_common() if kind}

    def to_dict(self) -> dict:
        """The record of a metrics file; counts as {"k", "n"}."""
        counts = {tests: dict(zip(("k", "n"), getattr(self, tests), strict=True)) for tests in ("base", "plus")}
        names = ("kind", "verdicts", "version", "sha256", "protocol", "isolation", "seconds", "ignored")
        return {
            "n": self.base[1],
            **counts,
            "failures": self.failures(),
            **{name: getattr(self, name) for name in names},
        }


# ------------------------------------------------------------------------------------------------ judging


def evaluate_solutions(
    samples,
    benchmark,
    *,
    output_dir,
    protocol="authors",
    isolation="auto",
    parallel=None,
    min_time_limit=4.0,
    sanitize=True,
    task_seconds=TASK_SECONDS,
) -> PassAtOne:
    """Judge one solution per task and count.

    Args:
        samples: list of {"task_id", "solution"} or a JSONL path; a task without a sample counts as failed ("missing").
        benchmark: a `Benchmark`, or what `load_benchmark` takes.
        output_dir: gets ``sanitized.jsonl`` and ``verdicts.json``.
        protocol: named in the record.
        isolation: "auto" or a rung of `codeact_lib.sandbox.LADDER`.
        parallel: solutions judged at a time, None for one per usable core.
        min_time_limit: seconds per input at least; EvalPlus's 1 s for MBPP gives false timeouts on a busy machine.
        sanitize: cut the answer down to the function and what it needs, by EvalPlus's ``sanitize``.
        task_seconds: after so long a task is given up as a timeout, whatever EvalPlus says.

    Raises:
        EvaluationError: unusable samples or benchmark, or a canonical solution that does not run.
        SandboxError: the isolation asked for is not to be had.
    """
    benchmark = benchmark if isinstance(benchmark, Benchmark) else load_benchmark(benchmark)
    solutions, ignored = _read_samples(samples, benchmark)
    rung = choose_isolation(isolation)
    start = time.monotonic()
    job = {"kind": benchmark.kind, "parallel": parallel or _cores(), "min_time_limit": min_time_limit}
    job |= {"sanitize": sanitize, "task_seconds": task_seconds}
    tasks = [
        {**task, "solution": solutions[task["task_id"]]} for task in benchmark.tasks if task["task_id"] in solutions
    ]
    output_dir = Path(output_dir)
    found = _judge_all(job, tasks, output_dir / "box", rung)
    shutil.rmtree(output_dir / "box", ignore_errors=True)  # kept only when the judging fails, for a look at its output
    verdicts = {task["task_id"]: _verdict(found.get(task["task_id"])) for task in benchmark.tasks}
    result = PassAtOne(
        benchmark=benchmark.name,
        kind=benchmark.kind,
        base=_count(verdicts, "base"),
        plus=_count(verdicts, "plus"),
        verdicts=verdicts,
        version=benchmark.version,
        sha256=benchmark.sha256,
        protocol=protocol,
        isolation=rung,
        seconds={"generate": None, "judge": round(time.monotonic() - start, 3)},
        ignored=ignored,
    )
    _write_results(output_dir, result, found)
    return result


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_samples(samples, benchmark):
    """({task id: solution}, number of samples for tasks the benchmark does not have)."""
    if isinstance(samples, (str, Path)):
        source = Path(samples)
        if not source.is_file():
            raise EvaluationError(f"{source} does not exist; generate the solutions first.")
        rows = _read_jsonl(source, repair=True)
    else:
        source, rows = "samples", list(enumerate(samples, 1))
    solutions = {}
    for number, row in rows:
        if not (isinstance(row, dict) and isinstance(row.get("task_id"), str) and isinstance(row.get("solution"), str)):
            raise EvaluationError(f"{source}, row {number}: needs the texts task_id and solution.")
        if row["task_id"] in solutions:
            raise EvaluationError(f"{source}, row {number}: a second solution for {row['task_id']}; pass@1 takes one.")
        solutions[row["task_id"]] = row["solution"]
    known = {task["task_id"] for task in benchmark.tasks}
    if not known & solutions.keys():
        raise EvaluationError(f"{source}: no sample belongs to a task of {benchmark.name}.")
    return {k: v for k, v in solutions.items() if k in known}, len(solutions.keys() - known)


def _judge_all(job, tasks, box, rung):
    """{task id: verdict}. If a box ends early, tasks that were running get a box of their own, the others a new one."""
    found, pending = {}, tasks
    while pending:
        started = _run_box(job, pending, box, rung, found)
        suspects = [task for task in pending if task["task_id"] in started and task["task_id"] not in found]
        for task in suspects:
            _run_box(job, [task], box, rung, found)
            found.setdefault(task["task_id"], {"base": "error", "plus": "error", "failure": "crash"})
        rest = [task for task in pending if task["task_id"] not in found]
        if len(rest) == len(pending):
            for task in rest:  # the box does not even start a task: reported as such, not as wrong answers
                raise EvaluationError(f"The judge stopped before {task['task_id']}: {_last_words(box)}")
        pending = rest
    return found


def _run_box(job, tasks, box, rung, found):
    """Judge ``tasks`` in one box, add the verdicts to ``found``; returns the ids of tasks it began."""
    shutil.rmtree(box, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="codeact-job-") as folder:
        folder = Path(folder)
        shutil.copyfile(JUDGE, folder / "judge.py")
        (folder / "job.json").write_text(json.dumps({**job, "tasks": tasks}), encoding="utf-8")
        for path, mode in ((folder, 0o755), (folder / "judge.py", 0o644), (folder / "job.json", 0o644)):
            path.chmod(mode)  # the box reads them as another user
        out = box / "verdicts.jsonl"
        argv = [sys.executable, folder / "judge.py", folder / "job.json", out.resolve()]
        patience = job["task_seconds"] + 60
        timeout = patience + len(tasks) * job["task_seconds"]
        ended = run_isolated(
            argv, output_dir=box, readable=[folder], isolation=rung, timeout=timeout, watch=(out, patience)
        )
    (box / "output.txt").write_text(
        f"{ended.output}\nreturncode {ended.returncode} {ended.stopped}\n", encoding="utf-8"
    )
    return _collect(out, tasks, found)


def _last_words(box):
    lines = (box / "output.txt").read_text(encoding="utf-8").strip().splitlines()
    return " | ".join(lines[-3:])


def _collect(path, tasks, found):
    """Check every line that came out of the box; a task with two different verdicts has none."""
    known, started, verdicts = {task["task_id"] for task in tasks}, set(), {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # half a line of a box that was killed, or not the judge's
        if not isinstance(row, dict) or row.get("task_id") not in known:
            continue
        if row.get("event") == "start":
            started.add(row["task_id"])
        elif "broken" in row:
            raise EvaluationError(f"{row['task_id']}: its canonical solution does not run ({row['broken']}).")
        elif _is_verdict(row):
            verdicts.setdefault(row["task_id"], []).append(row)
    for task_id, rows in verdicts.items():
        forged = any((row["base"], row["plus"]) != (rows[0]["base"], rows[0]["plus"]) for row in rows)
        found[task_id] = {"base": "error", "plus": "error", "failure": "crash"} if forged else rows[0]
    return started


def _is_verdict(row):
    known = row.get("base") in STATUSES and row.get("plus") in STATUSES and row.get("failure") in FAILURES
    return known and isinstance(row.get("solution", ""), str)


def _verdict(row):
    """Verdict of one task; a solution that fails the base tests has not passed base and extra tests."""
    if row is None:
        return {"base": "fail", "plus": "fail", "failure": "missing"}
    plus = row["plus"] if row["base"] == "pass" else row["base"]
    return {"base": row["base"], "plus": plus, "failure": "" if plus == "pass" else row["failure"] or "wrong"}


def _count(verdicts, tests):
    return sum(verdict[tests] == "pass" for verdict in verdicts.values()), len(verdicts)


def _write_results(output_dir, result, found):
    """``sanitized.jsonl``: what was judged; ``verdicts.json``: the record, with EvalPlus's own two statuses."""
    with atomic_write(output_dir / "sanitized.jsonl") as file:
        for task_id in result.verdicts:
            if "solution" in found.get(task_id, {}):
                file.write(json.dumps({"task_id": task_id, "solution": found[task_id]["solution"]}) + "\n")
    statuses = {t: {"base_status": row["base"], "plus_status": row["plus"]} for t, row in sorted(found.items())}
    write_json(output_dir / "verdicts.json", {"benchmark": result.benchmark, **result.to_dict(), "evalplus": statuses})


# ------------------------------------------------------------------------------------------------ the record of a run


def run_history(paths, run) -> dict:
    """What the manifests of the stages before tell about a run: keyword arguments for `metrics_record`.

    Args:
        paths: `codeact_lib.artifacts.RunPaths`.
        run: `codeact_lib.config.Run`.

    The cost of selection counts only what the policy needs: CDAS both steps, ``ifd`` no embedding, others nothing.
    """
    if run.dataset is None:
        return {"keys": {}, "n_train": None, "n_total": None, "selection_cost": None}
    selection = paths.selection_dir(run.dataset, run.model, run.selection)
    folders = {"01_cluster": paths.cluster_dir(run.dataset), "02_ifd": paths.ifd_dir(run.dataset, run.model)}
    folders |= {"03_sample": selection, "04_train_dynamic_pack": paths.train_dir(run.run_id)}
    manifests = {
        s: StageManifest.read(f / "manifest.json") for s, f in folders.items() if (f / "manifest.json").exists()
    }
    return {
        "keys": {stage: manifest.key for stage, manifest in manifests.items()},
        "n_train": _count_lines(selection / "train.jsonl"),
        "n_total": _count_rows(paths.examples(run.dataset)),
        "selection_cost": _selection_cost(run.policy, manifests),
    }


def _selection_cost(policy, manifests):
    parts = {"embedding_seconds": "01_cluster", "ifd_seconds": "02_ifd"}
    needed = {"cdas": tuple(parts), "ifd": ("ifd_seconds",), "stratified": ("embedding_seconds",)}.get(policy, ())
    cost = {}
    for name in needed:
        manifest = manifests.get(parts[name])
        # the measured step where the stage says it, else the whole stage
        cost[name] = manifest and manifest.facts.get(name, manifest.seconds)
    return {name: cost.get(name, 0.0) for name in parts} if needed else None


def _count_lines(path):
    return sum(1 for line in path.open(encoding="utf-8") if line.strip()) if path.exists() else None


def _count_rows(path):
    import pyarrow.parquet

    return pyarrow.parquet.read_metadata(path).num_rows if path.exists() else None


def metrics_record(profile, run, results, *, train=None, n_train=None, n_total=None, selection_cost=None, keys=None):
    """What one run is known by in the tables, as a JSON-able dict.

    Args:
        profile, run: `codeact_lib.config.Profile` and `Run`.
        results: list of `PassAtOne`.
        train: content of train_metrics.json, None for an untouched base model; the loss curve is left out.
        n_train, n_total: rows trained on, rows of the data set.
        selection_cost: {"embedding_seconds", "ifd_seconds"} or None.
        keys: stage -> key of its manifest.
    """
    model = profile.model(run.model)
    dataset = profile.dataset(run.dataset) if run.dataset else None
    return {
        "run_id": run.run_id,
        "profile": profile.name,
        "model": {k: getattr(model, k) for k in ("name", "label", "size", "path", "revision", "reported_as")},
        "dataset": run.dataset,
        "dataset_label": dataset and dataset.label,
        "reported_as": dataset and dataset.reported_as,
        **{k: getattr(run, k) for k in ("policy", "ratio", "strategy", "seed")},
        "n_train": n_train,
        "n_total": n_total,
        "train": train and {k: v for k, v in train.items() if k != "loss_curve"},
        "selection_cost": selection_cost,
        "benchmarks": {result.benchmark: result.to_dict() for result in results},
        "provenance": {"environment": environment_facts(), "keys": keys or {}, "seed": profile.seed},
    }
