"""What several test files share: an offline environment for two cores, and a tiny project with stand-in notebooks."""

import os

# Before torch is imported anywhere: tests run side by side, one thread each, and never ask a network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import contextlib  # noqa: E402
import json  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import textwrap  # noqa: E402
import tomllib  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import yaml  # noqa: E402

from codeact_lib.config import PROFILES_DIR  # noqa: E402

REPO = Path(__file__).resolve().parent.parent
REPOSITORY = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["urls"]["Repository"]

# Changes to the mini profile that leave of it one data set, two arms and a minute's work.
REDUCED_MINI = {
    "name": "reduced",
    "datasets": ["mini-evol"],
    "arms": [
        {"policy": "full", "ratio": 1.0, "strategy": "dynamic"},
        {"policy": "cdas", "ratio": 0.4, "strategy": "dynamic_pack"},
    ],
    "n_rows_limit": 160,
    "benchmark_limit": 6,
    "num_train_epochs": 1,
    "learning_rate": 2.0e-4,  # a batch of two wants a small one
    "per_device_train_batch_size": 2,  # enough steps to be killed between two checkpoints
    "max_new_tokens": 60,
    "save_steps": 4,
    "torch_threads": 1,
}

COMMON = ['profile = "toy.yaml"', 'overrides = ""', 'artifacts_dir = ""', 'results_dir = ""']
# Stand-ins for the six notebooks: real files through the real open_stage, a second each, so that the runner's own tests
# do not depend on what the notebooks compute. Each stage writes what the next one reads.
TOY_NOTEBOOKS = {
    "01_cluster": (
        ['dataset = "toy"'],
        "dataset=dataset",
        """
        rows = [json.loads(line) for line in stage.inputs["instructions"].read_text().splitlines()]
        write_json(stage.paths.examples(dataset), rows)
        write_json(stage.folder / "clusters.parquet", [i % 2 for i in range(len(rows))])
        stage.finish([stage.paths.examples(dataset), stage.folder / "clusters.parquet"], {"rows": len(rows)})
        """,
    ),
    "02_ifd": (
        ['dataset = "toy"', 'model = "toy-model"'],
        "dataset=dataset, model=model",
        """
        rows = read_json(stage.inputs["examples"])
        write_json(stage.folder / "ifd.parquet", [len(row["instruction"]) for row in rows])
        stage.finish([stage.folder / "ifd.parquet"], {"rows": len(rows)})
        """,
    ),
    "03_sample": (
        ['dataset = "toy"', 'model = "toy-model"', 'policy = "cdas"', "ratio = 0.4", "seed = 0"],
        "dataset=dataset, model=model, policy=policy, ratio=ratio, seed=seed",
        """
        rows = read_json(stage.inputs["examples"])
        write_json(stage.folder / "train.jsonl", rows[: int(len(rows) * ratio)])
        stage.finish([stage.folder / "train.jsonl"])
        """,
    ),
    "04_train_dynamic_pack": (
        ['run_id = "toy-model__toy__cdas-0.4__dynamic-pack"'],
        "run_id=run_id",
        """
        rows = read_json(stage.inputs["train_jsonl"])
        write_json(stage.folder / "model" / "weights.json", [stage.profile.learning_rate, len(rows)])
        write_json(stage.folder / "train_metrics.json", {"n_samples": len(rows)})
        stage.finish([stage.folder / "model", stage.folder / "train_metrics.json"])
        """,
    ),
    "05_eval": (
        ['run_id = "toy-model__toy__cdas-0.4__dynamic-pack"'],
        "run_id=run_id",
        """
        weights = [] if stage.run.is_base else read_json(stage.inputs["model"] / "weights.json")
        write_json(stage.paths.metrics(run_id), {"run_id": run_id, "weights": weights})
        stage.finish([stage.paths.metrics(run_id)])
        """,
    ),
    "06_tables": (
        [],
        "",
        """
        metrics = [read_json(path) for name, path in stage.inputs.items() if name.startswith("metrics")]
        write_json(stage.paths.tables_dir / "rq1.csv", metrics)
        write_json(stage.paths.report, len(metrics))
        stage.finish([stage.paths.tables_dir, stage.paths.report])
        """,
    ),
}


def notebook(*cells):
    """A minimal version-4.5 notebook; a cell is code, or (tag, code)."""
    code = [(cell if isinstance(cell, tuple) else (None, cell)) for cell in cells]
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
        },
        "cells": [
            {
                "id": f"cell-{number}",
                "cell_type": "code",
                "metadata": {"tags": [tag] if tag else []},
                "source": textwrap.dedent(source).strip().splitlines(keepends=True),
                "outputs": [],
                "execution_count": None,
            }
            for number, (tag, source) in enumerate(code)
        ],
    }


def toy_notebook(stage, before_finish=""):
    """The stand-in for a stage; ``before_finish`` is code that runs after begin() and before the work."""
    parameters, identity, work = TOY_NOTEBOOKS[stage]
    call = f"profile=profile, overrides=overrides, artifacts_dir=artifacts_dir, results_dir=results_dir, {identity}"
    return notebook(
        ("parameters", "\n".join([*COMMON, *parameters])),
        "import json\nfrom codeact_lib.artifacts import read_json, write_json\n"
        f'from codeact_lib.pipeline import open_stage\n\nstage = open_stage("{stage}", {call})\nstage.begin()',
        textwrap.dedent(before_finish).strip() or "print(stage.title)",
        work,
    )


def make_toy_project(folder):
    """A project with six stand-in notebooks, one base model and one data set of ten rows, and a profile of two arms."""
    for name in ("codeact_lib", "notebooks", "toy-model"):
        (folder / name).mkdir(parents=True)
    (folder / "toy-model" / "weights.json").write_text("[1]")
    rows = [{"instruction": "do " * n, "response": "pass"} for n in range(1, 11)]
    (folder / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for stage in TOY_NOTEBOOKS:
        write_notebook(folder, stage)
    values = yaml.safe_load((PROFILES_DIR / "mini.yaml").read_text(encoding="utf-8"))
    values |= {"name": "toy", "learning_rate": 1.5e-3}
    values["datasets"] = [{"name": "toy", "path": "toy.jsonl", "label": "Toy"}]
    model = {"name": "toy-model", "path": "./toy-model", "template": "deepseek-coder", "label": "Toy", "size": "1"}
    values["models"] = [model]
    values["arms"] = [
        {"policy": "full", "ratio": 1.0, "strategy": "dynamic"},
        {"policy": "cdas", "ratio": 0.4, "strategy": "dynamic_pack"},
    ]
    (folder / "toy.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


def write_notebook(project, stage, before_finish=""):
    path = project / "notebooks" / f"{stage}.ipynb"
    path.write_text(json.dumps(toy_notebook(stage, before_finish)), encoding="utf-8")
    return path


# Files of few tests that take minutes: they start first, so that no worker is left alone with one at the end.
LONG = ("test_reduced_mini", "test_hostile", "test_profiles", "test_extending", "test_browser")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture
def toy_project(tmp_path, monkeypatch):
    """A toy project nothing of which has run, as the working directory."""
    project = make_toy_project(tmp_path / "project")
    monkeypatch.chdir(project)
    return project


@pytest.fixture(scope="session")
def _finished(tmp_path_factory):
    from codeact_lib.pipeline import run

    project = make_toy_project(tmp_path_factory.mktemp("finished") / "project")
    with contextlib.chdir(project):
        run("toy.yaml", say=lambda line: None)
    return project


@pytest.fixture
def finished_project(_finished, tmp_path, monkeypatch):
    """A toy project that has run to its end, moved to a folder of its own; the working directory."""
    project = tmp_path / "project"
    shutil.copytree(_finished, project, copy_function=shutil.copyfile)
    monkeypatch.chdir(project)
    return project


HOLDER = """
import sys, time
from codeact_lib.artifacts import locked
with locked(sys.argv[1], "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def held_elsewhere(path):
    """Another process holds the lock file ``path`` inside the block; it is killed at the end."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline().strip() == "held"
            yield
        finally:
            holder.kill()
