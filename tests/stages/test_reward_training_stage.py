"""The stage reward_model with what its training may be told besides: adapters, an early stop, values of beginnings."""

from __future__ import annotations

import pytest

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import read_metrics
from inverse_alignment.models.loading import load_reward_model
from inverse_alignment.reward.family_settings import EnsembleReward, LoraTrunks
from inverse_alignment.reward.settings import LoraRule
from inverse_alignment.reward.training_settings import HeldOutStop, TrainReward, ValuePrefixes
from tests.stages.chain import Chain
from tests.stages.test_reward_families import make


@pytest.fixture
def branch(built, tmp_path):
    return Chain(tmp_path, dict(built.made), {})


def test_adapters_learn_until_it_no_longer_helps_and_a_plain_model_is_written(branch):
    training = TrainReward(
        epochs=3,
        learning_rate=5e-2,
        batch_size=16,
        prefixes=ValuePrefixes(),
        weights=LoraRule(rank=2),
        stop=HeldOutStop(every=2, patience=2, pairs=32),
    )
    out = make(branch, "adapted", training)
    metrics = branch.metrics["adapted"]
    looks = [row for row in read_metrics(branch.partial("adapted") / "metrics.jsonl") if "held_out_loss" in row]
    assert metrics["best_step"] in {0, *(row["step"] for row in looks)} and metrics["steps"] == looks[-1]["step"]
    assert metrics["held_out_loss"] <= min(row["held_out_loss"] for row in looks)
    adapted, full = (load_reward_model(folder / "model") for folder in (out, branch.made["reward"]))
    assert adapted.state_dict().keys() == full.state_dict().keys()
    assert metrics["identical_pairs"] == 0 and metrics["validation_accuracy"] > 0.5


def test_members_with_adapters_get_no_second_ones():
    with pytest.raises(UserError, match="there are adapters already"):
        EnsembleReward(trunk=LoraTrunks(), training=TrainReward(weights=LoraRule()))
