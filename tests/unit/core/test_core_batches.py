"""Batches that cannot be built wrong, and padding that means nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.core.batches import Sequences, TokenBatch, length_groups, pad_left, pad_right, positions

rows = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=6), min_size=1, max_size=6)
pairs = st.lists(
    st.tuples(
        st.lists(st.integers(1, 99), min_size=1, max_size=6), st.lists(st.integers(1, 99), min_size=1, max_size=6)
    ),
    min_size=1,
    max_size=6,
)


def batch(prompts, responses, fill=0) -> TokenBatch:
    return TokenBatch(*pad_left(prompts, fill), *pad_right(responses, fill))


def tokens(of: TokenBatch) -> list[tuple[list[int], list[int]]]:
    """The token rows of a batch, padding removed."""
    prompts = [ids[mask].tolist() for ids, mask in zip(of.prompt_ids, of.prompt_mask, strict=True)]
    responses = [ids[mask].tolist() for ids, mask in zip(of.response_ids, of.response_mask, strict=True)]
    return list(zip(prompts, responses, strict=True))


@given(rows, st.integers(0, 99))
def test_padding_goes_to_its_side(sequences, fill):
    width = max(map(len, sequences))
    for (ids, mask), side in ((pad_left(sequences, fill), "left"), (pad_right(sequences, fill), "right")):
        assert ids.dtype == torch.int64
        assert mask.dtype == torch.bool
        for row, of, counts in zip(sequences, ids.tolist(), mask.tolist(), strict=True):
            missing = width - len(row)
            assert of == ([fill] * missing + row if side == "left" else row + [fill] * missing)
            assert counts == sorted(counts, reverse=side == "right")
            assert sum(counts) == len(row)


@given(pairs)
def test_positions_count_from_the_first_token_whatever_the_padding(drawn):
    """A row alone, without padding, has the positions it has in the batch."""
    made = batch(*zip(*drawn, strict=True))
    for index, (prompt, response) in enumerate(drawn):
        counts = made.attention_mask[index]
        assert made.position_ids[index][counts].tolist() == list(range(len(prompt) + len(response)))
    assert made.position_ids[:, 0].eq(0).all()


def test_positions_by_hand():
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    assert positions(mask).tolist() == [[0, 0, 0, 1, 2, 2], [0, 1, 2, 3, 4, 5]]


@given(pairs, st.data())
def test_rows_trim_padding_and_nothing_else(drawn, data):
    made = batch(*zip(*drawn, strict=True))
    index = data.draw(st.lists(st.integers(0, len(drawn) - 1), min_size=1, max_size=8))
    some = made.rows(torch.tensor(index))
    assert tokens(some) == [drawn[i] for i in index]
    assert some.prompt_ids.shape[1] == max(len(drawn[i][0]) for i in index)
    assert some.response_ids.shape[1] == max(len(drawn[i][1]) for i in index)
    assert len(some) == len(index)


def test_rows_chosen_by_a_mask():
    made = batch([[1], [2, 3], [4]], [[5, 6], [7], [8]])
    assert tokens(made.rows(torch.tensor([True, False, True]))) == [([1], [5, 6]), ([4], [8])]


def test_side_by_side():
    made = batch([[1], [2, 3]], [[4, 5], [6]])
    assert made.input_ids.tolist() == [[0, 1, 4, 5], [2, 3, 6, 0]]
    assert made.attention_mask.tolist() == [[False, True, True, True], [True, True, True, False]]


IDS, MASK = torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool)
EMPTY_ROW = torch.tensor([[True, True, True], [False, False, False]])


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((IDS, MASK[:, :2], IDS, MASK), r"prompt ids \(2, 3\) and bool mask \(2, 2\)"),
        ((IDS, MASK, IDS, MASK[:1]), r"response ids \(2, 3\) and bool mask \(1, 3\)"),
        ((IDS, MASK.long(), IDS, MASK), "prompt ids"),
        ((IDS[0], MASK[0], IDS, MASK), r"prompt ids \(3,\)"),
        ((IDS, EMPTY_ROW, IDS, MASK), "no prompt token"),
        ((IDS, MASK, IDS, EMPTY_ROW), "no response token"),
        ((IDS, MASK, IDS[:1], MASK[:1]), "2 prompts but 1 responses"),
    ],
)
def test_inconsistent_shapes_are_refused(parts, said):
    with pytest.raises(ValueError, match=said):
        TokenBatch(*parts)


def test_a_batch_is_frozen():
    with pytest.raises(AttributeError):
        batch([[1]], [[2]]).prompt_ids = IDS  # type: ignore[misc]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), most=st.integers(1, 200), price=st.integers(0, 60)
)
def test_rows_are_grouped_at_the_least_cost(lengths, most, price):
    def cost(groups):
        return sum(price + len(rows) * max(lengths[row] for row in rows) for rows in groups)

    groups = length_groups(lengths, most, price)
    assert sorted(row for rows in groups for row in rows) == list(range(len(lengths)))
    assert all(len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= most for rows in groups)
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    cuts = range(2 ** (len(order) - 1)) if len(order) <= 9 else []  # every way to cut the sorted rows
    for cut in cuts:
        other, start = [], 0
        for end in range(1, len(order) + 1):
            if end == len(order) or cut >> (end - 1) & 1:
                other.append(order[start:end])
                start = end
        if all(len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= most for rows in other):
            assert cost(groups) <= cost(other)


def test_sequences_hold_prompts_and_answers_without_a_gap():
    sequences = Sequences.of(batch([[5], [6, 7, 8]], [[11, 12, 13], [14]]))
    assert sequences.input_ids[:, :4].tolist() == [[5, 11, 12, 13], [6, 7, 8, 14]]
    assert sequences.rows.tolist() == [0, 0, 0, 1] and sequences.places.tolist() == [0, 1, 2, 2]
    assert sequences.targets.tolist() == [11, 12, 13, 14]
    spread = sequences.spread(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert spread.tolist() == [[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]]
