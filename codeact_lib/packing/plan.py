"""Padding strategies: how the samples of one batch fill a rectangle of tokens.

A batch of samples of unequal length must become rectangular tensors. Six samples of 4, 3, 5, 11, 7 and 6 tokens and a
model length of 16 (the example of the paper's figure) can be laid out as

    traditional    6 rows of 16 = 96 slots     every row padded to the model's maximum length
    dynamic        6 rows of 11 = 66 slots     every row padded to the longest sample of the batch
    dynamic_pack   3 rows of 13 = 39 slots     ascending lengths, next-fit: [3 4 5] [6 7] [11]
    balanced_pack  3 rows of 13 = 39 slots     fewest rows, then the shortest longest row
    flat           1 row  of 36 = 36 slots     one row, no padding at all

The samples of an optimizer step never change, only the rectangle they fill: the schedule, the number of steps and, with
`isolate=True`, the loss and the gradient are those of unpacked training. A batch is packed by itself (the paper), or
all batches that are accumulated into one step are packed together, which pads less still (`plan_micro_batches`).
"""

from enum import StrEnum
from heapq import heapify, heapreplace

from codeact_lib.errors import DataError
from codeact_lib.extensions import is_own, load_own


class PaddingStrategy(StrEnum):
    """The five ways to lay out a batch; a member equals its name as a string ("dynamic-pack" is accepted too)."""

    TRADITIONAL = "traditional"
    DYNAMIC = "dynamic"
    DYNAMIC_PACK = "dynamic_pack"
    BALANCED_PACK = "balanced_pack"
    FLAT = "flat"

    @classmethod
    def _missing_(cls, value):
        name = str(value).lower().replace("-", "_")
        for member in cls:
            if member.value == name:
                return member
        raise DataError(f"unknown padding strategy {value!r}: choose one of {', '.join(m.value for m in cls)}")


def as_strategy(strategy):
    """A `PaddingStrategy`, by name or itself; or a strategy of your own, a function or its name "module:function"."""
    if is_own(strategy):
        strategy = load_own(strategy)
    return strategy if callable(strategy) else PaddingStrategy(strategy)


def strategy_name(strategy) -> str:
    """What `as_strategy` took it from: "dynamic_pack", or "module:function"."""
    return f"{strategy.__module__}:{strategy.__qualname__}" if callable(strategy) else PaddingStrategy(strategy).value


def plan_rows(lengths, max_length: int, strategy="dynamic_pack") -> list[list[int]]:
    """Distribute samples over rows; return for each row the indices of its samples, in order.

    `lengths` are token counts (each at least 1). No sample is lost, split or repeated, and no row exceeds `max_length`
    tokens except under "flat". Equal lengths keep their order, so the plan is a function of its arguments alone.

    "dynamic_pack" is the paper's (CodeACT, arXiv 2408.02193, Dynamic Pack): ascending, next-fit. A strategy of your own
    is a function `(lengths, max_length) -> rows`, or its name "module:function"; its plan is checked. Raises DataError
    for a sample longer than `max_length` (truncate it first) or shorter than one token, and for a plan that breaks the
    rules above.
    """
    strategy = as_strategy(strategy)
    lengths = [int(n) for n in lengths]
    _check_lengths(lengths, None if strategy is PaddingStrategy.FLAT else max_length)
    if not lengths:
        return []
    if callable(strategy):
        return _checked_plan(strategy(lengths, max_length), lengths, max_length, strategy_name(strategy))
    if strategy is PaddingStrategy.FLAT:
        return [list(range(len(lengths)))]
    if strategy is PaddingStrategy.DYNAMIC_PACK:
        return _next_fit_ascending(lengths, max_length)
    if strategy is PaddingStrategy.BALANCED_PACK:
        return _fewest_balanced_rows(lengths, max_length)
    return [[i] for i in range(len(lengths))]


def _check_lengths(lengths, max_length) -> None:
    for i, n in enumerate(lengths):
        if n < 1:
            raise DataError(f"sample {i} has {n} tokens: drop empty samples before packing")
        if max_length is not None and n > max_length:
            raise DataError(f"sample {i} has {n} tokens, more than max_length {max_length}: truncate or drop it first")


def _checked_plan(rows, lengths, max_length, name):
    rows = [[int(i) for i in row] for row in rows]
    if sorted(i for row in rows for i in row) != list(range(len(lengths))):
        raise DataError(f"{name} planned {rows}: each of the samples 0 to {len(lengths) - 1} must be in it once")
    if _longest(rows, lengths) > max_length:
        raise DataError(f"{name} planned a row of {_longest(rows, lengths)} tokens, more than max_length {max_length}")
    return rows


def _next_fit_ascending(lengths, max_length):
    rows, used = [], max_length + 1  # "full", so that the first sample opens a row
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if used + lengths[i] > max_length:
            rows.append([])
            used = 0
        rows[-1].append(i)
        used += lengths[i]
    return rows


def _best_fit_descending(lengths, max_length):
    rows, free = [], []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [r for r, room in enumerate(free) if room >= lengths[i]]
        if fitting:
            row = min(fitting, key=free.__getitem__)
        else:
            row = len(rows)
            rows.append([])
            free.append(max_length)
        rows[row].append(i)
        free[row] -= lengths[i]
    return rows


def _longest_first(lengths, n_rows):
    """Longest-processing-time rule: the longest sample left goes to the emptiest of `n_rows` rows."""
    rows = [[] for _ in range(n_rows)]
    heap = [(0, r) for r in range(n_rows)]
    heapify(heap)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        load, row = heap[0]
        rows[row].append(i)
        heapreplace(heap, (load + lengths[i], row))
    return rows


def _longest(rows, lengths):
    return max(sum(lengths[i] for i in row) for row in rows)


def _fewest_balanced_rows(lengths, max_length):
    """Fewest rows first (from the lower bound up to what the greedy packers need), then the shortest longest row."""
    n_rows, greedy = -(-sum(lengths) // max_length), None
    while True:
        goal = _level_enough(lengths, n_rows, max_length)
        rows = _level(_longest_first(lengths, n_rows), lengths, goal)
        if _longest(rows, lengths) <= goal:
            return rows  # which most batches are at once
        greedy = greedy or [plan(lengths, max_length) for plan in (_next_fit_ascending, _best_fit_descending)]
        plans = [rows, *(_level([*plan], lengths, goal) for plan in greedy if len(plan) == n_rows)]
        rows = min(plans, key=lambda plan: _longest(plan, lengths))
        if _longest(rows, lengths) <= max_length:
            return rows
        n_rows += 1


def _level_enough(lengths, n_rows, max_length):
    """No longest row is below the mean or below the longest sample; two per mille above the mean are not chased."""
    return max(min(1.002 * sum(lengths) / n_rows, max_length), max(lengths))


def _level(rows, lengths, goal):
    """Shorten the longest row, in place, by dividing it and another row anew between the two, until it is `goal`."""
    loads = [sum(lengths[i] for i in row) for row in rows]
    while (longest := max(loads)) > goal:
        source = loads.index(longest)
        for target in sorted(range(len(rows)), key=loads.__getitem__):
            large, small = _halves(rows[source] + rows[target], lengths)
            load = sum(lengths[i] for i in large)
            if load < longest and target != source:
                rows[source], rows[target] = large, small
                loads[source], loads[target] = load, loads[target] + longest - load
                break
        else:
            break
    return rows


def _halves(samples, lengths):
    """Two groups with sums as near to each other as can be, the larger one first.

    Bit n of `sums[k]` is set when some of the first k samples have n tokens together: a number of a few thousand bits,
    so that the best of all 2^k divisions is found with k shifts.
    """
    sums = [1]
    for i in samples:
        sums.append(sums[-1] | sums[-1] << lengths[i])
    half = sum(lengths[i] for i in samples) // 2
    left = (sums[-1] & (1 << half + 1) - 1).bit_length() - 1  # the largest sum that is at most a half
    large, small = [], []
    for i, without in zip(reversed(samples), reversed(sums[:-1]), strict=True):
        if without >> left & 1:
            large.append(i)
        else:
            small.append(i)
            left -= lengths[i]
    return large, small


# ---- an optimizer step ---------------------------------------------------------------------------------------------
def plan_micro_batches(
    lengths, max_length: int, strategy="dynamic_pack", *, batch_size=None, tokens_per_micro_batch=None, ranks: int = 1
) -> list[list[list[int]]]:
    """Divide the samples of one optimizer step into micro-batches, each a list of rows as `plan_rows` returns them.

    With `batch_size` the samples are cut into batches of that many, in order, and each is packed by itself (the paper).
    Without, they are packed all together, and the rows dealt to micro-batches of at most `tokens_per_micro_batch` slots
    (default: two rows of `max_length`): the same samples in the step, less padding, and a bounded peak of memory.

    The number of micro-batches is a multiple of `ranks`, filled up with empty ones where need be; rank r takes every
    `ranks`-th from r on. Raises DataError as `plan_rows`, and for a budget that cannot hold the longest row.
    """
    strategy, lengths = as_strategy(strategy), [int(n) for n in lengths]
    if batch_size is not None:
        batches = [range(start, min(start + batch_size, len(lengths))) for start in range(0, len(lengths), batch_size)]
        plans = [_plan_part(part, lengths, max_length, strategy) for part in batches]
    else:
        plans = _plan_window(lengths, max_length, strategy, tokens_per_micro_batch or 2 * max_length, ranks)
    return plans + [[] for _ in range(-len(plans) % ranks)]


def _plan_part(part, lengths, max_length, strategy):
    rows = plan_rows([lengths[i] for i in part], max_length, strategy)
    return [[part[i] for i in row] for row in rows]


def _plan_window(lengths, max_length, strategy, budget, ranks):
    if not lengths:
        return []
    if strategy is PaddingStrategy.FLAT:  # one row a micro-batch, as long as the budget allows
        _check_lengths(lengths, min(budget, max_length))
        return [[row] for row in _fewest_balanced_rows(lengths, budget)]
    rows = plan_rows(lengths, max_length, strategy)
    widths = [max_length if strategy is PaddingStrategy.TRADITIONAL else sum(lengths[i] for i in row) for row in rows]
    order = sorted(range(len(rows)), key=lambda r: -widths[r])
    if widths[order[0]] > budget:
        raise DataError(f"a row of {widths[order[0]]} tokens is more than {budget} tokens_per_micro_batch: raise it")
    groups = _split_until_even(_group_rows(order, widths, budget), ranks)
    return [[rows[r] for r in group] for group in groups]


def _group_rows(order, widths, budget):
    """Rows of falling width in groups that fill at most `budget` slots each, padded to their first."""
    groups = []
    for r in order:
        if not groups or (len(groups[-1]) + 1) * widths[groups[-1][0]] > budget:
            groups.append([])
        groups[-1].append(r)
    return groups


def _split_until_even(groups, ranks):
    """Halve the groups of most rows until every rank gets equally many, which keeps all ranks busy."""
    while len(groups) % ranks and max(map(len, groups)) > 1:
        largest = max(groups, key=len)
        at, half = groups.index(largest), len(largest) // 2
        groups[at : at + 1] = [largest[:half], largest[half:]]
    return groups


def shape_of(rows, lengths, max_length: int, strategy) -> tuple[int, int]:
    """Rows and slots per row of a micro-batch once it is laid out; an empty one is a row of two slots."""
    if as_strategy(strategy) is PaddingStrategy.TRADITIONAL:
        return max(len(rows), 1), max_length
    return (len(rows), _longest(rows, lengths)) if rows else (1, 2)
