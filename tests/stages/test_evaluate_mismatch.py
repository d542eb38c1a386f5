"""What evaluation says beside the reward: files off the objective, the start's answers, and the looks of PPO."""

from __future__ import annotations

import json

import numpy as np
import pytest

from inverse_alignment.evaluation.judges import EndpointJudge
from inverse_alignment.stages.evaluate import EvaluationConfig, NoGold
from tests.stages import chain


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files_off_the_objective_and_a_policy_against_itself(built):
    measured = json.loads((built.made["evaluation"] / "evaluation.json").read_text())
    assert measured["over_refusal_prompts"] == 1 and measured["over_refusal_share"] in (0.0, 1.0)
    assert measured["probe_nll"] > 0 and measured["probe_nll"] != measured["probe_nll_sft"]
    assert measured["win_rate"] == measured["like_length_win_rate"] == 0.5  # no start was given
    assert 0 <= measured["offline_ece"] <= 1 and 0 <= measured["on_policy_ece"] <= 1
    answers = lines(built.made["evaluation"] / "answers.jsonl")
    assert measured["best_of_n"][0]["rm_score"] == pytest.approx(measured["rm_score"])
    assert [row["n"] for row in measured["best_of_n"]] == [1, 2]
    assert measured["rm_score"] == pytest.approx(sum(row["rm_score"] for row in answers) / len(answers))


def test_looks_are_labelled_by_gold(built):
    looks = lines(built.made["evaluation"] / "looks.jsonl")
    assert [look["step"] for look in looks] == [1, 2, 4]
    assert all(look["gold"] is not None and 0 <= look["on_policy_accuracy"] <= 1 for look in looks)


def test_against_the_sft_policy_and_without_gold(built):
    chain.evaluate(built, "start", chain.EVALUATION, policy=built.made["sft"] / "policy")
    silent = EvaluationConfig(gold=NoGold(), samples=2, max_new_tokens=chain.TOKENS)
    more = {"start": built.made["start"], "ppo": built.made["ppo"]}
    with_gold = chain.evaluate(built, "against", chain.EVALUATION, audit=built.made["audit"] / "model", **more)
    without = chain.evaluate(built, "silent", silent, **more)
    found, null = (json.loads((folder / "evaluation.json").read_text()) for folder in (with_gold, without))
    assert found["win_rate"] != 0.5 and found["win_rate_ci95"][0] <= found["win_rate"] <= found["win_rate_ci95"][1]
    assert found["judge_prompts"] == 0 and found["judge_win_rate"] is None
    assert found["proxy_truth_mmd"] is not None and found["like_length_groups"] > 0
    assert null["on_policy_ece"] is None and null["offline_ece"] == found["offline_ece"]
    assert null["win_rate"] is null["proxy_truth_mmd"] is null["over_refusal_share"] is null["probe_nll"] is None
    assert all(look["gold"] is look["on_policy_accuracy"] is None for look in lines(without / "looks.jsonl"))


def test_a_judge_is_asked_about_first_answers(built, monkeypatch):
    def longest(self, prompts, first, second):
        return np.array([float(len(a) > len(b)) for a, b in zip(first, second, strict=True)])

    monkeypatch.setattr(EndpointJudge, "__call__", longest)
    asked = {"type": "endpoint", "url": "http://127.0.0.1:9/v1", "model": "m", "prompts": 3}
    evaluation = EvaluationConfig.model_validate({**chain.EVALUATION.model_dump(), "judge": asked})
    start = {"start": built.made["evaluation"]}
    folder = chain.evaluate(built, "judged", evaluation, policy=built.made["sft"] / "policy", **start)
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["judge_prompts"] == 3 and 0 <= found["judge_win_rate"] <= 1
    firsts = [lines(path / "answers.jsonl")[0]["response"] for path in (folder, built.made["evaluation"])]
    assert firsts[0] != firsts[1]
