"""The benches of packing and training: the same samples and losses whatever the layout, on a size of seconds."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from bench import packing, train
from bench.packing import bench_packing, read_lengths
from bench.train import LAYOUTS, Setting, bench_train, prepare, sample_steps
from codeact_lib.errors import CodeActError, DataError
from codeact_lib.packing.plan import PaddingStrategy
from codeact_lib.tables import load_reported


@pytest.fixture(scope="module")
def instructions(tmp_path_factory):
    rng = np.random.default_rng(0)
    words = ["list", "sort", "return", "value", "index", "the", "of", "def", "x", "y"]

    def text(low, high):
        return " ".join(rng.choice(words, rng.integers(low, high)))

    rows = [{"instruction": text(2, 12), "output": text(3, 60)} for _ in range(40)]
    path = tmp_path_factory.mktemp("data") / "evol.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"instruction": "x", "output": " "}]))
    return path


SETTING = Setting("tiny", max_length=128, batch_size=8, accumulation_steps=2)


def test_lengths_come_from_numbers_and_from_instructions(tmp_path, instructions):
    (tmp_path / "list.json").write_text("[5, 70, 9]")
    (tmp_path / "lines.jsonl").write_text("5\n70\n9\n")
    assert read_lengths(tmp_path / "list.json", 64) == read_lengths(tmp_path / "lines.jsonl", 64) == [5, 64, 9]
    assert len(read_lengths(instructions, 2048)) == 40, "a row without text is no sample"
    (tmp_path / "bad.jsonl").write_text("half")
    with pytest.raises(DataError, match="bad.jsonl, line 1"):
        read_lengths(tmp_path / "bad.jsonl", 64)
    (tmp_path / "other.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(DataError, match="rows have question"):
        read_lengths(tmp_path / "other.jsonl", 64)


def test_the_bench_of_packing_reports_every_strategy_in_both_scopes(tmp_path, monkeypatch):
    (tmp_path / "lengths.json").write_text(json.dumps([7, 3, 9, 12, 5, 8] * 5))
    monkeypatch.setattr(packing, "PaddingStrategy", [PaddingStrategy.DYNAMIC_PACK, PaddingStrategy.FLAT])
    path = bench_packing(
        tmp_path / "lengths.json", batch_size=6, max_length=16, repeats=1, folder=tmp_path, say=lambda line: None
    )
    rows = {row["contender"]: row for row in json.loads(path.read_text())["rows"]}
    assert set(rows) == {f"{name}, {scope}" for name in ("dynamic_pack", "flat") for scope in ("batch", "window")}
    assert rows["flat, batch"]["padding_rate"] == 0 < rows["dynamic_pack, batch"]["padding_rate"]
    assert all(row["microseconds_per_batch"] > 0 for row in rows.values())


@pytest.fixture(scope="module")
def works(instructions, tmp_path_factory):
    """What every contender of the bench of training returns, run here instead of in processes of their own."""
    source = tmp_path_factory.mktemp("samples") / "samples.json"
    source.write_text(json.dumps(sample_steps(instructions, SETTING)))
    return {
        (layout, supervised): prepare(str(source), vars(SETTING), layout, supervised)()
        for layout in LAYOUTS
        for supervised in (False, True)
    }


def test_every_isolated_layout_has_the_unpacked_loss_and_the_papers_has_not(works):
    for (layout, _), facts in works.items():
        difference = abs(facts["loss"] - facts["unpacked_loss"])
        assert difference > 1e-5 if layout == "Dynamic Pack (paper)" else difference < 1e-5, layout


def test_padding_falls_from_layout_to_layout(works):
    rates = [works[layout, True]["padding_rate"] for layout in ("traditional", "dynamic padding", "flat, segments")]
    assert rates == sorted(rates, reverse=True) and rates[-1] == 0
    assert works["balanced over the window", True]["largest_batch"] <= 2 * SETTING.max_length


def test_the_bench_of_training_compares_loss_and_memory(instructions, tmp_path):
    layouts = ("Dynamic Pack (paper)", "flat, segments")
    path = bench_train(instructions, SETTING, repeats=1, layouts=layouts, folder=tmp_path, say=lambda line: None)
    rows = {row["contender"]: row for row in json.loads(path.read_text())["rows"]}
    flat = rows["flat, segments, supervised positions"]
    assert path.name == "train-tiny.json" and len(rows) == 4
    assert abs(flat["loss_difference"]) < 1e-5 and flat["memory_ratio"] < 1
    assert "rq1_hours_full" not in flat, "RQ1 trained no model of this size"
    assert "259 min" not in (tmp_path / "train-tiny.md").read_text()


def _measured(works, *layouts, seconds=2.0):
    """Rows as `contest` returns them."""
    return [
        {
            "contender": f"{layout}, {loss}",
            "round": 1,
            "seconds": seconds,
            "peak_memory_bytes": 8,
            **works[layout, supervised],
        }
        for layout in layouts
        for loss, supervised in train.LOSSES.items()
    ]


@pytest.mark.parametrize("name", ["deepseek-coder-6.7b", "deepseek-ai/deepseek-coder-6.7b-base"])
def test_with_the_papers_architecture_hours_of_rq1_stand_beside_the_papers(name, works):
    setting = Setting(name, batch_size=8, accumulation_steps=2)
    rows = pd.DataFrame(_measured(works, "Dynamic Pack (paper)", seconds=32.0))
    table = train.make_table(rows, setting)  # 16 samples in 32 s
    assert table["rq1_hours_full"].tolist() == pytest.approx([2 * 3 * 78_000 / 3600] * 2)
    assert table["rq1_hours_40_percent"].tolist() == pytest.approx([0.4 * 130] * 2)
    assert "259 min" in str(train._about(setting, [([1, 2], 1)]))
    rq1 = load_reported()["rq1"].query("dataset == 'EVOL-Instruct' and model == 'DeepSeek-Coder'")
    reported = [list(pair) for pair in train._reported(setting).values()]
    assert rq1[["training_time_min", "peak_memory_gib"]].values.tolist() == reported


def test_a_layout_that_the_gpu_has_no_room_for_is_named_and_the_others_are_measured(works):
    rows = _measured(works, "traditional", "Dynamic Pack (paper)")
    del rows[0]["loss"]
    rows[0]["outcome"] = "out of memory"
    table = train.make_table(pd.DataFrame(rows), Setting("deepseek-coder-6.7b")).set_index("contender")
    full, paper = table.loc["traditional, plain loss"], table.loc[train.BASELINE]
    assert full["outcome"] == "out of memory" and paper["speedup"] == 1 and paper["rq1_hours_full"] > 0
    numbers = ["seconds", "peak_memory_bytes", "speedup", "memory_ratio", "loss_difference", "rq1_hours_full"]
    assert full[numbers].isna().all()
    with pytest.raises(CodeActError, match="gradient_checkpointing"):
        train.make_table(pd.DataFrame(rows[:1]), SETTING)


def test_running_out_of_memory_is_an_outcome_of_the_work(monkeypatch, instructions, tmp_path):
    def no_room(*args):
        raise torch.OutOfMemoryError

    (tmp_path / "samples.json").write_text(json.dumps(sample_steps(instructions, SETTING)))
    work = prepare(str(tmp_path / "samples.json"), vars(SETTING), "traditional", False)
    monkeypatch.setattr(train, "_step", no_room)  # as CUDA does; a CPU's allocator has another error
    facts = work()
    assert facts["outcome"] == "out of memory" and "loss" not in facts and facts["padding_rate"] > 0


def test_an_unknown_layout_or_architecture_and_too_few_rows_are_said(instructions, tmp_path):
    with pytest.raises(CodeActError, match="no layout 'knapsack'.*flat, segments"):
        bench_train(instructions, SETTING, layouts=("knapsack",))
    with pytest.raises(CodeActError, match="no architecture 'gpt-5'.*deepseek-coder-6.7b"):
        train._configuration(Setting("gpt-5"))
    with pytest.raises(DataError, match="40 usable rows, 1600 are needed"):
        sample_steps(instructions, Setting(steps=100))


def test_the_architectures_have_the_published_numbers_of_weights():
    from transformers import AutoModelForCausalLM, LlamaConfig

    for name, billions in (("deepseek-coder-1.3b", 1.346), ("deepseek-coder-6.7b", 6.74)):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(LlamaConfig(**train._configuration(Setting(name))))
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.002)
