"""EvalPlus 0.3.1 made fit for a box: one function per change, with its reason."""

import multiprocessing.heap
import resource
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

from . import pool

EVALPLUS_MEMORY = 4 << 30  # what EvalPlus gives a solution


def skip_datasets() -> None:
    """Before EvalPlus is imported: leave out the package `datasets`."""
    # evalplus.data imports it for a leaderboard that nobody asks for here: 1.3 s, and 100 MB in every fork.
    sys.modules.setdefault("datasets", SimpleNamespace(load_dataset=None))


def keep_generators() -> None:
    """Let sanitize keep helpers that yield."""
    import evalplus.sanitize

    # EvalPlus 0.3.1 throws away a helper without `return`, even a generator: Mbpp/630's own solution needs one.
    def answers_something(node: Any) -> bool:
        return any(n.type in ("return_statement", "yield") for n in evalplus.sanitize.traverse_tree(node))

    evalplus.sanitize.has_return_statement = answers_something


def fix_memory_limit() -> None:
    """Tell EvalPlus how much memory a solution may have."""
    import evalplus.eval

    # It would ask /proc for the memory of the machine, which a box may hide. Where its 4 GiB cannot be set, for a lower
    # hard limit or on macOS, every task would fail without a word; there the limits of the box have to do.
    memory: int | None = EVALPLUS_MEMORY
    if sys.platform == "darwin":
        memory = None
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_STACK):
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY and hard < EVALPLUS_MEMORY:
            memory = None
    evalplus.eval.query_maximum_memory_bytes = lambda: memory


def share_without_dev_shm() -> None:
    """Let verdicts come back through memory that needs no /dev/shm."""
    import evalplus.eval

    # multiprocessing puts locks and large arrays there, and a box may hide it. One process writes the verdicts and then
    # ends, so nothing has to be locked.
    multiprocessing.heap.Arena._dir_candidates = []
    evalplus.eval.Value = partial(multiprocessing.Value, lock=False)
    evalplus.eval.Array = partial(multiprocessing.Array, lock=False)


def seal_solutions() -> None:
    """Close our pipes and standard streams in the process that runs a solution."""
    import evalplus.eval

    # What is written there is taken for verdicts.
    execute = evalplus.eval.unsafe_execute

    def sealed(*arguments: Any) -> None:
        pool.seal()
        execute(*arguments)

    evalplus.eval.unsafe_execute = sealed
    evalplus.eval.unsealed_execute = execute  # for `judge.compare_recorded`, where no solution runs
