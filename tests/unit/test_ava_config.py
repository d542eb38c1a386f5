"""How AVA and the Preference Transformer are configured, and what is refused when the configuration is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from inverse_alignment.config import load
from inverse_alignment.core.errors import UserError
from inverse_alignment.models.beliefs import AvaObjective, PreferenceTransformerObjective
from inverse_alignment.models.tqr import TqrForm
from inverse_alignment.stages.tqr_reward import form_of, objective_of

ROOT = Path(__file__).resolve().parents[2]
NONE = "arms={random: null, similarity: null}"


def reward(text):
    return load(root=ROOT, overrides=[f"reward={{{text}}}", NONE]).reward


@pytest.mark.parametrize(
    ("text", "form", "objective"),
    [
        ("type: ava", TqrForm(), AvaObjective(paired=True)),
        (
            "type: ava, q: {type: pretrained, alpha: 2.0}, beta: 0.5, gamma: 0.9, consistency: 3, inverse: 0.25, "
            "reward_weights: false, log_std_bound: 2, objective: {type: preferences, negatives: 0.1, floor: -4, "
            "cer: 5, cer_form: printed, score: sum}",
            TqrForm("pretrained", 2.0, False, 2.0, "sum"),
            AvaObjective(True, False, 0.5, 0.9, 3.0, 0.25, 0.1, -4.0, 5.0, "printed"),
        ),
        (
            "type: ava, q: {type: fresh}, beta: 0.5, objective: {type: demonstrations}",
            TqrForm("fresh", 0.5, score="sum"),
            AvaObjective(paired=False, fresh=True, beta=0.5),
        ),
        (
            "type: preference_transformer, label_smoothing: 0.1",
            TqrForm(q="none", score="mean", uncertain=False),
            PreferenceTransformerObjective(0.1),
        ),
    ],
)
def test_every_key_arrives(text, form, objective):
    found = reward(text)
    assert form_of(found) == form and objective_of(found) == objective


@pytest.mark.parametrize(
    ("overrides", "where", "what"),
    [
        (["reward={type: ava, objective: {type: preferences, cer: 0}}", NONE], "reward.objective.score", "last token"),
        (["reward={type: ava}"], "arms.random.selection.type", "ava cannot be refreshed"),
        (["reward={type: preference_transformer}"], "arms.random.selection.type", "cannot be refreshed"),
        (["reward={type: ava}", NONE, "ppo.credit={type: abc}"], "ppo.credit.type", "abc credit looks into one"),
        (["ppo.credit={type: dense}"], "ppo.credit.type", "dense credit needs a reward for every token"),
        (["reward={type: ensemble}", NONE, "ppo.credit={type: dense}"], "ppo.credit.type", "ensemble has none"),
        (["reward={type: ava, objective: {type: demonstrations, cer: 1}}", NONE], "reward.objective", "unknown key"),
        (["reward={type: ava, objective: {type: preferences, floor: 0}}", NONE], "reward.objective", "less than 0"),
    ],
)
def test_what_is_refused(overrides, where, what):
    with pytest.raises(UserError, match=what) as error:
        load(root=ROOT, overrides=overrides)
    assert error.value.where.startswith(where)


@pytest.mark.parametrize("kind", ["ava", "preference_transformer"])
def test_dense_credit_goes_with_a_reward_for_every_token(kind):
    config = load(root=ROOT, overrides=[f"reward={{type: {kind}}}", NONE, "ppo.credit={type: dense, share: 0.5}"])
    assert config.ppo.credit.share == 0.5
