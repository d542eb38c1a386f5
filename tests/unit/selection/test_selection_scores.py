"""What selectors say of pairs: log-probabilities, margins, uncertainty, influence; and the sign flip of a refresh."""

from __future__ import annotations

import math

import numpy as np
import pytest

from inverse_alignment.core.errors import UserError
from inverse_alignment.maths.linear_reward import fit_linear_reward, spread_gradient
from inverse_alignment.models.answer_log_probs import LogProbs
from inverse_alignment.models.score_features import PairFeatures, Scored
from inverse_alignment.selection.influence import influence_scores
from inverse_alignment.selection.keep import keep_top, keep_weighted
from inverse_alignment.selection.likelihood import PairLogProbs, density_ratio_scores, likelihood_scores, margin_scores
from inverse_alignment.selection.uncertainty import ensemble_scores, laplace_scores


def log_probs(chosen, rejected, counts=None):
    """Log-probabilities of both answers; of one token each where no counts are given."""
    sums = np.array(chosen, dtype=float), np.array(rejected, dtype=float)
    tokens = counts or (np.ones(len(chosen), dtype=int),) * 2
    return PairLogProbs(*(LogProbs(s, np.array(c)) for s, c in zip(sums, tokens, strict=True)))


ORDER = np.arange(3)


def test_likelihood_is_per_token_and_the_log_of_wpos_weight():
    policy = log_probs([-4.0, -8.0, -1.0], [-9.0, -3.0, -2.0], ([2, 8, 1], [3, 3, 4]))
    found = likelihood_scores(policy, ORDER)
    np.testing.assert_allclose(found.values, [-5.0, -2.0, -1.5], rtol=1e-12)  # -2 - 3, -1 - 1, -1 - ½
    weights = keep_weighted(found, found.values, "at").weights
    np.testing.assert_allclose(weights / weights[2], np.exp([-3.5, -0.5, 0.0]), rtol=1e-12)


def test_density_ratios_by_hand():
    policy, reference = log_probs([-1.0, -9.0, -3.0], [-5.0, -5.0, -3.0]), log_probs([-2.0, -5.0, -3.0], [-5.0] * 3)
    plain = density_ratio_scores(policy, reference, 0.0, 0.5, ORDER)
    np.testing.assert_allclose(plain.values, [0.5, -2.0, 1.0], rtol=1e-12)
    relative = density_ratio_scores(policy, reference, 0.1, 1.0, ORDER).values
    ratio = lambda r: -math.log(0.1 + 0.9 * math.exp(-r))  # noqa: E731
    np.testing.assert_allclose(relative, [ratio(1), ratio(-4), ratio(2)], rtol=1e-12)


def test_margins_large_and_small():
    policy = log_probs([-1.0, -4.0, -3.0], [-5.0, -1.0, -3.0])
    reference = log_probs([-2.0, -2.0, -3.0], [-4.0, -2.0, -3.0])
    large = margin_scores(policy, reference, 0.1, "large", ORDER)  # 1 + 1, -2 - 1, 0
    np.testing.assert_allclose(large.values, [0.2, 0.3, 0.0], atol=1e-12)
    small = margin_scores(policy, reference, 0.1, "small", ORDER)
    np.testing.assert_allclose(small.values, [-0.2, -0.3, 0.0], atol=1e-12)
    assert keep_top(large, 1, "at").indices.tolist() == [1] and keep_top(small, 1, "at").indices.tolist() == [2]


def table(seed=0, pairs=80, width=3):
    generator = np.random.Generator(np.random.Philox(key=seed))
    truth, differences = generator.normal(size=width), generator.normal(size=(pairs, width))
    right = generator.random(pairs) < 1 / (1 + np.exp(-differences @ truth))
    differences *= np.where(right, 1.0, -1.0)[:, None]
    head = fit_linear_reward(differences, np.ones(pairs), 0.1, np.zeros(width))
    return PairFeatures(differences, differences @ head, head)


def test_laplace_and_a_large_ensemble_are_as_unsure():
    """Anchored bootstrap samples the same Gaussian posterior, where the likelihood is nearly quadratic."""
    pairs = table(pairs=2000)
    ties = np.arange(2000)
    laplace = laplace_scores(pairs, 1.0, ties).values
    ensemble = ensemble_scores(pairs, 1.0, 60, 5, ties).values
    assert np.median(ensemble / laplace) == pytest.approx(1, abs=0.25)
    assert np.corrcoef(ensemble, laplace)[0, 1] > 0.85


def test_what_no_pair_has_shown_is_most_uncertain_to_both():
    pairs = table(pairs=300)
    hidden = np.zeros((301, 4))
    hidden[:300, :3], hidden[300, 3] = pairs.differences, 1.0  # one pair is alone in a direction of its own
    lone = PairFeatures(hidden, np.append(pairs.gaps, 0.0), np.append(pairs.weights, 0.0))
    for found in (laplace_scores(lone, 1.0, np.arange(301)), ensemble_scores(lone, 1.0, 30, 0, np.arange(301))):
        assert keep_top(found, 1, "at").indices.tolist() == [300]
    assert laplace_scores(lone, 1.0, np.arange(301)).values[300] == pytest.approx(0.8)  # 1 / (1 + ¼)


def test_blocks_change_nothing(monkeypatch):
    pairs, ties, keys = table(), np.arange(80), ["p", "q"] * 40

    def found():
        return [
            laplace_scores(pairs, 1.0, ties).values,
            influence_scores(pairs, keys, rollouts(), KEYS, False, ties).values,
            influence_scores(pairs, keys, rollouts(), KEYS, True, ties).values,
        ]

    whole = found()
    monkeypatch.setattr("inverse_alignment.models.score_features.BLOCK", 7)
    for one, other in zip(whole, found(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


def test_an_ensemble_depends_on_its_seed_alone():
    pairs, ties = table(), np.arange(80)
    first = ensemble_scores(pairs, 1.0, 3, 1, ties).values
    assert (first == ensemble_scores(pairs, 1.0, 3, 1, ties).values).all()
    assert (first != ensemble_scores(pairs, 1.0, 3, 2, ties).values).any()


def rollouts(seed=1, width=3):
    features = np.random.Generator(np.random.Philox(key=seed)).normal(size=(7, width)).astype(np.float32)
    return Scored(features, features.astype(np.float64) @ np.array([1.0, -2.0, 0.5]))


KEYS = ["p", "p", "p", "q", "q", "r", "r"]


def test_influence_is_what_a_step_on_the_pair_does_to_the_spread():
    pairs, answers = table(pairs=6), rollouts()
    found = influence_scores(pairs, ["p"] * 6, answers, KEYS, False, np.arange(6)).values

    def spread(head):
        total = 0.0
        for key in "pqr":
            r = answers.features[[i for i, k in enumerate(KEYS) if k == key]].astype(float) @ head
            total += sum(abs(r[i] - r[j]) for i in range(len(r)) for j in range(i)) * 2 / len(r) ** 2 / 3
        return total

    head, step = np.array([1.0, -2.0, 0.5]), 1e-6
    for row in range(6):
        gradient = pairs.differences[row] / (1 + math.exp(pairs.gaps[row]))
        moved = (spread(head + step * gradient) - spread(head)) / step
        assert found[row] == pytest.approx(moved, abs=1e-5)


def test_influence_by_the_pairs_own_prompt():
    pairs, answers = table(pairs=4), rollouts()
    found = influence_scores(
        pairs, ["q", "unasked", "p", "once"], answers, [*KEYS[:-2], "r", "once"], True, np.arange(4)
    )
    assert found.allowed.tolist() == [True, False, True, False]
    slope = spread_gradient(answers.features[3:5].astype(float), answers.scores[3:5])
    assert found.values[0] == pytest.approx(pairs.differences[0] @ slope / (1 + math.exp(pairs.gaps[0])))
    with pytest.raises(UserError, match=r"only 2 pairs of 4 are candidates \(2 without two rollouts"):
        keep_top(found, 3, "at")


def test_influence_needs_two_answers_to_a_prompt():
    with pytest.raises(UserError, match="no prompt has two rollouts") as error:
        influence_scores(table(pairs=2), ["p", "p"], rollouts(), list("abcdefg"), False, np.arange(2))
    assert error.value.where == "rollout.samples"
    with pytest.raises(UserError, match="no pair's prompt is among the prompts with two rollouts"):
        influence_scores(table(pairs=2), ["x", "y"], rollouts(), KEYS, True, np.arange(2))


# --- the sign flip: true reward x - x²/2, a linear reward model, pairs from N(0, 1), a policy at N(1.2, 1) ------------


def line(seed=0, count=20_000):
    """Features of answers and which of a pair is better, by the true reward."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    a, b = generator.normal(size=(2, count))
    better = generator.random(count) < 1 / (1 + np.exp(-((a - a**2 / 2) - (b - b**2 / 2))))
    return np.where(better, a, b), np.where(better, b, a)


def normal(x, mean):
    return -0.5 * (x - mean) ** 2 - 0.5 * math.log(2 * math.pi)


def refreshed(chosen, rejected, selection):
    """Slope of the linear reward on a selection."""
    rows = selection.indices
    return fit_linear_reward((chosen - rejected)[rows, None], selection.weights, 1e-6, np.zeros(1))[0]


def test_a_refresh_where_the_policy_is_turns_the_reward_round():
    chosen, rejected = line()
    ties = np.random.Generator(np.random.Philox(key=1)).permutation(len(chosen))
    policy = log_probs(normal(chosen, 1.2), normal(rejected, 1.2))
    reference = log_probs(normal(chosen, 0), normal(rejected, 0))
    ratio = density_ratio_scores(policy, reference, 0.0, 1.0, ties)
    likely = likelihood_scores(policy, ties)

    pooled = keep_weighted(ratio, np.zeros(len(chosen)), "at")
    blind = keep_top(density_ratio_scores(reference, reference, 0.0, 1.0, ties), 2000, "at")
    assert refreshed(chosen, rejected, pooled) == pytest.approx(0.76, abs=0.03)
    assert refreshed(chosen, rejected, blind) == pytest.approx(0.76, abs=0.15)  # controls: all, and a random subset

    weighted = keep_weighted(ratio, ratio.values, "at")
    assert refreshed(chosen, rejected, weighted) == pytest.approx(-0.14, abs=0.1)
    assert refreshed(chosen, rejected, keep_top(ratio, 2000, "at")) < -0.1
    # what the policy finds likely still comes from where the pool is dense: the sign is gone, but hardly turned
    assert -0.15 < refreshed(chosen, rejected, keep_top(likely, 2000, "at")) < 0.1

    least = log_probs(-normal(chosen, 1.2), -normal(rejected, 1.2))
    assert refreshed(chosen, rejected, keep_top(likelihood_scores(least, ties), 2000, "at")) > 0.5
