"""EvalPlus 0.3.1 made fit for a box: its parts imported where they are needed, with a reason for each change."""

import multiprocessing.heap
import resource
import sys
from functools import cache, partial
from types import ModuleType, SimpleNamespace
from typing import Any

from . import pool


@cache
def load_reader() -> ModuleType:
    """The part of EvalPlus that reads answers and inputs."""
    _skip_datasets()
    # Each submodule by name: importing one does not bring the others.
    import evalplus.data.mbpp
    import evalplus.eval.utils
    import evalplus.sanitize

    # `sanitize` throws away a helper without `return`, even a generator: Mbpp/630's own solution needs one.
    def answers_something(node: Any) -> bool:
        return any(n.type in ("return_statement", "yield") for n in evalplus.sanitize.traverse_tree(node))

    evalplus.sanitize.has_return_statement = answers_something
    return evalplus


@cache
def load_check() -> ModuleType:
    """The part of EvalPlus that runs solutions and compares, with its traps defused."""
    _skip_datasets()
    import evalplus.eval
    import evalplus.gen.util

    # It would ask /proc for the memory of the machine, which a box may hide. Where its 4 GiB cannot be set, for a lower
    # hard limit or on macOS, every task would fail without a word; there the limits of the box have to do.
    memory: int | None = pool.SOLUTION_MEMORY
    if sys.platform == "darwin":
        memory = None
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_STACK):
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY and hard < pool.SOLUTION_MEMORY:
            memory = None
    evalplus.eval.query_maximum_memory_bytes = lambda: memory

    # Verdicts come back through shared memory. multiprocessing puts locks and large arrays into /dev/shm, and a box may
    # hide that. One process writes the verdicts and then ends, so nothing has to be locked.
    multiprocessing.heap.Arena._dir_candidates = []
    evalplus.eval.Value = partial(multiprocessing.Value, lock=False)
    evalplus.eval.Array = partial(multiprocessing.Array, lock=False)

    # In the process that runs a solution our pipes and streams are closed: what is written there is taken for verdicts.
    execute = evalplus.eval.unsafe_execute

    def sealed(*arguments: Any) -> None:
        pool.seal()
        execute(*arguments)

    evalplus.eval.unsafe_execute = sealed
    evalplus.eval.unsealed_execute = execute  # for `judge.is_borne_out`, where no solution runs
    return evalplus


def _skip_datasets() -> None:
    # evalplus.data imports `datasets` for a leaderboard that nobody asks for here: 1.3 s, and 100 MB in every fork.
    sys.modules.setdefault("datasets", SimpleNamespace(load_dataset=None))
