"""F1 of every prefix with a reference: by hand, against the definition, and of the prefix alone."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.maths.overlap import prefix_f1

tokens = st.lists(st.integers(0, 3), max_size=10)


def test_by_hand():
    # nothing; {1} and {1,2,3}: 2·1/4; {1,2}: 2·2/5; {1,2,9}: 2·2/6
    assert prefix_f1([1, 2, 9, 3], [1, 2, 3]) == [0.0, 0.5, 0.8, 4 / 6]
    assert prefix_f1([1, 1, 1], [1]) == [0.0, 1.0, 2 / 3]  # a second 1 is not in the reference
    assert prefix_f1([], [1]) == [] and prefix_f1([1, 2], []) == [0.0, 0.0]


@given(tokens, tokens)
@settings(max_examples=60, deadline=None)
def test_it_is_the_definition_on_every_prefix(written, reference):
    for count, value in enumerate(prefix_f1(written, reference)):
        shared = (Counter(written[:count]) & Counter(reference)).total()
        size = count + len(reference)
        assert value == (2 * shared / size if size else 0.0)


@given(tokens, tokens, tokens)
@settings(max_examples=40, deadline=None)
def test_what_comes_later_does_not_matter(written, later, reference):
    """A potential may depend on the state alone."""
    assert prefix_f1(written + later, reference)[: len(written)] == prefix_f1(written, reference)
