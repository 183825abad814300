"""docs/deviations.md and docs/paper_map.md: written from the parameters, complete, and naming only what exists."""

import importlib
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from conftest import REPO
from transformers import TrainingArguments
from typer.testing import CliRunner

from codeact_lib.cli import app
from codeact_lib.config import AUTHORS, Profile, load_profile, profile_names
from codeact_lib.pipeline.stages import TABLE
from codeact_lib.tables import deviations

METHOD = [switch.key for switch in deviations.SWITCHES]
THEIRS = yaml.safe_load(Path(__file__).with_name("authors.yaml").read_text(encoding="utf-8"))
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


def test_whatever_the_preset_authors_sets_has_its_row_and_is_their_value():
    paper = load_profile("paper", {"preset": "authors"})
    theirs = {switch.key: switch.theirs for switch in deviations.SWITCHES}
    named = {key for entry in deviations.DEVIATIONS for key in entry.switches}
    for key in AUTHORS:
        assert getattr(paper, key) == theirs[key] == THEIRS[key], key
        assert key in named, key


def in_short(key, value):
    """A value of a profile as `authors.yaml` writes it."""
    if key == "models":
        return [f"{model.label} {model.size}" for model in value]
    if key == "datasets":
        return [dataset.label for dataset in value]
    if key == "arms":
        return [[arm.policy, arm.ratio, arm.strategy] for arm in value]
    return value


@pytest.mark.parametrize("key", THEIRS)
def test_profile_paper_has_the_authors_value_or_a_row_that_says_why_not(key):
    paper = load_profile("paper")
    if in_short(key, getattr(paper, key)) == THEIRS[key]:
        return
    rows = [entry for entry in deviations.DEVIATIONS if key in entry.switches]
    assert rows, f"{key} of profile paper is not the authors' {THEIRS[key]!r}, and no row of deviations.yaml says so"
    in_force = deviations.deviations_in_force(paper).set_index("switch")
    assert key in in_force.index, f"the report of a run would not say that {key} differs"
    for entry in rows:
        assert str(entry.point) in in_force.loc[key, "point"]


def test_the_recorded_values_are_complete_and_those_that_the_document_prints():
    assert set(THEIRS) == set(METHOD)
    for switch in deviations.SWITCHES:
        if switch.key not in ("models", "datasets", "arms", "embedding_model"):  # printed in short
            assert switch.theirs == THEIRS[switch.key], switch.key


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
    corrected = deviations.deviations_in_force(load_profile("paper"))["switch"].tolist()
    gone = {"preset", "isolate", "loss_normalization", "embedding_max_length"}
    assert set(corrected) - set(authors) == gone and not set(authors) - set(corrected)


@pytest.mark.parametrize("name", profile_names())
def test_every_run_reports_that_its_prompts_are_not_the_authors(name):
    frame = deviations.deviations_in_force(load_profile(name)).set_index("switch")
    assert frame.loc["protocol", ["here", "point"]].tolist() == ["codeact", "9"]
    assert "0 of 40" in frame.loc["protocol", "effect"]


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
