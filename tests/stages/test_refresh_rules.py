"""Refresh rules through the stage: what learns, what stays, and that a stopped refresh ends with the same bytes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from inverse_alignment.core.artifact import METRICS, external, list_files
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import FileReport, Stopped
from inverse_alignment.core.records import Rollout, read_jsonl
from inverse_alignment.models.loading import load_reward_model
from inverse_alignment.models.reward_scores import load_calibrated
from inverse_alignment.reward.settings import FullRule, HeadRule, LoraRule
from tests.stages import chain
from tests.stages.chain import Chain

CPU = torch.device("cpu")
RULES = {"full": FullRule(), "lora": LoraRule(rank=4, alpha=8.0), "head": HeadRule()}
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


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_changes_what_it_says_and_presents_as_many_pairs(branch, rule):
    folder = chain.refresh(branch, rule, ruled(RULES[rule]))
    learned = changed(branch, rule)
    everything = set(weights(branch.made["reward"]))
    linear = {key for key in everything if key.endswith("_proj.weight")}
    assert learned == {"full": everything, "lora": {"score.weight", *linear}, "head": {"score.weight"}}[rule]
    assert {path.name for path in (folder / "model").iterdir()} >= MODEL_FILES
    metrics = branch.metrics[rule]
    assert metrics["steps"] == metrics["gradient_steps"] == 16 and metrics["pairs_seen"] == 128  # 128 / 8


@pytest.mark.parametrize("rule", RULES)
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
    scores = load_calibrated(folder / "model", CPU, 128, 64)([r.prompt for r in sample], [r.response for r in sample])
    assert scores.mean() == pytest.approx(0, abs=1e-5) and scores.std() == pytest.approx(1, abs=1e-5)
    before = load_calibrated(branch.made["reward"] / "model", CPU, 128, 64)
    assert np.abs(scores - before([r.prompt for r in sample], [r.response for r in sample])).max() > 0.05


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
