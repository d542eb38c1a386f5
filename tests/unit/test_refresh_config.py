"""Settings of a refresh and of PPO's rounds that cannot work are refused before anything runs, arm by arm."""

from __future__ import annotations

from pathlib import Path

import pytest

from inverse_alignment.config import PipelineConfig, load
from inverse_alignment.core.errors import UserError
from tasks import run_stage
from tests.unit.test_config import ROOT


def configured(*overrides: str):
    return load(ROOT / "params.yaml", None, overrides)


REFUSED = [
    (
        ("refresh.rule={type: meta}", "rollout.samples=1"),
        "the rule meta compares the policy's answers",
        "refresh.rule.type",
        "rollout.samples",
    ),
    (
        ("refresh.rule={type: extremes}", "rollout.samples=1"),
        "the rule extremes compares",
        "refresh.rule.type",
        "rollout.samples",
    ),
    (
        ("refresh.rule={type: policy_negatives}", "rollout.split=test"),
        "needs answers to prompts of the train split, not of test",
        "refresh.rule.type",
        "rollout.split to train",
    ),
    (
        ("refresh.trigger={type: drift, measure: variance, threshold: 0.5}", "reference_sample.samples=1"),
        "reference_sample has one answer",
        "refresh.trigger.measure",
        "reference_sample.samples",
    ),
    (
        ("refresh.trigger={type: drift, measure: ess, threshold: 0.5}", "rollout.temperature=0.7"),
        "rollout is sampled at 0.7",
        "refresh.trigger.measure",
        "measure mmd",
    ),
    (
        ("refresh.trigger={type: drift, measure: ess, threshold: 2}",),
        "ess is a share",
        "refresh.trigger.threshold",
        "between 0 and 1",
    ),
    (
        ("refresh.rule={type: lore}",),
        "unknown type 'lore'",
        "refresh.rule.type",
        "full, lora, head, meta, policy_negatives, extremes",
    ),
    (
        ("refresh.trigger={type: drift, measure: kl}",),
        "should be 'mmd', 'ess' or 'variance'",
        "refresh.trigger.measure",
        "",
    ),
    (("ppo.start={type: interpolate, share: 1}",), "less than 1", "ppo.start.share", ""),
    (("ppo.reference={type: last}",), "unknown type 'last'", "ppo.reference.type", "last_round"),
]


@pytest.mark.parametrize(("overrides", "what", "where", "fix"), REFUSED, ids=[case[1] for case in REFUSED])
def test_what_cannot_work_is_refused(overrides, what, where, fix):
    with pytest.raises(UserError) as error:
        configured(*overrides)
    assert what in error.value.what and error.value.where.startswith(where) and fix in error.value.fix


def test_an_arm_that_never_refreshes_may_have_any_rule():
    values = {"refresh": {"rule": {"type": "meta"}}, "rollout": {"samples": 1}}
    alone = PipelineConfig.model_validate({**values, "arms": {"none": {"selection": {"type": "none"}}}})
    assert alone.refresh.rule.type == "meta"
    with pytest.raises(UserError):
        PipelineConfig.model_validate({**values, "arms": {"all": {"selection": {"type": "all"}}}})


def test_what_one_arm_sets_is_refused_in_its_name():
    arms = "arms={one: {selection: {type: random}, refresh: {rule: {type: extremes}}, rollout: {samples: 1}}}"
    with pytest.raises(UserError) as error:
        configured(arms)
    assert error.value.where.startswith("arms.one.refresh.rule.type") and "arms.one.rollout" in error.value.fix


def nodes(*overrides: str):
    from flows.compare import compare

    drawn = run_stage.draw(lambda: compare(configured(*overrides)))
    return {node.name: node for node in drawn}


@pytest.fixture
def here(monkeypatch):
    monkeypatch.chdir(Path(ROOT))


def test_a_schedule_is_due_in_the_first_round_and_every_so_manieth_after_it(here):
    drawn = nodes("rounds=5", "refresh.trigger.every=2")
    due = [drawn[f"random-s0-r{number}-refresh"].config.due for number in range(1, 6)]
    assert due == [True, False, True, False, True]
    drifting = nodes("refresh.trigger={type: drift, measure: mmd, threshold: 0.1}")
    assert all(drifting[f"random-s0-r{number}-refresh"].config.due for number in (1, 2, 3))


def test_a_refresh_takes_what_its_settings_ask_and_nothing_else(here):
    base = {"reward", "selection", "preferences", "rollouts", "reference_rollouts"}
    plain = nodes()
    assert set(plain["random-s0-r1-refresh"].inputs) == base
    assert set(plain["random-s0-r2-refresh"].inputs) == base | {"seen"}
    first = nodes("refresh.start=first")["random-s0-r2-refresh"].inputs
    assert set(first) == base | {"seen", "first_reward"} and first["first_reward"].uri == "pending:reward-s0/model"
    ess = nodes("refresh.trigger={type: drift, measure: ess, threshold: 0.3}")["random-s0-r2-refresh"]
    assert set(ess.inputs) == base | {"seen", "policy"} and ess.config.policy_context == 128
    assert ess.inputs["policy"].uri == "pending:random-s0-r1-ppo/policy"
    assert plain["random-s0-r2-refresh"].config.policy_context == 0
