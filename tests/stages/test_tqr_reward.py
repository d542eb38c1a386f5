"""AVA and the Preference Transformer as the stage makes them, and PPO against their scores and their token rewards."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from inverse_alignment.core.artifact import external
from inverse_alignment.core.records import Rollout, read_jsonl
from inverse_alignment.models.reward_scores import load_calibrated
from inverse_alignment.models.tqr_scores import TqrScorer
from inverse_alignment.optimise.credit_settings import DenseCredit, TerminalCredit
from inverse_alignment.reward.ava_settings import (
    AvaReward,
    DemonstrationsObjective,
    FreshQ,
    PreferenceTransformerReward,
)
from inverse_alignment.stages.reward_model import RewardStage
from tests.stages import chain
from tests.stages.chain import Chain

CPU = torch.device("cpu")
SHORT = {"learning_rate": 5e-3, "batch_size": 16}
WAYS = {
    "ava-p": AvaReward(**SHORT),
    "ava-d": AvaReward(objective=DemonstrationsObjective(), **SHORT),
    "fresh": AvaReward(q=FreshQ(), start="base", **SHORT),
    "transformer": PreferenceTransformerReward(**SHORT),
}


@pytest.fixture(scope="module")
def made(built):
    """The stage's output for each way, made once."""
    run = Chain(built.root / "tqr", dict(built.made), {})

    def make(way):
        if way not in run.metrics:
            inputs = {name: run.made[name] for name in ("preferences", "tokenizers", "reference_rollouts")}
            trunk = {"trunk": run.made["sft"] / "policy"} if WAYS[way].start == "sft" else {}
            run.run(way, "reward_model", {**inputs, **trunk}, RewardStage(reward=WAYS[way], model=chain.MODEL))
        return run

    return make


@pytest.mark.parametrize("way", WAYS)
def test_the_stage_writes_a_model_that_is_standardised_on_the_reference_sample(made, way):
    run = made(way)
    sample = read_jsonl(run.made["reference_rollouts"] / "rollouts.jsonl", Rollout)
    model = load_calibrated(run.made[way] / "model", CPU, chain.MODEL.context, 64)
    assert isinstance(model.scorer, TqrScorer)
    found = model.estimate([r.prompt for r in sample], [r.response for r in sample])
    assert abs(found.mean.mean()) < 1e-9 and found.mean.std() == pytest.approx(1.0)
    assert (found.std is None) == (way == "transformer")
    if way in ("ava-d", "transformer"):  # scores that are sums; what they are centred by is no token's
        sums = np.array([row.sum() for row in found.per_token])
        np.testing.assert_allclose(sums - sums.mean(), found.mean, atol=1e-6)
    metrics = run.metrics[way]
    assert metrics["parameters"] == model.scorer.model.size() and metrics["pairs"] > 100
    assert -1 <= metrics["corr_return_length"] <= 1
    assert ("corr_return_log_prob" in metrics) == (way != "transformer")


def test_what_is_learned_is_better_than_chance(made):
    for way in ("ava-p", "transformer"):
        assert made(way).metrics[way]["validation_accuracy"] > 0.55


def test_start_decides_where_it_starts(made):
    run = made("fresh")
    form = json.loads((run.made["fresh"] / "model" / "reward.json").read_text())
    assert (form["type"], form["q"], form["score"]) == ("ava", "fresh", "last")


@pytest.fixture(scope="module")
def trained(made):
    """Digest of PPO under a credit, and its first row of metrics."""
    run = made("ava-p")
    done = {}

    def train(credit):
        if credit not in done:
            name = f"ppo-{len(done)}"
            config = chain.PPO.model_copy(update={"credit": credit, "steps": 2})
            out = run.run(name, "ppo", chain.ppo_inputs(run, "ava-p"), chain.ppo_stage(config))
            first = (run.partial(name) / "metrics.jsonl").read_text().splitlines()[0]
            done[credit] = external("ppo", out).digest, json.loads(first)
        return done[credit]

    return train


def test_dense_credit_without_a_share_is_the_sparse_one(trained):
    assert trained(DenseCredit(share=0.0))[0] == trained(TerminalCredit())[0]


def test_dense_credit_teaches_something_else_by_the_same_answers(trained):
    (sparse, first), (dense, other) = trained(TerminalCredit()), trained(DenseCredit())
    assert dense != sparse
    assert [first[name] for name in ("tokens", "rm_score", "kl")] == [
        other[name] for name in ("tokens", "rm_score", "kl")
    ]
    assert first["value_loss"] != other["value_loss"]


def test_an_evaluation_reads_it(made, trained):
    run = made("ava-p")
    trained(TerminalCredit())
    run.made["refreshed"], run.made["ppo"] = run.made["ava-p"], run.made["ppo-0"]
    chain.evaluate(run, "evaluation", chain.EVALUATION, ppo=run.made["ppo-0"])
    assert 0.0 <= run.metrics["evaluation"]["offline_accuracy"] <= 1.0
