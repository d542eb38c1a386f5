"""Bradley-Terry: symmetries of its likelihood and loss; bootstrap of a gain and the best scale where they are known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.maths.pairwise import (
    accuracy,
    best_scale,
    bradley_terry_loss,
    paired_gain,
    preference_log_likelihood,
)

numbers = st.floats(-8, 8)
WAVE = torch.sin(torch.arange(30.0)).double()


def row(*values):
    return torch.tensor(values, dtype=torch.float64)


@given(numbers, numbers)
@settings(max_examples=40, deadline=None)
def test_one_of_two_answers_is_preferred(first, second):
    a, b = row(first), row(second)
    either = preference_log_likelihood(a, b).exp() + preference_log_likelihood(b, a).exp()
    torch.testing.assert_close(either, row(1.0))
    odds = preference_log_likelihood(a, b) - preference_log_likelihood(b, a)
    torch.testing.assert_close(odds, a - b)  # the log-odds are the difference of the scores


@given(st.lists(st.tuples(numbers, numbers, st.floats(0.1, 4), numbers, st.floats(0.5, 1)), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_the_loss_under_changes_that_change_nothing(rows):
    chosen, rejected, weights, margins, labels = torch.tensor(rows, dtype=torch.float64).unbind(-1)
    loss = bradley_terry_loss(chosen, rejected, weights, margins, labels, 0.1, 0.2)
    torch.testing.assert_close(bradley_terry_loss(chosen, rejected, 7 * weights, margins, labels, 0.1, 0.2), loss)
    turned = bradley_terry_loss(rejected, chosen, weights, -margins, 1 - labels, 0.1, 0.2)
    torch.testing.assert_close(turned, loss)  # the other way round with the other label
    # a pair without weight
    wider = [torch.cat([column, column[:1]]) for column in (chosen, rejected, weights, margins, labels)]
    wider[0], wider[2] = torch.cat([chosen, row(3.0)]), torch.cat([weights, row(0.0)])
    plain = bradley_terry_loss(chosen, rejected, weights, margins, labels, 0.1)
    torch.testing.assert_close(bradley_terry_loss(*wider, 0.1), plain)
    right = 0.9 * labels + 0.1 * (1 - labels)
    entropy = -(right * right.log() + (1 - right) * (1 - right).log())  # no loss is below that of its label
    assert plain >= (weights * entropy).sum() / weights.sum() - 1e-9


def test_the_options_of_the_loss_are_off_unless_asked_for():
    pair = (row(2.0), row(1.0), row(1.0), row(0.0), row(1.0))
    assert bradley_terry_loss(*pair) == bradley_terry_loss(*pair, 0.0, 0.0)
    assert bradley_terry_loss(*pair).item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_centring_is_about_the_sum_of_the_scores():
    # sums 3 and -1, gaps 1 and 1 of margin 1: log 2, and ½ (9 + 1) / 2
    chosen, rejected, ones = row(2.0, 0.0), row(1.0, -1.0), row(1.0, 1.0)
    centred = bradley_terry_loss(chosen, rejected, ones, ones, ones, centring=0.5)
    assert centred.item() == pytest.approx(math.log(2) + 2.5)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_accuracies_of_labels_and_of_their_contrary_sum_to_one(pairs):
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).unbind(-1)
    assert (accuracy(chosen, rejected) + accuracy(rejected, chosen)).item() == pytest.approx(1.0)


def test_accuracy_is_counted_in_double_precision():
    chosen = torch.cat([torch.ones(1), torch.zeros(2)])
    assert accuracy(chosen, torch.tensor([0.0, 1.0, 1.0])).item() == 1 / 3
    assert accuracy(torch.zeros(3), torch.tensor([0.0, 1.0, 1.0])).item() == 1 / 6


@pytest.mark.parametrize(("confidence", "low"), [(0.9, 0.0), (0.6, 1.0), (0.2, 2.0)])
def test_the_bound_of_a_gain_of_two_pairs(confidence, low):
    # gains 0 and 2: the means of two draws are 0, 1 and 2 with probability ¼, ½ and ¼
    found = paired_gain(row(1.0, 3.0), row(1.0, 1.0), confidence, 2001, 0)
    assert found.low == low and found.mean == 1.0 and found.pairs == 2
    z = {0.9: 1.2815515655446004, 0.6: 0.2533471031357997, 0.2: -0.8416212335729143}[confidence]
    assert found.detectable == pytest.approx(z + 0.8416212335729143, rel=1e-12)  # sd √2 over √2


def test_more_pairs_show_smaller_gains():
    few, many = (paired_gain(WAVE.repeat(n), WAVE.repeat(n) * 0, 0.9, 100, 0) for n in (1, 4))
    assert many.detectable == pytest.approx(few.detectable / 2, rel=0.02)
    assert many.pairs == 120


def test_the_seed_of_a_gain_decides_and_nothing_else():
    torch.manual_seed(1)
    first = paired_gain(WAVE, 0.5 * WAVE, 0.9, 100, 3)
    torch.manual_seed(2)
    assert paired_gain(WAVE, 0.5 * WAVE, 0.9, 100, 3) == first
    assert paired_gain(WAVE, 0.5 * WAVE, 0.9, 100, 4).low != first.low
    assert paired_gain(WAVE, 0.5 * WAVE, 0.9, 101, 3).low != first.low


def test_a_gain_is_computed_in_double_precision():
    large = torch.tensor([2.0**24, 1.0, 1.0])
    assert paired_gain(large, torch.zeros(3), 0.9, 10, 0).mean == (2**24 + 2) / 3


def test_a_scale_is_sought_in_double_precision():
    gaps = torch.tensor([2.0**-20, 2.0**-20, 2.0**-20, -(2.0**-20)])
    assert best_scale(1 + 0 * gaps, 1 - gaps) == pytest.approx(math.log(3) * 2**20, rel=1e-9)
    assert best_scale(row(1.0, 0.0), row(0.0, 1.0)) == pytest.approx(0.0, abs=1e-12)  # as often wrong as right


@pytest.mark.parametrize("places", [33, 43])
def test_a_scale_is_the_best_one_cut_off_after_sixty_binary_places_of_the_range(places):
    # log 3 again, of a range so large that a float holds every place; what is cut off depends on the number of halvings
    found = best_scale(row(1.0, 1.0, 1.0, 0.0), row(0.0, 0.0, 0.0, 1.0), 2.0 ** (60 - places))
    assert found == math.floor(math.log(3) * 2**places) / 2**places


def test_a_slope_too_small_for_a_float_counts_as_none():
    # one gap of 1 among ten: the range ends at 1000, and the slope at log of the largest float or of its inverse
    found = best_scale(row(1.0, *[0.0] * 9), row(*[0.0] * 10))
    assert 709 < found < 746


@pytest.mark.parametrize("largest", [100.0, 7.0])
def test_where_every_pair_is_ranked_as_labelled_the_scale_is_the_bound(largest):
    assert best_scale(row(1.0, 5.0), row(0.0, 0.0), largest) == largest / 3
    assert best_scale(row(1.0, 5.0), row(0.0, 0.0)) == 100 / 3


def test_one_pair_is_enough_for_a_scale_and_two_for_a_gain():
    assert best_scale(row(1.0), row(0.0)) == 100.0
    assert best_scale(row(1.0, 2.0), row(1.0, 0.0)) == 100.0  # a pair of equal scores says nothing
    for empty in (row(), row(1.0)):
        with pytest.raises(ValueError, match="at least"):
            best_scale(empty, empty)
        with pytest.raises(ValueError, match="at least two"):
            paired_gain(empty, empty, 0.9, 10, 0)
