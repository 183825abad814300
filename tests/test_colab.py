"""Colab: what it ships fits what the project asks for, and the cell that installs the project changes little of it.

`make colab-check` runs the notebooks among the packages of tools/colab_runtime.txt; this needs no such environment.
"""

import ast
import re
import shutil
import subprocess
import sys
import tomllib

import nbformat
import pytest
from conftest import REPO
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from codeact_lib.pipeline import STAGES, StageFailed, run

PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PYPROJECT["optional-dependencies"]
ASKED = [Requirement(text) for text in [*PYPROJECT["dependencies"], *EXTRAS["eval"], *EXTRAS["qlora"], "papermill"]]
ADDRESS = PYPROJECT["urls"]["Repository"]
CLONE = ADDRESS.rpartition("/")[2]
RUNTIME = REPO / "tools" / "colab_runtime.txt"
SETUP = REPO / "tools" / "colab_setup.py"


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def shipped():
    """The version of every package that Colab is known to ship."""
    pins = re.findall(r"^([\w.-]+)==(\S+)$", RUNTIME.read_text(encoding="utf-8"), re.MULTILINE)
    return {normalised(name): version for name, version in pins}


def upgraded():
    """The packages that the set-up says it upgrades, with its reasons; read, for running it installs things."""
    assigned = [node for node in ast.parse(SETUP.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign)]
    return next(ast.literal_eval(node.value) for node in assigned if node.targets[0].id == "UPGRADED")


# ---- versions --------------------------------------------------------------------------------------------------------


def test_the_python_of_colab_is_one_that_the_project_supports():
    assert "Python 3.13" in RUNTIME.read_text(encoding="utf-8").splitlines()[0]
    assert SpecifierSet(PYPROJECT["requires-python"]).contains("3.13")


@pytest.mark.parametrize("requirement", ASKED, ids=str)
def test_what_is_asked_for_colab_ships_or_lacks_or_the_setup_upgrades_it(requirement):
    name = normalised(requirement.name)
    assert name in upgraded() or name not in shipped() or requirement.specifier.contains(shipped()[name])


def test_the_setup_upgrades_what_colab_ships_with_a_reason_and_transformers_because_it_is_too_old():
    assert all(name in shipped() and reason for name, reason in upgraded().items())
    asked = next(requirement for requirement in ASKED if requirement.name == "transformers")
    assert not asked.specifier.contains(shipped()["transformers"])


def resolve(folder, free):
    """uv's answer: versions of all that is asked for, when of Colab's own packages only those in `free` may move."""
    held = [f"{name}=={version}\n" for name, version in shipped().items() if name not in free]
    (folder / "held.txt").write_text("".join(held))
    (folder / "more.in").write_text("papermill\nhuggingface_hub<2\n")
    command = ["uv", "pip", "compile", "--quiet", "--python-version", "3.13", "--extra", "eval", "--extra", "qlora"]
    command += ["--constraints", "held.txt", "more.in", str(REPO / "pyproject.toml")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def resolved(tmp_path_factory):
    """The answer when just what the set-up names may move; skips the test where nothing can be asked."""
    if shutil.which("uv") is None:
        pytest.skip("uv is not installed")
    done = resolve(tmp_path_factory.mktemp("resolved"), upgraded())
    if done.returncode and "No solution found" not in done.stderr:
        pytest.skip(f"the package index does not answer: {done.stderr.strip()[-200:]}")
    return done


@pytest.mark.slow
def test_the_package_index_has_what_is_asked_for_beside_what_colab_ships(resolved):
    assert resolved.returncode == 0, resolved.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", upgraded())
def test_without_one_of_the_upgrades_it_has_not(name, resolved, tmp_path):
    assert "No solution found" in resolve(tmp_path, set(upgraded()) - {name}).stderr


# ---- the cell --------------------------------------------------------------------------------------------------------


def cell(notebook):
    """The cell that installs the project on Colab: the first one that runs after the parameters."""
    cells = nbformat.read(REPO / "notebooks" / f"{notebook}.ipynb", as_version=nbformat.NO_CONVERT).cells
    code = [cell for cell in cells if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", [])]
    assert "google.colab" in code[0].source
    return code[0].source


def test_all_notebooks_share_one_cell_that_installs():
    assert len({cell(notebook) for notebook in ["00_colab", *STAGES]}) == 1


def test_the_cell_clones_the_address_of_the_project():
    assert re.findall(r"https://[^\"]+", cell("00_colab")) == [ADDRESS]


# A git that copies, and a Python whose pip exchanges the packages in ./site, and warns.
GIT = """#!/bin/sh
echo "git $*" >> log
mkdir -p {clone}/tools {clone}/codeact_lib
cp "{setup}" {clone}/tools/
echo "name = 1" > {clone}/codeact_lib/__init__.py
"""
PYTHON = """#!/bin/sh
echo "python $*" >> log
[ "$5" != --constraint ] || cp "$6" held.txt
echo "WARNING: a wall of text" >&2
[ ! -e fail ] || exit 1
rm -r site/*
cp -r newer/* site/
"""


@pytest.fixture
def colab(tmp_path):
    """An empty folder on a machine that has a git, a pip, two of Colab's packages, and soon newer ones."""
    for name, text in {"git": GIT.format(setup=SETUP, clone=CLONE), "python": PYTHON}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    packages = {"site": {"transformers": "5.15.0", "numpy": "2.1.3"}}
    packages["newer"] = {"transformers": "5.24.0", "numpy": "2.1.3", "papermill": "2.7.0"}
    for folder, versions in packages.items():
        for name, version in versions.items():
            record = tmp_path / folder / f"{name}-{version}.dist-info" / "METADATA"
            record.parent.mkdir(parents=True)
            record.write_text(f"Name: {name}\nVersion: {version}\n")
    return tmp_path


def run_cell(folder, before="sys.modules['google.colab'] = sys", flags=("-I", "-S")):
    """What the cell said after a line of code, where nothing of this environment is installed, and its commands."""
    code = f"import sys; sys.path.append('site'); sys.executable = './python'; {before}\n{cell('00_colab')}"
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "PYTHONPATH": str(REPO)}
    command = [sys.executable, *flags, "-c", f"{code}\nimport codeact_lib; print(codeact_lib.__name__)"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    log = folder / "log"
    return done, log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("before", ["pass", "sys.modules['google.colab'] = sys"], ids=["elsewhere", "colab"])
def test_the_cell_does_nothing_where_the_package_is_there(colab, before):
    done, commands = run_cell(colab, before, flags=())
    assert (done.stdout, done.stderr, commands) == ("codeact_lib\n", "", [])


def test_the_cell_does_nothing_outside_colab(colab):
    done, commands = run_cell(colab, before="pass")
    assert commands == [] and "No module named 'codeact_lib'" in done.stderr and done.stdout == ""


def test_on_colab_the_cell_installs_the_clone_says_what_it_upgraded_and_the_package_can_be_imported(colab):
    done, commands = run_cell(colab)
    assert commands[0].startswith("git clone ")
    asked = commands[1].split(" --constraint ")[1].split(" ", 1)[1]
    assert (colab / "held.txt").read_text() == "numpy==2.1.3\n"  # every other package of Colab's
    assert asked == f"-e {colab / CLONE}[eval,qlora] papermill huggingface_hub<2" and len(commands) == 2
    said = done.stdout.splitlines()
    assert said[1] == f"Upgraded transformers 5.15.0 -> 5.24.0: {upgraded()['transformers']}"
    assert '"colab-qlora"' in said[2] and said[3:] == ["codeact_lib"] and done.stderr == ""


def test_a_restart_is_asked_for_when_what_was_upgraded_had_been_imported(colab):
    imported = "sys.modules['google.colab'] = sys.modules['transformers'] = sys"
    said = run_cell(colab, imported)[0].stdout
    assert "had imported transformers before: Runtime -> Restart session" in said and "Installed." in said


def test_what_pip_said_is_shown_when_it_fails_even_with_nothing_held(colab):
    (colab / "fail").touch()
    done, commands = run_cell(colab)
    assert ["--constraint" in command for command in commands] == [False, True, False]
    assert "a wall of text" in done.stdout and "the installation failed: see above" in done.stderr
    assert "Installed." not in done.stdout


# ---- kernels ---------------------------------------------------------------------------------------------------------


def test_a_run_asks_for_plain_kernels_whatever_the_machine_is_configured_for(toy_project, monkeypatch):
    """Colab's own kernels wait for the browser when a model is loaded; `make colab-check` has such ones."""
    asked = []

    def execute(*paths, extra_arguments, **options):
        asked.append(extra_arguments)
        raise RuntimeError("not run")

    monkeypatch.setattr("papermill.execute_notebook", execute)
    with pytest.raises(StageFailed, match="not run"):
        run("toy.yaml", say=lambda line: None)
    assert asked == [["--IPKernelApp.kernel_class=ipykernel.ipkernel.IPythonKernel"]]
