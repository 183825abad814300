"""The runner: each notebook once, nothing twice, no half result believed, and always a way to go on.

Stand-in notebooks (conftest) take a second each and go through the real ``open_stage`` and the real papermill.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPO, write_notebook

from codeact_lib.errors import ArtifactError, ProfileError
from codeact_lib.pipeline import STAGES, StageFailed, open_stage, plan, run
from codeact_lib.pipeline.stages import TABLE, code_sha256

CDAS = "toy-model__toy__cdas-0.4__dynamic-pack"


def quiet(line):
    pass


def go(**options):
    """Run the toy profile; returns the number of notebooks executed and the lines said."""
    lines = []
    return run("toy.yaml", say=lines.append, **options), lines


def states():
    return {task.title: task.state()[0] for task in plan("toy.yaml")}


def to_run():
    return [task.stage[:2] for task in plan("toy.yaml") if not task.is_done()]


def snapshot(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def codeact(*arguments, cwd=None, **environment):
    """The command as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", "codeact_lib.cli", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


# ---------------------------------------------------------------------------------------------- plan


def test_the_grid_of_mini_runs_each_notebook_once_per_distinct_parameter_set(monkeypatch):
    monkeypatch.chdir(REPO)
    tasks = plan("mini")
    counts = {stage: len([t for t in tasks if t.stage == stage]) for stage in sorted({t.stage for t in tasks})}
    assert list(counts.values()) == [2, 2, 6, 6, 7, 1]
    assert len({task.folder for task in tasks}) == len({task.executed_notebook for task in tasks}) == len(tasks)
    assert [task.stage for task in tasks] == sorted(task.stage for task in tasks)


def test_a_selection_that_does_not_depend_on_the_seed_is_made_once(monkeypatch):
    monkeypatch.chdir(REPO)
    tasks = plan("mini", {"seeds": [0, 1], "datasets": ["mini-evol"]})
    assert [t.folder.name for t in tasks if t.stage == "03_sample"] == [
        "full",
        "cdas-0.4",
        "random-0.4-seed-0",
        "random-0.4-seed-1",
    ]


@pytest.mark.parametrize("profile", ["mini", "colab-qlora", "paper"])
def test_every_input_of_a_stage_is_made_by_an_earlier_one_or_comes_from_outside(monkeypatch, profile):
    monkeypatch.chdir(REPO)
    folders = []
    for task in plan(profile):
        for path in task.inputs.values():
            if path.is_relative_to(task.paths.artifacts) and "data" not in path.parts:
                assert any(path.is_relative_to(folder) for folder in folders), path
        folders.append(task.folder)


def test_a_wrong_stage_or_identity_is_refused_with_the_right_names(toy_project):
    for arguments, words in [
        (dict(stage="07_more"), "06_tables"),
        (dict(stage="01_cluster", dataset="other"), "toy"),
        (dict(stage="05_eval", run_id="toy-model__toy__cdas-0.4__dynamic"), "did you mean"),
        (dict(stage="04_train_dynamic_pack", run_id="toy-model__base"), "nothing to train"),
    ]:
        with pytest.raises(ProfileError, match=words):
            open_stage(profile="toy.yaml", **arguments)


# ---------------------------------------------------------------------------------------------- a stage


def test_a_stage_opened_too_early_says_which_notebook_makes_its_input(toy_project):
    stage = open_stage("02_ifd", profile="toy.yaml", dataset="toy", model="toy-model")
    with pytest.raises(ArtifactError, match=r"01_cluster.*codeact run --profile toy.yaml --only 01"):
        stage.begin()


def test_a_stage_is_done_only_after_finish_and_not_while_it_is_made_again(toy_project):
    stage = open_stage("01_cluster", profile="toy.yaml", dataset="toy")
    for _ in range(2):
        stage.begin()
        assert not stage.is_done()
        stage.paths.examples("toy").parent.mkdir(parents=True, exist_ok=True)
        stage.paths.examples("toy").write_text("[]")
        stage.finish([stage.paths.examples("toy")])
        assert stage.is_done()


def test_finish_refuses_what_was_not_written_and_what_was_not_begun(toy_project):
    stage = open_stage("01_cluster", profile="toy.yaml", dataset="toy")
    with pytest.raises(ArtifactError, match="begin"):
        stage.finish([])
    stage.begin()
    with pytest.raises(ArtifactError, match="examples.parquet"):
        stage.finish([stage.paths.examples("toy")])
    assert not stage.manifest_path.exists()


def test_finish_names_each_file_it_saved_but_many_of_one_folder_in_one_line(toy_project, capsys):
    stage = open_stage("06_tables", profile="toy.yaml")
    stage.begin()
    many = [stage.paths.tables_dir / f"{n}.csv" for n in range(11)]
    for path in [*many, stage.paths.report]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * 10)
    capsys.readouterr()
    stage.finish([*many, stage.paths.report])
    saved = [line for line in capsys.readouterr().out.splitlines() if line.startswith("saved")]
    assert saved == ["saved results/toy/tables: 11 files (110 B)", "saved results/toy/report.html (10 B)"]
    assert stage.is_done()


def test_half_finished_work_is_kept_for_the_same_parameters_and_cleared_for_others(toy_project):
    def begin(**overrides):
        stage = open_stage("01_cluster", profile="toy.yaml", overrides=overrides, dataset="toy")
        stage.begin()
        return stage.folder / "shard-0.jsonl"

    shard = begin()
    shard.write_text("half")
    assert begin().exists()
    assert not begin(n_clusters=3).exists()


def test_keys_that_change_speed_only_repeat_nothing(toy_project):
    def key(stage, overrides, **identity):
        return open_stage(stage, profile="toy.yaml", overrides=overrides, **identity).parameters

    for stage, identity in [("04_train_dynamic_pack", {"run_id": CDAS}), ("05_eval", {"run_id": CDAS})]:
        assert key(stage, {}, **identity) == key(stage, {"torch_threads": 1, "generation_batch_size": 3}, **identity)
    assert key("04_train_dynamic_pack", {}, run_id=CDAS) != key(
        "04_train_dynamic_pack", {"isolate": False}, run_id=CDAS
    )


def test_two_processes_do_not_work_in_one_folder_and_a_dead_one_blocks_nothing(toy_project, monkeypatch):
    monkeypatch.setattr("codeact_lib.pipeline.task.PATIENCE_SECONDS", 0.1)
    holder = "\n".join(
        [
            "from codeact_lib.pipeline import open_stage",
            "import time",
            "stage = open_stage('01_cluster', profile='toy.yaml', dataset='toy')",
            "stage.begin()",
            "print('held', flush=True)",
            "time.sleep(60)",
        ]
    )
    process = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    try:
        while process.stdout.readline().strip() != "held":
            pass
        stage = open_stage("01_cluster", profile="toy.yaml", dataset="toy")
        with pytest.raises(ArtifactError, match="Another process is working on 01_cluster toy"):
            stage.begin()
    finally:
        process.kill()
        process.wait()
    stage.begin()


# ---------------------------------------------------------------------------------------------- a run


def test_a_whole_run_leaves_tables_manifests_and_executed_notebooks(finished_project):
    assert json.loads((finished_project / "results/toy/tables/rq1.csv").read_text())[2] == {
        "run_id": CDAS,
        "weights": [1.5e-3, 4],
    }
    assert set(states().values()) == {"done"}
    executed = sorted(path.name for path in (finished_project / "results/toy/notebooks").iterdir())
    assert len(executed) == 10
    assert f"04_train_dynamic_pack__{CDAS}.ipynb" in executed


def test_a_second_run_executes_nothing_and_rewrites_no_file_even_in_another_clone(finished_project):
    assert go()[0] == 0  # the first look in a new folder re-hashes
    before = snapshot(finished_project)
    executed, lines = go()
    assert executed == 0
    assert snapshot(finished_project) == before
    assert any("Nothing to do" in line for line in lines)


def test_executed_notebooks_and_results_name_no_folder_of_this_machine(finished_project, _finished):
    for path in (finished_project / "results").rglob("*"):
        if path.is_file():
            text = path.read_text()
            for folder in (str(_finished), str(finished_project), str(Path.home()) + "/", sys.prefix, str(REPO)):
                assert folder not in text, path
    for path in (finished_project / "artifacts").rglob("manifest.json"):
        assert str(_finished) not in path.read_text()


def test_a_changed_parameter_repeats_what_depends_on_it_and_nothing_else(finished_project):
    lines = (finished_project / "toy.yaml").read_text()
    (finished_project / "toy.yaml").write_text(lines.replace("learning_rate: 0.0015", "learning_rate: 0.001"))
    assert to_run() == ["04", "04", "06"]  # 06 prints the profile; 05 follows once the models differ
    assert "another learning_rate" in plan("toy.yaml")[4].state()[1]
    executed, _ = go()
    assert executed == 2 + 2 + 1
    assert "0.001" in (finished_project / "results/toy/tables/rq1.csv").read_text()


def test_a_repeated_stage_with_the_same_result_repeats_nothing_after_it(finished_project):
    assert go(force=["02"])[0] == 1


def test_changed_code_is_reported_and_kept(finished_project):
    write_notebook(finished_project, "03_sample", "print('other code')")
    assert {title: state for title, state in states().items() if state != "done"} == {
        "03_sample toy/toy-model/full": "stale code",
        "03_sample toy/toy-model/cdas-0.4": "stale code",
    }
    executed, lines = go()
    assert executed == 0
    assert any("codeact run --profile toy.yaml --force 03" in line for line in lines)


def test_a_changed_or_deleted_output_is_made_again(finished_project):
    (finished_project / "artifacts/toy/ifd/toy/toy-model/ifd.parquet").write_text("[1]")
    (finished_project / "artifacts/toy/train" / CDAS / "train_metrics.json").unlink()
    assert states()["02_ifd toy/toy-model"] == "damaged"
    executed, _ = go()
    assert executed == 2
    assert set(states().values()) == {"done"}


def test_a_dry_run_shows_each_papermill_line_and_changes_nothing(toy_project):
    before = snapshot(toy_project)
    executed, lines = go(dry_run=True)
    assert executed == 10
    assert len([line for line in lines if line.strip().startswith("papermill ")]) == 10
    assert snapshot(toy_project) == before


def test_the_printed_papermill_line_works(finished_project):
    for task in plan("toy.yaml"):
        if task.stage in ("03_sample", "06_tables"):
            task.manifest_path.unlink()
            command = task.papermill_line().replace("papermill", f"{sys.executable} -m papermill", 1)
            subprocess.run(command, shell=True, check=True, capture_output=True, cwd=finished_project)
            task.look_again()
            assert task.state()[0] == "done"


def test_from_and_only_choose_stages_by_number(finished_project):
    for task in plan("toy.yaml"):
        task.manifest_path.unlink()
    assert go(only=["01"])[0] == 1
    assert go(first="05", only=["05"])[0] == 3
    assert to_run() == ["02", "03", "03", "04", "04", "06"]
    with pytest.raises(ProfileError, match="04_train_dynamic_pack"):
        go(only=["4"])
    with pytest.raises(ProfileError, match="--force nothing"):
        go(force=["nothing"])


def test_overrides_and_folders_reach_the_notebooks(toy_project):
    executed = run(
        "toy.yaml", {"evaluate_base": False, "learning_rate": 1e-9}, "elsewhere/a", "elsewhere/r", first="01", say=quiet
    )
    assert executed == 9
    assert "1e-09" in (toy_project / "elsewhere/r/tables/rq1.csv").read_text()
    assert not (toy_project / "artifacts").exists()


# ---------------------------------------------------------------------------------------------- failures


def test_the_first_failing_notebook_stops_the_run_and_says_where_why_and_how_to_go_on(finished_project):
    (finished_project / "artifacts/toy/selection/toy/toy-model/full/manifest.json").unlink()
    write_notebook(
        finished_project, "03_sample", "from codeact_lib.errors import DataError\nraise DataError('row 7 has no text')"
    )
    with pytest.raises(StageFailed, match=r"03_sample toy/toy-model/full failed: row 7 has no text") as caught:
        go()
    details = "\n".join(caught.value.details)
    assert "results/toy/notebooks/03_sample__toy__toy-model__full.ipynb" in details
    assert "codeact run --profile toy.yaml" in details
    assert "Traceback" in caught.value.traceback
    write_notebook(finished_project, "03_sample")
    assert go()[0] == 1


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "kernel died"),
        ("import sys\nsys.exit(0)", "manifest"),
    ],
)
def test_a_killed_kernel_or_an_early_exit_is_no_success(finished_project, code, why):
    (finished_project / "artifacts/toy/eval" / CDAS / "manifest.json").unlink()
    write_notebook(finished_project, "05_eval", code)
    with pytest.raises(StageFailed, match=why):
        go()
    write_notebook(finished_project, "05_eval")
    assert go()[0] == 1


@pytest.mark.parametrize("stage", ["02_ifd", "04_train_dynamic_pack", "05_eval"])
def test_a_run_killed_in_the_middle_continues_to_the_same_tables(finished_project, stage):
    tables = (finished_project / "results/toy/tables/rq1.csv").read_bytes()
    for task in plan("toy.yaml"):
        if task.stage >= stage:
            task.manifest_path.unlink()
    write_notebook(finished_project, stage, "import pathlib, time\npathlib.Path('../here').touch()\ntime.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-m", "codeact_lib.cli", "run", "-p", "toy.yaml"], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (finished_project / "here").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    write_notebook(finished_project, stage)
    assert go()[0] > 0
    assert (finished_project / "results/toy/tables/rq1.csv").read_bytes() == tables
    assert set(states().values()) == {"done"}


# ---------------------------------------------------------------------------------------------- the command


def test_help_loads_nothing_of_weight():
    code = "import sys, codeact_lib.cli; print(*{'torch', 'pandas', 'papermill', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == ""
    for arguments in (["--help"], ["run", "--help"], ["plan", "--help"], ["mini", "--help"], ["profiles", "--help"]):
        assert codeact(*arguments).returncode == 0
    assert "codeact run --only 06" in codeact("run", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "learning_rat=1"], "did you mean 'learning_rate'"),
        (["--set", "num_train_epochs=three"], "num_train_epochs"),
        (["--set", "oops"], "key=value"),
        (["--set", "datasets=[{name: a, path: gone.jsonl, label: A}]"], "gone.jsonl"),
        (["--profile", "gone.yaml"], "gone.yaml"),
        (["--artifacts-dir", "toy.jsonl/a"], "toy.jsonl/a"),
        (["--results-dir", "toy.jsonl/a"], "toy.jsonl/a"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_1(toy_project, arguments, words):
    profile = [] if "--profile" in arguments else ["--profile", "toy.yaml"]
    result = codeact("run", *profile, *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and words in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_traceback_is_shown_when_asked_for(toy_project):
    result = codeact("run", "--traceback", "--set", "nonsense=1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "ProfileError" in result.stderr


def test_numbers_on_the_command_line_are_numbers(toy_project):
    result = codeact(
        "plan",
        "--profile",
        "toy.yaml",
        "--set",
        "learning_rate=5e-5",
        "--set",
        "arms=[{policy: full, ratio: 1.0, strategy: flat}]",
    )
    assert result.returncode == 0 and "toy-model__toy__full__flat" in result.stdout


def test_folders_typed_in_the_shell_count_from_where_it_stands(finished_project):
    where = finished_project / "notebooks"
    result = codeact("plan", "-p", "../toy.yaml", "--artifacts-dir", "../artifacts/toy", cwd=where)
    assert "10 done" in result.stdout, result.stderr


def test_profiles_are_listed_and_shown_with_their_comments():
    listed = codeact("profiles", "list").stdout
    assert [line.split()[0] for line in listed.splitlines()] == ["colab-qlora", "mini", "paper"]
    assert "512 samples per optimizer step" in codeact("profiles", "show", "paper").stdout


def test_code_hash_follows_the_cells_but_not_prose_or_outputs(toy_project):
    path = write_notebook(toy_project, "02_ifd", "from codeact_lib.ifd.score import score_ifd")
    before = code_sha256(path)
    notebook = json.loads(path.read_text())
    notebook["cells"].append({"cell_type": "markdown", "id": "m", "metadata": {}, "source": ["text"]})
    notebook["cells"][0]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["x"]}]
    path.write_text(json.dumps(notebook))
    assert code_sha256(path) == before
    write_notebook(toy_project, "02_ifd", "from codeact_lib.sampling import cdas_sample")
    assert code_sha256(path) != before


def test_code_hash_follows_the_folders_of_its_stage_and_no_others(toy_project, monkeypatch):
    package = toy_project / "codeact_lib"
    monkeypatch.setattr("codeact_lib.pipeline.stages.PACKAGE_DIR", package)
    for part in ("ifd", "training"):
        (package / part).mkdir()
        (package / part / "inner.py").write_text("constant = 1\n")
    path = write_notebook(toy_project, "02_ifd")
    before = code_sha256(path)
    (package / "training" / "inner.py").write_text("constant = 2\n")
    assert code_sha256(path) == before
    (package / "ifd" / "inner.py").write_text("constant = 2\n")
    assert code_sha256(path) != before


@pytest.mark.parametrize("stage", STAGES)
def test_every_part_of_the_package_that_a_notebook_computes_with_counts_as_its_code(stage):
    """What a notebook imports is in the table of its stage, or draws, prints or keeps files."""
    cells = json.loads((REPO / "notebooks" / f"{stage}.ipynb").read_text())["cells"]
    source = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    names = set(re.findall(r"from codeact_lib\.(\w+)", source))
    for imported in re.findall(r"from codeact_lib import ([\w, ]+)", source):
        names.update(imported.replace(" ", "").split(","))
    parts = {name for name in names if (REPO / "codeact_lib" / name).is_dir()}
    parts |= {f"{name}.py" for name in names if (REPO / "codeact_lib" / f"{name}.py").is_file()}
    code = TABLE[stage]["code"]
    plumbing = {"artifacts.py", "config.py", "errors.py", "pipeline", "figures", "hub.py", "generation"}
    shown_only = {"02_ifd": {"sampling.py"}}.get(stage, set())
    assert parts - plumbing - shown_only <= {part.partition("/")[0] for part in code}
    assert all((REPO / "codeact_lib" / part).exists() for part in code)
