"""A reward model with a posterior: slopes by differences, variance in closed form, and growth where no data is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inverse_alignment.core.errors import UserError
from inverse_alignment.maths.linear_reward import pair_curvature
from inverse_alignment.models.adapters import adapt_trunk
from inverse_alignment.models.ensembles import learned_weights, put_weights, save_member
from inverse_alignment.models.laplace_scores import (
    LaplaceScorer,
    Slopes,
    last_layer_slopes,
    learned_slopes,
    save_laplace,
)
from inverse_alignment.models.reward_scores import RewardScorer, load_scorer
from inverse_alignment.models.score_features import score_layer
from inverse_alignment.reward.laplace import MOST_WEIGHTS, fit_posterior
from tests.unit.models import tiny

CPU = torch.device("cpu")
ANSWERS = ["the cat", "a dog sat", "on the mat", "the end of a dog"]
PAIRS = [tiny.pair(f"q{i}", ANSWERS[i % 4], ANSWERS[(i // 4) % 4], i) for i in range(16) if i % 4 != i // 4]


def scorer(adapted: bool = False) -> RewardScorer:
    model = tiny.reward_model()
    if adapted:
        adapt_trunk(model, 1, 2.0, ("q_proj",), 0)
        generator = torch.Generator().manual_seed(1)
        moved = {
            name: weight + 0.3 * torch.randn(weight.shape, generator=generator)
            for name, weight in learned_weights(model).items()
        }
        put_weights(model, moved)
    return RewardScorer(model, tiny.tokenizer(), 48, 8)


def linear(weights: np.ndarray, features: dict[str, np.ndarray]):
    """A reward that is linear in features of the answer's text."""

    def read(prompts, responses):
        rows = np.array([features[text] for text in responses])
        return Slopes(rows @ weights, rows)

    return read


@pytest.mark.parametrize("adapted", [False, True])
def test_slopes_are_how_the_score_changes_with_the_weights(adapted):
    given = scorer(adapted)
    model = given.model
    read = learned_slopes(given) if adapted else last_layer_slopes(given)
    slopes = read(tiny.PROMPTS, ANSWERS)
    np.testing.assert_allclose(slopes.scores, given(tiny.PROMPTS, ANSWERS), atol=1e-6)
    weights = learned_weights(model) if adapted else {"score.weight": score_layer(model).weight.detach().clone()}
    generator = torch.Generator().manual_seed(0)
    step = {name: 1e-3 * torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}
    sides = []
    for sign in (1, -1):
        put_weights(model, {name: weight + sign * step[name] for name, weight in weights.items()})
        sides.append(given(tiny.PROMPTS, ANSWERS))
    put_weights(model, weights)
    along = slopes.jacobian @ torch.cat([part.reshape(-1) for part in step.values()]).double().numpy()
    np.testing.assert_allclose((sides[0] - sides[1]) / 2, along, atol=2e-6)


def test_the_variance_by_hand_and_what_shifts_all_scores_alike_does_not_count():
    read = linear(np.array([2.0, 7.0]), {"a": np.array([3.0, 1.0]), "b": np.array([1.0, 1.0])})
    found = LaplaceScorer(read, np.diag([4.0, 0.01]), np.array([1.0, 1.0])).estimate(tiny.PROMPTS[:2], ["a", "b"])
    assert found.mean.tolist() == [13.0, 9.0]
    assert found.std.tolist() == [1.0, 0.0]  # 2 / √4; the second weight, of which little is known, moves all alike
    uncentred = LaplaceScorer(read, np.diag([4.0, 0.01]), np.zeros(2)).estimate(tiny.PROMPTS[:2], ["a", "b"])
    assert (uncentred.std > 9.9).all()


def test_it_is_less_sure_where_no_pair_has_been():
    generator = np.random.default_rng(0)
    differences = generator.normal(size=(300, 6)) * np.array([3.0, 3.0, 3.0, 0.0, 0.0, 0.0])
    weights = np.array([1.0, -1.0, 0.5, 0.0, 0.0, 0.0])
    precision = pair_curvature(differences, differences @ weights, np.ones(300), 1.0)
    near, off = np.array([1.0, 1.0, 1.0, 0, 0, 0]), np.array([0, 0, 0, 1.0, 1.0, 1.0])
    features = {"near": near, "off": off, "far": 5 * off, "far along the data": 5 * near}
    given = LaplaceScorer(linear(weights, features), precision, np.zeros(6))
    std = dict(zip(features, given.estimate(tiny.PROMPTS, list(features)).std, strict=True))
    assert std["off"] == pytest.approx(3**0.5)  # the prior's
    assert std["near"] < 0.3 * std["off"] and std["far"] == pytest.approx(5 * std["off"])
    assert std["far along the data"] < std["far"]


@pytest.mark.parametrize("adapted", [False, True])
def test_it_comes_back_as_it_was(tmp_path, adapted):
    given = scorer(adapted)
    read = learned_slopes(given) if adapted else last_layer_slopes(given)
    sample = read(tiny.PROMPTS, ANSWERS).jacobian
    made = LaplaceScorer(read, np.eye(sample.shape[1]) + sample.T @ sample, sample.mean(0))
    before = made.estimate(tiny.PROMPTS, ANSWERS)
    kind, below, own = {"type": "last_layer"}, given.model, None
    if adapted:
        kind, below, own = (
            {"type": "lora", "rank": 1, "alpha": 2.0, "targets": ["q_proj"]},
            tiny.reward_model(),
            tmp_path,
        )
        save_member(learned_weights(given.model), own)
    save_laplace(made, below, tiny.tokenizer(), kind, 1.0, own, tmp_path / "model")
    after = load_scorer(tmp_path / "model", CPU, 48, 8).estimate(tiny.PROMPTS, ANSWERS)
    np.testing.assert_array_equal(after.mean, before.mean)
    np.testing.assert_allclose(after.std, before.std, rtol=1e-9)


def test_a_posterior_that_would_fill_the_memory_is_refused():
    with pytest.raises(UserError, match="too large"):
        fit_posterior(linear(np.zeros(1), {}), PAIRS, np.zeros(MOST_WEIGHTS + 1), 1.0)


@pytest.mark.parametrize("prior", [0.5, 3.0])
def test_laplace_torch_has_the_closed_form_of_a_linear_reward(prior):
    pytest.importorskip("laplace", reason="laplace-torch is not installed")
    generator = np.random.default_rng(1)
    features = {text: generator.normal(size=3) for text in ANSWERS}
    weights = np.array([0.5, -1.0, 2.0])
    found = fit_posterior(linear(weights, features), PAIRS, weights, prior)
    differences = np.array([features[pair.chosen] - features[pair.rejected] for pair in PAIRS])
    expected = pair_curvature(differences, differences @ weights, np.ones(len(PAIRS)), prior)
    np.testing.assert_allclose(found.precision, expected, rtol=1e-6)
    assert found.prior == pytest.approx(prior)


def test_laplace_torch_looks_at_adapters_as_gauss_newton_does():
    pytest.importorskip("laplace", reason="laplace-torch is not installed")
    given = scorer(adapted=True)
    read = learned_slopes(given)
    weights = torch.cat([weight.reshape(-1) for weight in learned_weights(given.model).values()]).double().numpy()
    found = fit_posterior(read, PAIRS, weights, 1.0)
    prompts = [pair.prompt for pair in PAIRS]
    chosen, rejected = read(prompts, [p.chosen for p in PAIRS]), read(prompts, [p.rejected for p in PAIRS])
    expected = pair_curvature(
        chosen.jacobian - rejected.jacobian, chosen.scores - rejected.scores, np.ones(len(PAIRS)), 1.0
    )
    np.testing.assert_allclose(found.precision, expected, rtol=1e-4, atol=1e-6)


def test_the_prior_of_most_evidence_is_near_what_drew_the_weights():
    pytest.importorskip("laplace", reason="laplace-torch is not installed")
    generator = np.random.default_rng(2)
    weights = generator.normal(size=40) / 2.0  # precision 4
    pairs = [tiny.pair("q", f"c{i}", f"r{i}", i) for i in range(600)]
    features = {text: generator.normal(size=40) for pair in pairs for text in (pair.chosen, pair.rejected)}
    found = fit_posterior(linear(weights, features), pairs, weights, None)
    assert 2.0 < found.prior < 8.0
