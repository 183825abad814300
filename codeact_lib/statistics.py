"""How far a pass@1 can be trusted: an interval for one number, a paired test for two runs on one benchmark.

HumanEval has 164 tasks: at 60% one standard error is 3.8 points. A difference of two points between two arms is one
that a coin would often make. statsmodels does the arithmetic, so that nothing here has to be believed.
"""

from __future__ import annotations

import math

import numpy as np

from codeact_lib.errors import EvaluationError


def pass_interval(k, n, level=0.95, method="wilson") -> tuple[float, float]:
    """Confidence interval of a share k/n of solved tasks, as two numbers in [0, 1].

    Args:
        k, n: solved tasks, all tasks (n > 0).
        level: coverage, between 0 and 1.
        method: "wilson" (coverage near ``level`` on average), "beta" (Clopper-Pearson: never below it, so wider),
            or another of ``statsmodels.stats.proportion.proportion_confint``.

    Raises:
        EvaluationError: no task, more solved than there are, or an unknown method.
    """
    from statsmodels.stats.proportion import proportion_confint

    if not 0 <= k <= n or n == 0:
        raise EvaluationError(f"{k} of {n} tasks solved is not a count; the interval needs 0 <= k <= n and n > 0.")
    if not 0 < level < 1:
        raise EvaluationError(f"level {level} must lie between 0 and 1, e.g. 0.95.")
    try:
        low, high = proportion_confint(k, n, alpha=1 - level, method=method)
    except NotImplementedError as error:
        raise EvaluationError(f"Interval method {method!r} is not known; use wilson or beta.") from error
    # rounding can leave an end a hair outside of [0, k/n] or [k/n, 1]
    return max(0.0, min(float(low), k / n)), min(1.0, max(float(high), k / n))


def paired_test(a_verdicts, b_verdicts, tests="plus") -> dict:
    """McNemar's exact test on two runs over the same tasks.

    Tasks that both runs solve, or both fail, say nothing about which is better. Of the others, under the hypothesis
    that the runs are equally good, each falls to either side with probability 1/2.

    Args:
        a_verdicts, b_verdicts: two runs.
        tests: which status of a dict counts.

    Returns:
        {"n", "both", "neither", "b", "c", "p_value"}: ``b`` tasks only the first run solves, ``c`` only the second.

    Raises:
        EvaluationError: the runs were not judged on the same tasks.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    _require_same_tasks([a_verdicts, b_verdicts])
    pairs = [(_solved(a_verdicts[task], tests), _solved(b_verdicts[task], tests)) for task in a_verdicts]
    table = [[pairs.count((a, b)) for b in (True, False)] for a in (True, False)]
    (both, b), (c, neither) = table
    p_value = float(mcnemar(table, exact=True).pvalue) if b + c else 1.0
    return {"n": len(pairs), "both": both, "neither": neither, "b": b, "c": c, "p_value": min(1.0, p_value)}


def sign_flip_test(a_runs, b_runs, tests="plus") -> dict:
    """McNemar's exact test for arms of several seeds: a task counts by the share of seeds that solve it.

    If both arms were equally good, each task's difference would be as likely to have the other sign. The p-value is the
    share of all sign patterns whose sum is at least as far from zero: an exact paired permutation test, which for one
    seed a side is McNemar's (``paired_test``).

    Args:
        a_runs, b_runs: a run, or a list of runs (seeds); the two lists may differ in length.
        tests: which status of a dict counts.

    Returns:
        {"n", "b", "c", "p_value"}: ``b`` tasks that the first arm solves more often, ``c`` the second.

    Raises:
        EvaluationError: the runs were not judged on the same tasks.
    """
    a_runs, b_runs = _listed(a_runs), _listed(b_runs)
    difference = _differences(a_runs, b_runs, tests)
    steps = np.rint(difference * math.lcm(len(a_runs), len(b_runs))).astype(int)  # whole numbers, so sums are exact
    return {"n": len(steps), "b": int((steps > 0).sum()), "c": int((steps < 0).sum()), "p_value": _sign_flip_p(steps)}


def _differences(a_runs, b_runs, tests):
    """By task, in the order of their names: the share of one arm's runs that solve it less that of the other's."""
    _require_same_tasks([*a_runs, *b_runs])
    tasks = sorted(a_runs[0])
    return _shares(a_runs, tasks, tests) - _shares(b_runs, tasks, tests)


def _sign_flip_p(steps):
    """P(|sum of the steps with random signs| >= |their sum|), from the exact distribution of that sum."""
    sizes = np.abs(steps[steps != 0])
    chances = np.ones(1)  # chances[i]: the steps that kept their plus add up to i
    for size in sizes:
        chances = np.convolve(chances, np.concatenate([[0.5], np.zeros(size - 1), [0.5]]))
    sums = 2 * np.arange(len(chances)) - sizes.sum()
    return float(min(1.0, chances[np.abs(sums) >= abs(steps.sum())].sum()))


def paired_bootstrap(a_runs, b_runs, tests="plus", *, level=0.95, n_resamples=9999, seed=0) -> dict:
    """Interval of the difference in pass@1 between two arms, by drawing tasks anew (percentile bootstrap).

    Each task stays paired with itself: its hardness is the same for both arms and does not widen the interval. With
    several seeds an arm counts the share of its seeds that solve a task.

    Args:
        a_runs, b_runs: a run, or a list of runs (seeds); the two lists may differ in length.
        tests: which status of a dict counts.
        level, n_resamples, seed: coverage, draws, and the seed of the draws.

    Returns:
        {"n", "difference", "low", "high"}: tasks, pass@1 of the first less that of the second, and its interval; all
        three as numbers in [-1, 1].

    Raises:
        EvaluationError: the runs were not judged on the same tasks.
    """
    difference = _differences(_listed(a_runs), _listed(b_runs), tests)
    return {
        "n": len(difference),
        "difference": float(difference.mean()),
        **_bootstrap(difference, level, n_resamples, seed),
    }


def seed_average(runs, tests="plus", *, level=0.95, n_resamples=9999, seed=0) -> dict:
    """pass@1 of one arm over its seeds.

    Returns:
        {"n", "seeds", "mean", "sd", "low", "high"}: ``mean`` over seeds, ``sd`` their sample standard deviation (None
        for one seed: it says nothing about the luck of training), and the bootstrap interval of the mean over tasks.

    Raises:
        EvaluationError: no run, or runs that were not judged on the same tasks.
    """
    runs = _listed(runs)
    _require_same_tasks(runs)
    tasks = sorted(runs[0])
    each = [_shares([run], tasks, tests).mean() for run in runs]
    spread = float(np.std(each, ddof=1)) if len(runs) > 1 else None
    facts = {"n": len(tasks), "seeds": len(runs), "mean": float(np.mean(each)), "sd": spread}
    return {**facts, **_bootstrap(_shares(runs, tasks, tests), level, n_resamples, seed)}


def _listed(runs):
    return [runs] if isinstance(runs, dict) else list(runs)


def _require_same_tasks(runs):
    if not runs or not runs[0]:
        raise EvaluationError("A comparison needs at least one run with the same tasks as the others; there is none.")
    odd = sorted(set().union(*runs) - set.intersection(*map(set, runs)))
    if odd:
        raise EvaluationError(f"A paired test needs the same tasks on both sides; they differ in {odd[:3]}.")


def _shares(runs, tasks, tests):
    """Per task the share of ``runs`` that solve it."""
    return np.array([[_solved(run[task], tests) for run in runs] for task in tasks], dtype=float).mean(axis=1)


def _bootstrap(values, level, n_resamples, seed):
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=n_resamples,
        batch=256,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return {"low": float(found.confidence_interval.low), "high": float(found.confidence_interval.high)}


def _solved(verdict, tests):
    status = verdict[tests] if isinstance(verdict, dict) else verdict
    return status if isinstance(status, bool) else status == "pass"
