"""Processes that share an artifacts folder: each stage is one's at a time, what a dead one held is free."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pyarrow.parquet
import pytest
from conftest import REPO, write_notebook
from typer.testing import CliRunner

from codeact_lib.artifacts import StageManifest, write_json
from codeact_lib.cli import app
from codeact_lib.config import load_profile
from codeact_lib.errors import ArtifactError, ProfileError
from codeact_lib.evaluation.records import metrics_record
from codeact_lib.pipeline import open_stage, plan, run, run_history
from codeact_lib.pipeline.locks import Lock, stages_at_work
from codeact_lib.pipeline.plan import filter_tasks, makers
from codeact_lib.tables.results import hardware

HOLD = """
import sys, time
from pathlib import Path
from codeact_lib.pipeline.locks import Lock
lock = Lock(Path(sys.argv[1]))
print("held" if lock.acquire() else "refused", flush=True)
time.sleep(60)
"""


def start_holder(path):
    return subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def other_process(tmp_path):
    """A process that holds the lock of stage 04 in ``tmp_path``."""
    process = start_holder(tmp_path / "04.lock")
    assert process.stdout.readline().strip() == "held"
    yield process
    process.kill()
    process.wait()


# ---- one holder at a time --------------------------------------------------------------------------------------------


def test_of_many_that_take_a_stage_at_once_one_gets_it(tmp_path):
    processes = [start_holder(tmp_path / "04.lock") for _ in range(6)]
    try:
        assert sorted(process.stdout.readline().strip() for process in processes) == ["held", *["refused"] * 5]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_what_another_process_holds_is_refused_and_its_holder_named(tmp_path, other_process):
    lock = Lock(tmp_path / "04.lock")
    assert not lock.acquire()
    assert f":{other_process.pid} since 20" in lock.holder()
    assert stages_at_work(tmp_path) == 1
    mine = Lock(tmp_path / "05.run")
    assert mine.acquire() and stages_at_work(tmp_path) == 2


@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "a zombie"])
def test_a_killed_process_holds_nothing_from_that_moment_on(tmp_path, other_process, reaped):
    other_process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, other_process.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
    lock = Lock(tmp_path / "04.lock")
    assert lock.holder() == "" and stages_at_work(tmp_path) == 0
    assert lock.acquire()


def test_a_stage_of_another_machine_is_held_but_does_not_work_here(tmp_path, other_process):
    (tmp_path / "04.lock-holder").write_text("node7:4242 since 2025-03-01T09:12:44Z")
    assert Lock(tmp_path / "04.lock").holder().startswith("node7:4242 since")
    assert stages_at_work(tmp_path) == 0


def test_to_look_who_holds_a_stage_leaves_no_file(tmp_path):
    assert Lock(tmp_path / "locks" / "04.lock").holder() == "" and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="Make the folder writable"):
        Lock(tmp_path / "file" / "04.lock").acquire()


# ---- a stage ---------------------------------------------------------------------------------------------------------


def test_a_notebook_run_by_hand_holds_its_stage_until_it_has_finished(toy_project):
    stage = open_stage("01_cluster", profile="toy.yaml", dataset="toy")
    stage.begin()
    assert f":{os.getpid()} since" in stage.holder()
    stage.paths.examples("toy").parent.mkdir(parents=True)
    stage.paths.examples("toy").write_text("[]")
    stage.finish([stage.paths.examples("toy")])
    assert stage.holder() == ""


def test_the_first_cell_may_be_run_twice_in_one_kernel(toy_project):
    stages = [open_stage("01_cluster", profile="toy.yaml", dataset="toy") for _ in range(2)]
    for stage in stages:
        stage.begin()
    assert stages[0].holder()


def test_a_record_says_how_many_worked_beside_it(toy_project):
    stage = open_stage(
        "03_sample", profile="toy.yaml", dataset="toy", model="toy-model", policy="cdas", ratio=0.4, seed=0
    )
    for path in stage.inputs.values():
        write_json(path, [])
    other = Lock(stage.paths.locks_dir / "another stage.lock")
    assert other.acquire()
    stage.begin()
    other.release()
    write_json(stage.folder / "train.jsonl", [])
    stage.finish([stage.folder / "train.jsonl"])
    assert StageManifest.read(stage.manifest_path).facts["concurrent_jobs"] == 2
    pyarrow.parquet.write_table(pyarrow.table({"example_id": [1]}), stage.inputs["examples"])
    history = run_history(stage.paths, stage.profile.run("toy-model__toy__cdas-0.4__dynamic-pack"))
    record = metrics_record(stage.profile, stage.profile.runs()[-1], [], **history)
    assert record["concurrent_jobs"] == 2 and "shared by 2 jobs" in hardware(record)


# ---------------------------------------------------------------------------------------------- runs that share


def test_two_jobs_finish_their_stages_together_and_do_none_twice(toy_project):
    tasks = [task for task in plan("toy.yaml") if task.stage < "04"]
    for stage in {task.stage for task in tasks}:
        write_notebook(toy_project, stage, "open('../log', 'a').write(f'{stage.name}\\n')")
    lines = []
    assert run("toy.yaml", only=["01", "02", "03"], jobs=2, say=lines.append) == 4
    assert sorted((toy_project / "log").read_text().split()) == sorted(task.name for task in tasks)
    assert {line[:2] for line in lines} == {"1|", "2|"}


def test_a_held_stage_is_waited_for_with_a_plain_message_only_when_nothing_else_is_ready(finished_project):
    tasks = {task.name: task for task in plan("toy.yaml") if task.stage == "03_sample"}
    for task in tasks.values():
        task.manifest_path.unlink()
    held, free = tasks.values()
    lock, lines = held.lock, []
    assert lock.acquire()

    def say(line):
        lines.append(line)
        if line.startswith("waiting"):
            assert free.is_done(), "the other stage was ready and free"
            lock.release()

    assert run("toy.yaml", only=["03"], say=say) == 2
    assert [line for line in lines if f"waiting for {held.title}, held by" in line and f":{os.getpid()} since" in line]


def test_a_run_that_waits_for_a_killed_one_goes_on_where_that_one_was(toy_project):
    write_notebook(
        toy_project,
        "01_cluster",
        """
        import pathlib, time
        with open("../log", "a") as log:
            log.write(f"{(stage.folder / 'half').exists()} ")
        (stage.folder / "half").touch()
        while not pathlib.Path("../go").exists():
            time.sleep(0.05)
        """,
    )
    command = [sys.executable, "-m", "codeact_lib.cli", "run", "-p", "toy.yaml", "--only", "01"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (toy_project / "artifacts/toy/cluster/toy/half").exists():
        assert first.poll() is None
        time.sleep(0.05)
    second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = [second.stdout.readline()]
    assert f":{first.pid} since" in said[0] and said[0].startswith("waiting for 01_cluster toy, held by")
    first.kill()
    first.wait()
    while len((toy_project / "log").read_text().split()) < 2:
        assert second.poll() is None
        time.sleep(0.05)
    (toy_project / "go").touch()
    assert "Ran 1 stage" in second.communicate(timeout=60)[0] and second.returncode == 0
    assert (toy_project / "log").read_text().split() == ["False", "True"]


def test_force_leaves_alone_what_another_process_works_on(finished_project):
    task = next(task for task in plan("toy.yaml") if task.stage == "02_ifd")
    lock = task.lock
    assert lock.acquire()
    with pytest.raises(ArtifactError, match="--force: 02_ifd toy/toy-model is held by"):
        run("toy.yaml", force=["02"], say=print)
    assert task.is_done()


def test_chosen_runs_leave_the_tables_to_whoever_does_the_last_run(finished_project):
    for task in plan("toy.yaml"):
        if task.stage in ("05_eval", "06_tables") and "base" not in task.title:
            task.manifest_path.unlink()
    lines = []
    assert run("toy.yaml", runs=["*__full__*"], say=lines.append) == 1
    assert "06_tables follows when the other runs are done; 1 are not." in lines
    assert run("toy.yaml", runs=["*__cdas-*"], say=lines.append) == 2
    assert all(task.is_done() for task in plan("toy.yaml"))


def test_chosen_runs_bring_what_they_need_and_nothing_else(monkeypatch):
    monkeypatch.chdir(REPO)
    tasks = plan("paper")
    chosen = filter_tasks(tasks, runs=["deepseek*evol*cdas*"])
    assert [task.title for task in chosen] == [
        "01_cluster evol-instruct",
        "02_ifd evol-instruct/deepseek-coder-6.7b",
        "03_sample evol-instruct/deepseek-coder-6.7b/cdas-0.4",
        "04_train_dynamic_pack deepseek-coder-6.7b__evol-instruct__cdas-0.4__dynamic-pack",
        "05_eval deepseek-coder-6.7b__evol-instruct__cdas-0.4__dynamic-pack",
        "06_tables",
    ]
    assert [task.stage for task in filter_tasks(tasks, only=["04"], runs=["*13b*oss*"])] == [
        "04_train_dynamic_pack"
    ] * 2
    with pytest.raises(ProfileError, match="codeact runs"):
        filter_tasks(tasks, runs=["mistral*"])


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_a_stage_waits_for_those_that_make_its_inputs(monkeypatch, profile):
    monkeypatch.chdir(REPO)
    stages_before = {
        task.stage: {maker.stage[:2] for maker in sources}
        for task, sources in makers(plan(profile)).items()
        if not (task.run and task.run.is_base)
    }
    assert list(stages_before.values()) == [set(), {"01"}, {"01", "02"}, {"03"}, {"04"}, {"05"}]


# ---------------------------------------------------------------------------------------------- Slurm

SLURM = sorted((REPO / "examples" / "slurm").iterdir())


@pytest.mark.parametrize("script", SLURM, ids=lambda path: path.name)
def test_the_slurm_scripts_are_sound_shell(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""


SBATCH = """#!/bin/bash
# Stands in for Slurm: an array's first and last job, one after the other, here.
while [[ $1 == --* ]]; do
    case $1 in
        --array=*) range=${1#--array=} ;;
        --dependency=*) echo "after ${1#*:}" ;;
        --parsable) echo 77 && exec >&2 ;;
    esac
    shift
done
for SLURM_ARRAY_TASK_ID in ${range//-/ }; do export SLURM_ARRAY_TASK_ID; bash "$@"; done
[[ -n ${range-} ]] || bash "$@"
"""


def test_the_slurm_example_runs_each_run_of_the_profile_once(toy_project):
    folder = toy_project / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(SBATCH)
    (folder / "codeact").write_text(f'#!/bin/bash\nexec "{sys.executable}" -m codeact_lib.cli "$@"\n')
    for path in folder.iterdir():
        path.chmod(0o755)
    (toy_project / "examples").symlink_to(REPO / "examples")
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["examples/slurm/submit.sh", "toy.yaml", "--dry-run"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "04_train" not in result.stderr and "4 of 4 stages would run" in result.stderr  # the shared ones
    first, last = result.stdout.split("after 77\n")[1].split("The papermill lines")[:2]
    assert "05_eval toy-model__base" in first and "04_train" not in first
    assert "04_train_dynamic_pack toy-model__toy__cdas-0.4__dynamic-pack" in last and "__full__" not in last
    listed = (toy_project / "artifacts/slurm/toy.runs").read_text().split()
    assert listed == [task.run.run_id for task in plan("toy.yaml") if task.stage == "05_eval"]
    shipped = (REPO / "examples/slurm/run.sbatch").read_text()
    assert f"--array=0-{len(load_profile('paper').runs()) - 1}\n" in shipped


def test_the_commands_of_the_cluster_page_are_understood(monkeypatch):
    monkeypatch.chdir(REPO)
    text = (REPO / "docs/cluster.md").read_text(encoding="utf-8")
    commands = re.findall(r"^codeact (run .+)$", text, re.MULTILINE)
    assert len(commands) == 4
    for line in commands:
        result = CliRunner().invoke(app, [*shlex.split(line), "--dry-run"])
        assert result.exit_code == 0 and "would run; nothing was changed" in result.output, line
