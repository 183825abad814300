"""Samplers against plain loops, on drawn cases with NaN, infinities, ties, and empty and one-row clusters."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeact_lib.sampling import (
    BANDS,
    POLICIES,
    SELECTION_COLUMNS,
    band_sample,
    cdas_sample,
    choose,
    compare_policies,
    ifd_sample,
    longest_sample,
    random_sample,
    stratified_sample,
    write_training_set,
)

STATUSES = ["ok", "truncated", "prompt_too_long", "empty", "oom", "nan"]
# few distinct values, so that ties are common
SCORES = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.999, 1.0, 1.5, math.nan, math.inf, -math.inf]), st.floats(0, 2))
ROWS = st.lists(st.tuples(SCORES, st.integers(-1, 4), st.sampled_from(STATUSES)), max_size=40)
RATIOS = st.one_of(st.sampled_from([0.1, 0.4, 0.5, 1.0]), st.floats(0.01, 1.0))


def columns(rows):
    ifd, cluster, status = zip(*rows, strict=True) if rows else ((), (), ())
    return np.array(ifd, dtype=float), np.array(cluster, dtype=int), np.array(status, dtype=object)


def naive_cdas(ifd, cluster, ratio, status=None, quota="kept"):
    """The paper's three lines, cluster by cluster, on Python lists."""
    chosen = []
    for label in sorted(set(cluster)):
        kept = []
        for i in range(len(ifd)):
            usable = status is None or status[i] in ("ok", "truncated")
            if cluster[i] == label and usable and math.isfinite(ifd[i]) and ifd[i] < 1:
                kept.append(i)
        kept.sort(key=lambda i: ifd[i], reverse=True)
        chosen += kept[: int((len(kept) if quota == "kept" else cluster.count(label)) * ratio)]
    return chosen


def frame_of(rows):
    ifd, cluster, status = columns(rows)
    ids = [f"row-{i}" for i in range(len(rows))]
    values = {"example_id": ids, "cluster": cluster, "ifd": ifd, "status": status}
    return pd.DataFrame({**values, "n_response_tokens": np.arange(len(rows)) % 7})


@settings(max_examples=3000, deadline=None)
@given(ROWS, RATIOS, st.booleans(), st.sampled_from(["kept", "all"]))
def test_cdas_equals_the_naive_version(rows, ratio, with_status, quota):
    ifd, cluster, status = columns(rows)
    status = status if with_status else None
    chosen = cdas_sample(ifd, cluster, ratio, status=status, quota=quota)
    # Python's sort with reverse=True keeps ties in their order, as the library must
    assert chosen.tolist() == naive_cdas(ifd.tolist(), cluster.tolist(), ratio, status, quota)
    assert chosen.dtype == np.int64


@settings(deadline=None)
@given(ROWS, RATIOS)
def test_cdas_never_chooses_what_the_instruction_does_not_help(rows, ratio):
    ifd, cluster, status = columns(rows)
    chosen = cdas_sample(ifd, cluster, ratio, status=status)
    assert (ifd[chosen] < 1).all() and np.isfinite(ifd[chosen]).all()
    assert set(status[chosen]) <= {"ok", "truncated"}
    assert len(set(chosen.tolist())) == len(chosen)


def test_a_zero_of_a_failed_row_counts_only_where_the_authors_let_it():
    ifd, cluster = [0.9, 0.0, 0.0, 0.8, 0.7], [0, 0, 0, 0, 0]
    status = ["ok", "nan", "oom", "ok", "ok"]
    assert cdas_sample(ifd, cluster, 0.4).tolist() == [0, 3]  # int(5 * 0.4): the two zeros count
    assert cdas_sample(ifd, cluster, 0.4, status=status).tolist() == [0]  # int(3 * 0.4)


def test_the_quota_may_refer_to_all_rows_of_a_cluster():
    ifd, cluster = [0.9, 1.2, 1.3, 1.1, 0.5], [0, 0, 0, 0, 0]
    assert cdas_sample(ifd, cluster, 0.4).tolist() == []
    assert cdas_sample(ifd, cluster, 0.4, quota="all").tolist() == [0, 4]
    assert cdas_sample(ifd, cluster, 1.0, quota="all").tolist() == [0, 4]


def test_cdas_takes_lists_series_and_labels_that_are_words():
    frame = pd.DataFrame({"ifd": [0.1, 0.9, 0.5, 0.4], "cluster": ["b", "b", "a", "a"]}, index=[9, 8, 7, 6])
    assert cdas_sample(frame["ifd"], frame["cluster"], 0.5).tolist() == [2, 1]


@settings(deadline=None)
@given(ROWS, RATIOS, st.integers(0, 5))
def test_the_other_policies_return_distinct_usable_rows_within_their_budget(rows, ratio, budget):
    ifd, cluster, status = columns(rows)
    trainable = {i for i, word in enumerate(status) if word not in ("empty", "prompt_too_long")}
    tokens = np.arange(len(rows)) % 7
    for size in (None, budget):
        limit = int(len(rows) * ratio) if size is None else size
        for chosen in (
            random_sample(len(rows), ratio, seed=3, status=status, budget=size),
            longest_sample(tokens, ratio, status=status, budget=size),
            stratified_sample(cluster, ratio, seed=3, status=status, budget=size),
        ):
            assert len(chosen) == len(set(chosen.tolist())) == min(limit, len(trainable))
            assert set(chosen.tolist()) <= trainable


@settings(deadline=None)
@given(ROWS, RATIOS)
def test_ifd_only_is_cdas_with_a_single_cluster(rows, ratio):
    ifd, _, status = columns(rows)
    one = np.zeros(len(ifd), dtype=int)
    assert ifd_sample(ifd, ratio, status=status).tolist() == cdas_sample(ifd, one, ratio, status=status).tolist()


@settings(deadline=None)
@given(ROWS, RATIOS, st.one_of(st.none(), st.integers(0, 40)))
def test_difficulty_bands_are_slices_of_the_rows_in_order_of_ifd(rows, ratio, budget):
    ifd, _, status = columns(rows)
    usable = [i for i in range(len(rows)) if status[i] in ("ok", "truncated") and math.isfinite(ifd[i]) and ifd[i] < 1]
    ascending = sorted(usable, key=lambda i: ifd[i])
    size = min(int(len(usable) * ratio) if budget is None else budget, len(usable))
    bands = {band: band_sample(ifd, ratio, band, status=status, budget=budget).tolist() for band in BANDS}
    below = (len(usable) - size) // 2
    assert bands["easy"] == ascending[:size]
    assert bands["middle"] == ascending[below : below + size]
    assert bands["hard"] == sorted(usable, key=lambda i: ifd[i], reverse=True)[:size]


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), RATIOS, st.integers(0, 3))
def test_stratified_shares_stay_within_one_row_of_proportion(cluster, ratio, seed):
    cluster = np.array(cluster)
    chosen = stratified_sample(cluster, ratio, seed=seed)
    for label in set(cluster.tolist()):
        exact = (cluster == label).sum() * int(len(cluster) * ratio) / len(cluster)
        assert abs((cluster[chosen] == label).sum() - exact) < 1 + 1e-6


def test_a_seed_gives_the_same_rows_and_another_seed_other_rows():
    cluster = np.arange(500) % 4
    for draw in (
        lambda seed: random_sample(500, 0.4, seed=seed),
        lambda seed: stratified_sample(cluster, 0.4, seed=seed),
    ):
        assert draw(0).tolist() == draw(0).tolist() != draw(1).tolist()


def test_the_longest_rows_come_first_and_ties_keep_their_order():
    assert longest_sample([5, 9, 9, 1, 7], 0.8).tolist() == [1, 2, 4, 0]


@settings(deadline=None)
@given(ROWS, RATIOS, st.sampled_from(POLICIES), st.sampled_from(["corrected", "authors"]))
def test_every_row_gets_a_reason_and_kept_rows_a_rank(rows, ratio, policy, preset):
    frame = frame_of(rows)
    table = choose(policy, frame, ratio, 0, preset=preset)
    assert list(table.columns) == SELECTION_COLUMNS
    assert table["example_id"].tolist() == frame["example_id"].tolist()
    assert sorted(table.loc[table["keep"], "rank"]) == list(range(table["keep"].sum()))
    assert (table.loc[~table["keep"], "rank"] == -1).all()
    assert all(isinstance(reason, str) and reason for reason in table["reason"])
    assert not set(table.loc[table["keep"], "reason"]) & set(table.loc[~table["keep"], "reason"])


@settings(deadline=None)
@given(ROWS, RATIOS)
def test_all_policies_take_as_many_rows_as_cdas_where_there_are_that_many(rows, ratio):
    frame = frame_of(rows)
    budget = choose("cdas", frame, ratio)["keep"].sum()
    for policy in ("random", "longest", "ifd", "stratified", *BANDS):
        assert choose(policy, frame, ratio)["keep"].sum() == budget
    trainable = ~frame["status"].isin(["empty", "prompt_too_long"])
    assert choose("full", frame)["keep"].tolist() == trainable.tolist()


def test_the_reasons_say_why_a_row_was_dropped():
    rows = [
        (0.9, 0, "ok"),
        (0.5, 0, "ok"),
        (1.2, 0, "ok"),
        (math.nan, 0, "oom"),
        (math.nan, 0, "empty"),
        (0.2, 0, "ok"),
    ]
    reasons = choose("cdas", frame_of(rows), 0.4)["reason"].tolist()
    assert reasons == [
        "among the hardest 40% of its cluster",
        "below its cluster's quota",
        "IFD >= 1: the instruction does not help",
        "status oom",
        "status empty",
        "below its cluster's quota",
    ]
    assert choose("full", frame_of(rows))["reason"].tolist().count("all rows") == 5


@settings(max_examples=40, deadline=None)
@given(ROWS, RATIOS)
def test_a_comparison_holds_what_each_policy_alone_would_take(rows, ratio):
    frame = frame_of(rows)
    comparison = compare_policies(frame, ratio)
    assert list(comparison.chosen) == comparison.summary["policy"].tolist() == list(POLICIES)
    kept = {policy: set(np.flatnonzero(choose(policy, frame, ratio)["keep"])) for policy in POLICIES}
    for policy, chosen in comparison.chosen.items():
        assert set(chosen.tolist()) == kept[policy]
    for a in POLICIES:
        for b in POLICIES:
            expected = len(kept[a] & kept[b]) / max(len(kept[a]), 1)
            assert comparison.overlap.loc[a, b] == pytest.approx(expected)


def test_the_summary_describes_the_rows_that_a_policy_takes():
    ifd = [0.1, 0.9, 0.5, 0.4, 1.5, math.nan]
    frame = pd.DataFrame({"cluster": [0, 0, 1, 1, 1, 2], "ifd": ifd, "n_response_tokens": [1, 2, 3, 4, 50, 60]})
    frame = frame.assign(example_id=list("abcdef"), status=["ok"] * 5 + ["oom"])
    comparison = compare_policies(frame, 0.5, policies=["cdas", "full", "easy"])
    cdas, full, easy = comparison.summary.to_dict("records")
    assert comparison.chosen["cdas"].tolist() == [1, 2] and comparison.chosen["easy"].tolist() == [0, 3]
    assert (cdas["rows"], cdas["ifd_50"], cdas["tokens_50"], cdas["misleading"]) == (2, 0.7, 2.5, 0)
    assert (cdas["clusters"], cdas["least_covered"], cdas["most_covered"]) == pytest.approx((2 / 3, 0, 1 / 2))
    assert (full["rows"], full["ifd_50"], full["misleading"], full["clusters"]) == (6, 0.5, 1 / 6, 1)
    assert full["tokens_5"] == pytest.approx(np.quantile([1, 2, 3, 4, 50, 60], 0.05))
    assert comparison.overlap.loc["cdas"].tolist() == [1, 1, 0] and easy["ifd_50"] == 0.25


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="quota 'some' is unknown; choose kept or all"):
        cdas_sample([0.5], [0], 0.4, quota="some")
    with pytest.raises(ValueError, match="choose one of easy, middle, hard"):
        band_sample([0.5], 0.4, "impossible")
    with pytest.raises(ValueError, match="ratio must lie in"):
        cdas_sample([0.5], [0], 0)
    with pytest.raises(ValueError, match="status has 2 rows"):
        cdas_sample([0.5], [0], 0.4, status=["ok", "ok"])
    with pytest.raises(ValueError, match="choose one of full, cdas"):
        choose("best", frame_of([(0.5, 0, "ok")]))


def test_the_training_set_is_written_in_order_of_selection(tmp_path):
    rows = [(0.3, 1, "ok"), (0.9, 1, "ok"), (0.4, 0, "ok"), (0.8, 0, "ok")]
    table = choose("cdas", frame_of(rows), 0.5)
    examples = pd.DataFrame(
        {"example_id": table["example_id"], "instruction": list("abcd"), "response": ["ä", "line\nline", "\u2028", "x"]}
    )
    assert write_training_set(tmp_path / "train.jsonl", examples, table) == 2
    lines = (tmp_path / "train.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [
        {"example_id": "row-3", "instruction": "d", "response": "x"},
        {"example_id": "row-1", "instruction": "b", "response": "line\nline"},
    ]
