"""The notebooks as files: a course of one shape, plain parameters, no outputs, links that lead somewhere."""

import ast
import inspect
import re
import statistics
import tomllib

import nbformat
import papermill
import pytest
from conftest import REPO
from IPython.core.inputtransformer2 import TransformerManager

from codeact_lib.pipeline import STAGES, open_stage
from codeact_lib.pipeline.stages import RULES

NOTEBOOKS = REPO / "notebooks"
ADDRESS = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
BLOB = f"{ADDRESS}/blob/main/"
COMMON = {"profile": "mini", "overrides": "", "artifacts_dir": "", "results_dir": ""}
LAUNCHER = "00_colab"
RUN_ID = "mini-base__mini-evol__cdas-0.4__dynamic-pack"
IDENTITY = {
    "01_cluster": {"dataset": "mini-evol"},
    "02_ifd": {"dataset": "mini-evol", "model": "mini-base"},
    "03_sample": {"dataset": "mini-evol", "model": "mini-base", "policy": "cdas", "ratio": 0.4, "seed": 0},
    "04_train_dynamic_pack": {"run_id": RUN_ID},
    "05_eval": {"run_id": RUN_ID},
    "06_tables": {},
    LAUNCHER: {"profile": "colab-qlora", "drive_folder": ""},
}
every_notebook = pytest.mark.parametrize("stage", STAGES)
every_notebook_and_the_launcher = pytest.mark.parametrize("stage", [LAUNCHER, *STAGES])


def read(stage):
    return nbformat.read(NOTEBOOKS / f"{stage}.ipynb", as_version=nbformat.NO_CONVERT)


def cells(stage, kind):
    return [cell for cell in read(stage).cells if cell.cell_type == kind]


def prose(stage):
    return "\n\n".join(cell.source for cell in cells(stage, "markdown"))


def parameters_cell(stage):
    tagged = [cell for cell in cells(stage, "code") if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    return tagged[0]


def test_there_is_one_notebook_per_stage():
    assert {path.stem for path in NOTEBOOKS.glob("0[1-9]_*.ipynb")} == set(STAGES)


@every_notebook_and_the_launcher
def test_the_file_is_valid_and_names_the_python_kernel(stage):
    notebook = read(stage)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.kernelspec.language == "python"
    identifiers = [cell.id for cell in notebook.cells]
    assert len(identifiers) == len(set(identifiers))


@every_notebook_and_the_launcher
def test_it_is_stripped(stage):
    notebook = read(stage)
    assert "papermill" not in notebook.metadata and "widgets" not in notebook.metadata
    for cell in notebook.cells:
        assert not {"papermill", "execution"} & set(cell.metadata)
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@every_notebook_and_the_launcher
def test_parameters_are_plain_literals_one_a_line_as_the_runner_injects_them(stage):
    given = {}
    for line in parameters_cell(stage).source.splitlines():
        name, value = re.fullmatch(r"(\w+) = ([^=#]+?)  # [^=]+", line).groups()
        given[name] = ast.literal_eval(value)
    expected = {**COMMON, **IDENTITY[stage]}
    assert given == expected and list(given) == list(expected)


@every_notebook
def test_papermill_finds_the_same_parameters(stage):
    found = papermill.inspect_notebook(str(NOTEBOOKS / f"{stage}.ipynb"))
    assert set(found) == {*COMMON, *IDENTITY[stage]}


@every_notebook
def test_the_default_parameters_name_a_stage_of_the_mini_profile(stage):
    task = open_stage(stage, **COMMON, **IDENTITY[stage])
    assert task.stage == stage and task.profile.name == "mini"
    assert set(inspect.signature(RULES[stage]).parameters) - {"profile", "paths"} == set(IDENTITY[stage])


@every_notebook
def test_it_opens_the_stage_it_is_named_after_and_finishes_it_last(stage):
    code = [cell.source for cell in cells(stage, "code")]
    opened = re.findall(r'open_stage\(\s*"([^"]+)"', "\n".join(code))
    assert opened == [stage]
    assert "stage.begin()" in "\n".join(code)
    assert "stage.finish(" in code[-1]


@every_notebook_and_the_launcher
def test_every_cell_is_python_without_shell_escapes_or_early_exits(stage):
    for cell in cells(stage, "code"):
        ast.parse(TransformerManager().transform_cell(cell.source))
        assert not re.search(r"^\s*[!]|^%%(bash|sh|script)|sys\.exit|os\._exit", cell.source, re.MULTILINE), cell.id


OPENING, CLOSING = ["Parameters", "Setup"], ["Checks", "What was saved, and what comes next"]


def headings(stage):
    return re.findall(r"^## (.+)$", prose(stage), re.MULTILINE)


def section(stage, heading):
    """The cells under a heading, up to the next one."""
    every = read(stage).cells
    starts = [n for n, cell in enumerate(every) if cell.cell_type == "markdown" and cell.source.startswith("## ")]
    start = next(n for n in starts if every[n].source.startswith(f"## {heading}"))
    return every[start : min([n for n in starts if n > start], default=len(every))]


def asserts(stage, heading):
    trees = [ast.parse(cell.source) for cell in section(stage, heading) if cell.cell_type == "code"]
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Assert)]


@every_notebook_and_the_launcher
def test_it_has_a_numbered_title_and_begins_and_ends_under_the_same_headings(stage):
    assert prose(stage).startswith(f"# {stage[:2]} ")
    assert headings(stage)[:2] == OPENING and headings(stage)[-2:] == CLOSING
    assert len(headings(stage)) == len(set(headings(stage)))


@every_notebook
def test_it_shows_one_record_and_its_idea_in_ten_lines_that_equal_the_library(stage):
    middle = headings(stage)[2:-2]
    assert middle.count("The idea in ten lines") == 1
    assert sum(heading.startswith("One record: ") for heading in middle) == 1
    assert asserts(stage, "The idea in ten lines")


@every_notebook_and_the_launcher
def test_every_check_says_what_is_wrong_when_it_fails(stage):
    assert len(asserts(stage, "Checks")) >= 3
    assert all(node.msg for node in asserts(stage, "Checks"))


@every_notebook
def test_it_ends_by_naming_the_notebook_that_comes_next(stage):
    last = "\n".join(cell.source for cell in section(stage, CLOSING[-1]) if cell.cell_type == "markdown")
    following = dict(zip(STAGES, STAGES[1:], strict=False))
    assert following.get(stage, "This is the last stage") in last


@every_notebook
def test_it_explains_more_than_it_computes_and_in_short_cells(stage):
    code = cells(stage, "code")
    assert len(cells(stage, "markdown")) >= 1.5 * len(code)
    assert statistics.median(len(cell.source.splitlines()) for cell in code) <= 10


@every_notebook_and_the_launcher
def test_its_badge_opens_this_very_notebook(stage):
    assert read(stage).cells[0].source.splitlines()[2].startswith("[![Open in Colab]"), "the badge is under the title"
    badge = r"\[!\[Open in Colab\]\(https://colab\.research\.google\.com/assets/colab-badge\.svg\)\]\(([^)]+)\)"
    assert re.findall(badge, prose(stage)) == [
        f"https://colab.research.google.com/github/{BLOB.removeprefix('https://github.com/')}notebooks/{stage}.ipynb"
    ]


@every_notebook_and_the_launcher
def test_every_link_to_a_file_of_the_project_resolves(stage):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(stage)):
        if target.startswith(BLOB):
            assert (REPO / target.removeprefix(BLOB)).exists(), target
        elif not re.match(r"https?://|#", target):
            assert (NOTEBOOKS / target.split("#")[0]).exists(), target


@every_notebook_and_the_launcher
def test_files_and_stages_that_the_prose_names_exist(stage):
    for name in re.findall(r"`((?:docs|notebooks|codeact_lib|results/reported)/[\w./-]+\.\w+)`", prose(stage)):
        assert (REPO / name).exists(), name
    for name in re.findall(r"\b0[1-6]_[a-z_]+\b", prose(stage)):
        assert name in STAGES, name


EXECUTED = sorted((REPO / "results" / "mini" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: path.stem)
def test_a_committed_executed_notebook_ran_to_its_end_and_shows_what_it_should(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    assert all(cell.execution_count for cell in code if cell.source.strip())
    assert not notebook.metadata.papermill.output_path.startswith("/")
