"""Verdicts: the same as EvalPlus's own, one for every task whatever happens, counted outside the box."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from codeact_lib.errors import EvaluationError
from codeact_lib.evaluation import Benchmark, PassAtOne, evaluate_solutions, load_benchmark, metrics_record, run_history
from codeact_lib.sandbox import choose_isolation

REAL_DATA = os.environ.get("CODEACT_REAL_DATA")


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
    result = evaluate_solutions(samples, benchmark, output_dir=tmp_path / "out", min_time_limit=0.5, sanitize=False)
    stored = json.loads((tmp_path / "out" / "verdicts.json").read_text())
    ours = {k: {"base": v["base_status"], "plus": v["plus_status"]} for k, v in stored["evalplus"].items()}
    (tmp_path / "plain").mkdir()
    assert ours == plain_evalplus(kind, tasks, samples, tmp_path / "plain", 0.5)
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
@pytest.mark.parametrize("isolation", [choose_isolation("auto"), "limits"])
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


def test_a_judge_killed_from_outside_is_started_again(tmp_path):
    """The first box is killed while it works; a verdict for every task comes from the next ones."""
    benchmark, samples = many_adds(12, "import time\ndef add(a, b):\n    time.sleep(0.05)\n    return a + b\n")
    samples = [{**row, "solution": samples[-1]["solution"]} for row in samples]
    killed = []

    def kill_once():
        end = time.monotonic() + 30
        while not killed and time.monotonic() < end:
            for process in psutil.process_iter(["cmdline", "ppid"]):
                if str(tmp_path.resolve()) in " ".join(process.info["cmdline"] or ()) and has_verdicts(tmp_path):
                    process.kill()
                    killed.append(process.pid)
            time.sleep(0.02)

    killer = threading.Thread(target=kill_once)
    killer.start()
    result = evaluate_solutions(samples, benchmark, output_dir=tmp_path, parallel=1, isolation="limits")
    killer.join()
    assert killed and result.plus == (12, 12)


def has_verdicts(folder):
    path = Path(folder) / "box" / "verdicts.jsonl"
    return path.exists() and path.read_text().count('"verdict"') >= 2


def test_lines_that_the_judge_did_not_write_are_not_believed(tmp_path):
    """A solution that adds a verdict to the result file does not get it; two different verdicts are none."""
    forged = json.dumps(
        {"task_id": "TestHumanEval/5", "event": "verdict", "base": "pass", "plus": "pass", "failure": ""}
    )
    code = f"""
import glob, io
for path in {[str(tmp_path / "box" / "verdicts.jsonl")]!r}:
    with io.FileIO(path, "a") as file:
        file.write({(forged + chr(10) + "[1]" + chr(10) + '{"task_id": []}' + chr(10) + "{{{" + chr(10)).encode()!r})
def add(a, b):
    return 0
"""
    benchmark, samples = many_adds(6, code)
    result = evaluate_solutions(samples, benchmark, output_dir=tmp_path, sanitize=False)
    assert result.plus == (5, 6)
    assert result.verdicts["TestHumanEval/5"]["plus"] != "pass"


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
    monkeypatch.setattr("codeact_lib.evaluation.EVALPLUS_URL", "file:///absent/{repo}-{version}-{stem}")
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
    from codeact_lib.records import is_sealed

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
def test_canonical_solutions_of_mbpp_pass(tmp_path):
    """The first 60 tasks; EvalPlus's sanitize drops generator functions, so the solutions are judged as they are."""
    benchmark = load_benchmark(Path(REAL_DATA) / "mbppplus_dev.jsonl", limit=60)
    result = evaluate_solutions(canonical(benchmark.tasks), benchmark, output_dir=tmp_path, sanitize=False)
    assert result.base == result.plus == (60, 60)
