"""Verdicts: the same as EvalPlus's own, one for every task whatever happens, counted outside the box."""

import contextlib
import gzip
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from hostile import neighbours
from hypothesis import given
from hypothesis import strategies as st

from codeact_lib.errors import CodeActError, EvaluationError
from codeact_lib.evaluation.benchmarks import Benchmark, load_benchmark
from codeact_lib.evaluation.boxed import answers
from codeact_lib.evaluation.boxed.plain import Opaque, decode, encode
from codeact_lib.evaluation.boxes import read_events
from codeact_lib.evaluation.judge import PassAtOne, evaluate_solutions, imports_of
from codeact_lib.evaluation.records import metrics_record
from codeact_lib.pipeline.history import run_history
from codeact_lib.sandbox.backends import WRITE
from codeact_lib.sandbox.run import choose_isolation, probe, probe_isolation

REAL_DATA = os.environ.get("CODEACT_REAL_DATA")
AVAILABLE = [rung.name for rung in probe_isolation() if rung.available]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Expected outputs are kept in a folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def task(task_id, entry_point, prompt, canonical, base, plus, atol=0):
    fields = {"task_id": task_id, "entry_point": entry_point, "prompt": prompt, "canonical_solution": canonical}
    return {**fields, "base_input": base, "plus_input": plus, "atol": atol, "contract": ""}


def humaneval_tasks():
    rows = [
        ("add", "a, b", "a + b", [[1, 2]], [[0, 0], [-1, 5]], 0),
        ("half", "x", "x / 2", [[1], [2]], [[3]], 1e-6),
        ("evens", "xs", "[x for x in xs if x % 2 == 0]", [[[1, 2]]], [[[]], [[2, 4]]], 0),
        ("largest", "xs", "max(xs, default=None)", [[[1, 2]]], [[[]]], 0),
    ]
    return [
        task(
            f"TestHumanEval/{i}",
            name,
            f'def {name}({args}):\n    """A task."""\n',
            f"    return {body}\n",
            base,
            plus,
            tol,
        )
        for i, (name, args, body, base, plus, tol) in enumerate(rows)
    ]


def mbpp_tasks():
    rows = [
        ("mul", "a, b", "a * b", [[1, 2]], [[0, 3]]),
        ("words", "s", "s.split()", [["a b"]], [[""], ["x  y"]]),
        ("tail", "xs", "xs[1:]", [[[1, 2]]], [[[]]]),
        ("count", "s", "len(s)", [["ab"]], [[""]]),
    ]
    quoted = '"""\nWrite a function.\n"""\n'
    return [
        task(f"TestMbpp/{9000 + i}", name, quoted, f"def {name}({args}):\n    return {body}\n", base, plus)
        for i, (name, args, body, base, plus) in enumerate(rows)
    ]


def write_tasks(path, tasks):
    path.write_text("".join(json.dumps(t) + "\n" for t in tasks))
    return path


def canonical(tasks):
    return [{"task_id": t["task_id"], "solution": t["prompt"] + t["canonical_solution"]} for t in tasks]


def faulty(t):
    """Solutions of one task, each with the failure it must be given ("" where it passes)."""
    name, args = t["entry_point"], "*args"
    return {
        "correct": (t["prompt"] + t["canonical_solution"], ""),
        "wrong": (f"def {name}({args}):\n    return 'no'\n", "wrong"),
        "crashing": (f"def {name}({args}):\n    return 1 // 0\n", "error"),
        "leaving": (f"import sys\ndef {name}({args}):\n    sys.exit(0)\n", "error"),
        "slow": (f"def {name}({args}):\n    while True: pass\n", "timeout"),
        "broken": (f"def {name}({args}:\n    return 1\n", "syntax"),
        "empty": ("", "empty"),
        "misnamed": ("def other(x):\n    return x\n", "error"),
    }


PLAIN_EVALPLUS = """
import os, sys
sys.modules["datasets"] = type(sys)("datasets"); sys.modules["datasets"].load_dataset = None
from evalplus.evaluate import evaluate
evaluate(sys.argv[1], samples=sys.argv[2], parallel=2, min_time_limit=float(sys.argv[3]))
sys.stdout.flush()
os._exit(0)
"""


def plain_evalplus(kind, tasks, samples, folder, limit):
    """Base and plus status of EvalPlus's own ``evaluate``, run as its command line runs it."""
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    env[f"{kind.upper()}_OVERRIDE_PATH"] = str(write_tasks(folder / "tasks.data", tasks))
    write_tasks(folder / "samples.jsonl", samples)
    argv = [sys.executable, "-c", PLAIN_EVALPLUS, kind, str(folder / "samples.jsonl"), str(limit)]
    subprocess.run(argv, env=env, check=True, capture_output=True, timeout=100)
    results = json.loads((folder / "samples_eval_results.json").read_text())["eval"]
    return {k: {tests: rows[0][f"{tests}_status"] for tests in ("base", "plus")} for k, rows in results.items()}


def many_of(kind):
    """Each kind of solution once, as a task of its own, so that one evaluation judges them all."""
    base = (humaneval_tasks if kind == "humaneval" else mbpp_tasks)()
    tasks, samples, failures = [], [], {}
    for n, (solution, failure) in enumerate(faulty(base[0]).values()):
        number = n if kind == "humaneval" else 9100 + n
        tasks.append({**base[0], "task_id": f"{base[0]['task_id'].split('/')[0]}/{number}"})
        samples.append({"task_id": tasks[-1]["task_id"], "solution": solution})
        failures[tasks[-1]["task_id"]] = failure
    # right on the base inputs only
    half_right = f"def {base[2]['entry_point']}(xs):\n    return [2] if xs[0] else []\n"
    tasks.append({**base[2], "task_id": f"{base[2]['task_id']}99"})
    samples.append({"task_id": tasks[-1]["task_id"], "solution": half_right})
    failures[tasks[-1]["task_id"]] = "error"
    return tasks, samples, failures


@pytest.mark.parametrize("kind", ["humaneval", "mbpp"])
def test_verdicts_are_those_of_plain_evalplus(kind, tmp_path):
    tasks, samples, failures = many_of(kind)
    benchmark = load_benchmark(write_tasks(tmp_path / "tasks.jsonl", tasks))
    result = evaluate_solutions(samples, benchmark, output_dir=tmp_path / "out", min_time_limit=1.0, sanitize=False)
    stored = json.loads((tmp_path / "out" / "verdicts.json").read_text())
    ours = {k: {"base": v["base_status"], "plus": v["plus_status"]} for k, v in stored["evalplus"].items()}
    (tmp_path / "plain").mkdir()
    assert ours == plain_evalplus(kind, tasks, samples, tmp_path / "plain", 1.0)
    assert {k: v["failure"] for k, v in result.verdicts.items()} == failures
    assert result.base == (2, 9) and result.plus == (1, 9)


@pytest.mark.parametrize("make", [humaneval_tasks, mbpp_tasks])
def test_canonical_solutions_pass_and_counts_are_those_of_the_verdicts(make, tmp_path):
    path = write_tasks(tmp_path / "bench.jsonl", make())
    result = evaluate_solutions(canonical(make()), path, output_dir=tmp_path / "out", protocol="evalplus")
    assert result.base == result.plus == (4, 4)
    assert result.kind == ("humaneval" if make is humaneval_tasks else "mbpp")
    assert result.protocol == "evalplus" and result.version == "file bench.jsonl"
    assert result.isolation == choose_isolation("auto")


def test_the_answer_is_cut_to_the_function_before_it_is_judged(tmp_path):
    code = "def add(a, b):\n    return a + b\n"
    chatty = f"{code}\nprint(add(input(), 2))\nThis adds the numbers."
    samples = [{"task_id": "TestHumanEval/0", "solution": chatty}]
    path = write_tasks(tmp_path / "bench.jsonl", humaneval_tasks()[:1])
    assert evaluate_solutions(samples, path, output_dir=tmp_path / "a").plus == (1, 1)
    assert evaluate_solutions(samples, path, output_dir=tmp_path / "b", sanitize=False).plus == (0, 1)
    sanitized = json.loads((tmp_path / "a" / "sanitized.jsonl").read_text())
    assert sanitized["solution"] == code.strip()


def test_a_task_without_a_solution_fails_and_samples_of_other_tasks_are_counted_apart(tmp_path):
    samples = [*canonical(humaneval_tasks()[:2]), {"task_id": "Other/1", "solution": "x"}]
    path = write_tasks(tmp_path / "bench.jsonl", humaneval_tasks())
    result = evaluate_solutions(samples, path, output_dir=tmp_path / "out")
    assert result.base == (2, 4) and result.ignored == 1
    assert result.failures() == {"missing": 2}


def test_half_a_line_at_the_end_of_the_samples_is_a_missing_task(tmp_path):
    samples = tmp_path / "samples.jsonl"
    lines = [json.dumps(row) for row in canonical(humaneval_tasks())]
    samples.write_text("\n".join(lines)[:-9])
    path = write_tasks(tmp_path / "bench.jsonl", humaneval_tasks())
    assert evaluate_solutions(samples, path, output_dir=tmp_path / "out").plus == (3, 4)
    samples.write_text("\n".join([lines[0][:-9], *lines[1:]]))
    with pytest.raises(EvaluationError, match="samples.jsonl, line 1"):
        evaluate_solutions(samples, path, output_dir=tmp_path / "out")


def test_an_old_result_is_never_reused(tmp_path):
    path = write_tasks(tmp_path / "bench.jsonl", humaneval_tasks())
    good = canonical(humaneval_tasks())
    assert evaluate_solutions(good, path, output_dir=tmp_path / "out").plus == (4, 4)
    bad = [{**row, "solution": "def f(): return 1"} for row in good]
    assert evaluate_solutions(bad, path, output_dir=tmp_path / "out").plus == (0, 4)


TESTS = [str(folder) for folder in Path(__file__).parents[:2]]
KEEPING = [name for name in AVAILABLE if name != "limits"]
ALONE = """
import sys
sys.path[:0] = {tests!r}
from test_judge import evaluate_slow
evaluate_slow({folder!r}, {isolation!r})
"""


def evaluate_slow(folder, isolation, say=None, files=None):
    """Eight slow solutions, one after the other."""
    if files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    rows = [task(f"T/HumanEval/{i}", "f", "def f(x):\n", f"    return x + {i}\n", [[1]], [[2]]) for i in range(8)]
    code = "def f(x):\n    import time\n    time.sleep(0.1)\n    return x + {}\n"
    samples = [{"task_id": f"T/HumanEval/{i}", "solution": code.format(i if i % 3 else 99)} for i in range(8)]
    benchmark = Benchmark("slow", "humaneval", "v", "0" * 64, rows)
    return evaluate_solutions(samples, benchmark, output_dir=folder, isolation=isolation, parallel=1, say=say)


@pytest.mark.parametrize("isolation", KEEPING)
def test_what_was_judged_before_a_kill_is_there_when_it_goes_on(isolation, tmp_path):
    code = ALONE.format(tests=TESTS, folder=str(tmp_path), isolation=isolation)
    with subprocess.Popen([sys.executable, "-c", code]) as job:
        end = time.monotonic() + 60
        while sum(path.read_text().count('"done"') for path in tmp_path.glob("judged-*.jsonl")) < 3:
            assert job.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        job.kill()
    time.sleep(0.5)  # its box ends with it, and says nothing more
    (kept,) = tmp_path.glob("judged-*.jsonl")
    done = {json.loads(line)["task_id"] for line in kept.read_text().splitlines() if '"done"' in line}
    lines = []
    result = evaluate_slow(tmp_path, isolation, lines.append)
    assert f"{len(done)} of 8 solutions were judged before" in lines and 3 <= len(done) < 8
    undisturbed = evaluate_slow(tmp_path / "other", isolation)
    assert (result.base, result.verdicts) == (undisturbed.base, undisturbed.verdicts) and result.base == (5, 8)
    assert not list(tmp_path.glob("judged-*")) and (tmp_path / "verdicts.json").exists()


@pytest.mark.parametrize("isolation", KEEPING)
def test_what_was_judged_of_other_answers_is_not_gone_on_with(isolation, tmp_path):
    """A file that a killed evaluation of other answers left: neither its name nor its verdicts are those wanted."""
    forged = [{"task_id": f"T/HumanEval/{i}", "event": "done", "base": "pass", "plus": "pass"} for i in range(8)]
    (tmp_path / "judged-0123456789ab.jsonl").write_text("".join(json.dumps(row) + "\n" for row in forged))
    assert evaluate_slow(tmp_path, isolation).base == (5, 8)


def test_a_results_folder_that_is_closed_ends_it_with_the_place_and_the_remedy(tmp_path):
    folder = tmp_path / "results"
    (tmp_path / "file").write_text("")
    with pytest.raises(CodeActError, match=r"Cannot write in the folder .*file/results: .*Make it writable"):
        evaluate_slow(tmp_path / "file" / "results", "auto")

    def close(line):
        folder.rmdir()  # while it runs: another user's folder would give the same error of the system
        folder.write_text("")

    with pytest.raises(CodeActError, match=r"results.*(stopped|Cannot write)"):
        evaluate_slow(folder, "auto", close_later(close))


def close_later(close):
    lines = []

    def say(line):
        lines.append(line)
        if len(lines) == 1:
            threading.Timer(1.0, close, [line]).start()

    return say


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("files", [6, 14, 200])
def test_too_few_files_end_it_with_a_clear_error_and_no_traceback(files, tmp_path):
    code = ALONE.format(tests=TESTS, folder=str(tmp_path), isolation="auto")
    code = code.replace("evaluate_slow(", "from codeact_lib.errors import CodeActError\ntry:\n    evaluate_slow(")
    code = code.replace("'auto')", f"'auto', files={files})\nexcept CodeActError as error:\n    print(error)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr and done.returncode == 0, done.stderr
    assert "raise ulimit -n" in done.stdout


def test_a_folder_name_may_hold_the_ending_of_a_sample_file(tmp_path):
    path = write_tasks(tmp_path / "bench.jsonl", mbpp_tasks())
    result = evaluate_solutions(canonical(mbpp_tasks()), path, output_dir=tmp_path / "run.jsonl" / "x.jsonl")
    assert result.plus == (4, 4)


KILL_PARENT = """
import ctypes, os
ctypes.CDLL(None).kill(os.getppid(), 9)
def add(a, b):
    return a + b
"""
KILL_ALL = """
import ctypes, os
for name in os.listdir("/proc"):
    if name.isdigit() and int(name) != os.getpid():
        ctypes.CDLL(None).kill(int(name), 9)
def add(a, b):
    return a + b
"""


def many_adds(n, odd):
    """n copies of the first task solved rightly, but for the last one, which gets the solution ``odd``."""
    tasks = [{**humaneval_tasks()[0], "task_id": f"TestHumanEval/{i}"} for i in range(n)]
    samples = [{"task_id": t["task_id"], "solution": "def add(a, b):\n    return a + b\n"} for t in tasks]
    samples[-1] = {**samples[-1], "solution": odd}
    return Benchmark("adds", "humaneval", "test", "0", tasks), samples


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("isolation", AVAILABLE)
def test_a_solution_that_kills_its_worker_costs_only_its_own_verdict(isolation, tmp_path):
    benchmark, samples = many_adds(6, KILL_PARENT)
    options = {"isolation": isolation, "sanitize": False, "parallel": 2, "min_time_limit": 1.0}
    result = evaluate_solutions(samples, benchmark, output_dir=tmp_path, **options)
    assert result.plus == (5, 6)
    assert result.verdicts["TestHumanEval/5"] == {"base": "error", "plus": "error", "failure": "crash"}


@pytest.mark.skipif(choose_isolation("auto") != "bubblewrap", reason="would kill more than the box")
def test_a_solution_that_kills_the_whole_box_costs_only_its_own_verdict(tmp_path):
    benchmark, samples = many_adds(6, KILL_ALL)
    result = evaluate_solutions(samples, benchmark, output_dir=tmp_path, sanitize=False, parallel=2)
    assert result.plus == (5, 6)
    assert result.failures() == {"crash": 1}


def test_a_worker_that_hangs_is_given_up_with_a_verdict_for_every_task(tmp_path):
    benchmark, samples = many_adds(4, "def add(a, b):\n    return a + b\n")
    slow = {**benchmark.tasks[-1], "canonical_solution": "    import time; time.sleep(100)\n"}
    benchmark = Benchmark("hangs", "humaneval", "test", "0", [*benchmark.tasks[:-1], slow])
    result = evaluate_solutions(samples, benchmark, output_dir=tmp_path, task_seconds=2.0)
    assert result.plus == (3, 4) and result.failures() == {"timeout": 1}


def test_a_solution_out_of_time_on_the_base_inputs_is_not_run_on_the_plus_inputs(tmp_path):
    """It would pass those; its status there is that of base."""
    benchmark, samples = many_adds(2, "def add(a, b):\n    while (a, b) == (1, 2): pass\n    return a + b\n")
    result = evaluate_solutions(samples, benchmark, output_dir=tmp_path, min_time_limit=0.5)
    status = json.loads((tmp_path / "verdicts.json").read_text())["evalplus"]["TestHumanEval/1"]
    assert result.failures() == {"timeout": 1} and status["base_status"] == status["plus_status"] != "pass"


def test_a_solution_that_swallows_its_timeout_is_ended_when_its_time_is_over_again():
    """Without that it would go on until the time of all inputs together is over."""
    code = "from time import sleep\ndef add(a, b):\n while True:\n  try: sleep(99)\n  except BaseException: pass\n"
    asked = [code, "add", json.dumps(encode([(1, 2)])), [0.1]]
    program = f"import os; os.dup2(1, 3)\nfrom codeact_lib.evaluation.boxed.answers import outputs\noutputs(*{asked!r})"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert json.loads(ended.stdout) == {"outputs": [], "why": "timeout"}


def test_memory_limits_that_the_system_refuses_cost_no_solution(monkeypatch):
    """macOS refuses RLIMIT_AS; a stand-in for its call does the same here."""

    def refuse(*arguments):
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr("resource.setrlimit", refuse)
    answers.limit_memory()


@pytest.mark.parametrize("isolation", AVAILABLE)
def test_a_judge_killed_from_outside_is_started_again(isolation, tmp_path):
    """A process of the box is killed while it judges; every task still gets its verdict."""
    slow = "import time\ndef add(a, b):\n    time.sleep(0.05)\n    return a + b\n"
    benchmark, samples = many_adds(8, slow)
    samples = [{**row, "solution": slow} for row in samples]
    killed = []

    def kill_once():
        end = time.monotonic() + 60
        while not killed and time.monotonic() < end:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    command = process.cmdline()
                    if command[1:2] == ["-P"] and "judge" in command[3]:
                        time.sleep(0.5)
                        process.kill()
                        killed.append(command[-1])
                        return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_once)
    killer.start()
    result = evaluate_solutions(samples, benchmark, output_dir=tmp_path, parallel=1, isolation=isolation)
    killer.join()
    assert killed and result.plus == (8, 8)
    end = time.monotonic() + 10  # what the kill left without a parent is ended by the kernel, in its own time
    while left := [p for p in psutil.process_iter(["cmdline"]) if killed[0] in (p.info["cmdline"] or ())]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(("kind", "isolation"), [("SIGALRM", "auto"), ("SIGSTOP", "auto"), ("SIGSTOP", "limits")])
def test_a_solution_that_disturbs_those_beside_it_costs_only_its_own_verdict(kind, isolation, tmp_path):
    """Alarmed or stopped in the middle, an honest solution fails; it is then judged again in a box of its own."""
    slow = "import time\ndef add(a, b):\n    time.sleep(0.2)\n    return a + b\n"
    benchmark, samples = many_adds(6, neighbours(kind))
    samples = [{**row, "solution": slow} for row in samples[:-1]] + samples[-1:]
    benchmark.tasks[-1]["canonical_solution"] = "    import time; time.sleep(0.1)\n    return a + b\n"  # it goes first
    options = {"isolation": isolation, "sanitize": False, "parallel": 2, "min_time_limit": 1.0}
    result = evaluate_solutions(samples, benchmark, output_dir=tmp_path, **options)
    assert result.plus == (5, 6) and result.verdicts["TestHumanEval/5"]["failure"]


def test_lines_that_no_worker_wrote_are_not_believed():
    """Half a line, a stranger's task, and a task that is answered twice, differently or not."""
    done = {"event": "done", "base": "pass"}
    rows = [{"task_id": "a", **done}, {"task_id": "b", **done}, {"task_id": "b", **done}, {"task_id": "x", **done}]
    odd = ["[1]", '{"task_id": []}', "{{{", '{"task_id": "c", "event": "start"}', '{"ta']
    answers, started = read_events("\n".join([*map(json.dumps, rows), *odd]), {"a", "b", "c"})
    assert answers == {"a": rows[0]} and started == {"a", "b", "c"}


FAKE = """
class Any:
    def __eq__(self, other):
        return True
def add(a, b):
    return Any()
"""


def test_a_pass_that_is_not_borne_out_is_listed_and_not_counted(tmp_path):
    benchmark, samples = many_adds(3, FAKE)
    result = evaluate_solutions(samples, benchmark, output_dir=tmp_path)
    assert result.plus == (2, 3) and result.plain == {"base": (3, 3), "plus": (3, 3)}
    assert result.unconfirmed == ["TestHumanEval/2"] and result.failures() == {"unconfirmed": 1}
    stored = json.loads((tmp_path / "verdicts.json").read_text())
    assert stored["plain"]["plus"] == {"k": 3, "n": 3} and stored["unconfirmed"] == ["TestHumanEval/2"]
    assert stored["verdicts"]["TestHumanEval/2"]["plus"] == "unconfirmed"


def test_a_solution_that_fakes_the_plus_tests_only_passes_the_base_tests(tmp_path):
    code = "class Any(int):\n    __eq__ = lambda self, other: True\n"
    code += "def add(a, b):\n    return a + b if (a, b) == (1, 2) else Any(7)\n"
    benchmark, samples = many_adds(2, code)
    result = evaluate_solutions(samples, benchmark, output_dir=tmp_path)
    assert result.base == (2, 2) and result.plus == (1, 2) and result.plain["plus"] == (2, 2)


def test_the_isolation_in_force_is_said_and_stored(tmp_path):
    said = []
    benchmark, samples = many_adds(2, "")
    result = evaluate_solutions(samples, benchmark, output_dir=tmp_path, isolation="limits", say=said.append)
    assert len(said) == 1 and said[0].startswith("isolation: limits only: generated code can")
    assert result.isolation == "limits" and result.to_dict()["isolation_stops"] == probe("limits").stops


def test_a_helper_that_yields_is_kept(tmp_path):
    """EvalPlus 0.3.1 throws away a function without `return`, which Mbpp/630's own solution needs."""
    helper = "def pairs(xs):\n    for x in xs:\n        yield x, x\n\n"
    tasks = mbpp_tasks()[:1]
    path = write_tasks(tmp_path / "bench.jsonl", tasks)
    code = f"{helper}def mul(a, b):\n    return list(pairs([a * b]))[0][0]\n"
    samples = [{"task_id": tasks[0]["task_id"], "solution": code}]
    assert evaluate_solutions(samples, path, output_dir=tmp_path / "out").plus == (1, 1)


def test_the_imports_of_the_prompt_stand_in_front_only_where_the_protocol_says_so(tmp_path):
    prompt = 'from typing import List\nimport math\n\ndef add(a: int, b: int) -> int:\n    """Add."""\n'
    assert imports_of(prompt) == "from typing import List\nimport math\n"
    assert imports_of('"Write this."') == imports_of("no Python:") == ""
    tasks = [{**humaneval_tasks()[0], "prompt": prompt}]
    path = write_tasks(tmp_path / "bench.jsonl", tasks)
    bare = [{"task_id": tasks[0]["task_id"], "solution": "def add(a, b) -> List[int]:\n    return math.fsum([a, b])\n"}]
    for protocol, passed in (("codeact", 0), ("codeact+imports", 1), ("evalplus", 0), ("evalplus+imports", 1)):
        result = evaluate_solutions(bare, path, output_dir=tmp_path / "out", protocol=protocol)
        assert result.plus == (passed, 1) and result.protocol == result.to_dict()["protocol"] == protocol
    with pytest.raises(EvaluationError, match="codeact, evalplus"):
        evaluate_solutions(bare, path, output_dir=tmp_path / "out", protocol="mine")


def test_expected_outputs_are_kept_without_times_and_not_where_a_solution_could_write(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("codeact_lib.evaluation.judge.WORTH_KEEPING", 0.0)
    path = write_tasks(tmp_path / "bench.jsonl", humaneval_tasks())
    judge = {"output_dir": tmp_path / "out"}
    assert evaluate_solutions(canonical(humaneval_tasks()), path, isolation="limits", **judge).plus == (4, 4)
    # root that becomes another user in the box has a cache which that one cannot write into
    assert bool(list(cache.rglob("*.json"))) == probe("limits").stops[WRITE]
    if choose_isolation("auto") == "limits":
        return
    assert evaluate_solutions(canonical(humaneval_tasks()), path, **judge).plus == (4, 4)
    (kept,) = cache.rglob("*.json")
    texts = json.loads(kept.read_text())
    assert decode(json.loads(texts["TestHumanEval/0"]["base"])) == [3] and "seconds" not in kept.read_text()
    texts["TestHumanEval/0"]["base"] = json.dumps(encode([4]))
    kept.write_text(json.dumps(texts))
    assert evaluate_solutions(canonical(humaneval_tasks()), path, **judge).plus == (3, 4)
    kept.write_text("half a fi")
    assert evaluate_solutions(canonical(humaneval_tasks()), path, **judge).plus == (4, 4)


def test_a_large_output_is_confirmed_by_its_digest(tmp_path):
    big = "    return [(a, str(n)) for n in range(b * 20_000)]\n"
    tasks = [{**humaneval_tasks()[0], "canonical_solution": big}]
    path = write_tasks(tmp_path / "bench.jsonl", tasks)
    assert evaluate_solutions(canonical(tasks), path, output_dir=tmp_path / "out").plus == (1, 1)
    wrong = [{**canonical(tasks)[0], "solution": tasks[0]["prompt"] + big.replace("(a, str", "(a + (n == 7), str")}]
    result = evaluate_solutions(wrong, path, output_dir=tmp_path / "out")
    assert result.plus == (0, 1) and result.failures() == {"wrong": 1}
    fake = "class Any(list):\n    __eq__ = lambda self, other: True\ndef add(a, b):\n    return Any(range(100_000))\n"
    result = evaluate_solutions([{**wrong[0], "solution": fake}], path, output_dir=tmp_path / "out")
    assert result.failures() == {"unconfirmed": 1}


def test_outputs_that_are_no_data_get_evalpluss_verdict_but_no_confirmation(tmp_path):
    tasks = [{**humaneval_tasks()[0], "canonical_solution": "    return memoryview(bytes([a % 256, b]))\n"}]
    path = write_tasks(tmp_path / "bench.jsonl", tasks)
    result = evaluate_solutions(canonical(tasks), path, output_dir=tmp_path / "out")
    assert result.plus == (0, 1) and result.plain["plus"] == (1, 1) and len(result.unconfirmed) == 1


numbers = st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@given(values | st.sets(st.integers()) | st.just(10**5000))
def test_plain_data_survives_the_way_through_json_with_its_types(value):
    back = decode(json.loads(json.dumps(encode(value))))
    assert back == value and type(back) is type(value)


def test_what_is_no_data_equals_nothing_and_stays_apart_from_what_is():
    cycle = []
    cycle.append(cycle)
    for value in (object(), memoryview(b""), cycle, type):
        back = decode(json.loads(json.dumps(encode(value))))
        while isinstance(back, list):
            back = back[0]
        assert isinstance(back, Opaque) and back != value
    assert decode(encode(type("Sly", (int,), {"__eq__": lambda self, other: True})(7))) != 8
    for damaged in (["unknown", 1], ["int", "x"], ["list", 3]):
        with pytest.raises((ValueError, TypeError)):
            decode(damaged)


def test_a_polynomial_root_can_pass(tmp_path):
    """HumanEval/32 cannot be passed in EvalPlus 0.3.1; here a root passes and what is none fails."""
    prompt = "def find_zero(xs):\n    '''A root.'''\n"
    tasks = [task("HumanEval/32", "find_zero", prompt, "    return -xs[0] / xs[1]\n", [[[1, 2]]], [[[4, 2]]], 1e-4)]
    path = write_tasks(tmp_path / "bench.jsonl", tasks)
    near = f"{prompt}    return -xs[0] / xs[1] + 1e-6\n"
    for solution, passes in (
        (near, 1),
        (near.replace("1e-6", "1"), 0),
        (near.replace("return", "return str(1) or"), 0),
        (f"{prompt}    xs[:] = [0, 0]\n    return 5\n", 0),
    ):
        samples = [{"task_id": "HumanEval/32", "solution": solution}]
        assert evaluate_solutions(samples, path, output_dir=tmp_path / "out").plus == (passes, 1)


def test_numbers_that_json_lacks_are_judged_and_hashed(tmp_path):
    tasks = mbpp_tasks()[:1]
    tasks[0]["plus_input"] = [[float("inf"), 1], [float("nan"), 1]]
    tasks[0]["canonical_solution"] = "def mul(a, b):\n    return a == a\n"
    path = write_tasks(tmp_path / "bench.jsonl", tasks)
    assert evaluate_solutions(canonical(tasks), path, output_dir=tmp_path / "out").plus == (1, 1)


def test_a_benchmark_is_known_by_its_content(tmp_path):
    first = load_benchmark(write_tasks(tmp_path / "a.jsonl", humaneval_tasks()))
    again = load_benchmark(write_tasks(tmp_path / "b.jsonl", [dict(reversed(t.items())) for t in humaneval_tasks()]))
    changed = load_benchmark(write_tasks(tmp_path / "c.jsonl", [{**t, "atol": 1} for t in humaneval_tasks()]))
    assert first.sha256 == again.sha256 != changed.sha256
    fewer = load_benchmark(tmp_path / "a.jsonl", limit=2)
    assert len(fewer.tasks) == 2 and fewer.sha256 != first.sha256


def test_both_versions_of_mbpp_are_fetched_once_and_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        "codeact_lib.evaluation.benchmarks.EVALPLUS_URL", f"file://{tmp_path}/{{stem}}-{{version}}.jsonl.gz"
    )
    versions = {"mbpp": ("v0.2.0", 378), "mbpp@v0.1.0": ("v0.1.0", 399)}
    for version, n in versions.values():
        lines = "".join(json.dumps({**mbpp_tasks()[0], "task_id": f"Mbpp/{i}"}) + "\n" for i in range(n))
        (tmp_path / f"MbppPlus-{version}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for name, (version, n) in versions.items():
        fetched = load_benchmark(name)
        (tmp_path / f"MbppPlus-{version}.jsonl.gz").unlink()
        again = load_benchmark(name)
        assert (fetched.name, fetched.version, len(fetched.tasks)) == ("mbpp", f"MbppPlus {version}", n)
        assert again.sha256 == fetched.sha256
    kept = tmp_path / "evalplus"
    (kept / "MbppPlus-v0.2.0.jsonl").replace(kept / "MbppPlus-v0.1.0.jsonl")
    with pytest.raises(EvaluationError, match="v0.1.0.jsonl holds 378 tasks, MbppPlus v0.1.0 has 399: .* Remove it"):
        load_benchmark("mbpp@v0.1.0")


def test_unusable_benchmarks_and_samples_are_refused_with_place_and_remedy(tmp_path, monkeypatch):
    good = humaneval_tasks()
    cases = [
        ([{k: v for k, v in good[0].items() if k != "plus_input"}], "task 1: no field 'plus_input'"),
        ([good[0], good[0]], "twice"),
        ([good[0], mbpp_tasks()[0]], "one file holds one kind"),
        ([{**mbpp_tasks()[0], "task_id": "Mbpp/x"}], "must end in /<number>"),
        ([], "no task"),
    ]
    for tasks, message in cases:
        with pytest.raises(EvaluationError, match=message):
            load_benchmark(write_tasks(tmp_path / "bench.jsonl", tasks))
    with pytest.raises(EvaluationError, match="neither a benchmark"):
        load_benchmark(tmp_path / "absent.jsonl")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("codeact_lib.evaluation.benchmarks.EVALPLUS_URL", "file:///absent/{repo}-{version}-{stem}")
    with pytest.raises(EvaluationError, match="put it at .*MbppPlus-v0.1.0.jsonl"):
        load_benchmark("mbpp@v0.1.0")
    (tmp_path / "half.gz").write_bytes(gzip.compress(b"x" * 999)[:-12])
    monkeypatch.setattr("codeact_lib.evaluation.benchmarks.EVALPLUS_URL", f"file://{tmp_path}/half.gz")
    with pytest.raises(EvaluationError, match="put it at .*MbppPlus-v0.1.0.jsonl"):
        load_benchmark("mbpp@v0.1.0")
    path = write_tasks(tmp_path / "bench.jsonl", good)
    samples = [
        (canonical(good)[:1] * 2, "row 2: a second solution"),
        ([{"task_id": "TestHumanEval/0", "solution": None}], "row 1: needs the texts"),
        ([{"task_id": "X/0", "solution": ""}], "no sample belongs"),
    ]
    for rows, message in samples:
        with pytest.raises(EvaluationError, match=message):
            evaluate_solutions(rows, path, output_dir=tmp_path / "out")


def test_a_canonical_solution_that_does_not_run_is_named(tmp_path):
    tasks = humaneval_tasks()
    tasks[1]["canonical_solution"] = "    return undefined\n"
    path = write_tasks(tmp_path / "bench.jsonl", tasks)
    with pytest.raises(EvaluationError, match="TestHumanEval/1: its canonical solution does not run .NameError"):
        evaluate_solutions(canonical(tasks), path, output_dir=tmp_path / "out")


def test_the_record_of_a_run_is_json_and_leaves_the_loss_curve_out():
    from codeact_lib.config import load_profile
    from codeact_lib.evaluation.records import is_sealed

    profile = load_profile("mini")
    run = profile.runs()[-1]
    verdicts = {
        "a": {"base": "pass", "plus": "pass", "failure": ""},
        "b": {"base": "fail", "plus": "fail", "failure": "wrong"},
    }
    result = PassAtOne("mini-mbpp", "mbpp", (1, 2), (1, 2), verdicts, "mini", "0", "authors", "limits", {"judge": 1.0})
    record = metrics_record(profile, run, [result], train={"seconds": 3.0, "loss_curve": [1]}, n_train=4, n_total=10)
    record = json.loads(json.dumps(record, allow_nan=False))
    assert record["run_id"] == run.run_id and record["train"] == {"seconds": 3.0}
    assert record["benchmarks"]["mini-mbpp"]["base"] == {"k": 1, "n": 2}
    assert record["benchmarks"]["mini-mbpp"]["failures"] == {"wrong": 1}
    assert is_sealed(record) and not is_sealed(record | {"n_train": 5})
    base = metrics_record(profile, profile.runs()[0], [result])
    assert base["train"] is None and base["dataset"] is None and base["policy"] is None


def test_the_history_of_a_run_is_read_from_the_manifests_before_it(tmp_path):
    """CDAS carries the cost of embedding and scoring, a random choice that of neither."""
    import pandas as pd

    from codeact_lib.artifacts import RunPaths, StageManifest, write_frame
    from codeact_lib.config import load_profile

    paths = RunPaths("trial", tmp_path / "artifacts", tmp_path / "results")
    runs = {run.policy: run for run in load_profile("mini").runs() if run.dataset in (None, "mini-evol")}
    cdas = runs["cdas"]
    StageManifest("01_cluster", "k1", {}, {}, {}, facts={"embedding_seconds": 3.0}).write(
        paths.cluster_dir(cdas.dataset) / "manifest.json"
    )
    StageManifest("02_ifd", "k2", {}, {}, {}, seconds=7.0).write(
        paths.ifd_dir(cdas.dataset, cdas.model) / "manifest.json"
    )
    write_frame(paths.examples(cdas.dataset), pd.DataFrame({"example_id": range(10)}))
    write_tasks_in(paths.selection_dir(cdas.dataset, cdas.model, cdas.selection), 4)
    history = run_history(paths, cdas)
    assert {stage: facts["key"] for stage, facts in history.pop("stages").items()} == {
        "01_cluster": "k1",
        "02_ifd": "k2",
    }
    assert history == {
        "n_train": 4,
        "n_total": 10,
        "selection_cost": {"embedding_seconds": 3.0, "ifd_seconds": 7.0},
        "concurrent_jobs": 1,
    }
    assert run_history(paths, runs["random"])["selection_cost"] is None
    assert run_history(paths, runs[None])["n_total"] is None


def write_tasks_in(folder, n):
    folder.mkdir(parents=True)
    write_tasks(folder / "train.jsonl", [{"example_id": i} for i in range(n)])


@pytest.mark.slow
@pytest.mark.skipif(not REAL_DATA, reason="CODEACT_REAL_DATA does not name the folder of the real benchmarks")
def test_every_canonical_solution_of_humaneval_passes(tmp_path):
    benchmark = load_benchmark(Path(REAL_DATA) / "humanevalplus_dev.jsonl")
    result = evaluate_solutions(canonical(benchmark.tasks), benchmark, output_dir=tmp_path)
    assert result.base == result.plus == (164, 164)


@pytest.mark.slow
@pytest.mark.skipif(not REAL_DATA, reason="CODEACT_REAL_DATA does not name the folder of the real benchmarks")
def test_every_canonical_solution_of_mbpp_passes(tmp_path):
    """Half a minute of computing three times over: the reference, the second opinion, EvalPlus."""
    benchmark = load_benchmark(Path(REAL_DATA) / "mbppplus_dev.jsonl")
    result = evaluate_solutions(canonical(benchmark.tasks), benchmark, output_dir=tmp_path)
    assert result.base == result.plus == (378, 378)
