"""Extrapolation: its two ends, its straight line, adapters, and what is refused."""

from __future__ import annotations

import pytest
import torch

from inverse_alignment.core.errors import UserError
from inverse_alignment.evaluation.extrapolation import Tried, best
from inverse_alignment.models.adapters import adapt_policy, adapter_weights, merged_weights
from inverse_alignment.models.extrapolate import extrapolate
from tests.unit.models import tiny


def extrapolated(alpha: float) -> dict[str, torch.Tensor]:
    model = tiny.policy(1)
    extrapolate(model, tiny.policy(0), alpha)
    return tiny.weights(model)


def test_its_ends_are_the_two_policies() -> None:
    assert tiny.same(extrapolated(0.0), tiny.weights(tiny.policy(1)))
    for name, weight in tiny.weights(tiny.policy(0)).items():
        torch.testing.assert_close(extrapolated(-1.0)[name], weight, rtol=0, atol=1e-6)


def test_it_is_a_straight_line() -> None:
    none, half, whole = (extrapolated(alpha) for alpha in (0.0, 0.5, 1.0))
    for name, weight in half.items():
        torch.testing.assert_close(weight, (none[name] + whole[name]) / 2, rtol=1e-5, atol=1e-6)
    assert not tiny.same(half, none)


def test_of_adapters_it_is_the_same_as_scaling_what_they_add() -> None:
    adapted = tiny.policy(0)
    adapt_policy(adapted, 2, 4.0, (), 0, reference=False, where="x")
    with torch.no_grad():
        for weight in adapter_weights(adapted).values():
            weight.add_(0.1)
    merged = tiny.policy(0)
    merged.load_state_dict(merged_weights(adapted))
    extrapolate(merged, tiny.policy(0), 0.5)
    with torch.no_grad():
        for name, weight in adapter_weights(adapted).items():
            if "lora_B" in name:
                weight.mul_(1.5)
    for name, weight in merged_weights(adapted).items():
        torch.testing.assert_close(merged.state_dict()[name], weight, rtol=1e-5, atol=1e-6)


def test_another_architecture_is_refused() -> None:
    other, _ = tiny.gpt2()
    with pytest.raises(UserError, match="in what it began as"):
        extrapolate(tiny.policy(), other, 0.5)


def test_of_equal_scores_the_one_nearest_to_the_policy_is_best() -> None:
    def tried(alpha: float, score: float) -> Tried:
        return Tried(alpha, score, None, 0.0, 1.0, 1.0)

    assert best([tried(0.5, 1.0), tried(0.0, 1.0), tried(0.3, 0.9)]).alpha == 0.0
    assert best([tried(0.0, 1.0), tried(0.3, 1.1)]).alpha == 0.3
