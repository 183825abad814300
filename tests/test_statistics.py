"""Intervals and paired tests, against sums written out by hand."""

from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeact_lib.errors import EvaluationError
from codeact_lib.statistics import paired_bootstrap, paired_test, pass_interval, seed_average

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def wilson_by_hand(k, n, z=1.959963984540054):
    centre, scale = (k + z * z / 2) / (n + z * z), 1 + z * z / n
    half = z * sqrt(k / n * (1 - k / n) / n + z * z / (4 * n * n)) / scale
    return centre - half, centre + half


def binomial_tail(k, n, p):
    """P(X <= k)."""
    return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


def verdicts(solved, n):
    return {f"T/{i}": {"base": "pass", "plus": "pass" if i in solved else "fail"} for i in range(n)}


@settings(deadline=None)  # the first call imports statsmodels
@given(counts)
def test_the_wilson_interval_is_the_formula_of_the_textbook(count):
    assert pass_interval(*count) == pytest.approx(wilson_by_hand(*count), abs=1e-9)


@settings(deadline=None)
@given(counts, st.sampled_from(["wilson", "beta"]))
def test_an_interval_holds_the_measured_share_and_stays_between_nothing_and_all(count, method):
    low, high = pass_interval(*count, method=method)
    assert 0 <= low <= count[0] / count[1] <= high <= 1


def test_the_exact_interval_leaves_half_of_the_rest_on_either_side():
    low, high = pass_interval(110, 164, method="beta")
    assert binomial_tail(110, 164, high) == pytest.approx(0.025, abs=1e-6)
    assert 1 - binomial_tail(109, 164, low) == pytest.approx(0.025, abs=1e-6)


def test_one_standard_error_on_humaneval_is_nearly_four_points():
    low, high = pass_interval(98, 164, level=0.6826894921370859)
    assert (high - low) / 2 == pytest.approx(0.038, abs=0.001)


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 30))
def test_the_paired_test_is_a_fair_coin_on_the_tasks_that_differ(b, c):
    n = b + c + 10
    first, second = set(range(b)), set(range(b, b + c))
    result = paired_test(verdicts(first, n), verdicts(second, n))
    assert (result["b"], result["c"], result["neither"]) == (b, c, 10)
    expected = min(1.0, 2 * binomial_tail(min(b, c), b + c, 0.5))
    assert result["p_value"] == pytest.approx(expected, abs=1e-9)


def test_a_run_does_not_differ_from_itself_and_order_only_swaps_the_sides():
    a, b = verdicts({0, 1, 2}, 9), verdicts({2, 3}, 9)
    assert paired_test(a, a)["p_value"] == 1
    forth, back = paired_test(a, b), paired_test(b, a)
    assert (forth["b"], forth["c"], forth["p_value"]) == (back["c"], back["b"], back["p_value"])


def test_verdicts_may_be_flags_or_statuses_and_base_can_be_asked_for():
    flags = {"x": True, "y": False}
    assert paired_test(flags, {"x": "fail", "y": "pass"}) == paired_test(flags, {"x": False, "y": True})
    assert paired_test(verdicts({0}, 3), verdicts({1}, 3), tests="base")["both"] == 3


def test_what_is_not_a_count_or_not_a_pair_is_refused():
    for k, n in ((5, 4), (-1, 4), (0, 0)):
        with pytest.raises(EvaluationError, match="k <= n"):
            pass_interval(k, n)
    with pytest.raises(EvaluationError, match="same tasks"):
        paired_test({"x": True}, {"y": True})
    for runs in ([], [{}], [{"x": True}, {"y": True}]):
        with pytest.raises(EvaluationError, match="same tasks"):
            seed_average(runs)
    with pytest.raises(EvaluationError, match="wilson or beta"):
        pass_interval(1, 2, method="guess")


def bootstrap_by_hand(values, draws=4000):
    """Percentiles of the mean of tasks drawn anew, with another generator than the library's."""
    state = np.random.RandomState(1)
    means = [values[state.randint(0, len(values), len(values))].mean() for _ in range(draws)]
    return np.percentile(means, [2.5, 97.5])


def test_the_paired_bootstrap_draws_tasks_and_keeps_the_pairs():
    a, b = verdicts(set(range(40)), 100), verdicts(set(range(30, 60)), 100)
    found = paired_bootstrap(a, b)
    assert found["n"] == 100 and found["difference"] == pytest.approx(0.10)
    differences = np.array([(i < 40) - (30 <= i < 60) for i in range(100)], dtype=float)
    assert (found["low"], found["high"]) == pytest.approx(tuple(bootstrap_by_hand(differences)), abs=0.02)
    assert found == paired_bootstrap(a, b)


def test_a_run_and_itself_differ_by_nothing_and_the_order_turns_the_sign():
    a, b = verdicts({0, 1, 2}, 9), verdicts({2, 3}, 9)
    assert paired_bootstrap(a, a) == {"n": 9, "difference": 0, "low": 0, "high": 0}
    assert paired_bootstrap(a, b)["difference"] == -paired_bootstrap(b, a)["difference"]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sets(st.integers(0, 19)), min_size=1, max_size=4))
def test_the_average_over_seeds_is_the_mean_of_their_pass_at_one_with_its_spread(solved):
    found = seed_average([verdicts(tasks, 20) for tasks in solved], n_resamples=99)
    each = [len(tasks) / 20 for tasks in solved]
    assert found["mean"] == pytest.approx(sum(each) / len(each)) and found["seeds"] == len(solved)
    if len(each) == 1:
        assert found["sd"] is None
    else:
        assert found["sd"] == pytest.approx(np.std(each, ddof=1))
    assert 0 <= found["low"] <= found["high"] <= 1


def test_arms_with_several_seeds_are_compared_by_the_share_of_seeds_that_solve_a_task():
    a = [verdicts({0, 1}, 4), verdicts({0, 2}, 4)]
    b = verdicts({0}, 4)
    assert paired_bootstrap(a, b)["difference"] == pytest.approx((0 + 0.5 + 0.5 + 0) / 4)
