"""Stage 05: benchmark tasks, greedy answers, and their verdicts by EvalPlus inside boxes."""

from codeact_lib.evaluation.benchmarks import load_benchmark
from codeact_lib.evaluation.judge import evaluate_solutions

__all__ = ["evaluate_solutions", "load_benchmark"]
