"""Families of reward models as the stage makes them: what they write, how they go on, and PPO against them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from inverse_alignment.core.artifact import METRICS, external
from inverse_alignment.core.metrics import FileReport, read_metrics
from inverse_alignment.core.records import Rollout, read_jsonl
from inverse_alignment.models.bottleneck import BOTTLENECK, Bottleneck
from inverse_alignment.models.caution_settings import LowerBound
from inverse_alignment.models.loading import load_reward_model
from inverse_alignment.models.reward_scores import load_calibrated
from inverse_alignment.reward.family_settings import (
    EnsembleReward,
    InformReward,
    LaplaceReward,
    LastLayer,
    LoraTrunks,
    OdinReward,
    SeparateTrunks,
    SharedTrunk,
    WarmReward,
)
from inverse_alignment.reward.training_settings import TrainReward
from inverse_alignment.stages.reward_model import RewardStage
from tests.stages import chain
from tests.stages.chain import Chain

CPU = torch.device("cpu")
TRAINING = TrainReward(epochs=1, learning_rate=5e-3, batch_size=16)
TRUNKS = {"separate": SeparateTrunks(), "shared": SharedTrunk(), "lora": LoraTrunks(rank=2)}


@pytest.fixture
def branch(built, tmp_path):
    return Chain(tmp_path, dict(built.made), {})


def names(folder):
    return {path.name for path in folder.iterdir()}


def make(run, name, reward, report=FileReport):
    made = run.made
    inputs = {
        "preferences": made["preferences"],
        "tokenizers": made["tokenizers"],
        "trunk": made["sft"] / "policy",
        "reference_rollouts": made["reference_rollouts"],
    }
    return run.run(name, "reward_model", inputs, RewardStage(reward=reward, model=chain.MODEL), report=report)


def estimate(folder, rollouts, rows=64):
    sample = read_jsonl(rollouts / "rollouts.jsonl", Rollout)
    model = load_calibrated(folder / "model", CPU, chain.MODEL.context, rows)
    return model.estimate([r.prompt for r in sample], [r.response for r in sample])


@pytest.mark.parametrize("kind", TRUNKS)
def test_an_ensemble_says_how_far_its_members_are_apart(branch, kind):
    folder = make(branch, kind, EnsembleReward(members=3, trunk=TRUNKS[kind], bootstrap=True, training=TRAINING))
    found = estimate(folder, branch.made["reference_rollouts"])
    # standardised on the reference sample, on which every member's mean is zero
    assert abs(found.mean.mean()) < 1e-9 and found.mean.std() == pytest.approx(1.0)
    np.testing.assert_allclose(found.members.mean(1), 0.0, atol=1e-9)
    np.testing.assert_allclose(found.members.mean(0), found.mean)
    np.testing.assert_allclose(found.members.std(0, ddof=1), found.std)
    assert found.std.min() > 0 and len(found.members) == 3
    assert branch.metrics[kind]["validation_accuracy"] > 0.5
    again = estimate(folder, branch.made["reference_rollouts"], rows=3)  # the batch decides nothing
    np.testing.assert_allclose(again.mean, found.mean, atol=1e-5)
    files = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    weights = 4 * branch.metrics[kind]["parameters"]
    assert weights <= files < 1.1 * weights + 8192  # nothing is stored twice


@pytest.mark.parametrize("weights", [LastLayer(), LoraTrunks(rank=1, targets=("q_proj",))])
def test_a_posterior_says_how_sure_the_model_is(branch, weights):
    pytest.importorskip("laplace", reason="laplace-torch is not installed")
    folder = make(branch, "laplace", LaplaceReward(weights=weights, prior=4.0, training=TRAINING))
    found = estimate(folder, branch.made["reference_rollouts"])
    assert abs(found.mean.mean()) < 1e-6 and found.mean.std() == pytest.approx(1.0, abs=1e-5)
    assert found.std.min() > 0 and found.members is None
    assert branch.metrics["laplace"]["prior"] == pytest.approx(4.0)


def test_a_weight_average_is_one_plain_model(branch):
    folder = make(branch, "warm", WarmReward(members=2, training=TRAINING))
    assert names(folder / "model") == names(branch.made["reward"] / "model")
    members = [load_reward_model(branch.partial("warm") / f"member-{i}" / "finished") for i in (0, 1)]
    model = load_reward_model(folder / "model")
    for (name, weight), *others in zip(model.named_parameters(), *(m.named_parameters() for m in members), strict=True):
        torch.testing.assert_close(weight, (others[0][1] + others[1][1]) / 2, msg=name)
    assert not torch.equal(members[0].score.weight, members[1].score.weight)
    assert branch.metrics["warm"]["validation_accuracy"] > 0.5


def test_odin_leaves_one_plain_model_and_says_what_both_heads_know_of_length(branch):
    folder = make(branch, "odin", OdinReward(training=TRAINING))
    assert names(folder / "model") == names(branch.made["reward"] / "model")
    assert load_reward_model(folder / "model").config.num_labels == 1
    known = [branch.metrics["odin"][f"{head}_length_correlation"] for head in ("quality", "dropped")]
    assert all(-1.0 <= correlation <= 1.0 for correlation in known) and known[0] != known[1]


def test_a_bottleneck_counts_outliers_at_every_evaluation(branch):
    folder = make(branch, "inform", InformReward(latent=3, training=TRAINING))
    assert names(folder / "model") == {*names(branch.made["reward"] / "model"), BOTTLENECK}
    sample = read_jsonl(branch.made["reference_rollouts"] / "rollouts.jsonl", Rollout)
    prompts, answers = [r.prompt for r in sample], [r.response for r in sample]
    latent, reward = Bottleneck.load(folder / "model"), load_calibrated(folder / "model", CPU, chain.MODEL.context, 64)
    assert latent.outlier_share(reward.classifier, prompts, answers) < 0.08  # its own sample
    odd = ["?" * (20 + i) for i in range(len(answers))]
    assert (
        latent.tails(reward.classifier, prompts, odd).mean() < latent.tails(reward.classifier, prompts, answers).mean()
    )
    branch.made["ppo"], branch.made["refreshed"] = branch.made["sft"], folder
    chain.evaluate(branch, "evaluation", chain.EVALUATION)
    assert 0.0 <= branch.metrics["evaluation"]["outlier_share"] <= 1.0
    assert Bottleneck.load(branch.made["reward"] / "model") is None


class Killed(BaseException):
    """Stands in for a kill."""


class Dying(FileReport):
    """Dies at the given unit of progress, and counts."""

    at = -1
    seen: list[int]

    def progress(self, done, total, unit):
        Dying.seen.append(done)
        if done == Dying.at:
            raise Killed


@pytest.mark.slow
def test_a_finished_member_is_never_trained_again(branch):
    reward = EnsembleReward(members=2, training=TRAINING)
    whole = make(branch, "whole", reward)
    steps = int(branch.metrics["whole"]["steps"]) // 2
    Dying.at, Dying.seen = steps + 2, []
    with pytest.raises(Killed):
        make(branch, "killed", reward, Dying)
    shutil.rmtree(branch.root / "killed")
    Dying.at, Dying.seen = -1, []
    torch.manual_seed(5)
    resumed = make(branch, "killed", reward, Dying)
    assert min(Dying.seen) > steps  # the first member was finished
    assert external("a", resumed).digest == external("a", whole).digest
    assert branch.metrics["killed"] == branch.metrics["whole"]
    rows = [read_metrics(branch.partial(name) / METRICS) for name in ("whole", "killed")]
    assert rows[0] == rows[1] and rows[0][-1]["step"] == 2 * steps


def test_ppo_and_its_evaluation_run_against_an_ensemble(branch):
    make(branch, "reward", EnsembleReward(members=2, trunk=SharedTrunk(), training=TRAINING))
    branch.run("ppo", "ppo", chain.ppo_inputs(branch, "reward"), chain.ppo_stage())
    branch.made["refreshed"] = branch.made["reward"]
    chain.evaluate(branch, "evaluation", chain.EVALUATION, ppo=branch.made["ppo"])
    assert np.isfinite(branch.metrics["ppo"]["rm_score"])
    careful = chain.PPO.model_copy(update={"caution": LowerBound(k=2.0)})
    branch.run("careful", "ppo", chain.ppo_inputs(branch, "reward"), chain.ppo_stage(careful))
    first = [read_metrics(branch.partial(name) / METRICS)[0] for name in ("ppo", "careful")]
    assert first[0]["tokens"] == first[1]["tokens"]  # the same answers, before anything was learned
    assert first[1]["rm_score"] < first[0]["rm_score"]
    assert 0.0 <= branch.metrics["evaluation"]["offline_accuracy"] <= 1.0
