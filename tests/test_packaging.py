"""A built wheel, in an environment that holds nothing of this project, run from a folder that is no clone.

The big dependencies are lent by a `.pth` file and not installed again; the package itself comes from the wheel.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import REPO

from codeact_lib.mini import build_corpus

REAL = Path(os.environ.get("CODEACT_REAL_DATA", "-")) / "evol_instruct.jsonl"
EXTRAS = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the tracked sources, built offline by the setuptools that is pinned."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, source)
    shutil.copytree(REPO / "codeact_lib", source / "codeact_lib", ignore=shutil.ignore_patterns("__pycache__"))
    command = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", "dist", "."]
    subprocess.run([sys.executable, "-m", *command], cwd=source, check=True)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """(bin folder, working folder) of a fresh environment with the wheel installed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "venv", with_pip=False)
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", programs / "python", "install", *options, wheel], check=True
    )
    site = next((folder / "venv").rglob("site-packages"))
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (folder / "work").mkdir()
    return programs, folder / "work"


def run(installed, *command, code=0):
    programs, work = installed
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CODEACT_REAL_DATA")}
    command = [programs / command[0], *command[1:]]
    ended = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_the_wheel_holds_the_package_and_its_data_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"codeact_lib", next(top for top in tops if top.endswith(".dist-info"))}
    beside_code = ("gpus.yaml", "hub.yaml", "pipeline/stages.yaml", "pipeline/estimates.yaml")
    for data in ("profiles/mini.yaml", "templates/report.html.j2", "mini/mini-base/model.safetensors", *beside_code):
        assert f"codeact_lib/{data}" in names
    assert any(name.endswith("accelerate_configs/fsdp2.yaml") for name in names)


def test_the_package_is_the_wheels_own(installed):
    shown = run(installed, "python", "-c", "import codeact_lib; print(codeact_lib.__file__)")
    assert "elsewhere" in shown and str(REPO) not in shown
    assert "colab-qlora" in run(installed, "codeact", "profiles", "list")


def test_select_chooses_from_rows_without_the_repository(installed):
    """Real EVOL-Instruct rows where they are at hand, generated ones elsewhere."""
    data = installed[1] / "rows.jsonl"
    if REAL.is_file():
        data.write_text("".join(REAL.read_text(encoding="utf-8").splitlines(keepends=True)[:80]), encoding="utf-8")
    else:
        build_corpus("mini-evol").head(80).to_json(data, orient="records", lines=True)
    options = ["--model", "mini-base", "--limit", "60", "--max-length", "320", "--out", "chosen.jsonl"]
    said = run(installed, "codeact", "select", "rows.jsonl", *options, "--report", "report.html", "--export", "trl")
    chosen = [json.loads(line) for line in (installed[1] / "chosen.jsonl").read_text().splitlines()]
    assert 0 < len(chosen) <= 24 and all(0 < row["codeact_ifd"] < 1 for row in chosen)
    assert "of 60 rows chosen" in said and (installed[1] / "report.html").stat().st_size > 10_000


TRAINING = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from codeact_lib import DynamicPackCollator, use_supervised_loss

torch.manual_seed(0)
config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
rows = [{"input_ids": list(range(1, n)), "labels": list(range(1, n))} for n in range(4, 28)]
args = TrainingArguments("out", max_steps=40, learning_rate=3e-2, per_device_train_batch_size=8, logging_steps=1,
                         remove_unused_columns=False, report_to=[], use_cpu=True, disable_tqdm=True)
collator = DynamicPackCollator(0, max_length=32, strategy="dynamic_pack")
trainer = Trainer(use_supervised_loss(LlamaForCausalLM(config)), args, train_dataset=rows, data_collator=collator)
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print("LOSS", losses[0], losses[-1])
"""


def test_a_tiny_model_trains_with_the_collator_in_a_plain_trainer(installed):
    (installed[1] / "train.py").write_text(TRAINING)
    first, last = map(float, run(installed, "python", "train.py").split("LOSS ")[1].split()[:2])
    assert last < 0.8 * first


def test_run_says_that_the_notebooks_are_in_a_clone(installed):
    said = run(installed, "codeact", "run", code=1)
    assert "executes the notebooks of a clone" in said and "git clone https://" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("extra", "package"), [("eval", "evalplus"), ("notebooks", "papermill")])
def test_what_an_extra_brings_is_asked_for_by_its_name(extra, package, monkeypatch):
    from codeact_lib import errors

    assert any(requirement.startswith(package) for requirement in EXTRAS[extra])
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(errors.CodeActError, match=rf"needs {package}.*pip install 'codeact-lib\[{extra}\]'"):
        errors.require_package(package, extra)


def test_the_extra_all_holds_every_other_but_that_of_developers():
    (everything,) = EXTRAS["all"]
    assert everything == f"codeact-lib[{','.join(name for name in EXTRAS if name not in ('all', 'dev'))}]"
