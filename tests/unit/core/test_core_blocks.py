"""Blocks that the content cuts: whole, in order, and blind to what happens far away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inverse_alignment.core.blocks import ahead, blocks, digest, in_order

TEXTS = st.lists(st.text(max_size=3), max_size=60)


@given(TEXTS, st.integers(1, 8), st.integers(1, 12))
def test_every_row_once_in_order_and_never_too_many(texts, mean, most):
    cut = list(blocks(texts, str, mean, most))
    assert [text for block in cut for text in block] == texts
    assert all(1 <= len(block) <= most for block in cut)


def test_a_row_that_is_added_changes_the_block_it_comes_into():
    texts = [f"row {i}" for i in range(5000)]
    before = {digest(block) for block in blocks(texts, str, 64, 10_000)}
    after = {digest(block) for block in blocks([*texts[:2500], "new", *texts[2500:]], str, 64, 10_000)}
    assert 50 < len(before) < 110  # 5000 / 64 = 78
    assert len(before - after) == 1 and len(after - before) <= 2


def test_equal_rows_end_at_the_bound():
    assert [len(block) for block in blocks(["same"] * 10, str, 2**31, 4)] == [4, 4, 2]


def test_empty_texts_end_no_block():
    assert [len(block) for block in blocks([""] * 10, str, 512, 6)] == [6, 4]


def test_nothing_is_read_ahead():
    read = []

    def rows():
        for i in range(10):
            read.append(i)
            yield str(i)

    first = next(blocks(rows(), str, 2**31, 3))
    assert first == ["0", "1", "2"] and read == [0, 1, 2]


@given(st.lists(st.text(max_size=3), max_size=5), st.lists(st.text(max_size=3), max_size=5))
def test_a_digest_knows_where_texts_end(one, other):
    assert (digest(one) == digest(other)) == (one == other)


def test_in_order_is_lazy():
    assert next(iter(in_order(lambda x: 1 / x, [2, 0]))) == 0.5


@given(st.lists(st.integers(), max_size=8))
def test_items_made_ahead_are_the_items(items):
    assert list(ahead(iter(items))) == items


def test_one_item_is_made_ahead_and_an_error_comes_in_its_place():
    made = []

    def items():
        for i in range(5):
            made.append(i)
            if i == 3:
                raise ValueError("at three")
            yield i

    coming = ahead(items())
    assert next(coming) == 0
    coming.close()  # whoever stops early waits for the one that is being made
    assert made == [0, 1]
    made.clear()
    got = []
    with pytest.raises(ValueError, match="at three"):
        got.extend(ahead(items()))
    assert got == [0, 1, 2]
