"""Conservative scores by hand, and what they are for: not to choose what nobody is sure of."""

from __future__ import annotations

import numpy as np
import pytest

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.estimates import RewardEstimate
from inverse_alignment.maths.best_of_n import best_of_n
from inverse_alignment.maths.caution import lower_bound, uncertainty_weighted, worst_case
from inverse_alignment.models.caution_settings import LowerBound, MeanScore, UncertaintyWeighted, WorstCase
from inverse_alignment.models.reward_scores import CalibratedReward, Calibration, conservative

MEMBERS = np.array([[1.0, 5.0, 2.0], [3.0, -1.0, 2.0]])
ESTIMATE = RewardEstimate(MEMBERS.mean(0), MEMBERS.std(0, ddof=1), members=MEMBERS)


def test_by_hand():
    mean, std = np.array([2.0, 2.0]), np.array([0.0, 2.0])
    assert lower_bound(mean, std, 1.5).tolist() == [2.0, -1.0]
    assert lower_bound(mean, std, 0.0).tolist() == [2.0, 2.0]  # k = 0 is the mean
    assert uncertainty_weighted(mean, std, 0.25).tolist() == [2.0, 1.0]
    assert worst_case(MEMBERS).tolist() == [1.0, -1.0, 2.0]


def test_each_caution_is_what_it_says():
    std = np.array([2**0.5, 18**0.5, 0.0])
    assert conservative(ESTIMATE, MeanScore()).tolist() == [2.0, 2.0, 2.0]
    np.testing.assert_allclose(conservative(ESTIMATE, LowerBound(k=2.0)), 2.0 - 2.0 * std)
    np.testing.assert_allclose(conservative(ESTIMATE, UncertaintyWeighted(coefficient=0.5)), [1.0, -7.0, 2.0])
    assert conservative(ESTIMATE, WorstCase()).tolist() == [1.0, -1.0, 2.0]


@pytest.mark.parametrize("caution", [LowerBound(), WorstCase(), UncertaintyWeighted()])
def test_a_model_that_does_not_say_how_sure_it_is_is_refused(caution):
    with pytest.raises(UserError, match="does not say"):
        conservative(RewardEstimate(np.zeros(2)), caution)


def test_caution_is_in_standard_deviations_of_the_reference_sample():
    class Scorer:
        def __call__(self, prompts, responses):
            return ESTIMATE.mean

        def estimate(self, prompts, responses):
            return ESTIMATE

    reward = CalibratedReward(Scorer(), Calibration(mean=1.0, std=2.0, answers=3))
    assert reward((), ()).tolist() == [0.5, 0.5, 0.5]
    np.testing.assert_allclose(reward.cautious(LowerBound())((), ()), 0.5 - np.array([2**0.5, 18**0.5, 0.0]) / 2)
    assert reward.cautious(WorstCase())((), ()).tolist() == [0.0, -1.0, 0.5]
    weighted = reward.cautious(UncertaintyWeighted(coefficient=1.0))((), ())
    np.testing.assert_allclose(weighted, [0.0, -4.0, 0.5], atol=1e-12)


def test_caution_passes_over_the_winner_that_nobody_is_sure_of():
    """A proxy that is far off where it is not sure: its mean chooses those answers, and caution does not."""
    generator = np.random.default_rng(0)
    gold = generator.normal(size=(400, 16))
    std = np.where(generator.random(gold.shape) < 0.2, 2.0, 0.1)
    proxy = gold + std * generator.normal(size=gold.shape)
    naive, careful = (best_of_n(lower_bound(proxy, std, k), gold, 16) for k in (0.0, 2.0))
    assert best_of_n(proxy, gold, 16) == naive and careful > naive + 0.4
    blind = best_of_n(lower_bound(proxy, generator.permuted(std, axis=1), 2.0), gold, 16)
    assert blind < naive + 0.1  # the negative control: doubts about the wrong answers
