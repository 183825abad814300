"""Processes that share an artifacts folder: each stage is one's at a time, what a dead one left is another's."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
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
from codeact_lib.pipeline.claims import Claims
from codeact_lib.pipeline.history import run_history
from codeact_lib.pipeline.run import makers, plan, run, select
from codeact_lib.pipeline.stages import open_stage
from codeact_lib.tables.results import hardware

HOLD = """
import sys, time
from codeact_lib.pipeline.claims import Claims
claim = Claims(sys.argv[1]).take("04").__enter__()
print("held" if claim else "refused", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path):
    """A process that holds the claim 04 in ``tmp_path``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "held"
    yield process
    process.kill()
    process.wait()


def take(claims, name="04", **options):
    return claims.take(name, **options).__enter__()


def as_another_machine(claim):
    """Make a claim look like one of a machine that has just gone away: another boot id, and no sign of life."""
    claim._over.set()
    claim._thread.join()
    record = json.loads(claim.path.read_text())
    claim.path.write_text(json.dumps({**record, "boot": "of another machine", "host": "node7", "pid": 4242}))
    return claim


# ---------------------------------------------------------------------------------------------- one holder at a time


def test_of_many_that_take_a_stage_at_once_one_gets_it(tmp_path):
    for _ in range(30):
        start, got = threading.Barrier(8), []

        def contend(start=start, got=got):
            claims = Claims(tmp_path)
            start.wait()
            got.append(take(claims))

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [claim for claim in got if claim]
        assert len(winners) == 1
        winners[0].close()


def test_what_another_process_holds_is_refused_and_its_holder_named(tmp_path, other_process):
    claims = Claims(tmp_path)
    assert take(claims) is None
    holder = claims.holder("04")
    assert holder.pid == other_process.pid and f":{other_process.pid} since 20" in str(holder)
    assert claims.working_here() == 1
    with claims.take("05") as mine:
        assert mine and claims.working_here() == 2


@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "a zombie"])
def test_a_killed_process_holds_nothing_from_that_moment_on(tmp_path, other_process, reaped):
    other_process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, other_process.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
    claims = Claims(tmp_path)
    assert claims.holder("04") is None and claims.working_here() == 0
    with claims.take("04") as mine:
        assert mine.taken_from.pid == other_process.pid
    with claims.take("04") as again:  # given back in order, so nobody is named
        assert again.taken_from is None


def test_a_process_id_that_is_used_again_is_not_the_holder(tmp_path):
    claim = take(Claims(tmp_path))
    record = json.loads(claim.path.read_text())
    assert record["pid"] == os.getpid()
    claim.path.write_text(json.dumps({**record, "started": record["started"] - 1}))
    assert take(Claims(tmp_path)).taken_from.pid == os.getpid()


def test_another_machine_keeps_its_claim_while_it_shows_life_and_loses_it_in_silence(tmp_path):
    now = [1000.0]
    claims = Claims(tmp_path, clock=lambda: now[0])
    foreign = as_another_machine(take(Claims(tmp_path)))
    for beat in range(1, 5):
        assert take(claims) is None
        os.utime(foreign.path, (beat, beat))  # its clock may be years off: only the change counts
        now[0] += 119
    assert take(claims) is None
    assert str(claims.holder("04")).startswith("node7:4242 since")
    now[0] += 119
    assert take(claims) is None
    now[0] += 1
    assert take(claims).taken_from.host == "node7"


def test_a_claim_that_is_just_being_written_counts_as_held(tmp_path):
    now = [0.0]
    claims = Claims(tmp_path, clock=lambda: now[0])
    (tmp_path / "04").mkdir()
    (tmp_path / "04" / "000001.json").touch()
    assert take(claims) is None and "unknown host" in str(claims.holder("04"))
    now[0] += 120
    assert take(claims)


def test_whoever_was_away_too_long_is_told_and_leaves_the_new_holder_alone(tmp_path, monkeypatch):
    told = threading.Event()
    monkeypatch.setattr(Claims, "beat", 0.05)
    slow = take(Claims(tmp_path), on_lost=told.set)
    slow.path.with_name("000002.json").write_text(slow.path.read_text())  # what a process elsewhere would have written
    assert told.wait(30) and slow.lost
    slow.close()
    assert Claims(tmp_path).holder("04")


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="Make the folder writable"):
        Claims(tmp_path / "file").take("04")


# ---------------------------------------------------------------------------------------------- a stage


def test_a_notebook_run_by_hand_claims_its_stage_until_it_has_finished(toy_project):
    stage = open_stage("01_cluster", profile="toy.yaml", dataset="toy")
    stage.begin()
    assert stage.claims.holder(stage.name).pid == os.getpid()
    stage.paths.examples("toy").parent.mkdir(parents=True)
    stage.paths.examples("toy").write_text("[]")
    stage.finish([stage.paths.examples("toy")])
    assert stage.claims.holder(stage.name) is None


def test_a_stage_that_was_taken_over_meanwhile_records_nothing(toy_project):
    stage = open_stage("01_cluster", profile="toy.yaml", dataset="toy")
    stage.begin()
    own = next((stage.claims.folder / stage.name).iterdir())
    own.with_name("000002.json").write_text(own.read_text())
    with pytest.raises(ArtifactError, match="was taken over by .* nothing was recorded"):
        stage.finish([])
    assert not stage.manifest_path.exists()


def test_a_record_says_how_many_worked_beside_it(toy_project):
    stage = open_stage(
        "03_sample", profile="toy.yaml", dataset="toy", model="toy-model", policy="cdas", ratio=0.4, seed=0
    )
    for path in stage.inputs.values():
        write_json(path, [])
    with stage.claims.take("another stage"):
        stage.begin()
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
    claim, lines = take(held.claims, held.name), []

    def say(line):
        lines.append(line)
        if line.startswith("waiting"):
            assert free.is_done(), "the other stage was ready and free"
            claim.close()

    assert run("toy.yaml", only=["03"], say=say) == 2
    assert [line for line in lines if f"waiting for {held.title}, held by" in line and f":{os.getpid()} since" in line]


def test_a_run_whose_stage_was_taken_over_stops_its_notebook_and_says_who_has_it(toy_project):
    write_notebook(toy_project, "01_cluster", "import pathlib, time\npathlib.Path('../here').touch()\ntime.sleep(60)")
    code = "from codeact_lib.pipeline.claims import Claims; Claims.beat = 0.1; from codeact_lib.cli import main; main()"
    command = [sys.executable, "-c", code, "run", "-p", "toy.yaml", "--only", "01"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (toy_project / "here").exists():
        assert process.poll() is None
        time.sleep(0.05)
    claim = toy_project / "artifacts/toy/.claims/01_cluster__toy/000001.json"
    heir = {**json.loads(claim.read_text()), "boot": "of another machine", "host": "node7", "pid": 4242}
    claim.with_name("000002.json").write_text(json.dumps(heir))
    _, said = process.communicate(timeout=40)
    assert process.returncode == 1
    assert "error: 01_cluster toy was taken over by node7:4242 since" in said


def test_force_leaves_alone_what_another_process_works_on(finished_project):
    task = next(task for task in plan("toy.yaml") if task.stage == "02_ifd")
    with task.claims.take(task.name), pytest.raises(ArtifactError, match="--force: 02_ifd toy/toy-model is held by"):
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
    chosen = select(tasks, runs=["deepseek*evol*cdas*"])
    assert [task.title for task in chosen] == [
        "01_cluster evol-instruct",
        "02_ifd evol-instruct/deepseek-coder-6.7b",
        "03_sample evol-instruct/deepseek-coder-6.7b/cdas-0.4",
        "04_train_dynamic_pack deepseek-coder-6.7b__evol-instruct__cdas-0.4__dynamic-pack",
        "05_eval deepseek-coder-6.7b__evol-instruct__cdas-0.4__dynamic-pack",
        "06_tables",
    ]
    assert [task.stage for task in select(tasks, only=["04"], runs=["*13b*oss*"])] == ["04_train_dynamic_pack"] * 2
    with pytest.raises(ProfileError, match="codeact runs"):
        select(tasks, runs=["mistral*"])


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_a_stage_waits_for_those_that_make_its_inputs(monkeypatch, profile):
    monkeypatch.chdir(REPO)
    tasks = {id(task): task for task in plan(profile)}
    stages_before = {
        task.stage: {tasks[maker].stage[:2] for maker in sources}
        for task, sources in ((tasks[key], found) for key, found in makers(list(tasks.values())).items())
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
