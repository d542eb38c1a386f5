"""What a family of reward models cannot do is refused when the configuration is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from inverse_alignment.config import load
from inverse_alignment.core.errors import UserError
from inverse_alignment.reward.family_settings import whole_models

ROOT = Path(__file__).resolve().parents[2]
NONE = "arms={random: null, similarity: null}"


@pytest.mark.parametrize("caution", ["{type: lower_bound, k: 2.0}", "{type: worst_case}", "{type: uwo}"])
def test_ppo_may_be_cautious_with_an_ensemble(caution):
    config = load(root=ROOT, overrides=["reward={type: ensemble}", NONE, f"ppo.caution={caution}"])
    assert config.ppo.caution.type in caution


@pytest.mark.parametrize("kind", ["warm", "odin", "inform"])
def test_what_ends_as_one_classifier_can_be_refreshed(kind):
    config = load(root=ROOT, overrides=[f"reward={{type: {kind}}}", "arms.none.ppo={credit: {type: red}}"])
    assert config.reward.training.epochs == 1 and "similarity" in config.arms


def test_an_ensemble_without_refresh_is_a_configuration():
    config = load(root=ROOT, overrides=["reward={type: ensemble, trunk: {type: lora}}", NONE])
    assert list(config.arms) == ["none"]  # null leaves an arm out
    reward = config.reward
    assert (reward.type, reward.members, reward.trunk.rank, reward.training.epochs) == ("ensemble", 4, 8, 1)


@pytest.mark.parametrize(
    "overrides,where,what",
    [
        (["reward={type: ensemble}"], "arms.random.selection.type", "cannot be refreshed"),
        (["reward={type: ensemble}", NONE, "ppo.credit={type: red}"], "ppo.credit.type", "red credit looks into one"),
        (["reward={type: ensemble}", NONE, "ppo.credit={type: token}"], "ppo.credit.type", "token credit looks into"),
        (["ppo.caution={type: lower_bound}"], "ppo.caution.type", "type train does not say"),
        (["ppo.caution={type: worst_case}"], "ppo.caution.type", "among members"),
        (["arms.none.ppo={caution: {type: uwo}}"], "arms.none.ppo.caution.type", "does not say"),
        (["reward={type: warm}", "ppo.caution={type: uwo}"], "ppo.caution.type", "type warm does not say"),
        (["reward={type: laplace}"], "arms.random.selection.type", "type laplace cannot be refreshed"),
        (["reward={type: odin, training: {stop: {type: held_out}}}"], "reward.training.stop", "without training.stop"),
        (
            ["reward={type: ensemble, trunk: {type: lora}, training: {weights: {type: lora}}}", NONE],
            "reward.training.weights.type",
            "adapters already",
        ),
        (
            ["reward={type: ensemble, trunk: {type: shared}, training: {weights: {type: lora}}}", NONE],
            "reward.training.weights",
            "a shared trunk is trained without",
        ),
        (["evaluation.caution={type: uwo}"], "evaluation.caution.type", "type train does not say"),
        (
            ["reward={type: odin}", "runtime.launcher={type: torchrun, processes: 2}"],
            "runtime.launcher.stages",
            "trained by one process",
        ),
        (["reward={type: ensemble, members: 1}", NONE], "reward.members", "greater than or equal to 2"),
    ],
)
def test_what_an_ensemble_cannot_do(overrides, where, what):
    with pytest.raises(UserError, match=what) as error:
        load(root=ROOT, overrides=overrides)
    assert error.value.where.startswith(where)


def test_every_model_of_an_ensemble_is_in_the_memory_plan():
    trunks = {
        kind: load(root=ROOT, overrides=[f"reward={{type: ensemble, trunk: {{type: {kind}}}}}", NONE]).reward
        for kind in ("separate", "shared", "lora")
    }
    assert {kind: whole_models(reward) for kind, reward in trunks.items()} == {"separate": 4, "shared": 1, "lora": 1}
    assert whole_models(load(root=ROOT).reward) == 1


def test_the_preset_compares_what_caution_makes_of_one_ensemble():
    config = load(root=ROOT, preset="cautious")
    cautions = {name: config.for_arm(name).ppo.caution.type for name in config.arms}
    assert cautions == {"none": "mean", "lower-bound": "lower_bound", "worst-case": "worst_case", "uwo": "uwo"}
