"""Edits and their labels: by hand, round trips, shortest, substitutions one for one; the loss and where it is least."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.maths.edits import (
    BAD,
    GOOD,
    NEUTRAL,
    Edit,
    edit_labels,
    edit_script,
    edited,
    least_share,
    token_label_loss,
)

sequences = st.lists(st.integers(0, 3), max_size=12)  # few symbols: many ways to align


def common(a, b):
    """Length of a longest common subsequence, by the recursion itself."""
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + common(a[1:], b[1:])
    return max(common(a[1:], b), common(a, b[1:]))


def test_by_hand():
    before, after = [1, 2, 3, 4, 5, 6], [1, 9, 8, 3, 4, 6, 7]
    assert edit_script(before, after) == [Edit(1, 2, (9, 8)), Edit(4, 5, ()), Edit(6, 6, (7,))]
    labels = edit_labels(before, after)
    assert labels.before == [0, BAD, 0, 0, BAD, 0]
    assert labels.after == [0, GOOD, GOOD, 0, 0, 0, GOOD]
    assert labels.share == 5 / 13
    assert edit_script([], []) == [] and edit_labels([], []).share == 0.0
    assert edit_script([], [5]) == [Edit(0, 0, (5,))] and edit_script([5], []) == [Edit(0, 1, ())]


def test_the_least_share_by_hand():
    assert least_share([1, 2, 3], [1, 3, 9, 9]) == pytest.approx(3 / 7)  # 1 and 3 may stay
    assert least_share([3, 1], [1, 3]) == 0.0 < edit_labels([3, 1], [1, 3]).share  # it knows nothing of order
    assert least_share([1, 1], [1]) == pytest.approx(1 / 3) and least_share([1], []) == 1.0
    assert least_share([], []) == 0.0


@given(sequences, sequences)
@settings(max_examples=150, deadline=None)
def test_a_script_makes_the_second_of_the_first_and_labels_what_it_touches(before, after):
    script = edit_script(before, after)
    assert edited(before, script) == after
    assert all(edit.start < edit.end or edit.replacement for edit in script)
    assert all(first.end < second.start for first, second in pairwise(script))
    labels = edit_labels(before, after)
    assert labels.before.count(BAD) == sum(edit.end - edit.start for edit in script)
    assert labels.after.count(GOOD) == sum(len(edit.replacement) for edit in script)
    assert [token for token, label in zip(before, labels.before, strict=True) if label == NEUTRAL] == [
        token for token, label in zip(after, labels.after, strict=True) if label == NEUTRAL
    ]
    assert least_share(before, after) <= labels.share + 1e-12


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
@settings(max_examples=60, deadline=None)
def test_no_script_touches_fewer_tokens(before, after):
    labels = edit_labels(before, after)
    stay = common(before, after)
    assert labels.before.count(BAD) == len(before) - stay and labels.after.count(GOOD) == len(after) - stay


@given(sequences)
@settings(max_examples=30, deadline=None)
def test_equal_sequences_label_nothing(tokens):
    assert edit_script(tokens, tokens) == []
    labels = edit_labels(tokens, list(tokens))
    assert set(labels.before + labels.after) <= {NEUTRAL} and labels.share == 0.0


@given(st.lists(st.integers(0, 2), min_size=1, max_size=15), st.data())
@settings(max_examples=100, deadline=None)
def test_substitutions_by_new_tokens_are_counted_one_for_one(before, data):
    places = data.draw(st.sets(st.integers(0, len(before) - 1)))
    after = [100 + i if i in places else token for i, token in enumerate(before)]
    labels = edit_labels(before, after)
    assert [i for i, label in enumerate(labels.before) if label == BAD] == sorted(places)
    assert [i for i, label in enumerate(labels.after) if label == GOOD] == sorted(places)
    assert sum(len(edit.replacement) for edit in edit_script(before, after)) == len(places)  # the edit distance


def test_a_longest_block_first_would_label_too_much():
    """Why not difflib: its longest common block can lie across the substitutions."""
    from difflib import SequenceMatcher

    before, after = [1, 2, 1, 2, 3], [1, 9, 1, 2, 8]
    opcodes = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    assert sum(i2 - i1 for tag, i1, i2, _, _ in opcodes if tag != "equal") == 3
    assert edit_labels(before, after).before == [0, BAD, 0, 0, BAD]


def loss(g, labels, mask=None, weights=(1.0,), certainty=(1.0,), neutral=0.5):
    g, labels = torch.as_tensor(g), torch.tensor(labels)
    mask = torch.ones_like(labels, dtype=torch.bool) if mask is None else torch.tensor(mask)
    return token_label_loss(g, labels, mask, torch.tensor(weights), torch.tensor(certainty), neutral)


def test_the_loss_by_hand():
    # -log σ(2) = 0.126928, -log σ(-1) = 1.313262 (bad, g = 1), 0.5 · 3² = 4.5; three tokens
    assert loss([[2.0, 1.0, 3.0]], [[GOOD, BAD, NEUTRAL]]).item() == pytest.approx(
        (0.126928 + 1.313262 + 4.5) / 3, rel=1e-5
    )
    # p = 0.8: 0.8 · 0.126928 + 0.2 · 2.126928
    assert loss([[2.0]], [[GOOD]], certainty=(0.8,)).item() == pytest.approx(0.526928, rel=1e-5)
    # weights 3 and 1 over one and two tokens that count; what is masked out may be anything
    both = loss(
        [[2.0, float("nan")], [1.0, 3.0]],
        [[GOOD, BAD], [BAD, NEUTRAL]],
        [[True, False], [True, True]],
        (3.0, 1.0),
        (0.8, 1.0),
    )
    assert both.item() == pytest.approx((3 * 0.526928 + 1.313262 + 4.5) / 5, rel=1e-5)


@pytest.mark.parametrize("certainty", [0.7, 0.9])
@pytest.mark.parametrize("label", [BAD, GOOD])
def test_the_loss_is_least_where_the_model_is_as_sure_as_the_pair(label, certainty):
    best = label * math.log(certainty / (1 - certainty))
    g = torch.tensor([[best]], dtype=torch.float64, requires_grad=True)
    loss(g, [[label]], certainty=(certainty,)).backward()
    assert g.grad.item() == pytest.approx(0.0, abs=1e-7)
    nearby = [loss([[best + step]], [[label]], certainty=(certainty,)).item() for step in (-0.5, 0.5)]
    assert min(nearby) > loss([[best]], [[label]], certainty=(certainty,)).item()


def test_nothing_is_learned_where_nothing_counts():
    g = torch.tensor([[2.0, float("nan")]], requires_grad=True)
    loss(g, [[GOOD, BAD]], [[True, False]]).backward()
    assert g.grad[0].tolist() == pytest.approx([-1 / (1 + math.exp(2)), 0.0])


def test_every_label_pulls_its_own_way():
    g = torch.zeros(1, 3, requires_grad=True)
    loss(g + torch.tensor([[0.0, 0.0, 0.5]]), [[GOOD, BAD, NEUTRAL]]).backward()
    assert g.grad[0, 0] < 0 < g.grad[0, 1] and g.grad[0, 2] > 0
