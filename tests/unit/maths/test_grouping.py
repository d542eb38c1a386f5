"""Statistics over groups: every row in its group, groups in the order in which they appear, lone rows left out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.maths.grouping import (
    group_means,
    order_agreement,
    within_group_correlation,
    within_group_variance,
)

rows = st.lists(st.tuples(st.sampled_from("abc"), st.floats(-5, 5)), min_size=1, max_size=12)


@given(rows)
@settings(max_examples=60, deadline=None)
def test_against_the_definitions(table):
    groups, values = [group for group, _ in table], np.array([value for _, value in table])
    order = list(dict.fromkeys(groups))
    members = {group: [value for name, value in table if name == group] for group in order}
    assert group_means(values, groups).tolist() == pytest.approx(
        [sum(members[group]) / len(members[group]) for group in order]
    )
    spreads = []
    for group in order:
        n, mean = len(members[group]), sum(members[group]) / len(members[group])
        if n > 1:
            spreads.append(sum((value - mean) ** 2 for value in members[group]) / (n - 1))
    found = within_group_variance(values, groups)
    assert found == pytest.approx(sum(spreads) / len(spreads), abs=1e-12) if spreads else math.isnan(found)


def test_a_value_without_a_group_is_refused():
    with pytest.raises(ValueError, match="argument"):
        group_means(np.array([1.0, 2.0]), ["a"])


def test_means_are_taken_in_double_precision():
    values, groups = np.array([2.0**24, 1.0, 1.0], dtype=np.float32), ["a"] * 3
    assert group_means(values, groups).tolist() == [(2**24 + 2) / 3]
    variance = within_group_variance(np.array([2.0**12, 1.0, 1.0], dtype=np.float32), groups)
    assert variance == (2**12 - 1) ** 2 / 3 and type(variance) is float


two = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=10)


@given(two)
@settings(max_examples=60, deadline=None)
def test_agreement_against_the_definition(table):
    groups, first, second = (list(column) for column in zip(*table, strict=True))
    seen = []
    for i in range(len(table)):
        for j in range(i):
            one, other = np.sign(first[i] - first[j]), np.sign(second[i] - second[j])
            if groups[i] == groups[j] and (one or other):
                seen.append(0.5 if not one or not other else float(one == other))
    found = order_agreement(np.array(first), np.array(second), groups)
    assert found == pytest.approx(np.mean(seen)) if seen else math.isnan(found)


@given(two, st.integers(-9, 9))
@settings(max_examples=60, deadline=None)
def test_what_is_added_to_a_group_changes_neither_order_nor_correlation(table, shift):
    groups, first, second = (list(column) for column in zip(*table, strict=True))
    first, second = np.array(first, dtype=float), np.array(second, dtype=float)
    moved = second + shift * np.array([group == "a" for group in groups])
    for measure in (order_agreement, within_group_correlation):
        found, same = measure(first, second, groups), measure(first, moved, groups)
        assert same == pytest.approx(found, abs=1e-9, nan_ok=True)
    alone = within_group_correlation(first, first, groups)
    assert math.isnan(alone) or alone == pytest.approx(1.0)
    assert within_group_correlation(first, -first, groups) == pytest.approx(-alone, nan_ok=True)


def test_with_one_group_it_is_pearsons_correlation():
    generator = np.random.Generator(np.random.Philox(key=0))
    first, second = generator.normal(size=(2, 9))
    found = within_group_correlation(first, second, ["a"] * 9)
    assert found == pytest.approx(np.corrcoef(first, second)[0, 1])
