"""Statistics over groups: every row in its group, groups in the order in which they appear, lone rows left out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.maths.grouping import group_means, within_group_variance

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
