"""Plans lose nothing and keep their bounds; collators lay out what the plan says and never change their input."""

import doctest
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_tokenizer

from codeact_lib.errors import DataError
from codeact_lib.packing import plan as planning
from codeact_lib.packing.collate import DynamicPackCollator, padding_report
from codeact_lib.packing.plan import PaddingStrategy, plan_micro_batches, plan_rows

thousands = settings(max_examples=1500, deadline=None)

FIGURE = [4, 3, 5, 11, 7, 6]  # the six samples of the paper's figure, model length 16
BOUNDED = [strategy for strategy in PaddingStrategy if strategy is not PaddingStrategy.FLAT]
batches = st.integers(1, 60).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(1, capacity), min_size=1, max_size=24), st.just(capacity))
)


def widths(rows, lengths):
    return [sum(lengths[i] for i in row) for row in rows]


@thousands
@given(batches, st.sampled_from(list(PaddingStrategy)))
def test_no_sample_is_lost_or_repeated(batch, strategy):
    lengths, capacity = batch
    rows = plan_rows(lengths, capacity, strategy)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    assert all(rows)


@thousands
@given(batches, st.sampled_from(BOUNDED))
def test_no_row_is_longer_than_the_model_reads(batch, strategy):
    lengths, capacity = batch
    assert max(widths(plan_rows(lengths, capacity, strategy), lengths)) <= capacity


@thousands
@given(st.lists(st.integers(1, 2000), min_size=1, max_size=24), st.integers(1, 6), st.integers(0, 4))
def test_no_row_is_longer_where_hardly_any_room_is_left(lengths, n_rows, slack):
    """What is left of the last rows is less than the two per mille to which balancing is content."""
    capacity = max(-(-sum(lengths) // n_rows) + slack, max(lengths))
    for strategy in BOUNDED:
        assert max(widths(plan_rows(lengths, capacity, strategy), lengths)) <= capacity
    for rows in plan_micro_batches(lengths, capacity, "flat", tokens_per_micro_batch=capacity):
        assert max(widths(rows, lengths)) <= capacity


def naive_next_fit(lengths, capacity):
    rows, row = [], []
    for i in [i for n, i in sorted((n, i) for i, n in enumerate(lengths))]:
        if row and sum(lengths[j] for j in row) + lengths[i] > capacity:
            rows, row = [*rows, row], []
        row = [*row, i]
    return [*rows, row]


@thousands
@given(batches)
def test_dynamic_pack_is_next_fit_over_ascending_lengths(batch):
    assert plan_rows(*batch, "dynamic_pack") == naive_next_fit(*batch)


@thousands
@given(batches)
def test_balanced_pack_never_needs_more_rows_than_dynamic_pack(batch):
    assert len(plan_rows(*batch, "balanced_pack")) <= len(plan_rows(*batch, "dynamic_pack"))


def best_by_trying_all(lengths, capacity):
    """(rows, longest row) of the best plan: fewest rows, then the shortest longest row."""
    best = None
    for choice in itertools.product(*(range(i + 1) for i in range(len(lengths)))):
        loads = np.bincount(choice, weights=lengths)
        loads = loads[loads > 0]
        if loads.max() <= capacity and (best is None or (len(loads), loads.max()) < best):
            best = len(loads), loads.max()
    return best


few_samples = st.integers(100, 2048).flatmap(
    lambda c: st.tuples(st.lists(st.integers(1, c), min_size=1, max_size=6), st.just(c))
)


@settings(max_examples=400, deadline=None)
@given(few_samples)
def test_balanced_pack_is_within_two_percent_of_the_best_of_all_plans_of_a_few_samples(batch):
    lengths, capacity = batch
    rows = plan_rows(lengths, capacity, "balanced_pack")
    best_rows, best_width = best_by_trying_all(lengths, capacity)
    padding, least = (1 - sum(lengths) / (len(rows) * width) for width in (max(widths(rows, lengths)), best_width))
    assert len(rows) == best_rows and padding <= least + 0.02


def test_the_six_samples_of_the_figure_are_laid_out_as_drawn():
    assert plan_rows(FIGURE, 16, "dynamic_pack") == [[1, 0, 2], [5, 4], [3]]
    report = padding_report(FIGURE, 16, 6).set_index("strategy")
    assert report["slots"].to_dict() == {
        "traditional": 96,
        "dynamic": 66,
        "dynamic_pack": 39,
        "balanced_pack": 39,
        "flat": 36,
    }
    assert report["rows"].tolist() == [6, 6, 3, 3, 1] and set(report["tokens"]) == {36}


def test_equal_lengths_keep_their_order():
    assert plan_rows([2, 1, 2, 1], 4, "dynamic_pack") == [[1, 3, 0], [2]]


def test_no_samples_make_no_rows():
    assert all(plan_rows([], 8, strategy) == [] for strategy in PaddingStrategy)


def test_a_hyphen_in_a_strategys_name_is_accepted():
    assert PaddingStrategy("dynamic-pack") is PaddingStrategy.DYNAMIC_PACK == "dynamic_pack"


@pytest.mark.parametrize("strategy", BOUNDED)
def test_a_sample_longer_than_the_model_reads_is_named(strategy):
    with pytest.raises(DataError, match="sample 1 has 9 tokens.*max_length 8"):
        plan_rows([3, 9], 8, strategy)


def test_an_empty_sample_and_an_unknown_strategy_are_refused():
    with pytest.raises(DataError, match="sample 0 has 0 tokens"):
        plan_rows([0, 3], 8)
    with pytest.raises(DataError, match="'knapsack'.*dynamic_pack"):
        plan_rows([3], 8, "knapsack")


# ---- optimizer steps ------------------------------------------------------------------------------------------------

windows = st.tuples(batches, st.sampled_from(list(PaddingStrategy)), st.integers(1, 4))


@thousands
@given(windows, st.one_of(st.none(), st.integers(1, 9)))
def test_micro_batches_hold_every_sample_of_the_step_once_and_every_rank_gets_equally_many(window, batch_size):
    (lengths, capacity), strategy, ranks = window
    plan = plan_micro_batches(lengths, capacity, strategy, batch_size=batch_size, ranks=ranks)
    samples = [i for rows in plan for row in rows for i in row]
    assert sorted(samples) == list(range(len(lengths))) and len(plan) % ranks == 0


@thousands
@given(windows, st.integers(1, 5))
def test_packing_over_the_window_keeps_each_micro_batch_within_its_tokens(window, factor):
    (lengths, capacity), strategy, ranks = window
    budget = factor * capacity
    plan = plan_micro_batches(lengths, capacity, strategy, tokens_per_micro_batch=budget, ranks=ranks)
    for rows in filter(None, plan):
        width = capacity if strategy == "traditional" else max(widths(rows, lengths))
        assert len(rows) * width <= budget


@given(batches, st.integers(1, 9), st.sampled_from(list(PaddingStrategy)))
def test_packing_in_the_batch_takes_the_batches_in_order_and_packs_each_by_itself(batch, size, strategy):
    lengths, capacity = batch
    plan = plan_micro_batches(lengths, capacity, strategy, batch_size=size)
    for k, rows in enumerate(plan):
        part = lengths[k * size : (k + 1) * size]
        assert [[i - k * size for i in row] for row in rows] == plan_rows(part, capacity, strategy)


def test_rows_longer_than_the_tokens_of_a_micro_batch_are_refused():
    with pytest.raises(DataError, match="a row of 11 tokens.*tokens_per_micro_batch"):
        plan_micro_batches(FIGURE, 16, "dynamic", tokens_per_micro_batch=10)
    with pytest.raises(DataError, match="sample 3 has 11 tokens"):
        plan_micro_batches(FIGURE, 16, "flat", tokens_per_micro_batch=10)


@pytest.fixture(scope="module")
def evol_lengths():
    """Token counts of real EVOL-Instruct rows under a tokenizer of 32,000 entries trained on them."""
    path = Path(os.getenv("CODEACT_REAL_DATA", ""), "evol_instruct.jsonl")
    if not path.is_file():
        pytest.skip("CODEACT_REAL_DATA does not name a folder with evol_instruct.jsonl")
    from bench.packing import lengths_of_instructions

    return lengths_of_instructions(path, 2048)


def test_on_real_lengths_balanced_pack_leaves_next_to_no_padding_and_plans_in_no_time(evol_lengths):
    batch = padding_report(evol_lengths, 2048, 16).set_index("strategy")["padding_rate"]
    window = padding_report(evol_lengths, 2048, 16, accumulation_steps=4).set_index("strategy")["padding_rate"]
    assert batch["dynamic"] > 0.6 and 0.1 < batch["dynamic_pack"] < 0.25
    assert batch["balanced_pack"] <= 0.012 and window["balanced_pack"] <= 0.002
    assert batch["flat"] == window["flat"] == 0
    parts = [evol_lengths[start : start + 16] for start in range(0, len(evol_lengths), 16)]
    started = time.process_time()
    for part in parts:
        plan_rows(part, 2048, "balanced_pack")
    assert (time.process_time() - started) / len(parts) < 1e-4


# ---- collators -----------------------------------------------------------------------------------------------------


def make_features(lengths=FIGURE):
    start = np.cumsum([10, *lengths])
    return [{"input_ids": list(range(s, s + n)), "labels": list(range(s, s + n))} for s, n in zip(start, lengths)]  # noqa: B905


def samples_in(batch):
    """The samples of an isolated batch, cut where positions restart; padding (all labels -100, ids 0) left out."""
    found = []
    for ids, labels, positions in zip(
        *(batch[k].tolist() for k in ("input_ids", "labels", "position_ids")), strict=True
    ):
        starts = [i for i, position in enumerate(positions) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            piece = [(i, label) for i, label in zip(ids[start:end], labels[start:end], strict=True) if i != 0]
            found += [tuple(piece)] if piece else []
    return sorted(found)


@pytest.mark.parametrize("strategy", PaddingStrategy)
def test_every_sample_is_found_whole_in_the_batch(strategy):
    features = make_features()
    batch = DynamicPackCollator(0, 16, strategy)(features)
    expected = [tuple((i, -100 if k == 0 else i) for k, i in enumerate(f["input_ids"])) for f in features]
    assert samples_in(batch) == sorted(expected)


@pytest.mark.parametrize("strategy", PaddingStrategy)
def test_positions_count_up_from_nought_in_each_sample(strategy):
    batch = DynamicPackCollator(0, 16, strategy)(make_features())
    starts = {feature["input_ids"][0] for feature in make_features()}
    for ids, positions in zip(batch["input_ids"].tolist(), batch["position_ids"].tolist(), strict=True):
        for before, here, position in zip([0, *ids], ids, positions, strict=False):
            if here:
                assert (position == 0) == (here in starts)
                assert position == 0 or here == before + 1


def test_an_isolated_batch_has_no_attention_mask_which_would_switch_isolation_off():
    assert set(DynamicPackCollator(0, 16)(make_features())) == {"input_ids", "labels", "position_ids"}


def test_a_batch_without_isolation_is_plain_rows_with_hidden_padding():
    batch = DynamicPackCollator(0, 16, isolate=False)(make_features())
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
    assert torch.equal(batch["attention_mask"], (batch["input_ids"] != 0).long())


@pytest.mark.parametrize("isolate", [True, False])
def test_nothing_predicts_the_first_token_of_a_packed_sample(isolate):
    features = make_features()
    batch = DynamicPackCollator(0, 16, isolate=isolate)(features)
    for feature in features:
        assert batch["labels"][batch["input_ids"] == feature["input_ids"][0]].tolist() == [-100]


def test_the_features_are_not_changed():
    features = make_features()
    arrays = [{key: np.array(value) for key, value in feature.items()} for feature in features]
    DynamicPackCollator(0, 16)(arrays)
    assert all(arrays[i][key].tolist() == features[i][key] for i in range(6) for key in features[i])


def test_lists_arrays_and_tensors_collate_alike():
    lists = make_features()
    tensors = [{key: torch.tensor(value) for key, value in feature.items()} for feature in lists]
    a, b = DynamicPackCollator(0, 16)(lists), DynamicPackCollator(0, 16)(tensors)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_without_labels_every_token_but_the_first_is_one():
    batch = DynamicPackCollator(0, 16, "flat")([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}])
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9]]


def test_traditional_padding_is_always_as_wide_as_the_model_reads():
    assert DynamicPackCollator(0, 16, "traditional")(make_features([3, 4]))["input_ids"].shape == (2, 16)


def test_an_empty_micro_batch_is_a_row_of_padding():
    for isolate in (True, False):
        batch = DynamicPackCollator(7, 16, isolate=isolate).lay_out([], [])
        assert batch["input_ids"].tolist() == [[7, 7]] and batch["labels"].tolist() == [[-100, -100]]


def test_the_padding_token_comes_from_the_tokenizer():
    assert DynamicPackCollator(tiny_tokenizer(), 16).pad_id == 2
    assert DynamicPackCollator(tiny_tokenizer(pad_token=None), 16).pad_id == 1
    with pytest.raises(DataError, match="padding token"):
        DynamicPackCollator(tiny_tokenizer(pad_token=None, eos_token=None), 16)


def test_labels_of_another_length_are_refused():
    with pytest.raises(DataError, match="3 input_ids but 2 labels"):
        DynamicPackCollator(0, 16)([{"input_ids": [1, 2, 3], "labels": [1, 2]}])


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=40),
    st.integers(1, 9),
    st.sampled_from(list(PaddingStrategy)),
    st.booleans(),
)
def test_the_report_counts_what_the_collator_makes(lengths, batch_size, strategy, window):
    accumulation = 3 if window else None
    report = padding_report(lengths, 30, batch_size, [strategy], accumulation_steps=accumulation).iloc[0]
    collator, slots, rows, batches = DynamicPackCollator(0, 30, strategy), 0, 0, 0
    pairs = 0
    size = batch_size * (accumulation or 1)
    for start in range(0, len(lengths), size):
        part = lengths[start : start + size]
        for plan in plan_micro_batches(part, 30, strategy, batch_size=None if window else batch_size):
            ids = collator.lay_out(make_features(part), plan)["input_ids"]
            slots, rows, batches = slots + ids.numel(), rows + len(ids), batches + 1
            pairs += len(ids) * ids.shape[1] ** 2
    assert (report["slots"], report["rows"], report["batches"]) == (slots, rows, batches)
    assert report["tokens"] == sum(lengths) and report["padding_rate"] == pytest.approx(1 - sum(lengths) / slots)
    assert report["attention_pairs"] == pairs >= report["isolated_pairs"] == sum(n * n for n in lengths)


def test_the_examples_of_the_docstrings_are_true():
    assert doctest.testmod(planning).attempted and not doctest.testmod(planning).failed


def test_planning_imports_no_torch():
    code = "import sys; from codeact_lib.packing import plan_rows; plan_rows([1], 2); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
