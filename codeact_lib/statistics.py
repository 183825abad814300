"""How far a pass@1 can be trusted: an interval for one number, a paired test for two runs on one benchmark.

HumanEval has 164 tasks: at 60% one standard error is 3.8 points. A difference of two points between two arms is one
that a coin would often make. statsmodels does the arithmetic, so that nothing here has to be believed.

A run is {task id: verdict}; `tests` says which status counts where a verdict is a dict. Runs that were not judged on
the same tasks are an EvaluationError.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from codeact_lib.errors import EvaluationError

Verdict = bool | str | Mapping[str, str]  # solved or not, a status, or a status for each kind of tests
Run = Mapping[str, Verdict]  # task id -> verdict
Runs = Run | Iterable[Run]  # one run, or several seeds


def pass_interval(k: int, n: int, level: float = 0.95, method: str = "wilson") -> tuple[float, float]:
    """Confidence interval of a share k/n of solved tasks, as two numbers in [0, 1].

    Args:
        k, n: solved tasks, all tasks (n > 0).
        level: coverage, between 0 and 1.
        method: "wilson" (coverage near `level` on average), "beta" (Clopper-Pearson: never below it, so wider),
            or another of `statsmodels.stats.proportion.proportion_confint`.

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


def paired_test(a_verdicts: Run, b_verdicts: Run, tests: str = "plus") -> dict[str, Any]:
    """McNemar's exact test on two runs over the same tasks.

    Returns:
        {"n", "both", "neither", "b", "c", "p_value"}: `b` tasks only the first run solves, `c` only the second.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    # Tasks that both runs solve, or both fail, say nothing about which is better. Of the others, under the hypothesis
    # that the runs are equally good, each falls to either side with probability 1/2.
    tasks = _common_tasks([a_verdicts, b_verdicts])
    solved = [(_solved(a_verdicts[task], tests), _solved(b_verdicts[task], tests)) for task in tasks]
    both = solved.count((True, True))
    b = solved.count((True, False))
    c = solved.count((False, True))
    neither = solved.count((False, False))
    p_value = 1.0
    if b + c:
        p_value = min(1.0, float(mcnemar([[both, b], [c, neither]], exact=True).pvalue))
    return {"n": len(tasks), "both": both, "neither": neither, "b": b, "c": c, "p_value": p_value}


def sign_flip_test(a_runs: Runs, b_runs: Runs, tests: str = "plus") -> dict[str, Any]:
    """McNemar's exact test for arms of several seeds: a task counts by the share of seeds that solve it.

    Args:
        a_runs, b_runs: a run, or a list of runs (seeds); the two lists may differ in length.

    Returns:
        {"n", "b", "c", "p_value"}: `b` tasks that the first arm solves more often, `c` the second.
    """
    a_seeds = _seeds(a_runs)
    b_seeds = _seeds(b_runs)
    difference = _differences(a_seeds, b_seeds, tests)
    # If both arms were equally good, each task's difference would be as likely to have the other sign. The p-value is
    # the share of all sign patterns whose sum is at least as far from zero: an exact paired permutation test, which for
    # one seed a side is McNemar's (`paired_test`). In whole numbers, so that sums are exact.
    steps = np.rint(difference * math.lcm(len(a_seeds), len(b_seeds))).astype(int)
    sizes = np.abs(steps[steps != 0])
    chances = np.ones(1)  # chances[i]: the steps that kept their plus add up to i
    for size in sizes:
        chances = np.convolve(chances, np.concatenate([[0.5], np.zeros(size - 1), [0.5]]))
    sums = 2 * np.arange(len(chances)) - sizes.sum()
    p_value = float(min(1.0, chances[np.abs(sums) >= abs(steps.sum())].sum()))
    return {"n": len(steps), "b": int((steps > 0).sum()), "c": int((steps < 0).sum()), "p_value": p_value}


def _differences(a_seeds: Sequence[Run], b_seeds: Sequence[Run], tests: str) -> np.ndarray:
    """By task, in the order of their names: the share of one arm's runs that solve it less that of the other's."""
    tasks = _common_tasks([*a_seeds, *b_seeds])
    return _shares(a_seeds, tasks, tests) - _shares(b_seeds, tasks, tests)


def paired_bootstrap(
    a_runs: Runs, b_runs: Runs, tests: str = "plus", *, level: float = 0.95, n_resamples: int = 9999, seed: int = 0
) -> dict[str, Any]:
    """Interval of the difference in pass@1 between two arms, by drawing tasks anew (percentile bootstrap).

    Args:
        a_runs, b_runs: a run, or a list of runs (seeds); the two lists may differ in length.
        level, n_resamples, seed: coverage, draws, and the seed of the draws.

    Returns:
        {"n", "difference", "low", "high"}: tasks, pass@1 of the first less that of the second, and its interval; all
        three as numbers in [-1, 1].
    """
    # Each task stays paired with itself: its hardness is the same for both arms and does not widen the interval.
    difference = _differences(_seeds(a_runs), _seeds(b_runs), tests)
    low, high = _bootstrap(difference, level, n_resamples, seed)
    return {"n": len(difference), "difference": float(difference.mean()), "low": low, "high": high}


def seed_average(
    runs: Runs, tests: str = "plus", *, level: float = 0.95, n_resamples: int = 9999, seed: int = 0
) -> dict[str, Any]:
    """pass@1 of one arm over its seeds.

    Returns:
        {"n", "seeds", "mean", "sd", "low", "high"}: `mean` over seeds, `sd` their sample standard deviation (None
        for one seed: it says nothing about the luck of training), and the bootstrap interval of the mean over tasks.
    """
    seeds = _seeds(runs)
    tasks = _common_tasks(seeds)
    each = [_shares([run], tasks, tests).mean() for run in seeds]
    spread = float(np.std(each, ddof=1)) if len(seeds) > 1 else None
    low, high = _bootstrap(_shares(seeds, tasks, tests), level, n_resamples, seed)
    mean = float(np.mean(each))
    return {"n": len(tasks), "seeds": len(seeds), "mean": mean, "sd": spread, "low": low, "high": high}


def _seeds(runs: Runs) -> list[Run]:
    return [runs] if isinstance(runs, Mapping) else list(runs)


def _common_tasks(runs: Sequence[Run]) -> list[str]:
    """The tasks of every run, in the order of their names; EvaluationError where the runs have not the same."""
    if not runs or not runs[0]:
        raise EvaluationError("A comparison needs at least one run with the same tasks as the others; there is none.")
    tasks = set(runs[0])
    odd = sorted(tasks.union(*runs) - tasks.intersection(*runs))
    if odd:
        raise EvaluationError(f"A paired test needs the same tasks on both sides; they differ in {odd[:3]}.")
    return sorted(tasks)


def _shares(runs: Sequence[Run], tasks: Sequence[str], tests: str) -> np.ndarray:
    """Per task the share of `runs` that solve it."""
    solved = [[_solved(run[task], tests) for task in tasks] for run in runs]
    return np.array(solved, dtype=float).mean(axis=0)


def _bootstrap(values: np.ndarray, level: float, n_resamples: int, seed: int) -> tuple[float, float]:
    """Ends of the percentile interval of the mean of `values`."""
    from scipy.stats import bootstrap

    options = {"confidence_level": level, "n_resamples": n_resamples, "batch": 256, "method": "percentile"}
    interval = bootstrap((values,), np.mean, rng=np.random.default_rng(seed), **options).confidence_interval
    return float(interval.low), float(interval.high)


def _solved(verdict: Verdict, tests: str) -> bool:
    status = verdict[tests] if isinstance(verdict, Mapping) else verdict
    return status if isinstance(status, bool) else status == "pass"
