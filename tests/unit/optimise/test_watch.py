"""A look: the same prompts and noise each time, nothing changed by looking, and what it says checked by hand."""

import json

import numpy as np
import pytest

from inverse_alignment.core.estimates import RewardEstimate
from inverse_alignment.generation.answers import Answer
from inverse_alignment.maths.density_ratio import effective_sample_size
from inverse_alignment.models.answer_log_probs import answer_log_probs
from inverse_alignment.optimise.watch import described, watch_of
from tests.unit.models import tiny

PAIRS = [tiny.pair(text, f"the {text}", "no") for text in ("hi", "a dog?", "the end", "why")]


def said(text, tokens):
    return Answer([2], list(range(tokens)), True, text)


def test_what_is_described():
    answers = [said("Great question! Boil it now", 4), said("I can't help with that", 2), said("boil it now", 3)]
    found = described(answers, np.array([4.0, 2.0, 3.0]), ["great question"])
    assert found["length_correlation"] == pytest.approx(1)
    assert (found["refusal_share"], found["stock_phrase_share"]) == (1 / 3, 1 / 3)
    assert found["common_opening_share"] == 1 / 3
    assert found["distinct_2"] == 8 / 10  # 4 + 4 + 2 pairs, of which "boil it" and "it now" are there twice
    assert "length_correlation" not in described(answers, np.ones(3), [])


def liking(prompts, texts):
    return np.array([len(text) + 0.1 * len(prompt.text()) for prompt, text in zip(prompts, texts, strict=True)])


def unsure(prompts, texts):
    return RewardEstimate(liking(prompts, texts), np.arange(float(len(texts))))


def watch(reward, audit=None, prompts=3, seed=0):
    sft = (tiny.policy(), tiny.tokenizer())
    return watch_of(PAIRS, (prompts, 2), reward, audit, sft, (tiny.SPEC.context, 512), seed)


def look(watched, policy):
    return watched.look(7, policy, tiny.tokenizer(), tiny.sampling(), 512)


def test_a_look_asks_and_scores():
    seen = look(watch(unsure, lambda prompts, texts: -liking(prompts, texts)), tiny.policy())
    scores = np.array([row["rm_score"] for row in seen.rows]).reshape(3, 2)
    assert seen.metrics["look_rm_score"] == pytest.approx(scores.mean())
    assert seen.metrics["look_reward_variance"] == pytest.approx(scores.var(-1, ddof=1).mean())
    assert seen.metrics["look_audit_score"] == pytest.approx(-scores.mean())
    assert seen.metrics["look_disagreement"] == 2.5
    assert seen.metrics["look_ess"] == pytest.approx(1)  # the policy is the SFT policy
    prompts = [row["prompt"]["messages"][0]["content"] for row in seen.rows]
    assert prompts[0] == prompts[1] != prompts[2] and {row["step"] for row in seen.rows} == {7}


def test_what_is_not_known_is_not_said():
    seen = look(watch(lambda prompts, texts: RewardEstimate(liking(prompts, texts))), tiny.policy())
    assert not {"look_audit_score", "look_disagreement"} & set(seen.metrics)
    assert [row["audit_score"] for row in seen.rows] == [None] * 6


def test_the_same_prompts_and_noise_at_every_look():
    watched = watch(unsure)
    policy = tiny.policy()
    before = tiny.weights(policy)
    first, second, other = look(watched, policy), look(watched, policy), look(watch(unsure, seed=1), policy)
    assert first.rows == second.rows != other.rows and tiny.same(before, tiny.weights(policy))


def test_coverage_is_that_of_the_offline_answers_under_a_policy_that_moved():
    moved, watched = tiny.policy(3, scale=3.0), watch(unsure)
    prompts, given, before = watched.offline
    assert set(given) <= {pair.chosen for pair in PAIRS} and all(
        text == f"the {prompt.messages[0].content}" for prompt, text in zip(prompts, given, strict=True)
    )
    now = answer_log_probs(moved, tiny.tokenizer(), prompts, given, tiny.SPEC.context, 512).sums
    found = look(watched, moved).metrics["look_ess"]
    assert found == pytest.approx(effective_sample_size(now - before) / 3) and found < 0.9


def test_rows_are_lines_of_a_file(tmp_path):
    seen = look(watch(unsure), tiny.policy())
    for _ in range(2):
        seen.append(tmp_path / "looks.jsonl")
    lines = (tmp_path / "looks.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [*seen.rows, *seen.rows]
