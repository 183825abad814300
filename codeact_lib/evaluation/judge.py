"""pass@1 by EvalPlus 0.3.1: judged in boxes, counted outside them.

    benchmark = load_benchmark("mini-humaneval")
    result = evaluate_solutions("samples.jsonl", benchmark, output_dir="eval/my-run/mini-humaneval")
    print(result.base, result.plus, result.isolation)      # (71, 160) (64, 160) bubblewrap

Three programs (`boxed`) run one after the other, each in boxes of `codeact_lib.sandbox`: *prepare* reads the answers
and computes the expected outputs, *answers* runs the solutions where no expected output is, *judge* gives EvalPlus's
verdicts and says which passes the answers bear out. What comes out is JSON, which is checked and counted here. No
pickle of a box is ever read, EvalPlus is not imported here, and no verdict of another evaluation is reused: one that
was killed goes on with what its own boxes had judged, where no solution can write into the file that keeps it.
"""

import ast
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codeact_lib.artifacts import make_folder, read_cache, sha256_file, sha256_json, write_json, write_jsonl
from codeact_lib.errors import EvaluationError, require_package
from codeact_lib.evaluation.benchmarks import Benchmark, Task, load_benchmark, read_jsonl, user_caches
from codeact_lib.evaluation.boxed.messages import TESTS, JudgeTask, Prepared, PrepareTask, Question, Rules, Texts
from codeact_lib.evaluation.boxed.plain import OUT_OF_TIME
from codeact_lib.evaluation.boxes import PROGRAMS, Answer, BoxRunner, read_events
from codeact_lib.measure import usable_cores
from codeact_lib.prompts import get_protocol
from codeact_lib.sandbox.backends import WRITE
from codeact_lib.sandbox.run import choose_isolation, probe

# EvalPlus's words, and "error" for a judging that was lost.
STATUSES = ("pass", "fail", "timeout", "error")
FAILURES = ("", "wrong", "error", "timeout", "syntax", "empty", "missing", "crash", "unconfirmed")
# EvalPlus itself ends a task after at most 2 x 62 s; the rest is for its expected outputs.
TASK_SECONDS = 240.0
# Expected outputs depend on the benchmark alone, kept where they took longer: those of MBPP+ take half a minute.
WORTH_KEEPING = 2.0

Count = tuple[int, int]  # k of n


@dataclass
class PassAtOne:
    """pass@1 of one model on one benchmark, with everything that must be known to compare it.

    A status in `verdicts` is pass, fail, timeout, error (the judging itself was lost) or unconfirmed (EvalPlus says
    pass, but what the solution answers where it cannot see the expected outputs does not bear that out).
    """

    benchmark: str
    kind: str
    base: Count  # k of n tasks solved
    plus: Count  # by base and extra tests, as HumanEval+ counts
    verdicts: dict[str, dict[str, str]]  # task id -> {"base", "plus", "failure"}, the last one of `FAILURES`
    version: str
    sha256: str
    protocol: str
    isolation: str
    seconds: dict[str, float | None] = field(default_factory=dict)  # {"generate", "judge"}
    ignored: int = 0  # samples of tasks that are not in the benchmark
    plain: dict[str, Count] = field(default_factory=dict)  # by EvalPlus alone, with the passes in `unconfirmed`
    isolation_stops: dict[str, bool] = field(default_factory=dict)  # what the canaries showed of the isolation in force
    incidents: dict[str, str] = field(default_factory=dict)  # task id -> how the box it was in went bad

    @property
    def unconfirmed(self) -> list[str]:
        """Tasks with a pass that was not counted."""
        return [task_id for task_id, verdict in self.verdicts.items() if verdict["failure"] == "unconfirmed"]

    def failures(self) -> dict[str, int]:
        """How many tasks failed in which way, most frequent first."""
        kinds = Counter(verdict["failure"] for verdict in self.verdicts.values() if verdict["failure"])
        return dict(kinds.most_common())

    def to_dict(self) -> dict[str, Any]:
        """The record of a metrics file; counts as {"k", "n"}."""
        record = vars(self) | {"n": self.base[1], "failures": self.failures(), "unconfirmed": self.unconfirmed}
        record |= {"base": _named(self.base), "plus": _named(self.plus)}
        record["plain"] = {tests: _named(count) for tests, count in self.plain.items()}
        # in a metrics file the key of the record
        del record["benchmark"]
        return record


def _named(count: Count) -> dict[str, int]:
    return dict(zip(("k", "n"), count, strict=True))


def evaluate_solutions(
    samples: Iterable[Mapping[str, Any]] | Path | str,
    benchmark: Benchmark | Path | str,
    *,
    output_dir: Path | str,
    protocol: str = "codeact",
    isolation: str = "auto",
    parallel: int | None = None,
    min_time_limit: float = 4.0,
    sanitize: bool = True,
    task_seconds: float = TASK_SECONDS,
    total_memory: int | None = None,
    cache_dir: Path | str | None = None,
    say: Callable[[str], object] | None = print,
) -> PassAtOne:
    """Judge one solution per task and count.

    Args:
        samples: list of {"task_id", "solution"} or a JSONL path; a task without a sample counts as failed ("missing").
        benchmark: a `Benchmark`, or what `load_benchmark` takes.
        output_dir: gets `sanitized.jsonl` (what was judged) and `verdicts.json` (the record); until then, but not under
            the isolation `limits`, `judged-*.jsonl`, with which the same call goes on after a kill.
        protocol: named in the record; one that ends in "+imports" puts the prompt's imports in front of the answer.
        isolation: as `run_isolated` takes it; which one is in force is said and recorded.
        parallel: solutions judged at a time, None for one per usable core.
        min_time_limit: seconds per input at least; EvalPlus's 1 s for MBPP gives false timeouts on a busy machine.
        sanitize: cut the answer down to the function and what it needs, by EvalPlus's `sanitize`.
        task_seconds: after so long a task is given up as a timeout, whatever EvalPlus says. The whole ends after at
            most three times (tasks / parallel + tasks that went bad) x this; in practice within EvalPlus's own limits.
        total_memory: bytes that all processes of a box may hold together, None for half of the machine's.
        cache_dir: where expected outputs are kept, None for the user's cache folder.
        say: called with the line that names the isolation, None for silence.

    Raises:
        EvaluationError: unusable samples or benchmark, a canonical solution that does not run, or no files, folder or
            disk to go on with.
        SandboxError: the isolation asked for is not to be had.
    """
    require_package("evalplus", "eval")
    start = time.monotonic()
    if not isinstance(benchmark, Benchmark):
        benchmark = load_benchmark(benchmark)
    asked_by = get_protocol(protocol)
    solutions, ignored = _read_samples(samples, benchmark, asked_by.imports_in_front)
    backend = probe(choose_isolation(isolation))
    if say:
        say(backend.sentence())
    rules = Rules(
        kind=benchmark.kind,
        min_time_limit=min_time_limit,
        sanitize=sanitize,
        parallel=parallel or usable_cores(),
        task_seconds=task_seconds,
    )
    boxes = BoxRunner(backend.name, rules, total_memory)
    folder = make_folder(output_dir)
    cache = log = None
    # A file that a solution can write into could hold the answers it wants to be compared with, or its verdict.
    if backend.stops[WRITE]:
        cache = Path(cache_dir or user_caches() / "codeact") / "expected" / f"{benchmark.sha256}.json"
        log = folder / f"judged-{_identity(benchmark, solutions, boxes)[:12]}.jsonl"
    try:
        prepared, judged = _prepare(boxes, benchmark.tasks, solutions, cache)
        judged |= _judge(boxes, prepared, log, say)
    except OSError as error:
        raise EvaluationError(
            f"Judging into {folder} stopped: {error}. What was judged is kept: see to the folder, the disk or the "
            "number of open files (ulimit -n), and call it again."
        ) from error
    checked = {task_id: _checked(row) for task_id, row in judged.items()}
    verdicts = {task["task_id"]: _verdict(checked.get(task["task_id"])) for task in benchmark.tasks}

    def passed(rows: dict[str, Any], *all_of: str) -> Count:
        return sum(all(row[tests] == "pass" for tests in all_of) for row in rows.values()), len(verdicts)

    result = PassAtOne(
        benchmark=benchmark.name,
        kind=benchmark.kind,
        base=passed(verdicts, "base"),
        plus=passed(verdicts, "plus"),
        verdicts=verdicts,
        version=benchmark.version,
        sha256=benchmark.sha256,
        protocol=asked_by.name,
        isolation=backend.name,
        seconds={"generate": None, "judge": round(time.monotonic() - start, 3)},
        ignored=ignored,
        plain={"base": passed(checked, "base"), "plus": passed(checked, "base", "plus")},
        isolation_stops=dict(backend.stops),
        incidents=boxes.incidents,
    )
    judged_code = ({"task_id": name, "solution": prepared[name]["code"]} for name in verdicts if name in prepared)
    write_jsonl(folder / "sanitized.jsonl", judged_code)
    # EvalPlus's own two statuses stand beside the verdicts, so that both can be counted anew.
    statuses = {}
    for task_id, row in sorted(checked.items()):
        statuses[task_id] = {f"{tests}_status": row[tests] for tests in TESTS}
    record = {"benchmark": benchmark.name, **result.to_dict(), "evalplus": statuses}
    write_json(folder / "verdicts.json", record)
    for kept in folder.glob("judged-*.jsonl"):
        kept.unlink()
    return result


def _identity(benchmark: Benchmark, solutions: dict[str, str], boxes: BoxRunner) -> str:
    """Hash of what decides the verdicts: another one's are not gone on with."""
    rules = {name: value for name, value in boxes.rules.items() if name != "parallel"}
    programs = {path.name: sha256_file(path) for path in PROGRAMS.glob("*.py")}
    return sha256_json([benchmark.sha256, solutions, rules, boxes.isolation, boxes.total_memory, programs])


def imports_of(prompt: str) -> str:
    """The top-level imports of a task's prompt, a line each; nothing for a prompt that is no Python."""
    try:
        body = ast.parse(prompt).body
    except (SyntaxError, ValueError):
        return ""
    return "".join(f"{ast.unparse(node)}\n" for node in body if isinstance(node, (ast.Import, ast.ImportFrom)))


def _read_samples(
    samples: Iterable[Mapping[str, Any]] | Path | str, benchmark: Benchmark, imports_in_front: bool
) -> tuple[dict[str, str], int]:
    """({task id: what is to be judged}, number of samples for tasks the benchmark does not have)."""
    if isinstance(samples, (str, Path)):
        source = str(samples)
        if not Path(source).is_file():
            raise EvaluationError(f"{source} does not exist; generate the solutions first.")
        # Half a line at the end is what a kill leaves: then a task is missing, and no file damaged.
        rows = read_jsonl(Path(source), repair=True)
    else:
        source = "samples"
        rows = dict(enumerate(samples, 1))
    solutions: dict[str, str] = {}
    for number, row in rows.items():
        if not (isinstance(row, dict) and isinstance(row.get("task_id"), str) and isinstance(row.get("solution"), str)):
            raise EvaluationError(f"{source}, row {number}: needs the texts task_id and solution.")
        if row["task_id"] in solutions:
            raise EvaluationError(f"{source}, row {number}: a second solution for {row['task_id']}; pass@1 takes one.")
        solutions[row["task_id"]] = row["solution"]
    asked = {}
    for task in benchmark.tasks:
        if task["task_id"] in solutions:
            front = imports_of(task["prompt"]) if imports_in_front else ""
            asked[task["task_id"]] = front + solutions[task["task_id"]]
    if not asked:
        raise EvaluationError(f"{source}: no sample belongs to a task of {benchmark.name}.")
    return asked, len(solutions) - len(asked)


def _prepare(
    boxes: BoxRunner, tasks: list[Task], solutions: dict[str, str], cache: Path | None
) -> tuple[dict[str, Prepared], dict[str, Answer]]:
    """({task id: what was prepared}, {task id: {"lost": why}} for those that have nothing)."""
    known = _known_outputs(cache) if cache else {}
    asked = []
    for task in tasks:
        name = task["task_id"]
        if name in solutions:
            asked.append(PrepareTask(task_id=name, task=task, solution=solutions[name], expected=known.get(name)))
    prepared: dict[str, Any] = {}
    lost = {}
    # Only the benchmark's own code runs in these boxes, so what they say is believed.
    for task_id, row in boxes.run("prepare", asked).items():
        if "broken" in row:
            raise EvaluationError(f"{task_id}: its canonical solution does not run ({row['broken']}).")
        if "lost" in row:
            lost[task_id] = row
        else:
            prepared[task_id] = row
    if cache:
        _keep_outputs(cache, prepared, boxes.rules["min_time_limit"])
    return prepared, lost


def _known_outputs(cache: Path) -> dict[str, Texts]:
    """Task id -> expected outputs of an earlier evaluation, as far as they are whole."""
    known = {}
    for task_id, texts in read_cache(cache).items():
        if isinstance(texts, dict) and all(isinstance(texts.get(tests), str) for tests in TESTS):
            known[task_id] = texts
    return known


def _keep_outputs(cache: Path, prepared: dict[str, Prepared], min_time_limit: float) -> None:
    # EvalPlus keeps a pickle that holds time limits too, which depend on what else the machine did. Here it is JSON,
    # without times: a task is kept only where its reference is so fast that the time limit does not depend on it.
    total = 0.0
    kept = {}
    for task_id, row in prepared.items():
        times = [*row["seconds"]["base"], *row["seconds"]["plus"]]
        total += sum(times)
        if max(times, default=0.0) * 8 < min_time_limit:
            kept[task_id] = row["expected"]
    if total > WORTH_KEEPING:
        write_json(cache, kept)


def _judge(
    boxes: BoxRunner, prepared: dict[str, Prepared], log: Path | None, say: Callable[[str], object] | None
) -> dict[str, Answer]:
    """Task id -> what the boxed judge says, once the solutions have answered; `log` has what it said before a kill."""
    known: dict[str, Answer] = {}
    if log and log.exists():
        known, _ = read_events(log.read_text(encoding="utf-8", errors="replace"), set(prepared))
        if say:
            say(f"{len(known)} of {len(prepared)} solutions were judged before")

    def work(row: Prepared) -> tuple[float, int]:
        return sum(map(sum, row["seconds"].values())), len(row["inputs"]["plus"])

    # The most work first, so that no core waits long for the last one.
    rows = sorted((row for task_id, row in prepared.items() if task_id not in known), key=work, reverse=True)
    # Of what was prepared a solution's process gets these fields only: no expected output, no reference.
    questions = [{name: row.get(name) for name in Question.__required_keys__} for row in rows]
    answers = boxes.run("answers", questions)
    claims = []
    for row in rows:
        heard = answers[row["task_id"]]
        claims.append(JudgeTask(**row, said={tests: str(heard.get(tests) or "") for tests in TESTS}))
    # Those out of time take seconds each, so they go before all others.
    claims.sort(key=lambda claim: not claim["said"]["base"].endswith(OUT_OF_TIME))
    return known | boxes.run("judge", claims, log)


def _checked(row: Answer) -> Answer:
    """An answer of the judge, or "crash" for a task that took its judge down and for anything that is no answer."""
    # EvalPlus waits for a stopped process in vain.
    if row.get("lost") in ("timeout", "stopped"):
        return {"base": "timeout", "plus": "timeout", "failure": "timeout", "confirmed": {}}
    known = row.get("base") in STATUSES and row.get("plus") in STATUSES and row.get("failure") in FAILURES
    if "lost" in row or not known or not isinstance(row.get("confirmed"), dict):
        return {"base": "error", "plus": "error", "failure": "crash", "confirmed": {}}
    return row


def _verdict(row: Answer | None) -> dict[str, str]:
    """Verdict of one task; a solution that fails the base tests has not passed base and extra tests."""
    if row is None:
        return {"base": "fail", "plus": "fail", "failure": "missing"}
    status = {}
    for tests in TESTS:
        doubted = row[tests] == "pass" and row["confirmed"].get(tests) is not True
        status[tests] = "unconfirmed" if doubted else row[tests]
    if status["base"] != "pass":
        status["plus"] = status["base"]
    failure = {"pass": "", "unconfirmed": "unconfirmed"}.get(status["plus"], row["failure"] or "wrong")
    return {**status, "failure": failure}
