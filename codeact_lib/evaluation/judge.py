"""pass@1 by EvalPlus 0.3.1: judged in boxes, counted outside them.

    benchmark = load_benchmark("mini-humaneval")
    result = evaluate_solutions("samples.jsonl", benchmark, output_dir="eval/my-run/mini-humaneval")
    print(result.base, result.plus, result.isolation)      # (71, 160) (64, 160) bubblewrap

Three programs (`boxed`) run one after the other, each in boxes of `codeact_lib.sandbox`: *prepare* reads
the answers and computes the expected outputs, *answers* runs the solutions where no expected output is, *judge* gives
EvalPlus's verdicts and says which passes the answers bear out. What comes out is JSON, which is checked and counted
here. No pickle of a box is ever read, EvalPlus is not imported here, and no verdict of an earlier evaluation is reused.
"""

from __future__ import annotations

import ast
import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from codeact_lib.artifacts import atomic_write, write_json
from codeact_lib.errors import EvaluationError, require_package
from codeact_lib.evaluation.benchmarks import Benchmark, load_benchmark, read_jsonl
from codeact_lib.evaluation.boxed.plain import OUT_OF_TIME
from codeact_lib.evaluation.boxes import Crew, boxed_programs
from codeact_lib.evaluation.expected import default_cache_dir, load_expected, save_expected
from codeact_lib.prompts import get_protocol
from codeact_lib.sandbox.run import WRITE, choose_isolation, probe

__all__ = ["Benchmark", "PassAtOne", "evaluate_solutions", "load_benchmark"]

STATUSES = ("pass", "fail", "timeout", "error")  # EvalPlus's words, and "error" for a judging that was lost
FAILURES = ("", "wrong", "error", "timeout", "syntax", "empty", "missing", "crash", "unconfirmed")
TASK_SECONDS = 240.0  # EvalPlus itself ends a task after at most 2 x 62 s; the rest is for its expected outputs
TESTS = ("base", "plus")


# ------------------------------------------------------------------------------------------------ the result


@dataclass
class PassAtOne:
    """pass@1 of one model on one benchmark, with everything that must be known to compare it.

    ``base`` and ``plus`` are (k, n): k of n tasks solved. ``plus`` means base and extra tests, as HumanEval+ does.
    ``verdicts``: task id -> {"base", "plus", "failure"}; a status is pass, fail, timeout, error (the judging itself
    was lost) or unconfirmed (EvalPlus says pass, but what the solution answers where it cannot see the expected
    outputs does not bear that out); ``failure`` is one of `FAILURES`, "" when solved.

    ``plain`` are the counts of EvalPlus alone, with the passes in ``unconfirmed``.
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
    plain: dict[str, tuple[int, int]] = field(default_factory=dict)
    isolation_stops: dict[str, bool] = field(default_factory=dict)  # what the canaries showed of the rung in force
    incidents: dict[str, str] = field(default_factory=dict)  # task id -> how the box it was in went bad

    @property
    def unconfirmed(self) -> list[str]:
        """Tasks with a pass that was not counted."""
        return [task_id for task_id, verdict in self.verdicts.items() if verdict["failure"] == "unconfirmed"]

    def failures(self) -> dict[str, int]:
        """How many tasks failed in which way, most frequent first."""
        kinds = Counter(verdict["failure"] for verdict in self.verdicts.values())
        return {kind: n for kind, n in kinds.most_common() if kind}

    def to_dict(self) -> dict:
        """The record of a metrics file; counts as {"k", "n"}."""
        counts = {tests: dict(zip(("k", "n"), getattr(self, tests), strict=True)) for tests in TESTS}
        plain = {tests: dict(zip(("k", "n"), pair, strict=True)) for tests, pair in self.plain.items()}
        names = ["kind", "verdicts", "version", "sha256", "protocol", "isolation", "isolation_stops", "seconds"]
        names += ["ignored", "unconfirmed", "incidents"]
        facts = {name: getattr(self, name) for name in names}
        return {"n": self.base[1], **counts, "plain": plain, "failures": self.failures(), **facts}


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
    total_memory=None,
    cache_dir=None,
    say=print,
) -> PassAtOne:
    """Judge one solution per task and count.

    Args:
        samples: list of {"task_id", "solution"} or a JSONL path; a task without a sample counts as failed ("missing").
        benchmark: a `Benchmark`, or what `load_benchmark` takes.
        output_dir: gets ``sanitized.jsonl`` and ``verdicts.json``.
        protocol: named in the record; one that ends in "+imports" puts the prompt's imports in front of the answer.
        isolation: "auto" or a rung of `codeact_lib.sandbox.run.LADDER`; which one is in force is said and recorded.
        parallel: solutions judged at a time, None for one per usable core.
        min_time_limit: seconds per input at least; EvalPlus's 1 s for MBPP gives false timeouts on a busy machine.
        sanitize: cut the answer down to the function and what it needs, by EvalPlus's ``sanitize``.
        task_seconds: after so long a task is given up as a timeout, whatever EvalPlus says. The whole ends after at
            most three times (tasks / parallel + tasks that went bad) x this; in practice within EvalPlus's own limits.
        total_memory: bytes that all processes of a box may hold together, None for half of the machine's.
        cache_dir: where expected outputs are kept, None for the user's cache folder. Neither read nor written under an
            isolation that lets a solution write there.
        say: called with the line that names the isolation, None for silence.

    Raises:
        EvaluationError: unusable samples or benchmark, or a canonical solution that does not run.
        SandboxError: the isolation asked for is not to be had.
    """
    require_package("evalplus", "eval")
    start = time.monotonic()
    benchmark = benchmark if isinstance(benchmark, Benchmark) else load_benchmark(benchmark)
    rules = get_protocol(protocol)
    solutions, ignored = _read_samples(samples, benchmark)
    tasks = [
        {**task, "solution": solutions[task["task_id"]]} for task in benchmark.tasks if task["task_id"] in solutions
    ]
    if rules.imports_in_front:
        tasks = [{**task, "solution": imports_of(task["prompt"]) + task["solution"]} for task in tasks]
    rung = probe(choose_isolation(isolation))
    if say:
        say(rung.sentence())
    cache = (cache_dir or default_cache_dir()) if rung.stops[WRITE] else None
    with boxed_programs() as folder:
        crew = Crew(folder, rung.name, parallel or usable_cores(), task_seconds, total_memory)
        job = {"kind": benchmark.kind, "min_time_limit": min_time_limit, "sanitize": sanitize}
        prepared, lost = _prepare(crew, job, tasks, benchmark, cache)
        said = _ask(crew, job, tasks, prepared)
        judged = {k: _checked(row) for k, row in {**lost, **_judge(crew, job, tasks, prepared, said)}.items()}
    verdicts = {task["task_id"]: _verdict(judged.get(task["task_id"])) for task in benchmark.tasks}
    result = PassAtOne(
        benchmark=benchmark.name,
        kind=benchmark.kind,
        base=_count(verdicts, "base"),
        plus=_count(verdicts, "plus"),
        verdicts=verdicts,
        version=benchmark.version,
        sha256=benchmark.sha256,
        protocol=rules.name,
        isolation=rung.name,
        seconds={"generate": None, "judge": round(time.monotonic() - start, 3)},
        ignored=ignored,
        plain=_plain_counts(judged, len(benchmark.tasks)),
        isolation_stops=dict(rung.stops),
        incidents=crew.incidents,
    )
    _write_results(Path(output_dir), result, prepared, judged)
    return result


def usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def imports_of(prompt) -> str:
    """The top-level imports of a task's prompt, a line each; nothing for a prompt that is no Python.

    >>> imports_of("from typing import List\\n\\ndef f(x: List):\\n    '''Add.'''\\n")
    'from typing import List\\n'
    """
    try:
        body = ast.parse(prompt).body
    except (SyntaxError, ValueError):
        return ""
    return "".join(f"{ast.unparse(node)}\n" for node in body if isinstance(node, (ast.Import, ast.ImportFrom)))


def _read_samples(samples, benchmark):
    """({task id: solution}, number of samples for tasks the benchmark does not have)."""
    source: Path | str = "samples"
    if isinstance(samples, (str, Path)):
        source = Path(samples)
        if not source.is_file():
            raise EvaluationError(f"{source} does not exist; generate the solutions first.")
        rows = read_jsonl(source, repair=True)
    else:
        rows = list(enumerate(samples, 1))
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


def _prepare(crew, job, tasks, benchmark, cache):
    """({task id: {"code", "inputs", "expected", "seconds"}}, {task id: {"lost": why}} for those that have none)."""
    known = load_expected(benchmark, cache) if cache else {}
    asked = [{**task, "expected": known.get(task["task_id"])} for task in tasks]
    prepared = crew.run("prepare", job, asked)
    for task_id, row in prepared.items():
        if "broken" in row:
            raise EvaluationError(f"{task_id}: its canonical solution does not run ({row['broken']}).")
    lost = {task_id: row for task_id, row in prepared.items() if "lost" in row}
    prepared = {task_id: row for task_id, row in prepared.items() if task_id not in lost}
    if cache:
        save_expected(benchmark, cache, prepared, job["min_time_limit"])
    return prepared, lost


def _ask(crew, job, tasks, prepared):
    """Task id -> what the solution says where no expected output is, {"base", "plus"} as text; "" for nothing."""
    asked = [
        {
            **{name: prepared[task["task_id"]][name] for name in ("code", "inputs")},
            "limits": {t: [max(job["min_time_limit"], 4 * s) for s in row] for t, row in seconds.items()},
            **{name: task[name] for name in ("task_id", "entry_point")},
        }
        for task, seconds in _longest_first(tasks, prepared)
    ]
    said = crew.run("answers", job, asked)
    return {task_id: {tests: str(row.get(tests) or "") for tests in TESTS} for task_id, row in said.items()}


def _judge(crew, job, tasks, prepared, said):
    """Task id -> {"base", "plus", "confirmed", "failure"}, or {"lost": why}."""
    asked = [
        {
            **{name: prepared[task["task_id"]][name] for name in ("code", "inputs", "expected", "seconds")},
            **{name: task[name] for name in ("task_id", "entry_point", "atol")},
            "reference": task["prompt"] + task["canonical_solution"],
            "said": said[task["task_id"]],
        }
        for task, _ in _longest_first(tasks, prepared)
    ]
    asked.sort(key=lambda task: not task["said"]["base"].endswith(OUT_OF_TIME))  # each takes seconds, so first
    return crew.run("judge", job, asked)


def _longest_first(tasks, prepared):
    """(task, seconds of its reference), the most work first, so that no core waits long for the last one."""
    ready = [(task, prepared[task["task_id"]]["seconds"]) for task in tasks if task["task_id"] in prepared]
    return sorted(ready, key=lambda pair: (sum(map(sum, pair[1].values())), len(str(pair[0]["plus_input"]))))[::-1]


def _checked(row):
    """An answer of the judge, or "crash" for a task that took its judge down and for anything that is no answer."""
    if row.get("lost") in ("timeout", "stopped"):  # EvalPlus waits for a stopped process in vain
        return {"base": "timeout", "plus": "timeout", "failure": "timeout", "confirmed": {}}
    known = row.get("base") in STATUSES and row.get("plus") in STATUSES and row.get("failure") in FAILURES
    if "lost" in row or not known or not isinstance(row.get("confirmed"), dict):
        return {"base": "error", "plus": "error", "failure": "crash", "confirmed": {}}
    return row


def _verdict(row):
    """Verdict of one task; a solution that fails the base tests has not passed base and extra tests."""
    if row is None:
        return {"base": "fail", "plus": "fail", "failure": "missing"}
    doubted = {t: "unconfirmed" if row[t] == "pass" and row["confirmed"].get(t) is not True else row[t] for t in TESTS}
    base, plus = doubted["base"], doubted["plus"] if doubted["base"] == "pass" else doubted["base"]
    failure = {"pass": "", "unconfirmed": "unconfirmed"}.get(plus, row["failure"] or "wrong")
    return {"base": base, "plus": plus, "failure": failure}


def _count(verdicts, tests):
    return sum(verdict[tests] == "pass" for verdict in verdicts.values()), len(verdicts)


def _plain_counts(judged, n):
    """The counts as EvalPlus alone would print them."""
    base = [row for row in judged.values() if row["base"] == "pass"]
    return {"base": (len(base), n), "plus": (sum(row["plus"] == "pass" for row in base), n)}


def _write_results(output_dir, result, prepared, judged):
    """``sanitized.jsonl``: what was judged; ``verdicts.json``: the record, with EvalPlus's own two statuses.

    Its plus status is that of base where a solution ran out of time on the base inputs (`boxed.judge`).
    """
    with atomic_write(output_dir / "sanitized.jsonl") as file:
        for task_id in filter(prepared.__contains__, result.verdicts):
            file.write(json.dumps({"task_id": task_id, "solution": prepared[task_id]["code"]}) + "\n")
    statuses = {t: {"base_status": row["base"], "plus_status": row["plus"]} for t, row in sorted(judged.items())}
    write_json(output_dir / "verdicts.json", {"benchmark": result.benchmark, **result.to_dict(), "evalplus": statuses})
