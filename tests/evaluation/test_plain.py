"""Outputs on their way from a solution to its judge: what EvalPlus accepts is confirmed after the journey too."""

import json
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codeact_lib.evaluation.boxed import judge, plain

TASK = {"entry_point": "f", "atol": 0}
SET_TASK = {"entry_point": "similar_elements", "atol": 0}  # EvalPlus compares its outputs as sets

numbers = st.one_of(
    st.booleans(), st.integers(), st.floats(allow_nan=False), st.fractions(), st.decimals(allow_nan=False)
)
atoms = st.one_of(st.none(), numbers, st.text(max_size=5), st.binary(max_size=5), st.complex_numbers(allow_nan=False))
hashable = st.recursive(
    atoms, lambda inner: st.one_of(st.tuples(inner, inner), st.frozensets(inner, max_size=3)), max_leaves=4
)
values = st.recursive(
    st.one_of(hashable, st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 3))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.sets(hashable, max_size=4),
        st.dictionaries(hashable, inner, max_size=4),
        st.dictionaries(hashable, inner, max_size=4).map(OrderedDict),
        st.dictionaries(hashable, inner, max_size=4).map(lambda d: d.keys()),
        st.dictionaries(hashable, inner, max_size=4).map(lambda d: d.items()),
        st.lists(hashable, max_size=4).map(Counter),
    ),
    max_leaves=8,
)


def after_the_journey(value, large=plain.LARGE):
    return plain.decode(json.loads(json.dumps(plain.encode_output(value, large))))


def accepted(task, output, expected, kind="mbpp"):
    return judge.is_borne_out(kind, task, [output], [[]], [expected])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(values, values)
def test_what_evalplus_accepts_is_accepted_after_the_journey(value, other):
    for expected in (value, other):
        if accepted(TASK, value, expected):
            assert accepted(TASK, after_the_journey(value), after_the_journey(expected))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(values, values)
def test_what_evalplus_refuses_is_refused_after_the_journey(value, other):
    if not accepted(TASK, value, other):
        assert not accepted(TASK, after_the_journey(value), other)


@settings(max_examples=100, deadline=None)
@given(st.lists(hashable, max_size=6))
def test_where_a_set_is_wanted_any_iterable_is_as_good(entries):
    wrapped = [
        iter(entries),
        (entry for entry in entries),
        dict.fromkeys(entries).keys(),
        deque(entries),
        entries[::-1],
    ]
    wrapped += [defaultdict(int, dict.fromkeys(entries, 0)), dict(enumerate(entries)).values(), reversed(entries)]
    for value in wrapped:
        assert accepted(SET_TASK, after_the_journey(value), entries)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.integers(), st.text(max_size=3)), max_size=6), st.randoms())
def test_a_digest_knows_no_order_of_sets_and_dicts_and_no_last_digits(entries, chance):
    pairs = list(enumerate(entries))
    chance.shuffle(pairs)
    assert after_the_journey(dict(pairs), 0) == after_the_journey(dict(enumerate(entries)), 0)
    assert after_the_journey(set(entries), 0) == after_the_journey(set(entries[::-1]), 0)


def test_a_digest_tells_apart_what_evalplus_tells_apart():
    for a, b in [([1], [2]), ([1], (1,)), ({1: 2}, {2: 1}), ("1", 1), ([0.1], [0.2]), ({1}, [1]), (None, 0)]:
        assert after_the_journey(a, 0) != after_the_journey(b, 0)
    for a, b in [([True], [1]), ([2.0], [2]), ([0.1 + 0.2], [0.3]), ({1, 2}, frozenset({2, 1}))]:
        assert after_the_journey(a, 0) == after_the_journey(b, 0)


@pytest.mark.parametrize(
    "value", [np.float64(1.5), np.int32(3), np.arange(4), [np.float32(0.5)], Fraction(1, 3), Decimal("1.10"), 1 << 99]
)
def test_values_of_other_kinds_come_through_as_what_they_equal(value):
    assert np.all(np.asarray(after_the_journey(value) == value))


class Odd:
    def __eq__(self, other):
        return True


@pytest.mark.parametrize("value", [Odd(), [Odd()], SimpleNamespace(), sys, lambda: 0, object])
def test_an_object_with_a_judgement_of_its_own_is_never_accepted(value):
    assert not accepted(TASK, after_the_journey(value), 3)
    assert not accepted(TASK, after_the_journey(value), [3])


def test_an_iterator_without_end_is_read_no_further_than_a_million_entries():
    from itertools import count

    assert sum(1 for _ in after_the_journey(count())) == plain.MOST_ENTRIES
