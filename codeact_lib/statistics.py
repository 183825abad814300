"""How far a pass@1 can be trusted: an interval for one number, a paired test for two runs on one benchmark.

HumanEval has 164 tasks: at 60% one standard error is 3.8 points. A difference of two points between two arms is one
that a coin would often make. statsmodels does the arithmetic, so that nothing here has to be believed.
"""

from __future__ import annotations

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
        a_verdicts, b_verdicts: task id -> verdict; a verdict is a bool, a status ("pass" or another), or a dict of
            statuses with the keys "base" and "plus".
        tests: which status of a dict counts.

    Returns:
        {"n", "both", "neither", "b", "c", "p_value"}: ``b`` tasks only the first run solves, ``c`` only the second.

    Raises:
        EvaluationError: the runs were not judged on the same tasks.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    if a_verdicts.keys() != b_verdicts.keys() or not a_verdicts:
        odd = sorted(a_verdicts.keys() ^ b_verdicts.keys())
        raise EvaluationError(f"A paired test needs the same tasks on both sides; they differ in {odd[:3] or 'all'}.")
    pairs = [(_solved(a_verdicts[task], tests), _solved(b_verdicts[task], tests)) for task in a_verdicts]
    table = [[pairs.count((a, b)) for b in (True, False)] for a in (True, False)]
    (both, b), (c, neither) = table
    p_value = float(mcnemar(table, exact=True).pvalue) if b + c else 1.0
    return {"n": len(pairs), "both": both, "neither": neither, "b": b, "c": c, "p_value": min(1.0, p_value)}


def _solved(verdict, tests):
    status = verdict[tests] if isinstance(verdict, dict) else verdict
    return status if isinstance(status, bool) else status == "pass"
