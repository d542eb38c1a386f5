"""When a refresh happens: by schedule or by drift; where it does not, the incumbent's very bytes go on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from inverse_alignment.core.artifact import external
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Rollout, read_jsonl, write_jsonl
from inverse_alignment.models.loading import load_policy, save_model
from inverse_alignment.reward.settings import DriftTrigger
from inverse_alignment.stages.rollout import RolloutConfig, RolloutStage
from inverse_alignment.text.render import encode_written
from inverse_alignment.text.tokenizers import load_tokenizer
from tests.stages import chain
from tests.stages.chain import Chain

ALWAYS = {"mmd": 1e-9, "ess": 0.999999, "variance": 1e6}
NEVER = {"mmd": 10.0, "ess": 1e-9, "variance": 1e-9}


@pytest.fixture(scope="module")
def moved(built, tmp_path_factory):
    """With a policy that has moved from the SFT policy in any direction, and longer answers of both."""
    branch = Chain(tmp_path_factory.mktemp("moved"), dict(built.made), {})
    policy, generator = load_policy(branch.made["sft"] / "policy"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(weight.std() * torch.randn(weight.shape, generator=generator))
    branch.made["moved_policy"] = branch.root / "moved_policy"
    tokenizer = load_tokenizer(branch.made["sft"] / "policy").tokenizer
    save_model(policy, tokenizer, branch.made["moved_policy"] / "policy")
    for name, author in (("reference_rollouts", "sft"), ("later", "moved_policy")):
        start = branch.made["sft"] / "policy"
        inputs = {"reference": start, "preferences": branch.made["preferences"]}
        stage = RolloutStage(rollout=RolloutConfig(samples=4, max_new_tokens=60), context=chain.MODEL.context)
        branch.run(name, "rollout", {**inputs, "policy": branch.made[author] / "policy"}, stage)
    answers = read_jsonl(branch.made["later"] / "rollouts.jsonl", Rollout)  # at chance so far: now they differ in style
    styled = [r.model_copy(update={"response": f"zzz {r.response}"}) if i % 2 else r for i, r in enumerate(answers)]
    write_jsonl(branch.made["later"] / "rollouts.jsonl", styled)
    return branch


@pytest.fixture
def branch(moved, tmp_path):
    return Chain(tmp_path, dict(moved.made), {})


def drifting(measure, threshold):
    return chain.REFRESH.model_copy(update={"trigger": DriftTrigger(measure=measure, threshold=threshold)})


def digest(folder):
    return external("any", folder).digest


def verdict(folder):
    return json.loads((folder / "gate.json").read_text())


def assert_untouched(branch, folder, incumbent="reward"):
    told = verdict(folder)
    assert told["refreshed"] is told["accepted"] is False and told["pairs"] == told["pairs_seen"] == 0
    assert told["gain"] is told["challenger_accuracy"] is told["reward_variance_after"] is None
    assert digest(folder / "model") == digest(branch.made[incumbent] / "model")
    assert not list(branch.partial(folder.name).iterdir())  # nothing was trained, and nothing was logged
    metrics = branch.metrics[folder.name]
    assert metrics["steps"] == metrics["gradient_steps"] == metrics["replayed"] == 0 and not metrics["accepted"]


def test_a_round_that_is_not_due_trains_nothing(branch):
    folder = chain.refresh(branch, "waiting", chain.REFRESH, due=False, rollouts="later")
    assert_untouched(branch, folder)
    assert verdict(folder)["drift_mmd"] > 0 and verdict(folder)["drift_variance"] > 0  # reported all the same
    assert digest(folder / "seen") == digest(branch.made["reference_rollouts"])


@pytest.mark.parametrize("measure", ["mmd", "ess", "variance"])
def test_a_drift_decides(branch, measure):
    given = {"policy": "moved_policy", "rollouts": "later"}
    waiting = chain.refresh(branch, "waiting", drifting(measure, NEVER[measure]), **given)
    assert_untouched(branch, waiting)
    folder = chain.refresh(branch, "moved", drifting(measure, ALWAYS[measure]), **given)
    told = verdict(folder)
    assert told["refreshed"] is True and branch.metrics["moved"]["steps"] == 8
    assert digest(folder / "seen") == digest(branch.made["later"]) != digest(waiting / "seen")
    assert told[f"drift_{measure}"] == verdict(waiting)[f"drift_{measure}"]
    assert (told["drift_ess"] is None) == (measure != "ess")


def test_nothing_has_drifted_where_the_policy_is_the_one_that_wrote_them(branch):
    folder = chain.refresh(branch, "ess", drifting("ess", 0.5))
    told = verdict(folder)
    assert told["drift_ess"] == pytest.approx(1, abs=1e-6) and told["drift_variance"] == 1.0
    assert told["drift_mmd"] <= 0 and told["refreshed"] is False  # unbiased: of a sample with itself it is below 0


def test_a_refresh_starts_the_count_anew(branch):
    given = {"policy": "moved_policy", "rollouts": "later"}
    chain.refresh(branch, "moved", drifting("ess", ALWAYS["ess"]), **given)
    again = chain.refresh(branch, "again", drifting("ess", 0.99), reward="moved", **given)
    assert verdict(again)["drift_ess"] == pytest.approx(1, abs=1e-6)
    assert_untouched(branch, again, "moved")
    assert verdict(again)["drift_mmd"] < verdict(branch.made["moved"])["drift_mmd"]
    assert digest(again / "seen") == digest(branch.made["later"])


def test_a_refused_challenger_does_not_start_the_count_anew(branch):
    refusing = chain.REFRESH.model_copy(update={"learning_rate": 1e-12, "gate": chain.PAIRED})
    folder = chain.refresh(branch, "refused", refusing, rollouts="later")
    assert verdict(folder)["refreshed"] is True and verdict(folder)["accepted"] is False
    assert digest(folder / "seen") == digest(branch.made["reference_rollouts"])


def test_answers_that_never_ended_have_no_share(branch):
    rollouts = read_jsonl(branch.made["reference_rollouts"] / "rollouts.jsonl", Rollout)
    folder = branch.root / "endless"
    folder.mkdir()
    write_jsonl(folder / "rollouts.jsonl", [rollout.model_copy(update={"ended": False}) for rollout in rollouts])
    branch.made["reference_rollouts"] = folder
    with pytest.raises(UserError, match="has ended") as error:
        chain.refresh(branch, "ess", drifting("ess", 0.5), rollouts="later")
    assert "refresh.trigger.measure=mmd" in error.value.fix


def test_the_share_is_that_of_the_weights_between_the_two_policies(branch):
    """By other means: each answer alone, its log-probabilities summed from the plain logits."""
    folder = chain.refresh(branch, "ess", drifting("ess", 1e-9), policy="moved_policy", rollouts="later")
    tokenizer = load_tokenizer(branch.made["sft"] / "policy").tokenizer
    logs = {name: [] for name in ("moved_policy", "sft")}
    for rollout in read_jsonl(branch.made["reference_rollouts"] / "rollouts.jsonl", Rollout):
        ((prompt, answer),) = encode_written(tokenizer, [rollout.prompt], [rollout.response], 128)
        if not rollout.ended or len(answer) != rollout.tokens:
            continue
        ids = torch.tensor([prompt + answer])
        for name, found in logs.items():
            with torch.no_grad():
                chances = policies(branch, name)(ids).logits[0].double().log_softmax(-1)
            places = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
            found.append(float(chances[places, ids[0, len(prompt) :]].sum()))
    weights = np.exp(np.array(logs["moved_policy"]) - np.array(logs["sft"]))
    share = weights.sum() ** 2 / (weights**2).sum() / len(weights)
    assert len(weights) == verdict(folder)["drift_answers"] >= 2 and share < 0.95
    assert verdict(folder)["drift_ess"] == pytest.approx(share, rel=1e-3)


def policies(branch, name):
    return load_policy(branch.made[name] / "policy").eval()
