"""The program inside the box: EvalPlus's own checks on each solution, one JSON line per verdict.

    python judge.py job.json verdicts.jsonl

It is started by `codeact_lib.evaluation` and imports nothing of this package. It uses the functions EvalPlus 0.3.1 is
made of (sanitize, trusted_exec, untrusted_check) instead of its ``evaluate``, which stays alive for ever when a worker
dies, waits up to 20 s at a normal end, reuses old results in silence and keeps its ground truth in a pickle.

A slim process with N workers: each takes a task, computes the expected outputs from the canonical solution, judges the
solution in a process of its own (EvalPlus forks twice per task; from a small process that is 7 ms, with torch loaded it
would be 196 ms). A worker that dies or exceeds its time costs only the task it was at.
"""

import gc
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import types
from copy import deepcopy
from multiprocessing.connection import wait

EVALPLUS_MEMORY = 4 << 30


def load_evalplus():
    """Import what is needed of EvalPlus, and its traps defused."""
    # evalplus.data imports `datasets` for a leaderboard this program never asks for: 1.3 s and 100 MB in every fork.
    sys.modules.setdefault("datasets", types.SimpleNamespace(load_dataset=None))
    # EvalPlus sets its memory limits to 4 GiB per solution; where the hard limit is lower that fails, and with it every
    # task. Then (and on macOS, where these limits do not work) the limits of the box have to do.
    kinds = (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_STACK)
    hard = [h for h in (resource.getrlimit(kind)[1] for kind in kinds) if h != resource.RLIM_INFINITY]
    if sys.platform == "darwin" or min(hard, default=EVALPLUS_MEMORY) < EVALPLUS_MEMORY:
        os.environ["EVALPLUS_MAX_MEMORY_BYTES"] = "-1"
    import evalplus.data.mbpp
    import evalplus.eval
    import evalplus.eval.utils
    import evalplus.gen.util
    import evalplus.sanitize

    return evalplus


# ------------------------------------------------------------------------------------------------ one task


class Root:
    """Expected output of ``find_zero``: equals any x at which the polynomial is zero within ``atol``."""

    def __init__(self, coefficients, atol):
        self.coefficients, self.atol = deepcopy(coefficients), atol

    def __eq__(self, x):
        return abs(sum(c * x**i for i, c in enumerate(self.coefficients))) <= self.atol


class Anything:
    """Expected output that every output equals: the check then fails only if the call itself does."""

    def __eq__(self, output):
        return True


def clean(evalplus, solution, entry_point):
    """EvalPlus's sanitize; the answer as it is where that fails (it parses every pair of lines, so time is limited)."""
    faults = (SyntaxError, ValueError, RecursionError, MemoryError, evalplus.eval.utils.TimeoutException)
    try:
        with evalplus.eval.utils.time_limit(20):
            return evalplus.sanitize.sanitize(solution, entry_point)
    except faults:
        return solution


def expected_outputs(evalplus, kind, task):
    """{"base", "plus"} -> (expected outputs, seconds per input) of the canonical solution."""
    not_none = kind == "mbpp" and task["entry_point"] in evalplus.eval.MBPP_OUTPUT_NOT_NONE_TASKS
    code = task["prompt"] + task["canonical_solution"]
    return {
        tests: evalplus.gen.util.trusted_exec(
            code, task[f"{tests}_input"], task["entry_point"], record_time=True, output_not_none=not_none
        )
        for tests in ("base", "plus")
    }


def check(evalplus, kind, task, solution, inputs, expected, seconds, limit):
    """EvalPlus's verdict on one list of inputs: (status, outcome per input up to the first failure).

    In EvalPlus 0.3.1 HumanEval/32 (``find_zero``) can never pass: its branch leaves the input uncounted. Named
    otherwise, the check goes the common way, with the same criterion as the expected output.
    """
    if kind == "humaneval" and task["entry_point"] == "find_zero":
        kind, expected = "find_zero", [Root(*arguments, task["atol"]) for arguments in inputs]
    return evalplus.eval.untrusted_check(
        kind,
        solution,
        inputs,
        task["entry_point"],
        expected=expected,
        atol=task["atol"],
        ref_time=seconds,
        fast_check=True,
        min_time_limit=limit,
    )


def failure_kind(evalplus, task, solution, tests, status, details, seconds, limit):
    """Why a solution failed: empty, syntax, timeout, error (it raised) or wrong (it answered)."""
    if not solution.strip():
        return "empty"
    try:
        compile(solution, "solution", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "syntax"
    if status == "timeout" or seconds >= limit:
        return "timeout"
    if not len(details):
        return "error"
    failing = [task[f"{tests}_input"][len(details) - 1]]
    answered, _ = check(evalplus, "", task, solution, failing, [Anything()], [0.0], limit)
    return "wrong" if answered == "pass" else "error"


def judge(evalplus, job, task):
    """Verdict on one task as a plain dict; ``status`` of base and plus are EvalPlus's own words."""
    kind, limit = job["kind"], job["min_time_limit"]
    if kind == "mbpp":
        for name in ("base_input", "plus_input"):
            task[name] = evalplus.data.mbpp.mbpp_deserialize_inputs(task["task_id"], task[name])
    try:
        truth = expected_outputs(evalplus, kind, task)
    except Exception as error:  # noqa: BLE001 - whatever the benchmark's own code raises is reported, not hidden
        return {"broken": f"{type(error).__name__}: {error}"}
    code = clean(evalplus, task["solution"], task["entry_point"]) if job["sanitize"] else task["solution"]
    verdict = {"solution": code, "failure": ""}
    for tests in ("base", "plus"):
        start = time.monotonic()
        outputs, times = truth[tests]
        status, details = check(evalplus, kind, task, code, task[f"{tests}_input"], outputs, times, limit)
        verdict[tests] = status
        if status != "pass" and not verdict["failure"]:
            spent = time.monotonic() - start
            verdict["failure"] = failure_kind(evalplus, task, code, tests, status, details, spent, limit)
    return verdict


# ------------------------------------------------------------------------------------------------ the workers


def serve(evalplus, job, pipe):
    """A worker: task numbers in, verdicts out, as JSON. A process group of its own, to be ended with its children."""
    os.setpgid(0, 0)
    while True:
        number = json.loads(pipe.recv_bytes())
        pipe.send_bytes(json.dumps(judge(evalplus, job, job["tasks"][number])).encode())


class Worker:
    """A forked worker, the task it is at and when its time is over."""

    def __init__(self, evalplus, job):
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=serve, args=(evalplus, job, theirs))
        self.process.start()
        theirs.close()  # else the death of the worker would not end the pipe
        self.task = None

    def give(self, number, seconds):
        self.task, self.deadline = number, time.monotonic() + seconds
        self.pipe.send_bytes(json.dumps(number).encode())

    def stop(self):
        for kill in (os.killpg, os.kill):
            try:
                kill(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def size(task):
    """A guess at the work in a task: the text of its inputs."""
    return len(json.dumps([task["base_input"], task["plus_input"]]))


def run(evalplus, job, write):
    """Judge all tasks, the largest first; ``write`` gets {"task_id", "event": "start"} and then the verdict."""
    waiting = sorted(range(len(job["tasks"])), key=lambda n: size(job["tasks"][n]))
    workers = [Worker(evalplus, job) for _ in range(min(job["parallel"], len(waiting)))]

    def feed(worker):
        worker.task = None
        if waiting:
            number = waiting.pop()
            write({"task_id": job["tasks"][number]["task_id"], "event": "start"})
            worker.give(number, job["task_seconds"])

    for worker in workers:
        feed(worker)
    while busy := [w for w in workers if w.task is not None]:
        # the sentinel too: a child of a killed worker may hold its end of the pipe open
        waited = [end for w in busy for end in (w.pipe, w.process.sentinel)]
        ready = wait(waited, timeout=max(0.0, min(w.deadline for w in busy) - time.monotonic()))
        for worker in busy:
            verdict = receive(worker, ready)
            if verdict is None:
                continue
            write({"task_id": job["tasks"][worker.task]["task_id"], "event": "verdict", **verdict})
            if verdict.pop("worker_is_lost", False):
                worker.stop()
                workers[workers.index(worker)] = worker = Worker(evalplus, job)
            feed(worker)
    return workers


def receive(worker, ready):
    """The verdict a worker sends, or that it died or overran its time; None while it is at work."""
    if worker.pipe in ready:
        try:
            return json.loads(worker.pipe.recv_bytes())
        except (EOFError, OSError, ValueError):
            return {"base": "error", "plus": "error", "failure": "crash", "worker_is_lost": True}
    if worker.process.sentinel in ready:
        return {"base": "error", "plus": "error", "failure": "crash", "worker_is_lost": True}
    if time.monotonic() >= worker.deadline:
        return {"base": "timeout", "plus": "timeout", "failure": "timeout", "worker_is_lost": True}
    return None


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    multiprocessing.set_start_method("fork")
    evalplus = load_evalplus()
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page of the benchmark
    with open(sys.argv[2], "w", encoding="utf-8") as file:

        def write(line):
            file.write(json.dumps(line) + "\n")
            file.flush()

        for worker in run(evalplus, job, write):
            worker.stop()
    os._exit(0)  # no waiting for threads or children that a solution may have left


if __name__ == "__main__":
    main()
