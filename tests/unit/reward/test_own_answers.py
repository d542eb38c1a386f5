"""Pairs made of the policy's own answers: which ones, how many, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Prompt, Rollout
from inverse_alignment.reward.own_answers import by_prompt, extremes, policy_negatives
from tests.unit.models import tiny


def rollout(prompt, text, sample=0):
    numbers = {"log_prob": -1.0, "ref_log_prob": -1.0, "kl_estimate": 0.0, "tokens": 3, "ended": True}
    return Rollout(prompt=Prompt.from_text(prompt), response=text, sample=sample, **numbers)


PAIRS = [tiny.pair(f"q{i}", f"good {i}", f"bad {i}", i, margin=0.5, soft_label=0.75, weight=2.0) for i in range(8)]
ROLLOUTS = [rollout(f"q{i}", f"mine {i} {sample}", sample) for i in range(6) for sample in range(2)]


@given(st.floats(0.05, 1), st.integers(0, 10**6), st.lists(st.booleans(), min_size=8, max_size=8))
@settings(max_examples=50, deadline=None)
def test_a_share_of_the_allowed_pairs_has_an_answer_of_the_policy_to_the_same_prompt(share, seed, allowed):
    allowed = np.array(allowed)
    possible = allowed & (np.arange(8) < 6)  # nobody has answered the last two prompts
    if not possible.any():
        with pytest.raises(UserError, match="answered no prompt of a selected pair"):
            policy_negatives(PAIRS, allowed, ROLLOUTS, share, seed)
        return
    made = policy_negatives(PAIRS, allowed, ROLLOUTS, share, seed)
    assert made.own.sum() == min(max(round(share * allowed.sum()), 1), possible.sum())
    assert not made.own[~possible].any()
    for i, (before, after) in enumerate(zip(PAIRS, made.pairs, strict=True)):
        if not made.own[i]:
            assert after is before
            continue
        assert after.rejected in (f"mine {i} 0", f"mine {i} 1") and after.chosen == before.chosen
        assert after.soft_label is after.margin is None and after.weight == 2.0 and after.id == before.id
        assert after.provenance.source_rejected == "policy"
        assert after.provenance.source_chosen == before.provenance.source_chosen
    again = policy_negatives(PAIRS, allowed, ROLLOUTS, share, seed)
    assert again.pairs == made.pairs


def test_an_answer_that_equals_the_chosen_one_is_not_rejected():
    pairs = [tiny.pair("q", "same", "bad")]
    made = policy_negatives(pairs, np.array([True]), [rollout("q", "same"), rollout("q", "other", 1)], 1.0, 0)
    assert made.pairs[0].rejected == "other"
    with pytest.raises(UserError, match="other than by its chosen answer") as error:
        policy_negatives(pairs, np.array([True]), [rollout("q", "same")], 1.0, 0)
    assert "rollout.prompts" in error.value.fix


def test_both_answers_of_the_policy_are_used_now_and_then():
    pairs = PAIRS[:1] * 40
    made = policy_negatives(pairs, np.ones(40, dtype=bool), ROLLOUTS, 1.0, 0)
    assert {pair.rejected for pair in made.pairs} == {"mine 0 0", "mine 0 1"}


def test_the_best_answer_to_each_prompt_beats_the_worst():
    answers = [rollout("a", "1"), rollout("b", "2"), rollout("a", "3", 1), rollout("a", "4", 2), rollout("b", "5", 1)]
    made = extremes(answers, np.array([0.5, -1.0, 2.0, -3.0, -2.0]))
    assert [(pair.prompt.text(), pair.chosen, pair.rejected) for pair in made] == [("a", "3", "4"), ("b", "2", "5")]
    assert made[0].provenance.annotator == "incumbent reward model" and made[0].provenance.source_chosen == "policy"
    assert made[0].id != made[1].id and made[0].soft_label is None


def test_equal_scores_and_equal_texts_are_no_extremes():
    answers = [rollout("a", "1"), rollout("a", "2", 1), rollout("b", "3"), rollout("b", "3", 1), rollout("c", "4")]
    with pytest.raises(UserError, match="tells apart") as error:
        extremes(answers, np.array([1.0, 1.0, 0.5, 0.5 + 1e-9, 2.0]))
    assert error.value.where == "refresh.rule.type, which is extremes"
    first = extremes([*answers, rollout("a", "5", 2)], np.array([1.0, 1.0, 0.5, 0.5, 2.0, 0.0]))
    assert [(pair.chosen, pair.rejected) for pair in first] == [("1", "5")]


def test_answers_are_kept_in_order_by_their_prompt():
    found = by_prompt(ROLLOUTS[::-1])
    assert list(found) == [Prompt.from_text(f"q{i}").key for i in range(5, -1, -1)]
    assert [r.response for r in found[Prompt.from_text("q3").key]] == ["mine 3 1", "mine 3 0"]
