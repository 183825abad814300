"""Padding strategies: how the samples of one batch fill a rectangle of tokens.

A batch of samples of unequal length must become rectangular tensors. Six samples of 4, 3, 5, 11, 7 and 6 tokens and a
model length of 16 (the example of the paper's figure) can be laid out as

    traditional    6 rows of 16 = 96 slots     every row padded to the model's maximum length
    dynamic        6 rows of 11 = 66 slots     every row padded to the longest sample of the batch
    dynamic_pack   3 rows of 13 = 39 slots     ascending lengths, next-fit: [3 4 5] [6 7] [11]
    balanced_pack  3 rows of 13 = 39 slots     fewest rows, then the shortest longest row
    flat           1 row  of 36 = 36 slots     one row, no padding at all
"""
# The samples of an optimizer step never change, only the rectangle they fill: the schedule, the number of steps and,
# with `isolate=True`, the loss and the gradient are those of unpacked training.

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from heapq import heapreplace
from itertools import chain

from codeact_lib.errors import DataError
from codeact_lib.extensions import is_own, load_own

Rows = list[list[int]]  # for each row the indices of its samples


class PaddingStrategy(StrEnum):
    """The five ways to lay out a batch; a member equals its name as a string ("dynamic-pack" is accepted too)."""

    TRADITIONAL = "traditional"
    DYNAMIC = "dynamic"
    DYNAMIC_PACK = "dynamic_pack"
    BALANCED_PACK = "balanced_pack"
    FLAT = "flat"

    @classmethod
    def _missing_(cls, value: object) -> "PaddingStrategy":
        member = cls.__members__.get(str(value).upper().replace("-", "_"))
        if member is None:
            raise DataError(f"unknown padding strategy {value!r}: choose one of {', '.join(cls)}")
        return member


OwnStrategy = Callable[[list[int], int], Rows]  # (lengths, max_length) -> rows
Strategy = str | PaddingStrategy | OwnStrategy


def as_strategy(strategy: Strategy) -> PaddingStrategy | OwnStrategy:
    """A `PaddingStrategy`, by name or itself; or a strategy of your own, a function or its name "module:function"."""
    if is_own(strategy):
        strategy = load_own(strategy)
    return strategy if callable(strategy) else PaddingStrategy(strategy)


def strategy_name(strategy: Strategy) -> str:
    """What `as_strategy` took it from: "dynamic_pack", or "module:function"."""
    return f"{strategy.__module__}:{strategy.__qualname__}" if callable(strategy) else PaddingStrategy(strategy).value


def plan_rows(lengths: Iterable[int], max_length: int, strategy: Strategy = "dynamic_pack") -> Rows:
    """Distribute samples over rows; return for each row the indices of its samples, in order.

    `lengths` are token counts. No sample is lost, split or repeated, and no row exceeds `max_length` tokens except
    under "flat". Equal lengths keep their order, so the plan is a function of its arguments alone. "dynamic_pack" is
    the paper's (CodeACT, arXiv 2408.02193). Raises DataError for a sample that is empty or longer than `max_length`,
    and for a plan of one's own strategy that breaks these rules.

    >>> plan_rows([4, 3, 5, 11, 7, 6], max_length=16)  # rows of 3 + 4 + 5, 6 + 7 and 11 tokens
    [[1, 0, 2], [5, 4], [3]]
    """
    strategy = as_strategy(strategy)
    lengths = list(map(int, lengths))
    check_lengths(lengths, None if strategy is PaddingStrategy.FLAT else max_length)
    if not lengths:
        return []
    if strategy is PaddingStrategy.FLAT:
        return [list(range(len(lengths)))]
    if strategy is PaddingStrategy.DYNAMIC_PACK:
        return next_fit_ascending(lengths, max_length)
    if strategy is PaddingStrategy.BALANCED_PACK:
        return fewest_balanced_rows(lengths, max_length)
    if not callable(strategy):
        return [[i] for i in range(len(lengths))]
    # A user's own plan is checked: a sample lost or seen twice would train another model, and nothing would say so.
    rows = [list(map(int, row)) for row in strategy(lengths, max_length)]
    name = strategy_name(strategy)
    if sorted(chain.from_iterable(rows)) != list(range(len(lengths))):
        raise DataError(f"{name} planned {rows}: each of the samples 0 to {len(lengths) - 1} must be in it once")
    if _longest(rows, lengths) > max_length:
        raise DataError(f"{name} planned a row of {_longest(rows, lengths)} tokens, more than max_length {max_length}")
    return rows


def check_lengths(lengths: list[int], max_length: int | None) -> None:
    """Raise DataError for an empty sample, and for one that is longer than `max_length`."""
    for i, n in enumerate(lengths):
        if n < 1:
            raise DataError(f"sample {i} has {n} tokens: drop empty samples before packing")
        if max_length is not None and n > max_length:
            raise DataError(f"sample {i} has {n} tokens, more than max_length {max_length}: truncate or drop it first")


def _tokens(row: Iterable[int], lengths: Sequence[int]) -> int:
    return sum(map(lengths.__getitem__, row))


def _longest(rows: Rows, lengths: Sequence[int]) -> int:
    return max(_tokens(row, lengths) for row in rows)


def _longest_samples_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


# ---- packing -------------------------------------------------------------------------------------------------------
def next_fit_ascending(lengths: list[int], max_length: int) -> Rows:
    """The paper's pack: the shortest sample left goes into the last row, or opens a new one where it does not fit."""
    rows: Rows = []
    used = max_length + 1  # "full", so that the first sample opens a row
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if used + lengths[i] > max_length:
            rows.append([])
            used = 0
        rows[-1].append(i)
        used += lengths[i]
    return rows


def best_fit_descending(lengths: list[int], max_length: int) -> Rows:
    """The longest sample left goes into the fullest row that has room for it, or opens a new one."""
    rows: Rows = []
    free: list[int] = []
    for i in _longest_samples_first(lengths):
        if max(free, default=0) < lengths[i]:
            rows.append([])
            free.append(max_length)
        _, row = min((room, r) for r, room in enumerate(free) if room >= lengths[i])
        rows[row].append(i)
        free[row] -= lengths[i]
    return rows


def longest_to_emptiest(lengths: list[int], n_rows: int) -> Rows:
    """Longest-processing-time rule: the longest sample left goes to the emptiest of `n_rows` rows."""
    rows: Rows = [[] for _ in range(n_rows)]
    heap = [(0, r) for r in range(n_rows)]
    for i in _longest_samples_first(lengths):
        load, row = heap[0]
        rows[row].append(i)
        heapreplace(heap, (load + lengths[i], row))
    return rows


def fewest_balanced_rows(lengths: list[int], max_length: int) -> Rows:
    """Fewest rows first (from the lower bound up to what the greedy packers need), then the shortest longest row."""
    n_rows = -(-sum(lengths) // max_length)
    while True:
        # No longest row is below the mean or the longest sample; two per mille above the mean are not chased.
        goal = max(min(1.002 * sum(lengths) / n_rows, max_length), max(lengths))
        plans = [level(longest_to_emptiest(lengths, n_rows), lengths, goal)]
        # Most batches have their plan now. Only for the others is it worth the time to plan greedily as well.
        if _longest(plans[0], lengths) > goal:
            for plan in (next_fit_ascending(lengths, max_length), best_fit_descending(lengths, max_length)):
                if len(plan) == n_rows:
                    plans.append(level(plan, lengths, goal))
        best = min(plans, key=lambda plan: _longest(plan, lengths))
        if _longest(best, lengths) <= max_length:
            return best
        n_rows += 1


def level(rows: Rows, lengths: list[int], goal: float) -> Rows:
    """Shorten the longest row, in place, by dividing it and another row anew between the two, until it is `goal`."""
    loads = [_tokens(row, lengths) for row in rows]
    while max(loads) > goal:
        longest = max(loads)
        source = loads.index(longest)
        for target in sorted(range(len(rows)), key=loads.__getitem__):
            large, small = halves(rows[source] + rows[target], lengths)
            load = _tokens(large, lengths)
            if load < longest and target != source:
                rows[source] = large
                rows[target] = small
                loads[target] += longest - load
                loads[source] = load
                break
        else:
            break  # no other row can take any of it
    return rows


def halves(samples: list[int], lengths: list[int]) -> tuple[list[int], list[int]]:
    """Two groups with sums as near to each other as can be, the larger one first.

    >>> halves([0, 1, 2], [3, 4, 6])
    ([1, 0], [2])
    """
    # Bit n of `sums[k]` is set when some of the first k samples have n tokens together: a number of a few thousand
    # bits, so that the best of all 2^k divisions is found with k shifts. For samples of 3, 4 and 6 tokens the bits are
    #
    #     {0}   {0, 3}   {0, 3, 4, 7}   {0, 3, 4, 6, 7, 9, 10, 13}
    #
    # and of the last set 6 is the largest that is at most half of 13. 6 is not among {0, 3, 4, 7}, so the third sample
    # is needed for it; the 0 tokens then left can be had without the other two.
    sums = [1]
    for i in samples:
        sums.append(sums[-1] | (sums[-1] << lengths[i]))
    half = _tokens(samples, lengths) // 2
    at_most_half = sums[-1] & ((1 << (half + 1)) - 1)
    left = at_most_half.bit_length() - 1  # the highest bit: the tokens of the smaller group
    large: list[int] = []
    small: list[int] = []
    for i, without in zip(reversed(samples), reversed(sums[:-1]), strict=True):
        if (without >> left) & 1:
            large.append(i)
        else:
            small.append(i)
            left -= lengths[i]
    return large, small


# ---- an optimizer step ---------------------------------------------------------------------------------------------
def plan_micro_batches(
    lengths: Iterable[int],
    max_length: int,
    strategy: Strategy = "dynamic_pack",
    *,
    batch_size: int | None = None,
    tokens_per_micro_batch: int | None = None,
    ranks: int = 1,
) -> list[Rows]:
    """Divide the samples of one optimizer step into micro-batches, each a list of rows as `plan_rows` returns them.

    With `batch_size` the samples are cut into batches of that many, in order, and each is packed by itself (the paper).
    Without, they are packed all together, and the rows dealt to micro-batches of at most `tokens_per_micro_batch` slots
    (default: two rows of `max_length`): less padding, and a bounded peak of memory.

    The number of micro-batches is a multiple of `ranks`, filled up with empty ones where need be; rank r takes every
    `ranks`-th from r on. Raises DataError as `plan_rows`, and for a budget that cannot hold the longest row.
    """
    strategy = as_strategy(strategy)
    lengths = list(map(int, lengths))
    plans: list[Rows] = []
    if batch_size is not None:
        for start in range(0, len(lengths), batch_size):
            rows = plan_rows(lengths[start : start + batch_size], max_length, strategy)
            plans.append([list(map(start.__add__, row)) for row in rows])
    elif lengths:
        plans = pack_window(lengths, max_length, strategy, tokens_per_micro_batch or 2 * max_length, ranks)
    while len(plans) % ranks:
        plans.append([])
    return plans


def pack_window(
    lengths: list[int], max_length: int, strategy: PaddingStrategy | OwnStrategy, budget: int, ranks: int
) -> list[Rows]:
    """Micro-batches of all samples of a step together, each of at most `budget` slots."""
    if strategy is PaddingStrategy.FLAT:  # one row a micro-batch, as long as the budget allows
        check_lengths(lengths, min(budget, max_length))
        return [[row] for row in fewest_balanced_rows(lengths, budget)]
    rows = plan_rows(lengths, max_length, strategy)
    widths = [shape_of([row], lengths, max_length, strategy)[1] for row in rows]
    if max(widths) > budget:
        raise DataError(f"a row of {max(widths)} tokens is more than {budget} tokens_per_micro_batch: raise it")
    groups: list[Rows] = []  # rows of falling width, so that each group is padded to its first
    room = 0
    for r in _longest_samples_first(widths):
        if room < 1:
            groups.append([])
            room = budget // max(widths[r], 1)  # a plan of a user's own may have empty rows
        groups[-1].append(rows[r])
        room -= 1
    # Halve the groups of most rows until every rank gets equally many, which keeps all ranks busy.
    while len(groups) % ranks and max(map(len, groups)) > 1:
        largest = max(groups, key=len)
        at = groups.index(largest)
        half = len(largest) // 2
        groups[at : at + 1] = [largest[:half], largest[half:]]
    return groups


def shape_of(rows: Rows, lengths: Sequence[int], max_length: int, strategy: Strategy) -> tuple[int, int]:
    """Rows and slots per row of a micro-batch once it is laid out; an empty one is a row of two slots."""
    if as_strategy(strategy) is PaddingStrategy.TRADITIONAL:
        return max(len(rows), 1), max_length
    return (len(rows), _longest(rows, lengths)) if rows else (1, 2)
