"""Refresh rules through the stage: what learns, what stays, and that a stopped refresh ends with the same bytes."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pytest
import torch

from inverse_alignment.core.artifact import METRICS, external, list_files
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import FileReport, Stopped
from inverse_alignment.core.records import Rollout, read_jsonl, write_jsonl
from inverse_alignment.models.loading import load_reward_model
from inverse_alignment.models.reward_scores import load_calibrated
from inverse_alignment.reward.settings import (
    ExtremesRule,
    FullRule,
    HeadRule,
    LoraRule,
    MetaRule,
    PolicyNegativesRule,
)
from tests.stages import chain
from tests.stages.chain import Chain

CPU = torch.device("cpu")
RULES = {
    "full": FullRule(),
    "lora": LoraRule(rank=4, alpha=8.0),
    "head": HeadRule(),
    "meta": MetaRule(rate=0.1, prompts=4),
    "policy_negatives": PolicyNegativesRule(),
    "linear": PolicyNegativesRule(share=1.0, loss="linear"),
    "extremes": ExtremesRule(),
}
HEAD_ALONE = ("head", "extremes")
MODEL_FILES = {"chat_template.jinja", "config.json", "model.safetensors", "calibration.json"}
LONG = chain.REFRESH.model_copy(update={"pairs_seen": 128})


class Asked(FileReport):
    """Asks to stop once the stage has said that it did something."""

    done = 0

    def progress(self, done: int, total: int, unit: str) -> None:
        self.done = done

    def stopping(self) -> bool:
        return self.done >= 2


@pytest.fixture
def branch(built, tmp_path):
    return Chain(tmp_path, dict(built.made), {})


def ruled(rule, **more):
    return LONG.model_copy(update={"rule": rule, **more})


def weights(folder):
    return dict(load_reward_model(folder / "model").named_parameters())


def changed(branch, name):
    """Names of the weights that a refresh changed."""
    before, after = weights(branch.made["reward"]), weights(branch.made[name])
    assert before.keys() == after.keys()
    return {key for key in before if not torch.equal(before[key], after[key])}


def digest(folder):
    return external("any", folder).digest


def verdict(folder):
    return json.loads((folder / "gate.json").read_text())


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_changes_what_it_says_and_presents_as_many_pairs(branch, rule):
    folder = chain.refresh(branch, rule, ruled(RULES[rule]))
    everything = set(weights(branch.made["reward"]))
    linear = {key for key in everything if key.endswith("_proj.weight")}
    expected = {"score.weight"} if rule in HEAD_ALONE else everything
    assert changed(branch, rule) == ({"score.weight", *linear} if rule == "lora" else expected)
    assert {path.name for path in (folder / "model").iterdir()} >= MODEL_FILES
    metrics, selected = branch.metrics[rule], 86  # 128 less 0.33 · 128 replayed
    assert metrics["steps"] == 16 and metrics["pairs_seen"] == 128 and metrics["replayed"] == 42
    assert metrics["gradient_steps"] == (32 if rule == "meta" else 16)
    own = {"policy_negatives": 43, "linear": selected, "extremes": selected}
    assert metrics["own_answers"] == own.get(rule, 0)


@pytest.mark.slow
def test_no_two_rules_make_the_same_model(branch):
    made = {rule: digest(chain.refresh(branch, rule, ruled(RULES[rule])) / "model") for rule in RULES}
    assert len(set(made.values())) == len(RULES)


@pytest.mark.parametrize(
    "rule", [each if each in ("lora", "meta") else pytest.param(each, marks=pytest.mark.slow) for each in RULES]
)
def test_asked_to_stop_and_run_again_a_refresh_ends_with_the_same_bytes(branch, rule):
    expected = chain.refresh(branch, "straight", ruled(RULES[rule]))
    with pytest.raises(Stopped, match="stopped after 10 of 16"):
        chain.refresh(branch, "stopped", ruled(RULES[rule]), report=Asked)
    shutil.rmtree(branch.root / "stopped")  # scratch; what survives is the partial state
    found = chain.refresh(branch, "stopped", ruled(RULES[rule]))
    assert list_files(found) == list_files(expected)
    for file in list_files(expected):
        assert (found / file).read_bytes() == (expected / file).read_bytes(), file
    assert (branch.partial("stopped") / METRICS).read_bytes() == (branch.partial("straight") / METRICS).read_bytes()


def test_merged_adapters_say_what_was_judged(branch):
    folder = chain.refresh(branch, "lora", ruled(RULES["lora"]))
    sample = read_jsonl(branch.made["reference_rollouts"] / "rollouts.jsonl", Rollout)
    scores, before = (
        load_calibrated(model / "model", CPU, 128, 64)([r.prompt for r in sample], [r.response for r in sample])
        for model in (folder, branch.made["reward"])
    )
    assert scores.mean() == pytest.approx(0, abs=1e-5) and scores.std() == pytest.approx(1, abs=1e-5)
    assert np.abs(scores - before).max() > 0.05


def test_a_wider_adapter_and_fewer_targets_make_another_model(branch):
    few = LoraRule(rank=4, alpha=8.0, targets=("q_proj", "v_proj"))
    chain.refresh(branch, "few", ruled(few))
    assert {key.split(".")[-2] for key in changed(branch, "few")} == {"score", "q_proj", "v_proj"}
    wide = chain.refresh(branch, "wide", ruled(LoraRule(rank=8, alpha=8.0)))
    assert digest(wide / "model") != digest(chain.refresh(branch, "narrow", ruled(RULES["lora"])) / "model")


def test_a_layer_that_is_not_there_is_refused(branch):
    with pytest.raises(UserError, match="no layer of the reward model is called 'q_prj'") as error:
        chain.refresh(branch, "typo", ruled(LoraRule(targets=("q_prj",))))
    assert error.value.where == "refresh.rule.targets" and "q_proj" in error.value.fix


def test_a_refresh_may_start_from_the_first_reward_model_again(branch):
    # After one refresh the incumbent is no longer the first model: from the first one, the second refresh is the first.
    second = {
        start: chain.refresh(branch, start, ruled(FullRule(), start=start), reward="refreshed")
        for start in ("last", "first")
    }
    alone = chain.refresh(branch, "alone", ruled(FullRule()))
    assert digest(second["first"] / "model") == digest(alone / "model") != digest(second["last"] / "model")


def test_looking_ahead_by_almost_nothing_is_no_looking_ahead(branch):
    full = weights(chain.refresh(branch, "full", ruled(FullRule())))
    near, far = (
        weights(chain.refresh(branch, f"meta-{rate}", ruled(MetaRule(rate=rate, prompts=4)))) for rate in (1e-12, 0.3)
    )
    for key, weight in full.items():
        torch.testing.assert_close(near[key], weight, rtol=1e-4, atol=1e-4)
    assert max(float((far[key] - weight).detach().abs().max()) for key, weight in full.items()) > 1e-3


def test_extremes_warn_ignore_the_selection_and_learn_from_the_incumbents_own_opinion(branch, caplog):
    with caplog.at_level(logging.WARNING):
        first = chain.refresh(branch, "extremes", ruled(ExtremesRule(), replay_share=0.0))
    assert "labels its own training pairs" in caplog.text and "75.3 to 66.9" in verdict(first)["warning"]
    branch.made["selection"] = chain.select(branch, "other", chain.SimilaritySelection(keep=chain.TopK(k=3)))
    second = chain.refresh(branch, "again", ruled(ExtremesRule(), replay_share=0.0))
    assert digest(first / "model") == digest(second / "model")
    # surer of what it believed: in its own old units, the answers are further apart
    scores = []
    for model in (branch.made["reward"], first):
        scored = load_calibrated(model / "model", CPU, 128, 64)
        sample = read_jsonl(branch.made["reference_rollouts"] / "rollouts.jsonl", Rollout)
        scores.append(scored.scorer([r.prompt for r in sample], [r.response for r in sample]))
    assert np.corrcoef(scores)[0, 1] > 0.5 and scores[1].std() > 1.1 * scores[0].std()


def answered(branch, name, responses):
    """Rollouts with other texts: what `responses` makes of the texts of each prompt."""
    rollouts = read_jsonl(branch.made["reference_rollouts"] / "rollouts.jsonl", Rollout)
    folder = branch.root / name
    folder.mkdir()
    write_jsonl(folder / "rollouts.jsonl", [r.model_copy(update={"response": responses(r)}) for r in rollouts])
    branch.made[name] = folder


def test_answers_that_are_all_alike_have_no_extremes(branch):
    answered(branch, "alike", lambda rollout: "Yes.")
    with pytest.raises(UserError, match="no prompt has two answers that the incumbent tells apart") as error:
        chain.refresh(branch, "refused", ruled(ExtremesRule()), rollouts="alike")
    assert error.value.fix == "set rollout.samples to 2 or more"
    assert not list(branch.partial("refused").glob("checkpoint-*"))


def test_the_policys_answers_become_what_is_rejected(branch):
    answered(branch, "bad", lambda rollout: "zzz zzz zzz")
    settings = {"replay_share": 0.0, "pairs_seen": 320}
    taught = chain.refresh(branch, "taught", ruled(PolicyNegativesRule(share=1.0), **settings), rollouts="bad")
    plain = chain.refresh(branch, "plain", ruled(FullRule(), **settings), rollouts="bad")
    sample = read_jsonl(branch.made["reference_rollouts"] / "rollouts.jsonl", Rollout)
    prompts = [rollout.prompt for rollout in sample]
    below = []
    for folder in (taught, plain):
        scored = load_calibrated(folder / "model", CPU, 128, 64)
        below.append(float(scored(prompts, ["zzz zzz zzz"] * len(prompts)).mean()))
    assert below[0] < below[1] - 1  # standard deviations of the reference sample
