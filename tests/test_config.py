"""Profiles: complete, strict, and expanded into a grid whose names are stable."""

import json
from itertools import product

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from codeact_lib.config import PROFILES_DIR, Profile, load_profile, profile_names
from codeact_lib.errors import ProfileError
from codeact_lib.pipeline import open_stage


def raw(name="mini"):
    return yaml.safe_load((PROFILES_DIR / f"{name}.yaml").read_text(encoding="utf-8"))


def failure(*arguments):
    with pytest.raises(ProfileError) as caught:
        load_profile(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_loads_and_gives_every_key_in_the_same_order(name):
    assert load_profile(name).name == name
    assert list(raw(name)) == list(Profile.model_fields)


@pytest.mark.parametrize("name", profile_names())
def test_entries_of_shipped_profiles_give_every_key_too(name):
    for key in ("datasets", "models", "arms"):
        given = {tuple(k for k in entry if k != "on_request") for entry in raw(name)[key]}
        assert given == {tuple(raw("mini")[key][0])}


def test_the_mini_grid_is_base_plus_two_data_sets_times_three_arms():
    assert [run.run_id for run in load_profile("mini").runs()] == [
        "mini-base__base",
        "mini-base__mini-evol__full__dynamic",
        "mini-base__mini-evol__cdas-0.4__dynamic-pack",
        "mini-base__mini-evol__random-0.4__dynamic-pack",
        "mini-base__mini-oss__full__dynamic",
        "mini-base__mini-oss__cdas-0.4__dynamic-pack",
        "mini-base__mini-oss__random-0.4__dynamic-pack",
    ]


def test_the_paper_grid_is_the_authors_twelve_trainings_at_512_samples_a_step():
    profile = load_profile("paper")
    assert len([run for run in profile.runs() if not run.is_base]) == 3 * 2 * 2
    assert profile.per_device_train_batch_size * profile.gradient_accumulation_steps * 8 == 512
    assert (profile.num_train_epochs, profile.learning_rate, profile.warmup_steps) == (3, 5e-5, 15)
    assert (profile.max_length, profile.max_new_tokens) == (2048, 1024)


def test_no_revision_is_invented():
    for name, key in product(profile_names(), ("datasets", "models")):
        assert {entry["revision"] for entry in raw(name)[key]} <= {None, "main"}


def test_a_wider_grid_brings_its_arms_and_seeds_under_a_name_of_its_own():
    narrow, wide = load_profile("mini"), load_profile("mini", {"grid": "full", "datasets": ["mini-evol"]})
    assert (narrow.name, wide.name) == ("mini", "mini-full")
    corners = {("full", "dynamic"), ("full", "dynamic_pack"), ("cdas", "dynamic"), ("cdas", "dynamic_pack")}
    for seed in (0, 1, 2):
        ran = {(r.policy, r.strategy) for r in wide.runs() if r.seed == seed and r.ratio in (1.0, 0.4)}
        assert corners | {(p, "dynamic_pack") for p in ("random", "longest", "ifd", "stratified")} == ran
    rates = [r.ratio for r in wide.runs() if r.policy == "cdas" and r.strategy == "dynamic_pack" and r.seed == 0]
    assert sorted(rates) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert load_profile("mini", {"grid": "full", "seeds": [7], "name": "mine"}).name == "mine"


def test_seeds_show_in_names_only_where_they_change_something():
    profile = load_profile("mini", {"seeds": [0, 1], "datasets": ["mini-evol"]})
    names = [run.run_id for run in profile.runs()]
    assert "mini-base__mini-evol__random-0.4__dynamic-pack__seed-1" in names
    assert len(names) == len(set(names)) == 1 + 3 * 2
    assert {run.selection for run in profile.runs()} == {
        None,
        "full",
        "cdas-0.4",
        "random-0.4-seed-0",
        "random-0.4-seed-1",
    }


@given(st.sampled_from(sorted(Profile.model_fields)), st.data())
def test_a_misspelt_key_is_refused_and_the_right_one_suggested(key, data):
    spot = data.draw(st.integers(0, len(key) - 1))
    typo = key[:spot] + "x" + key[spot + 1 :]
    if typo not in Profile.model_fields and len(key) > 6:
        message = failure("mini", {typo: 1})
        assert repr(typo) in message and "did you mean" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": "5e-5"}, ("learning_rate", "'5e-5'", "5.0e-5")),
        ({"num_train_epochs": "3"}, ("num_train_epochs", "write 3 without quotes")),
        ({"bf16": "yes"}, ("bf16", "'yes'")),
        ({"max_length": 0}, ("max_length", "0")),
        ({"max_length": 12.5}, ("max_length", "12.5")),
        ({"tuning": "qlorra"}, ("tuning", "'full', 'lora' or 'qlora'")),
        ({"arms": [{"policy": "full", "ratio": 0.4, "strategy": "dynamic"}]}, ("arms.0", "ratio: 1.0")),
        ({"arms": [{"policy": "cdas", "ratio": 0.4, "stratgy": "dynamic"}]}, ("stratgy", "did you mean 'strategy'")),
        ({"arms": []}, ("arms",)),
        ({"seeds": [1, 1]}, ("seeds", "twice")),
        ({"grid": "ful"}, ("ful", "did you mean 'full'", "default")),
        ({"bf16": True, "fp16": True}, ("bf16", "fp16")),
        ({"datasets": ["mini-evil"]}, ("mini-evil", "mini-evol")),
        ({"name": "two__parts"}, ("name", "two__parts")),
        ({"name": "../up"}, ("name", "../up")),
    ],
)
def test_a_wrong_value_is_one_line_with_key_value_and_remedy(change, words):
    message = failure("mini", change)
    for word in words:
        assert word in message


def test_a_missing_key_is_named_with_the_file(tmp_path):
    values = raw()
    del values["warmup_steps"]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    message = failure(str(path))
    assert str(path) in message and "warmup_steps" in message


@pytest.mark.parametrize("text", ["- a list", "key: [unclosed", "", "\x00"])
def test_a_file_that_is_no_profile_is_named(tmp_path, text):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    assert str(path) in failure(str(path))


def test_unknown_profiles_and_files_say_what_there_is():
    assert "mini" in failure("minni")
    assert "does not exist" in failure("nowhere/at/all.yaml")


def test_overrides_may_be_json_text():
    assert load_profile("mini", json.dumps({"num_train_epochs": 1})).num_train_epochs == 1
    assert load_profile("mini", "") == load_profile("mini")
    assert "JSON" in failure("mini", "{num_train_epochs: 1}")
    assert "JSON object" in failure("mini", "[1]")


def test_local_files_are_found_beside_the_profile_and_must_exist(tmp_path):
    values = raw()
    values["datasets"] = [{"name": "mine", "path": "rows.jsonl", "label": "Mine"}]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    message = failure(str(path))
    assert "rows.jsonl" in message and str(tmp_path) in message
    (tmp_path / "rows.jsonl").write_text("{}")
    assert load_profile(str(path)).datasets[0].path == str(tmp_path / "rows.jsonl")


def test_a_scorer_is_a_model_of_its_own_and_enters_the_key_only_when_there_is_one():
    spec = {"path": "mini-base", "agreement_rows": 50}
    assert load_profile("mini", {"scorer": spec}).scorer.agreement_rows == 50
    assert "agreement_rows" in failure("mini", {"scorer": {"path": "mini-base", "agreement_row": 50}})
    tasks = [
        open_stage("02_ifd", overrides=overrides, dataset="mini-evol", model="mini-base")
        for overrides in ({}, {"scorer": spec})
    ]
    assert "scorer" not in tasks[0].parameters and tasks[1].parameters["scorer"] == {**spec, "revision": None}
    assert list(tasks[1].inputs) == ["examples", "base_model", "scorer base_model"]


def test_hub_names_and_built_in_names_stay_as_they_are():
    assert load_profile("paper").datasets[0].path == "nickrosh/Evol-Instruct-Code-80k-v1"
    assert load_profile("mini").models[0].path == "mini-base"


def test_a_run_is_found_by_name_and_a_wrong_name_suggests_the_right_one():
    profile = load_profile("mini")
    run = profile.run("mini-base__mini-oss__cdas-0.4__dynamic-pack")
    assert (run.model, run.dataset, run.selection, run.strategy) == (
        "mini-base",
        "mini-oss",
        "cdas-0.4",
        "dynamic_pack",
    )
    with pytest.raises(ProfileError, match="did you mean 'mini-base__mini-oss__cdas-0.4__dynamic-pack'"):
        profile.run("mini-base__mini-oss__cdas-0.4__dynamic")
    with pytest.raises(ProfileError, match="mini-evol"):
        profile.dataset("nothing")
