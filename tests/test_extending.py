"""docs/extending.md, done: its module and its profile are written to files, and the notebooks run on them."""

import contextlib
import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import REPO

from codeact_lib.artifacts import read_frame, read_json
from codeact_lib.config import PROFILES_DIR, STRATEGIES, load_profile
from codeact_lib.errors import CodeActError, DataError, ProfileError
from codeact_lib.mini import build_corpus
from codeact_lib.packing.collate import DynamicPackCollator, padding_report
from codeact_lib.packing.plan import PaddingStrategy, plan_micro_batches, plan_rows
from codeact_lib.pipeline import estimate_lines, plan, run
from codeact_lib.prompts import get_template
from codeact_lib.sampling import cdas_sample, choose
from codeact_lib.tables.results import arm_label

PAGE = (REPO / "docs" / "extending.md").read_text(encoding="utf-8")
REDUCED = {
    "name": "mine",
    "n_rows_limit": 60,
    "n_clusters": 4,
    "benchmarks": ["mini-humaneval"],
    "num_train_epochs": 1,
    "torch_threads": 1,
}
TO_THE_TRAINING = ("01", "02", "03", "04")


def blocks(language, title):
    return [b for b in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if b.startswith(f"# {title}\n")]


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A folder with the page's module and profile, and a data set with columns as the page names them."""
    folder = tmp_path_factory.mktemp("mine")
    (module,) = blocks("python", "my_rules.py")
    (folder / "my_rules.py").write_text(module)
    values = yaml.safe_load((PROFILES_DIR / "mini.yaml").read_text(encoding="utf-8"))
    for block in blocks("yaml", "my.yaml"):
        values |= yaml.safe_load(block)
    (folder / "my.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    rows = build_corpus("mini-evol").head(80).rename(columns={"instruction": "problem", "response": "solution"})
    rows[["problem", "solution"]].to_json(folder / "my-set.jsonl", orient="records", lines=True)
    return folder


@pytest.fixture(autouse=True)
def importable(mine, monkeypatch):
    sys.modules.pop("my_rules", None)
    monkeypatch.syspath_prepend(str(mine))
    monkeypatch.setenv("PYTHONPATH", f"{mine}:{REPO}")
    yield
    sys.modules.pop("my_rules", None)


def call(mine):
    places = {"artifacts_dir": str(mine / "artifacts"), "results_dir": str(mine / "results")}
    return {"profile": str(mine / "my.yaml"), "overrides": json.dumps(REDUCED), **places}


def test_the_notebooks_train_on_a_data_set_with_a_template_a_policy_and_a_strategy_of_ones_own(mine):
    with contextlib.chdir(REPO):
        assert run(**call(mine), only=TO_THE_TRAINING, say=lambda line: None) == 4
    trained = read_json(next((mine / "artifacts").rglob("train_metrics.json")))
    assert trained["strategy"] == "my_rules:pairs" and trained["n_samples"] > 5
    assert trained["template_sha256"] == get_template("my_rules:chatml").sha256

    chosen = read_frame(next((mine / "artifacts").rglob("selection.parquet")))
    scores = read_frame(next((mine / "artifacts").rglob("ifd.parquet")))
    tokens = scores.set_index("example_id")["n_response_tokens"]
    kept = chosen.loc[chosen["keep"], "example_id"]
    budget = len(cdas_sample(chosen["ifd"], chosen["cluster"], 0.4, status=chosen["status"]))
    assert sorted(tokens[kept]) == sorted(tokens)[:budget] and budget > 5
    assert set(chosen["reason"]) == {"chosen by my_rules:shortest", "not chosen by my_rules:shortest"}

    def states():
        return {task.stage[:2]: task.state() for task in plan(**call(mine)) if task.stage[:2] in TO_THE_TRAINING}

    assert {state for state, _ in states().values()} == {"done"}
    (mine / "my_rules.py").write_text((mine / "my_rules.py").read_text() + "\n")
    after = states()
    assert after.pop("01")[0] == "done", "clusters do not depend on it"
    assert {state for state, _ in after.values()} == {"changed"} and "extension my_rules" in after["03"][1]


def test_tables_name_an_arm_of_ones_own_as_the_profile_does():
    record = {"policy": "my_rules:shortest", "ratio": 0.4, "strategy": "my_rules:pairs", "seed": 0}
    assert arm_label(record) == "my_rules:shortest 40% + my_rules:pairs"
    profile = load_profile("mini", {"arms": [{key: record[key] for key in ("policy", "ratio", "strategy")}]})
    assert profile.runs()[1].run_id == "mini-base__mini-evol__my_rules-shortest-0.4__my-rules-pairs"


def test_a_plan_estimates_an_arm_of_ones_own(tmp_path):
    arm = {"policy": "my_rules:shortest", "ratio": 0.4, "strategy": "my_rules:pairs"}
    places = {"artifacts_dir": str(tmp_path / "artifacts"), "results_dir": str(tmp_path / "results")}
    lines = list(estimate_lines(plan("paper", json.dumps({"arms": [arm]}), **places), "A100"))
    assert any("my_rules-shortest-0.4__my-rules-pairs" in line and "GPU h" in line for line in lines)


def test_a_strategy_of_ones_own_collates_like_any_other():
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "plan_rows" in b]
    names = {"tokenizer": 0}  # a padding token id will do
    exec(block, names)
    lengths = [4, 3, 5, 11, 7, 6]
    batch = names["collator"]([{"input_ids": [1] * n} for n in lengths])
    assert batch["input_ids"].shape == (3, 14) and int((batch["input_ids"] == 1).sum()) == sum(lengths)
    assert padding_report(lengths, 16, 6, ["my_rules:pairs"])["strategy"].tolist() == ["my_rules:pairs"]
    step = plan_micro_batches(lengths * 3, 16, "my_rules:pairs", batch_size=6)
    assert [[[i % 6 for i in row] for row in rows] for rows in step] == [[[3, 1], [4, 0], [5, 2]]] * 3


@pytest.mark.parametrize(
    ("plan_of_it", "broken"),
    [([[0, 1]], "once"), ([[0], [1], [1], [2]], "once"), ([[0, 1, 2]], "more than max_length 8")],
)
def test_a_strategy_that_loses_repeats_or_overfills_is_refused(plan_of_it, broken):
    with pytest.raises(DataError, match=broken):
        plan_rows([4, 3, 5], 8, lambda lengths, max_length: plan_of_it)


@pytest.mark.parametrize(
    ("returned", "broken"),
    [([0, 0], "no row twice"), ([0, 9], "row numbers"), ([3], "prompt is too long"), ([0, 1, 2], "budget, 2 rows")],
)
def test_a_policy_that_repeats_invents_or_takes_too_many_rows_is_refused(returned, broken, monkeypatch):
    import my_rules

    status = ["ok", "ok", "ok", "prompt_too_long", "ok", "ok"]
    frame = pd.DataFrame({"example_id": list("abcdef"), "cluster": 0, "ifd": 0.5, "status": status})
    monkeypatch.setattr(my_rules, "shortest", lambda frame, budget, seed: np.array(returned))
    with pytest.raises(DataError, match=broken):
        choose("my_rules:shortest", frame, 0.4)


def test_a_name_that_cannot_be_imported_is_said_before_anything_runs(mine):
    overrides = json.dumps(
        {**REDUCED, "arms": [{"policy": "no_such_module:rule", "ratio": 0.4, "strategy": "dynamic"}]}
    )
    with pytest.raises(ProfileError, match="no_such_module must be installed, or its folder on PYTHONPATH"):
        plan(**{**call(mine), "overrides": overrides})


def test_the_names_a_profile_knows_are_those_of_the_packing_module():
    assert set(STRATEGIES) == set(PaddingStrategy)
    with pytest.raises(CodeActError, match="'best' is unknown; choose one of full, cdas"):
        load_profile("mini", {"arms": [{"policy": "best", "ratio": 0.4, "strategy": "dynamic"}]})
    assert DynamicPackCollator(0, 8, "dynamic-pack").strategy is PaddingStrategy.DYNAMIC_PACK
