"""Intervals and paired tests, against sums written out by hand, other packages, and the coverage they promise."""

from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from codeact_lib.errors import EvaluationError
from codeact_lib.statistics import paired_bootstrap, paired_test, pass_interval, seed_average, sign_flip_test

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


# Worked examples and other packages


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3 (score, without continuity correction)
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_wilson_interval_is_that_of_the_published_examples(k, n, low, high):
    assert pass_interval(k, n) == pytest.approx((low, high), abs=5e-5)


@settings(deadline=None)
@given(counts, st.sampled_from([("wilson", "wilson"), ("beta", "exact")]), st.sampled_from([0.9, 0.95, 0.99]))
def test_intervals_agree_with_scipy(count, methods, level):
    ours, theirs = methods
    expected = stats.binomtest(*count).proportion_ci(level, method=theirs)
    assert pass_interval(*count, level=level, method=ours) == pytest.approx((expected.low, expected.high), abs=1e-9)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_the_paired_tests_agree_with_scipys_binomial_test(b, c):
    first, second = verdicts(set(range(b)), b + c + 3), verdicts(set(range(b, b + c)), b + c + 3)
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert paired_test(first, second)["p_value"] == pytest.approx(expected, abs=1e-9)
    assert sign_flip_test(first, second)["p_value"] == pytest.approx(expected, abs=1e-9)


solved_by_seeds = st.lists(st.sets(st.integers(0, 8)), min_size=1, max_size=3)


@settings(deadline=None, max_examples=25)
@given(solved_by_seeds, solved_by_seeds)
def test_the_test_on_several_seeds_agrees_with_scipys_permutation_test(a, b):
    a_runs, b_runs = ([verdicts(tasks, 9) for tasks in runs] for runs in (a, b))
    shares = [np.mean([[t in tasks for t in range(9)] for tasks in runs], axis=0) for runs in (a, b)]
    difference = np.round((shares[0] - shares[1]) * 6)  # whole numbers: no rounding among the 512 sign patterns
    expected = stats.permutation_test((difference,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_test(a_runs, b_runs)["p_value"] == pytest.approx(min(1.0, expected.pvalue), abs=1e-9)


# Coverage: how often the interval holds the truth

TASKS, TRUTHS = 164, np.linspace(0.05, 0.95, 181)


def coverage(method, truths=TRUTHS, n=TASKS):
    """Exact: for each true share the chance of a count whose interval holds it, summed over all counts."""
    low, high = np.array([pass_interval(k, n, method=method) for k in range(n + 1)]).T
    chance = stats.binom.pmf(np.arange(n + 1), n, truths[:, None])
    return (chance * ((low <= truths[:, None]) & (truths[:, None] <= high))).sum(axis=1)


def test_the_wilson_interval_covers_the_truth_95_times_in_100_on_average_and_never_much_less():
    found = coverage("wilson")
    assert found.mean() == pytest.approx(0.95, abs=0.004)
    assert found.min() > 0.925


def test_the_exact_interval_never_covers_less_than_it_promises():
    assert coverage("beta", np.linspace(0.001, 0.999, 400)).min() >= 0.95


def test_the_coverage_by_simulation_is_the_one_by_enumeration():
    truths = np.array([0.1, 0.37, 0.6, 0.85])
    rng = np.random.default_rng(7)
    bounds = np.array([pass_interval(k, TASKS) for k in range(TASKS + 1)])
    drawn = bounds[rng.binomial(TASKS, truths[:, None], size=(4, 20_000))]
    held = ((drawn[..., 0] <= truths[:, None]) & (truths[:, None] <= drawn[..., 1])).mean(axis=1)
    assert held == pytest.approx(coverage("wilson", truths), abs=0.006)  # four standard errors


def test_the_interval_over_seeds_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(11)
    hardness = rng.beta(
        1.2, 0.8, size=(300, 164, 1)
    )  # tasks drawn anew each time; two seeds solve each by its hardness
    solved = rng.random((300, 164, 2)) < hardness
    truth, held = 1.2 / 2.0, 0
    for tasks in solved:
        runs = [dict(enumerate(map(bool, seed))) for seed in tasks.T]
        found = seed_average(runs, n_resamples=400)
        held += found["low"] <= truth <= found["high"]
    assert 0.915 <= held / 300 <= 0.98


def test_the_paired_test_errs_at_most_one_time_in_twenty_where_the_arms_are_equal():
    for differing in range(1, 60):
        chances = stats.binom.pmf(np.arange(differing + 1), differing, 0.5)
        p = np.array([_p(b, differing - b) for b in range(differing + 1)])
        assert chances[p < 0.05].sum() <= 0.05


def _p(b, c):
    first, second = {i: i < b for i in range(b + c)}, {i: i >= b for i in range(b + c)}
    return sign_flip_test(first, second)["p_value"]
