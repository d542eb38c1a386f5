"""The tour says what the product does: the same answers give the same losses, advantages and first update."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inverse_alignment.optimise import ppo
from inverse_alignment.optimise.settings import FixedKl, PpoConfig
from tests.unit.models import tiny

TOUR = Path(__file__).parents[2] / "docs/tour/ppo_in_one_file.py"
CLOSE = {"rtol": 0.0, "atol": 1e-6}


@pytest.fixture
def tour() -> ModuleType:
    """The file, as a module."""
    spec = importlib.util.spec_from_file_location("ppo_in_one_file", TOUR)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Logits(nn.Module):
    """A language model as the tour calls one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits


class Values(nn.Module):
    """A value model as the tour calls one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model.head(self.model.trunk(input_ids=ids, use_cache=False).last_hidden_state)


def learner_of(config: PpoConfig) -> ppo.Learner:
    """A tiny learner whose critic has an opinion already, and plain gradient steps.

    (Adam divides by the gradient's size, so that it turns rounding of a gradient near zero into a whole step.)
    """
    learner = ppo.new_learner(tiny.policy(scale=3.0), tiny.policy(1), config)
    with torch.no_grad():
        learner.value.head.weight.copy_(torch.linspace(-0.5, 0.5, learner.value.head.weight.numel()))
    learner.policy_optimizer = torch.optim.SGD(learner.policy.parameters(), lr=1.0)
    learner.value_optimizer = torch.optim.SGD(learner.value.parameters(), lr=0.1)
    return learner


def config_of(tour: ModuleType) -> PpoConfig:
    """The product's settings that mean what the constants of the tour mean."""
    return PpoConfig(
        kl=FixedKl(coefficient=tour.BETA),
        gamma=tour.GAMMA,
        lam=tour.LAMBDA,
        clip=tour.CLIP,
        value_clip=tour.VALUE_CLIP,
        epochs=tour.EPOCHS,
        minibatches=1,
        max_grad_norm=tour.LARGEST_NORM,
        max_new_tokens=6,
        missing_eos_penalty=0.0,
        value_warmup_steps=0,
    )


def by_product(config: PpoConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[ppo.Learner, ppo.Iteration, ppo.Experience]:
    """One iteration of `optimise.ppo`, and what it learned from."""
    seen: list[ppo.Experience] = []
    right, answer = ppo.update, ppo.answer

    def cut(*given: Any) -> list[ppo.Answer]:
        """The answers, of one to six tokens."""
        return [replace(a, response_ids=a.response_ids[: 1 + row % 6]) for row, a in enumerate(answer(*given))]

    monkeypatch.setattr(ppo, "answer", cut)
    monkeypatch.setattr(ppo, "update", lambda *given: (seen.append(given[1]), right(*given))[1])
    learner = learner_of(config)
    scores = np.random.default_rng(0).normal(size=16)
    prompts = [tiny.PROMPTS[0]] * 16  # of one length: the tour pads answers only
    done = ppo.iteration(learner, tiny.tokenizer(), prompts, lambda *_: scores, config, tiny.sampling(6), 0)
    return learner, done, seen[0]


def by_tour(tour: ModuleType, config: PpoConfig, done: ppo.Iteration, batch: Any) -> tuple[Any, Any, Any, Any]:
    """The same answers through the functions of the tour: learner, view, advantages and returns, mean losses."""
    start = learner_of(config)
    optimizers = (start.policy_optimizer, start.value_optimizer)
    learner = tour.Learner(Logits(start.policy), Values(start.value), optimizers)
    ids, mask = batch.input_ids, batch.response_mask
    view = tour.look(learner.policy, Logits(tiny.policy(1)), learner.critic, ids, mask)
    credit = tour.credit(torch.as_tensor(done.scores, dtype=torch.float32), view, mask)
    losses = tour.update(learner, ids, mask, view, *credit)
    return start, view, credit, losses


@pytest.mark.parametrize("epochs", [1, 4])
def test_it_computes_what_the_product_computes(tour: ModuleType, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tour, "EPOCHS", epochs)
    config = config_of(tour)
    learner, done, experience = by_product(config, monkeypatch)
    mask = experience.batch.response_mask
    assert not mask.all()  # there is padding
    start, view, (advantages, returns), losses = by_tour(tour, config, done, experience.batch)
    torch.testing.assert_close(view.log_probs[mask], experience.log_probs[mask], **CLOSE)
    torch.testing.assert_close(view.values[mask], experience.values[mask], **CLOSE)
    torch.testing.assert_close(advantages, experience.advantages, **CLOSE)
    torch.testing.assert_close(returns, experience.returns, **CLOSE)
    assert losses == pytest.approx((done.metrics["policy_loss"], done.metrics["value_loss"]), abs=1e-6)
    before = tiny.weights(learner_of(config).policy)
    for mine, theirs in ((start.policy, learner.policy), (start.value, learner.value)):
        for name, weight in tiny.weights(theirs).items():
            torch.testing.assert_close(tiny.weights(mine)[name], weight, msg=name, **CLOSE)
    moved = max(float((weight - before[name]).abs().max()) for name, weight in tiny.weights(learner.policy).items())
    assert moved > 1e-3  # a first update worth comparing
    assert epochs == 1 or done.metrics["clipped_share"] > 0  # so that the clip is compared too


@pytest.mark.parametrize(("name", "other"), [("BETA", 0.5), ("LAMBDA", 0.5), ("CLIP", 0.01), ("VALUE_CLIP", 0.01)])
def test_another_constant_would_be_noticed(
    tour: ModuleType, name: str, other: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tour)
    learner, done, experience = by_product(config, monkeypatch)
    monkeypatch.setattr(tour, name, other)
    start = by_tour(tour, config, done, experience.batch)[0]
    pairs = ((start.policy, learner.policy), (start.value, learner.value))
    assert any(
        (tiny.weights(mine)[key] - weight).abs().max() > 1e-4
        for mine, theirs in pairs
        for key, weight in tiny.weights(theirs).items()
    )


def test_it_learns_the_alphabet_and_fits_on_a_few_pages(tour: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.random.fork_rng(devices=[]):
        tour.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert float(rows[0][1]) < 0 < 3 < float(rows[-1][1])
    assert len(TOUR.read_text(encoding="utf-8").splitlines()) <= 170
