"""Where a round begins: what it takes over from the last one, and that a killed one goes on to the bit."""

from __future__ import annotations

import pytest
import torch

from inverse_alignment.models.loading import load_policy
from inverse_alignment.optimise import ppo
from inverse_alignment.optimise.rounds import begin_round, starting_policy
from inverse_alignment.optimise.settings import (
    AdaptiveKl,
    ContinueStart,
    FixedKl,
    InterpolateStart,
    LastRoundReference,
    Lora,
    SftStart,
    SoftReference,
)
from tests.unit.models import tiny
from tests.unit.optimise.test_ppo import has_a, run, settings, snapshot

LORA = Lora(rank=4, alpha=8.0)
STARTS = {"continue": ContinueStart(), "sft": SftStart(), "interpolate": InterpolateStart(share=0.25)}
IDS = torch.tensor([[5, 6, 7, 8]])


def config_of(start, **more):
    return settings(
        start=STARTS[start],
        learning_rate=3e-2,
        value_warmup_steps=1,
        kl=AdaptiveKl(coefficient=0.05, target=0.01, horizon=50),
        **more,
    )


def logits(model):
    with torch.no_grad():
        return model(IDS).logits.clone()


def plain(learner):
    """A learner's policy as a model without adapters."""
    return ppo.plain_policy(learner, tiny.policy()) if learner.sft.borrows else learner.policy


def finished(learner, folder):
    """What a round leaves: its policy, as anybody loads it, and its state."""
    tiny.saved(plain(learner), folder / "policy")
    ppo.save_learner(learner, folder / "state", "first")
    return folder


def learner_of(config, last, sft):
    return ppo.new_learner(starting_policy(last, sft, config).eval(), tiny.policy(), config)


def first_round(config, folder):
    sft = tiny.saved(tiny.policy(), folder / "sft")
    learner = learner_of(config, sft, sft)
    run(learner, config, has_a, 3)
    return learner, finished(learner, folder / "last"), sft


def second_round(config, last, sft, reward="first"):
    learner = learner_of(config, last / "policy", sft)
    begin_round(learner, last / "state", config, reward)
    return learner


def says(learner):
    """The logits of a learner's policy."""
    return logits(learner.policy)


@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "adapters"])
def test_a_round_begins_at_the_last_policy_at_the_sft_policy_or_between(tmp_path, lora):
    learner, last, sft = first_round(config_of("continue", lora=lora), tmp_path)
    before, start = says(learner), logits(tiny.policy())
    assert (before - start).abs().max() > 0.05
    begun = {name: second_round(config_of(name, lora=lora), last, sft) for name in STARTS}
    torch.testing.assert_close(says(begun["continue"]), before, rtol=1e-5, atol=1e-5)
    assert torch.equal(says(begun["sft"]), start)
    # the weights lie between, and so would the logits of a linear model
    models = plain(begun["interpolate"]), tiny.policy(), load_policy(last / "policy")
    mine, old, new = (dict(model.named_parameters()) for model in models)
    for name, weight in mine.items():
        torch.testing.assert_close(weight, 0.75 * old[name] + 0.25 * new[name], rtol=1e-4, atol=1e-5)
    assert (says(begun["interpolate"]) - start).abs().max() > 1e-3


@pytest.mark.parametrize("start", STARTS)
def test_only_a_round_that_goes_on_takes_over_what_grew_with_the_policy(tmp_path, start):
    learner, last, sft = first_round(config_of(start), tmp_path)
    begun = second_round(config_of(start), last, sft)
    assert begun.step == learner.step == 3  # which prompts and which noise come next
    goes_on = start == "continue"
    assert (begun.kl_coefficient == learner.kl_coefficient) == goes_on and learner.kl_coefficient != 0.05
    assert bool(begun.policy_optimizer.state) == bool(begun.value_optimizer.state) == goes_on
    assert begun.warmup == (0 if goes_on else 1)
    assert torch.equal(begun.value.head.weight, learner.value.head.weight) == goes_on
    if not goes_on:  # a fresh critic reads from the policy that the round begins at, and says nothing yet
        trunk = dict(begun.policy.base_model.named_parameters())
        assert all(torch.equal(weight, trunk[name]) for name, weight in begun.value.trunk.named_parameters())
        assert not begun.value.head.weight.any()


def test_a_round_with_another_reward_warms_its_critic_up(tmp_path):
    config = config_of("continue")
    _, last, sft = first_round(config, tmp_path)
    assert second_round(config, last, sft).warmup == 0
    assert second_round(config, last, sft, "another").warmup == 1


@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "adapters"])
@pytest.mark.parametrize("start", STARTS)
def test_the_reference_of_a_round_is_the_policy_it_began_with(tmp_path, start, lora):
    config = config_of(start, lora=lora, reference=LastRoundReference())
    _, last, sft = first_round(config, tmp_path)
    learner = second_round(config, last, sft)
    metrics = [done.metrics for done in run(learner, config, has_a, 3)]
    assert metrics[0]["kl_to_reference"] == pytest.approx(0, abs=1e-6)
    assert metrics[-1]["kl_to_reference"] > 1e-3  # it stays while the policy moves
    assert (metrics[0]["kl"] > 1e-3) == (start != "sft")  # that to SFT is reported in any case


def test_a_price_to_the_last_rounds_policy_is_another_price(tmp_path):
    def after_two(reference):
        config = settings(learning_rate=3e-2, kl=FixedKl(coefficient=1.0), reference=reference)
        _, last, sft = first_round(config, tmp_path / type(reference).__name__)
        learner = second_round(config, last, sft)
        return run(learner, config, has_a, 4)[-1].metrics["kl"]

    assert after_two(LastRoundReference()) > 1.2 * after_two(settings().reference)


@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "adapters"])
@pytest.mark.parametrize(
    ("start", "reference"), [*((name, LastRoundReference()) for name in STARTS), ("sft", SoftReference(alpha=0.5))]
)
def test_a_round_that_was_killed_goes_on_to_the_bit(tmp_path, start, lora, reference):
    config = config_of(start, lora=lora, reference=reference)
    _, last, sft = first_round(config, tmp_path)
    straight, half = (second_round(config, last, sft) for _ in range(2))
    run(straight, config, has_a, 3)
    run(half, config, has_a, 1)
    ppo.save_learner(half, tmp_path / "half", "first")
    kept = tiny.saved(half.policy, tmp_path / "checkpoint") if lora is None else sft  # as the stage has it
    resumed = ppo.new_learner(load_policy(kept).eval(), tiny.policy(), config)
    ppo.load_learner(resumed, tmp_path / "half")
    run(resumed, config, has_a, 2)
    assert tiny.same(snapshot(resumed), snapshot(straight))
