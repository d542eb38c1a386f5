"""PPO, as the product runs it, where its optimum is known exactly: it gets there, and not with a mask or sign wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from inverse_alignment.generation.answers import Sampling, answer, batch_of
from inverse_alignment.models.log_probs import compare_with_reference
from inverse_alignment.optimise import ppo
from inverse_alignment.optimise.settings import FixedKl, PpoConfig
from inverse_alignment.world.tabular import (
    TabularPolicy,
    TabularProblem,
    absorbing,
    expected_reward,
    kl_divergence,
    make_problem,
    sequences,
)
from tests.world.tabular_model import END, TableModel, indices, prompts_of, score, tokenizer

LENGTH = 3
ROWS = 128
NEAR = 0.01  # nats


def problem(beta: float) -> TabularProblem:
    """Two prompts, answers of one to three tokens over {end, a, b}."""
    return make_problem(0, prompts=2, length=LENGTH, beta=beta, end=END)


class Trained(NamedTuple):
    """What a run of PPO ended at, and the policy after every iteration."""

    policy: TabularPolicy
    path: list[TabularPolicy]
    metrics: dict[str, float]


def train(
    known: TabularProblem, steps: int, learning_rate: float, kl_coefficient: float | None = None, rows: int = ROWS
) -> Trained:
    """`optimise.ppo.iteration` itself, with a learning rate that falls to zero so that it can settle."""
    config = PpoConfig(
        batch_size=rows,
        learning_rate=learning_rate,
        value_learning_rate=learning_rate,
        kl=FixedKl(coefficient=known.beta if kl_coefficient is None else kl_coefficient),
        max_new_tokens=LENGTH,
        missing_eos_penalty=0.0,
        value_warmup_steps=0,
    )
    model = TableModel.of(known.reference)
    learner = ppo.new_learner(model, TableModel.of(known.reference), config)
    sampling, prompts = Sampling(LENGTH, 1.0, 32, rows), prompts_of(known, rows)
    path, metrics = [], {}
    for step in range(steps):
        for optimizer in (learner.policy_optimizer, learner.value_optimizer):
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        metrics = ppo.iteration(learner, tokenizer(known), prompts, score(known), config, sampling, 0).metrics
        path.append(model.policy())
    return Trained(path[-1], path, metrics)


def distance(known: TabularProblem, policy: TabularPolicy) -> float:
    """KL(π || π*) in nats, of the prompt where it is largest."""
    return kl_divergence(policy.log_prob_table(), known.optimum().log_prob_table()).max().item()


@pytest.mark.parametrize(
    ("beta", "learning_rate", "steps"),
    [pytest.param(0.1, 0.2, 60, marks=pytest.mark.slow), (0.3, 0.2, 40), (1.0, 0.1, 25)],
)
def test_it_reaches_the_exact_optimum(beta: float, learning_rate: float, steps: int) -> None:
    known = problem(beta)
    assert distance(known, known.reference) > 0.1
    trained = train(known, steps, learning_rate)
    assert distance(known, trained.policy) < NEAR
    assert known.value() - known.objective(trained.policy) < beta * NEAR  # the shortfall is β KL(π || π*)
    drift = kl_divergence(known.optimum().log_prob_table(), known.reference.log_prob_table()).mean()
    assert trained.metrics["kl"] == pytest.approx(drift.item(), rel=0.15)  # what the product reports, from samples


@pytest.mark.parametrize("coefficient", [0.25, 4.0])
def test_with_another_price_of_kl_it_does_not(coefficient: float) -> None:
    known = problem(1.0)
    assert distance(known, train(known, 20, 0.1, kl_coefficient=coefficient).policy) > 5 * NEAR


def inverted(right: Callable[..., object], place: int) -> Callable[..., object]:
    """The same function with the mask among its arguments read the wrong way round."""
    return lambda *given: right(*given[:place], ~given[place], *given[place + 1 :])


@pytest.mark.parametrize("name", ["policy loss, mask", "advantages, mask", "whitening, mask", "advantages, sign"])
def test_with_a_mask_or_a_sign_the_wrong_way_round_it_does_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whiten = ppo.masked_whiten
    wrong = {
        "policy loss, mask": ("policy_loss", inverted(ppo.policy_loss, 3)),
        "advantages, mask": ("generalised_advantages", inverted(ppo.generalised_advantages, 2)),
        "whitening, mask": ("masked_whiten", inverted(ppo.masked_whiten, 1)),
        "advantages, sign": ("masked_whiten", lambda values, mask: -whiten(values, mask)),
    }
    monkeypatch.setattr(ppo, *wrong[name])
    known = problem(1.0)
    assert distance(known, train(known, 20, 0.1).policy) > 0.9 * distance(known, known.reference)


def test_without_a_price_of_kl_it_takes_a_mistaken_reward_at_its_word() -> None:
    """The proxy errs in one bad answer to each prompt, one that the reference hardly ever gives."""
    known = problem(1.0)
    reference, gold = known.reference.log_prob_table().detach(), known.reward
    mistake = torch.where((gold < 0) & (reference > -torch.inf), reference, torch.inf).argmin(-1, keepdim=True)
    assert reference.exp().gather(1, mistake).max() < 0.02
    mistaken = dataclasses.replace(known, reward=gold.scatter(1, mistake, 2.0))

    def rewards(path: list[TabularPolicy], reward: Tensor) -> list[float]:
        return [expected_reward(policy.log_prob_table(), reward).mean().item() for policy in [known.reference, *path]]

    free, priced = train(mistaken, 40, 0.1, kl_coefficient=0.0).path, train(mistaken, 25, 0.1).path
    proxy, true = rewards(free, mistaken.reward), rewards(free, gold)
    assert proxy[-1] > 1.9 and true[-1] < true[0] - 0.4  # the proxy is all but maximal, and the answers are bad
    assert max(true) > true[0] + 0.5  # it looked like progress for a while
    proxy, true = rewards(priced, mistaken.reward), rewards(priced, gold)
    assert proxy[-1] > proxy[0] + 0.4 and true[-1] > true[0] + 0.2
    best = expected_reward(mistaken.optimum().log_prob_table(), gold).mean().item()
    assert true[-1] == pytest.approx(best, abs=0.03)  # it stays where the priced optimum is


def test_the_first_step_goes_where_the_exact_gradient_points() -> None:
    known = problem(0.3)
    start = TableModel.of(known.reference).policy()
    exact = known.gradient(start).nan_to_num()
    step = (train(known, 1, 0.01, rows=1024).policy.logits - start.logits).nan_to_num()
    agreement = (step.sign() * exact).sum() / exact.abs().sum()  # Adam's first step is a sign
    assert agreement > 0.95


def test_the_table_answers_as_its_policy_does() -> None:
    """Sampled with a cache, rows put away as they end, and read in padded groups: the same distribution."""
    known = problem(1.0)
    model, words, rows = TableModel.of(known.reference), tokenizer(known), 4000
    prompts = prompts_of(known, rows)
    given = answer(model, words, prompts, list(range(rows)), Sampling(LENGTH, 1.0, 32, rows))
    assert {len(each.response_ids) for each in given} == {1, 2, 3}
    assert all(each.ended == (END in each.response_ids) for each in given)
    index = indices(known, prompts, [each.text for each in given])
    view = compare_with_reference(model, model, batch_of(given[:50], words.pad_token_id, model.device), 1.0)
    table = known.reference.log_prob_table().detach()
    torch.testing.assert_close(view.log_probs.sum(-1).double(), table[index][:50], rtol=1e-5, atol=1e-5)
    for prompt in range(2):
        share = index[1][index[0] == prompt].bincount(minlength=27) / (rows / 2)
        expected = table[prompt].exp()
        error = (expected * (1 - expected) / (rows / 2)).sqrt()
        assert ((share - expected).abs() <= 4 * error).all()


def test_what_has_ended_stays_ended() -> None:
    logits = torch.zeros(1, 1 + 2 + 4, 2).double()  # prefixes (), 0, 1, 00, 01, 10, 11 over {0 = end, 1}
    table = TabularPolicy(absorbing(logits, 3, 0), 3).log_prob_table().detach().exp()[0]
    expected = {(0, 0, 0): 0.5, (1, 0, 0): 0.25, (1, 1, 0): 0.125, (1, 1, 1): 0.125}
    found = {tuple(row): p for row, p in zip(sequences(2, 3).tolist(), table.tolist(), strict=True) if p}
    assert found == pytest.approx(expected)
    assert make_problem(3, end=1).value().isfinite() and make_problem(3).reference.log_prob_table().isfinite().all()
