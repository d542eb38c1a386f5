"""Over-optimisation, where gold is known exactly: seen when the price of KL is off, and not when the reward is gold."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from inverse_alignment.maths.overoptimisation import fit_curve, policy_peak, policy_terms
from inverse_alignment.optimise.alarms import audit_fell
from inverse_alignment.report import analysis
from inverse_alignment.report.comparison import CurvePoint
from inverse_alignment.world.tabular import TabularPolicy, TabularProblem, expected_reward, kl_divergence
from tests.world.test_ppo_on_tabular import problem, train

NOISE = 0.05  # gold, what an evaluation might not tell apart


def mistaken(known: TabularProblem) -> TabularProblem:
    """A proxy that is gold but for one bad answer to each prompt, which the reference hardly ever gives."""
    reference, gold = known.reference.log_prob_table().detach(), known.reward
    rare = torch.where((gold < 0) & (reference > -torch.inf), reference, torch.inf).argmin(-1, keepdim=True)
    return dataclasses.replace(known, reward=gold.scatter(1, rare, 2.0))


def path(known: TabularProblem, gold: torch.Tensor, steps: int, price: float) -> list[CurvePoint]:
    """Exact KL, proxy and gold of the reference and of the policy after every iteration of PPO."""
    reference = known.reference.log_prob_table().detach()

    def point(step: int, policy: TabularPolicy) -> CurvePoint:
        table = policy.log_prob_table().detach()
        proxy, true = (expected_reward(table, reward).mean().item() for reward in (known.reward, gold))
        return CurvePoint(step=step, gold=true, rm_score=proxy, kl=kl_divergence(table, reference).mean().item())

    policies = [known.reference, *train(known, steps, 0.1, kl_coefficient=price).path]
    return [point(step, policy) for step, policy in enumerate(policies)]


@pytest.fixture(scope="module")
def paths() -> dict[str, list[CurvePoint]]:
    known = problem(1.0)
    wrong = mistaken(known)
    return {
        "mistaken, free": path(wrong, known.reward, 40, 0.0),
        "mistaken, priced": path(wrong, known.reward, 20, 1.0),
        "gold, free": path(known, known.reward, 30, 0.0),
    }


@pytest.mark.parametrize(
    ("name", "seen"), [("mistaken, free", True), ("mistaken, priced", False), ("gold, free", False)]
)
def test_it_is_seen_where_it_is_and_nowhere_else(paths, name, seen):
    found = analysis.overoptimised_from(paths[name], NOISE)
    assert (found is not None) == seen
    if found is not None:
        gold = [point.gold for point in paths[name]]
        assert abs(found - int(np.argmax(gold))) <= 2


def test_the_curve_of_gold_has_a_peak_that_the_policy_is_past(paths):
    points = paths["mistaken, free"]
    distance = np.array([max(point.kl, 0.0) ** 0.5 for point in points])
    gold = np.array([point.gold - points[0].gold for point in points])
    fit = fit_curve(policy_terms(distance), gold, np.arange(len(points)), policy_peak, 0)
    assert fit.b.low > 0 and fit.peak.high < distance[-1]


def test_an_audit_that_sees_gold_raises_the_alarm_and_one_of_a_gold_reward_does_not(paths):
    def looks(points: list[CurvePoint]) -> list[dict]:
        """As a run would have them, with a little of each prompt's own."""
        own = 0.02 * np.random.default_rng(0).normal(size=12)
        return [
            {
                "step": point.step,
                "prompt": {"turn": str(place)},
                "rm_score": point.rm_score,
                "audit_score": gold + shift,
            }
            for point in points[::10]
            for place, shift in enumerate(own)
            if (gold := point.gold) is not None
        ]

    assert audit_fell(looks(paths["mistaken, free"])) is not None
    assert audit_fell(looks(paths["gold, free"])) is None
