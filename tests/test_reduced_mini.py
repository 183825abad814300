"""The six real notebooks, end to end on a reduced mini profile, undisturbed and killed on the way."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import papermill
import psutil
import pytest
from conftest import REDUCED_MINI, REPO

from codeact_lib.pipeline import plan, run
from codeact_lib.pipeline.locks import Lock

CDAS = "mini-base__mini-evol__cdas-0.4__dynamic-pack"


def call(folder, **changes):
    return {
        "profile": "mini",
        "overrides": json.dumps({**REDUCED_MINI, **changes}),
        "artifacts_dir": str(folder / "artifacts"),
        "results_dir": str(folder / "results"),
    }


def verdicts(folder):
    records = [json.loads(path.read_text()) for path in sorted((folder / "results" / "metrics").glob("*.json"))]
    return {r["run_id"]: {name: b["verdicts"] for name, b in r["benchmarks"].items()} for r in records}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished reduced mini."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with contextlib.chdir(REPO):
        assert run(**call(folder), say=lambda line: None) == len(plan(**call(folder)))
    return folder


@pytest.mark.timeout(900)
def test_the_pipeline_leaves_tables_figures_and_a_report_of_measured_numbers(undisturbed):
    results = undisturbed / "results"
    for suffix in ("csv", "md", "tex", "html"):
        for name in ("rq1", "rq2"):
            assert (results / "tables" / f"{name}.{suffix}").stat().st_size
    assert {path.suffix for path in (results / "figures").iterdir()} == {".svg", ".pdf", ".png"}
    assert "<html" in (results / "report.html").read_text()
    measured = verdicts(undisturbed)
    assert set(measured) == {"mini-base__base", "mini-base__mini-evol__full__dynamic", CDAS}
    assert all(len(tasks) == 6 for benchmarks in measured.values() for tasks in benchmarks.values())
    record = json.loads((results / "metrics" / f"{CDAS}.json").read_text())
    assert 0 < record["n_train"] < 0.4 * record["n_total"] + 1
    assert record["train"]["peak_memory_bytes"] > 0 and record["train"]["seconds"] > 0


def test_running_again_executes_nothing(undisturbed):
    with contextlib.chdir(REPO):
        assert run(**call(undisturbed), say=lambda line: None) == 0


def test_every_executed_notebook_is_kept_without_an_error(undisturbed):
    executed = list((undisturbed / "results" / "notebooks").iterdir())
    assert len(executed) == 10
    for path in executed:
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert cells[-1]["execution_count"]
        assert not [o for cell in cells for o in cell["outputs"] if o["output_type"] == "error"], path


def test_the_colab_launcher_runs_what_is_missing_and_shows_tables_and_figures(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "moved")
    # only the report depends on the description: of ten stages 06_tables is to be made again
    options = call(tmp_path / "moved", description="The launcher's own")
    launcher, executed = REPO / "notebooks" / "00_colab.ipynb", tmp_path / "executed.ipynb"
    quiet = {"progress_bar": False, "cwd": REPO / "notebooks", "kernel_name": "python3"}
    papermill.execute_notebook(launcher, executed, parameters=options, **quiet)
    cells = {cell.id: cell for cell in nbformat.read(executed, as_version=4).cells if cell.cell_type == "code"}
    streamed = "".join(output.text for output in cells["run"].outputs)
    assert streamed.count(": done, skipped") == 9 and "[10/10] 06_tables" in streamed and "Ran 1 stage in" in streamed
    assert "| CodeLlama | 7B |" in cells["rq1"].outputs[0].data["text/markdown"]
    assert [list(output.data)[0] for output in cells["figures"].outputs] == ["image/png", "image/png"]
    assert cells["checks"].outputs[0].text == "all checks passed; 10 stages, 3 runs\n"


def test_a_row_without_text_in_a_users_file_is_one_clear_error(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"instruction": "Add.", "response": "a + b"}\n{"instruction": " ", "response": "x"}\n')
    settings = f"datasets=[{{name: mine, path: {path}, label: Mine}}]"
    command = [sys.executable, "-m", "codeact_lib.cli", "run", "--set", settings, "--set", "name=mine"]
    command += ["--artifacts-dir", str(tmp_path / "a"), "--results-dir", str(tmp_path / "r")]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"{path}, row 2: empty: instruction" in result.stderr and "set invalid_rows to drop" in result.stderr
    assert "Traceback" not in result.stderr


# What each stage leaves as soon as it is in the middle of its work.
UNDER_WAY = {
    "02_ifd": "artifacts/ifd/mini-evol/mini-base/shards/*",
    "04_train_dynamic_pack": f"artifacts/train/{CDAS}/checkpoints/checkpoint-*/codeact_checkpoint.json",
    "05_eval": f"artifacts/eval/{CDAS}/*/samples.jsonl",
}


ONE_ARM = {"arms": REDUCED_MINI["arms"][1:], "evaluate_base": False}


@pytest.mark.timeout(900)
def test_three_kills_on_the_way_end_with_the_same_numbers(undisturbed, tmp_path):
    options = call(tmp_path, **ONE_ARM)
    for pattern in UNDER_WAY.values():
        _kill_when_there(tmp_path, pattern, options)
    with contextlib.chdir(REPO):
        assert run(**options, say=lambda line: None) > 0
    assert without_costs(tmp_path) == without_costs(undisturbed)


def without_costs(folder):
    """Everything the tables print of the CDAS run, but for times, memory and where it was measured."""
    record = json.loads((folder / "results" / "metrics" / f"{CDAS}.json").read_text())
    kept = ("optimizer_steps", "n_samples", "supervised_tokens", "padding_rate", "rows", "final_loss")
    train = {name: record["train"][name] for name in kept}
    benchmarks = {
        name: {key: value for key, value in benchmark.items() if key != "seconds"}
        for name, benchmark in record["benchmarks"].items()
    }
    measured_anew = ("selection_cost", "concurrent_jobs", "provenance", "record_sha256")
    rest = {key: value for key, value in record.items() if key not in measured_anew}
    return {**rest, "train": train, "benchmarks": benchmarks}


@pytest.mark.timeout(900)
def test_two_processes_share_the_runs_and_one_goes_on_with_what_the_killed_other_left(undisturbed, tmp_path):
    folder, options = _with_runs_undone(undisturbed, tmp_path)
    processes = [_start(options, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    killed = "mini-base__mini-evol__full__dynamic"  # the longer training
    checkpoints = folder / "artifacts" / "train" / killed / "checkpoints"
    _wait_for(lambda: list(checkpoints.glob("*/codeact_checkpoint.json")), *processes)
    held = Lock(folder / "artifacts" / ".locks" / f"04_train_dynamic_pack__{killed}.run")
    first, second = sorted(processes, key=lambda process: f":{process.pid} since" not in held.holder())
    done_before = _kill_with_all_it_started(first).count("    done in")
    said, _ = second.communicate()
    assert second.returncode == 0, said
    assert f"04_train_dynamic_pack {killed} …" in said
    assert done_before + said.count("    done in") == 4, "each stage was finished by one process"
    locks = [Lock(path) for path in held.path.parent.glob("*.*") if path.suffix in (".run", ".lock")]
    assert len(locks) == 8 and not any(lock.holder() for lock in locks)
    trained = json.loads((folder / "artifacts" / "train" / killed / "train_metrics.json").read_text())
    assert trained["resumed"]
    assert without_costs(folder) == without_costs(undisturbed)
    assert verdicts(folder).items() <= verdicts(undisturbed).items()


def _with_runs_undone(finished, tmp_path):
    """A copy of a finished reduced mini in which no run was trained or evaluated yet, and the options that do it."""
    folder = shutil.copytree(finished, tmp_path / "shared")
    for made in ("artifacts/train", "artifacts/eval", "artifacts/.locks", "results/metrics"):
        shutil.rmtree(folder / made)
    return folder, {**call(folder, evaluate_base=False), "only": ["04", "05"]}


def _kill_with_all_it_started(process):
    """As when a machine goes down: no kernel is left for a second that could still finish. What it had said."""
    started = psutil.Process(process.pid).children(recursive=True)
    for each in (process, *started):
        each.kill()
    return process.communicate()[0]


def _start(options, **pipes):
    code = "import json, sys; from codeact_lib.pipeline.run import run; run(**json.loads(sys.argv[1]))"
    command = [sys.executable, "-u", "-c", code, json.dumps(options)]  # -u: what a killed one said is not lost
    return subprocess.Popen(command, cwd=REPO, **{"stdout": subprocess.DEVNULL, **pipes})


def _wait_for(what, *processes):
    deadline = time.monotonic() + 400
    while not what():
        assert all(process.poll() is None for process in processes), "a process ended before it came"
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def _kill_when_there(folder, pattern, options):
    process = _start(options)
    _wait_for(lambda: list(folder.glob(pattern)), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
