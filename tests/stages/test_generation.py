"""Rollouts and evaluations whose answers a vLLM server gives: a fake one with a real model and our own noise."""

from __future__ import annotations

import json
import sys

import pytest

from inverse_alignment.core.context import VllmRuntime
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import FileReport
from inverse_alignment.core.records import Rollout, read_jsonl
from inverse_alignment.generation.settings import VllmGeneration
from inverse_alignment.stages.evaluate import EvaluateStage
from inverse_alignment.stages.rollout import RolloutStage
from tests.stages import chain
from tests.unit.generation import fake_vllm

VLLM = VllmGeneration(version=fake_vllm.VERSION)


@pytest.fixture
def runtime(tmp_path):
    program = tmp_path / "fake-vllm"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{fake_vllm.__file__}" "$@"\n')
    program.chmod(0o755)
    return chain.RUNTIME.model_copy(update={"vllm": VllmRuntime(executable=str(program), start_seconds=120)})


def test_a_rollout_is_the_same_whoever_samples_with_the_same_noise(built, tmp_path, runtime):
    """The server gets the policy, prompts, seeds and bounds of the stage, and what it answers is looked at alike."""
    told = []

    class Report(FileReport):
        def progress(self, done, total, unit):
            told.append((done, total, unit))

    inputs = {
        "policy": built.made["ppo"] / "policy",
        "reference": built.made["sft"] / "policy",
        "preferences": built.made["preferences"],
    }
    made = {}
    for name, generation in (("hf", chain.SAMPLES.generation), ("vllm", VLLM)):
        here = chain.Chain(tmp_path / name)
        stage = RolloutStage(
            rollout=chain.SAMPLES.model_copy(update={"prompts": 8, "temperature": 0.9, "generation": generation}),
            context=chain.MODEL.context,
        )
        here.run("rollouts", "rollout", inputs, stage, runtime, Report)
        made[name] = read_jsonl(here.made["rollouts"] / "rollouts.jsonl", Rollout)
        log = here.partial("rollouts").with_name("rollouts.vllm.log")
        assert log.exists() == (name == "vllm")
        assert [path.name for path in here.partial("rollouts").iterdir()] == []  # nothing to go on from
        assert [path.name for path in here.made["rollouts"].iterdir()] == ["rollouts.jsonl"]
    assert made["vllm"] == made["hf"] and len(made["hf"]) == 16
    assert "the model is loaded" in log.read_text()
    assert (0, 16, "answers, while vLLM starts") in told and (16, 16, "answers") in told


@pytest.mark.slow
def test_an_evaluation_is_the_same_too(built, tmp_path, runtime):
    inputs = {
        "policy": built.made["ppo"] / "policy",
        "reference": built.made["sft"] / "policy",
        "reward": built.made["refreshed"] / "model",
        "preferences": built.made["preferences"],
    }
    measured = []
    for name, generation in (("hf", chain.EVALUATION.generation), ("vllm", VLLM)):
        evaluation = chain.EVALUATION.model_copy(update={"prompts": 4, "generation": generation})
        context = chain.MODEL.context
        stage = EvaluateStage(evaluation=evaluation, context=context, reward_context=context)
        out = chain.Chain(tmp_path / name).run("evaluation", "evaluate", inputs, stage, runtime)
        measured.append([json.loads((out / "evaluation.json").read_text()), (out / "samples.jsonl").read_text()])
    assert measured[0] == measured[1]


def test_without_vllm_the_stage_says_so(built, tmp_path):
    none = chain.RUNTIME.model_copy(update={"vllm": VllmRuntime(executable="no-such-vllm")})
    inputs = dict.fromkeys(("policy", "reference"), built.made["sft"] / "policy")
    stage = RolloutStage(rollout=chain.SAMPLES.model_copy(update={"generation": VLLM}), context=chain.MODEL.context)
    with pytest.raises(UserError, match="not installed") as caught:
        chain.Chain(tmp_path).run(
            "rollouts", "rollout", {**inputs, "preferences": built.made["preferences"]}, stage, none
        )
    assert caught.value.where == "runtime.vllm.executable"
