"""From a cell of a table back to its run and everything behind it, on the committed results of mini."""

import csv
import subprocess
import sys

import pytest
from conftest import REPO

from codeact_lib.artifacts import read_json, write_json
from codeact_lib.errors import CodeActError
from codeact_lib.evaluation.records import seal
from codeact_lib.pipeline.explain import explain
from codeact_lib.tables import arms_table, write_table

RUN = "mini-base__mini-evol__cdas-0.4__dynamic-pack"


def rq1_rows():
    with (REPO / "results/mini/tables/rq1.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_measured_cell_of_rq1_leads_to_its_run_and_says_the_same(tmp_path):
    rows = [(number, row) for number, row in enumerate(rq1_rows(), 1) if row["run_id"]]
    assert len(rows) == 4
    for number, row in rows:
        text = "\n".join(explain(f"rq1:{number}:humaneval_plus", artifacts_dir=str(tmp_path)))
        counts = read_json(REPO / f"results/mini/metrics/{row['run_id']}.json")["benchmarks"]["mini-humaneval"]["plus"]
        assert f"{counts['k']} of {counts['n']} tasks solved" in text
        assert f"run {row['run_id']}" in text and "sha256" in text and "cores" in text


def test_the_chain_names_all_five_stages_with_parameters_where_no_artifact_is_left(tmp_path):
    text = "\n".join(explain(RUN, artifacts_dir=str(tmp_path)))
    for stage in ("01_cluster", "02_ifd", "03_sample", "04_train_dynamic_pack", "05_eval"):
        assert f"stage {stage}" in text
    assert '"learning_rate"' in text and '"n_clusters"' in text and '"ratio": 0.4' in text


def test_the_chain_says_versions_and_hardware_of_the_measurement(tmp_path):
    text = "\n".join(explain(RUN, artifacts_dir=str(tmp_path)))
    environment = read_json(REPO / f"results/mini/metrics/{RUN}.json")["provenance"]["environment"]
    assert f"torch {environment['packages']['torch']}" in text and f"python {environment['python']}" in text
    assert f"{environment['cpu']}, {environment['cores']} cores" in text


def test_a_cell_averaged_over_seeds_leads_to_each_of_its_runs(tmp_path):
    record = read_json(REPO / f"results/mini/metrics/{RUN}.json")
    runs = [record | {"seed": seed, "run_id": f"{RUN}__seed-{seed}"} for seed in (0, 1)]
    for run in runs:
        write_json(tmp_path / "metrics" / f"{run['run_id']}.json", seal(run))
    write_table(arms_table(runs), tmp_path / "tables" / "arms")
    call = {"overrides": '{"seeds": [0, 1]}', "artifacts_dir": str(tmp_path), "results_dir": str(tmp_path)}
    lines = explain("arms:1:humaneval", **call)
    k = record["benchmarks"]["mini-humaneval"]["base"]["k"]
    assert lines[1].strip().startswith(f"{k}; {k} of 160 tasks solved")
    assert [line for line in lines if line.startswith("run ")] == [f"run {run['run_id']}" for run in runs]


def test_reported_and_not_run_cells_say_so():
    rows = rq1_rows()
    numbers = {row["source"] + row["status"]: number for number, row in enumerate(rows, 1)}
    assert "arXiv 2408.02193" in explain(f"rq1:{numbers['paperreported']}:mbpp")[-1]
    assert "arXiv 2504.12687" in explain(f"rq1:{numbers['follow-upreported']}:mbpp")[-1]
    assert explain(f"rq1:{numbers['measurednot run']}:mbpp")[-1].strip() == "not run"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("rq9:1:mbpp", "no table is called 'rq9'"),
        ("rq1:999:mbpp", "has rows 1 to"),
        ("rq1:1:speed", "no column 'speed'"),
        ("mini-base__mini-evl__cdas-0.4__dynamic-pack", f"did you mean '{RUN}'"),
    ],
)
def test_a_wrong_name_is_answered_with_what_exists(what, words):
    with pytest.raises(CodeActError, match=words):
        explain(what)


def test_the_command_prints_the_chain():
    command = [sys.executable, "-m", "codeact_lib.cli", "explain", RUN]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 0 and f"run {RUN}" in result.stdout
