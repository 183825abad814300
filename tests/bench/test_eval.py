"""The benches of generation and judging: both contenders do the same work, and what they measure is written down."""

import json

import pandas as pd
import pytest

from bench import eval as bench_of_eval
from bench import generate as bench_of_generate
from codeact_lib.errors import CodeActError


def test_batches_and_single_prompts_give_the_same_text_and_both_are_measured(tmp_path):
    table = bench_of_generate.bench_generate(limit=3, batch_size=3, max_new_tokens=8, repeats=1, folder=tmp_path)
    written = json.loads((tmp_path / "generate.json").read_text())
    assert list(table["contender"]) == ["one prompt at a time", "batches of 3"]
    assert (table["seconds"] > 0).all() and table["text_sha256"].nunique() == 1
    assert written["about"]["same text"] and len(written["rows"]) == 2
    assert (tmp_path / "generate.md").read_text().count("one prompt at a time") == 1


def test_evalplus_and_ours_count_the_same(tmp_path):
    table = bench_of_eval.bench_eval(limit=4, repeats=1, folder=tmp_path)
    assert list(table["tasks"]) == [4, 4] and list(table["unsolved"]) == ["none", "none"]
    assert (tmp_path / "eval.json").exists()


@pytest.mark.parametrize("bench", ["generate", "eval"])
def test_different_results_are_an_error_not_a_measurement(bench, tmp_path, monkeypatch):
    differing = {"text_sha256": ["a", "b"], "unsolved": ["none", "a"]}
    rows = pd.DataFrame({"contender": ["a", "b"], "seconds": [1.0, 1.0], **differing})
    module = {"generate": bench_of_generate, "eval": bench_of_eval}[bench]
    monkeypatch.setattr(module, "contest", lambda contenders, repeats: rows)
    with pytest.raises(CodeActError, match="other text|differently"):
        getattr(module, f"bench_{bench}")(folder=tmp_path)
    assert not list(tmp_path.iterdir())
