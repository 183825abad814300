"""Stage 05: benchmark tasks, greedy answers, and their verdicts by EvalPlus inside boxes."""

from codeact_lib.evaluation.benchmarks import Benchmark, load_benchmark
from codeact_lib.evaluation.judge import PassAtOne, evaluate_solutions
from codeact_lib.evaluation.records import metrics_record

__all__ = ["Benchmark", "PassAtOne", "evaluate_solutions", "load_benchmark", "metrics_record"]
