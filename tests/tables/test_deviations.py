"""docs/deviations.md and docs/paper_map.md: written from the parameters, complete, and naming only what exists."""

import ast
import importlib
import json
import re
from dataclasses import fields

import pytest
from conftest import REPO
from transformers import TrainingArguments
from typer.testing import CliRunner

from codeact_lib.cli import app
from codeact_lib.config import Profile, load_profile, profile_names
from codeact_lib.pipeline.stages import TABLE
from codeact_lib.tables import deviations
from codeact_lib.training.settings import TrainSettings

METHOD = [switch.key for switch in deviations.SWITCHES]
# what the twelve subjects of a careful reader's list are known by, in its order
SUBJECTS = (
    "67.7",
    "399 tasks",
    "interval",
    "break-even",
    "neighbours",
    "IFD",
    "micro-batches",
    "CUDA cache",
    "template",
)
SUBJECTS += ("random", "HumanEval problems")


def rows():
    """Cells of each numbered row of the document."""
    text = (REPO / "docs/deviations.md").read_text(encoding="utf-8")
    return [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| \d+ \|", line)]


def test_the_document_is_what_the_parameters_say():
    assert (REPO / "docs/deviations.md").read_text(encoding="utf-8") == deviations.deviations_document(), (
        "run `python -m codeact_lib.tables.deviations`"
    )


def test_each_of_the_eleven_points_has_its_row_with_every_cell_filled():
    found = rows()
    assert [int(row[0]) for row in found[:11]] == list(range(1, 12))
    for row, subject in zip(found, SUBJECTS, strict=False):
        assert subject in " ".join(row)
        assert len(row) == 6 and all(cell.strip() for cell in row)


def test_every_key_of_a_profile_is_a_switch_or_changes_no_result():
    assert sorted([*METHOD, *deviations.NO_METHOD]) == sorted(Profile.model_fields)


def test_every_key_that_enters_a_stages_identity_is_a_switch():
    in_stages = {key for row in TABLE.values() for key in row["keys"] + row.get("adapter_keys", [])}
    # two that are part of a training's identity for its log and its memory, not for its result
    assert in_stages - set(METHOD) == {"gradient_checkpointing", "logging_steps"}


def test_every_switch_that_a_row_names_is_a_key_of_a_profile():
    for entry in deviations.DEVIATIONS:
        assert set(entry.switches) <= set(METHOD), entry.point
        assert entry.switches or entry.elsewhere, entry.point


def test_what_decides_outside_of_profiles_exists():
    text = " ".join(entry.elsewhere for entry in deviations.DEVIATIONS)
    for module, name in re.findall(r"`(\w+)\.(\w+)`", text):
        assert hasattr(importlib.import_module(f"codeact_lib.{module}"), name), name
    for command, flag in re.findall(r"`codeact (\w+) (--[a-z-]+)", text):
        assert flag in CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
    for key in re.findall(r"`(\w+): ", text):
        assert key in {field.name for field in fields(TrainingArguments)}
    for folder in re.findall(r"`(results/\w+/)`", text):
        assert list((REPO / folder).glob("*.csv"))
    assert "loss_normalization" in {field.name for field in fields(TrainSettings)}


def test_whatever_the_preset_authors_changes_in_a_training_has_its_row():
    """The preset's own switches, read from the cell of notebook 04 that sets them."""
    cells = json.loads((REPO / "notebooks/04_train_dynamic_pack.ipynb").read_text(encoding="utf-8"))["cells"]
    source = next("".join(c["source"]) for c in cells if 'preset == "authors"' in "".join(c["source"]))
    condition = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.If))
    changed = [key.value for node in ast.walk(condition) if isinstance(node, ast.Dict) for key in node.keys]
    assert "isolate" in changed
    text = " ".join(" ".join(row) for row in rows())
    for key in changed:
        assert f"`{key}" in text, key


@pytest.mark.parametrize("name", profile_names())
def test_what_is_in_force_is_every_switch_whose_value_is_not_theirs(name):
    profile = load_profile(name)
    frame = deviations.deviations_in_force(profile).set_index("switch")
    assert frame.loc["isolate", ["paper", "here"]].tolist() == ["false", "true"]
    assert ("tuning" in frame.index) == (profile.tuning != "full")
    assert frame.loc["isolate", "point"] == "5" and "45%" in frame.loc["isolate", "effect"]
    assert "n_clusters" not in frame.index


def test_the_preset_authors_takes_its_deviations_away():
    authors = deviations.deviations_in_force(load_profile("paper", {"preset": "authors"}))["switch"].tolist()
    assert not {"preset", "isolate"} & set(authors)
    corrected = deviations.deviations_in_force(load_profile("paper"))["switch"].tolist()
    assert {"preset", "isolate"} == set(corrected) - set(authors)


# ---------------------------------------------------------------------------------------------- paper map


def paper_map():
    text = (REPO / "docs/paper_map.md").read_text(encoding="utf-8")
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ") and "---" not in line][
        1:
    ]


def test_the_paper_map_has_every_equation_table_and_figure():
    named = " ".join(row[0] for row in paper_map())
    for what in (
        "PPL(a\\|q)",
        "IFD(a\\|q)",
        "Table RQ1",
        "Table RQ2",
        "CDAS in three steps",
        "Dynamic Pack",
        "+8.6 points",
    ):
        assert what in named, what


def test_every_section_and_function_that_the_paper_map_names_exists():
    assert len(paper_map()) >= 14
    for what, place, code in paper_map():
        for notebook, sections in re.findall(r"\]\(\.\./notebooks/(\w+\.ipynb)\):? ?([^,\[]*)", place):
            cells = json.loads((REPO / "notebooks" / notebook).read_text(encoding="utf-8"))["cells"]
            heads = re.findall(r"^## (.+)$", "\n".join("".join(c["source"]) for c in cells), re.MULTILINE)
            for section in filter(None, sections.strip().split("; ")):
                assert any(head.startswith(section) for head in heads), (
                    f"{what}: {notebook} has no {section!r}: {heads}"
                )
            assert sections.strip(), f"{what}: no section of {notebook}"
        assert re.search(r"`\w+\.\w+`", code), what
        for module, name in re.findall(r"`(\w+)\.(\w+)`", code):
            assert hasattr(importlib.import_module(f"codeact_lib.{module}"), name), f"{what}: {module}.{name}"
        for path in re.findall(r"`((?:results|profiles)/[\w./]+)`", code):
            assert (REPO / path).exists() or (REPO / "codeact_lib" / path).exists(), path
