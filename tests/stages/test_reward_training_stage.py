"""The stage reward_model with what its training may be told besides: adapters, an early stop, values of beginnings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from inverse_alignment.config import PipelineConfig, read_yaml, validate
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import read_metrics
from inverse_alignment.models.loading import load_reward_model
from inverse_alignment.reward.family_settings import EnsembleReward, LoraTrunks
from inverse_alignment.reward.settings import LoraRule
from inverse_alignment.reward.training_settings import (
    EnsembleStrength,
    HeldOutStop,
    InfoNceContrast,
    TrainReward,
    ValuePrefixes,
)
from tests.contract.test_docs import defined
from tests.stages.chain import Chain
from tests.stages.test_reward_families import Dying, Killed, make
from tests.unit.models import tiny


@pytest.fixture
def branch(built, tmp_path):
    return Chain(tmp_path, dict(built.made), {})


def test_adapters_learn_until_it_no_longer_helps_and_a_plain_model_is_written(branch):
    training = TrainReward(
        epochs=3,
        learning_rate=5e-2,
        batch_size=16,
        prefixes=ValuePrefixes(),
        contrast=InfoNceContrast(),
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


STRONG = TrainReward(
    epochs=1,
    learning_rate=5e-3,
    batch_size=16,
    strength=EnsembleStrength(members=2, flip=0.1, soften=0.2, margin=0.5),
)


@pytest.mark.slow
def test_weak_pairs_are_found_and_turned_round_and_told_of(branch):
    out, plain = make(branch, "strong", STRONG), branch.made["reward"]
    metrics = branch.metrics["strong"]
    strata = json.loads((out / "strata.json").read_text())
    rows = [json.loads(line) for line in (out / "strengths.jsonl").read_text().splitlines()]
    assert [set(strata[0]), set(rows[0])] == [
        defined()[f"reward_model: {name}"] for name in ("strata.json", "strengths.jsonl")
    ]
    assert [row["stratum"] for row in strata] == list(range(10))
    assert sum(row["pairs"] for row in strata) == len(rows) == metrics["pairs"] == len(train_pairs(branch))
    strengths = [row["strength"] for row in strata]
    assert strengths == sorted(strengths)
    flipped = [row for row in rows if row["flipped"]]
    assert len(flipped) == metrics["flipped_pairs"] == round(0.1 * len(rows))
    assert {row["stratum"] for row in flipped} == {0}
    assert strata[0]["accuracy"] < strata[-1]["accuracy"]  # by the labels as they were given
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (out, plain)]
    assert not tiny.same(*weights)
    seen = [row["step"] for row in read_metrics(branch.partial("strong") / "metrics.jsonl")]
    assert seen == sorted(set(seen)) and seen[-1] == metrics["steps"]  # of the reward model alone


def train_pairs(branch):
    return (branch.made["preferences"] / "train.jsonl").read_text().splitlines()


@pytest.mark.slow
def test_a_stage_killed_between_its_members_ends_with_the_same_bytes(branch):
    straight = make(branch, "strong", STRONG)
    Dying.seen, Dying.at = [], -1
    make(branch, "counted", STRONG, report=Dying)
    for at in (Dying.seen[len(Dying.seen) // 2], Dying.seen[-1]):
        name = f"killed-{at}"
        Dying.at = at
        with pytest.raises(Killed):
            make(branch, name, STRONG, report=Dying)
        shutil.rmtree(branch.root / name)
        Dying.at = -1
        again = make(branch, name, STRONG, report=Dying)
        for file in ("model/model.safetensors", "strata.json", "strengths.jsonl"):
            assert (again / file).read_bytes() == (straight / file).read_bytes()
        rows = [(branch.partial(run) / "metrics.jsonl").read_bytes() for run in (name, "strong")]
        assert rows[0] == rows[1]


def test_only_one_classifier_asks_for_strength():
    settings = EnsembleReward(training=STRONG).model_dump(mode="json")
    values = read_yaml(Path("params.yaml")) | {"reward": settings}
    with pytest.raises(UserError, match="type ensemble does not ask how strong its pairs are"):
        validate(PipelineConfig, values, "", "params.yaml")
    with pytest.raises(UserError, match="more than all pairs"):
        EnsembleStrength(flip=0.5, soften=0.4, soften_strong=0.2)


def test_members_with_adapters_get_no_second_ones():
    with pytest.raises(UserError, match="there are adapters already"):
        EnsembleReward(trunk=LoraTrunks(), training=TrainReward(weights=LoraRule()))
