"""What a selection depends on: what its type looks at, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flows.compare import compare
from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.configuration import identity_of
from tasks import run_stage
from tests.flows.toy_run import config_for

K = "keep: {type: top_k, k: 7}"
LOOKS = {
    "{type: random, k: 7}": {"rollouts"},
    "{type: all}": set(),
    f"{{type: similarity, {K}}}": {"rollouts"},
    f"{{type: lowest_similarity, {K}}}": {"rollouts"},
    f"{{type: length_matched_random, like: {{type: similarity, {K}}}}}": {"rollouts"},
    f"{{type: likelihood, {K}}}": {"policy"},
    "{type: density_ratio, keep: {type: top_k_per_cluster, k: 7}}": {"policy", "reference"},
    "{type: density_ratio, keep: {type: weights}}": {"policy", "reference"},
    f"{{type: margin, {K}}}": {"policy", "reference"},
    f"{{type: uncertainty, {K}}}": {"reward"},
    f"{{type: influence, {K}}}": {"reward", "rollouts"},
    f"{{type: intersection, of: [{{type: uncertainty, {K}}}, {{type: likelihood}}]}}": {"reward", "policy"},
}
LEAST = {"{type: all}": 0, "{type: density_ratio, keep: {type: weights}}": 0}
TOKENS = {"context": "policy", "reward_context": "reward"}


def config(tmp_path: Path, selection: str) -> PipelineConfig:
    return config_for(tmp_path, Path("nowhere.jsonl"), arms={"arm": {"selection": yaml.safe_load(selection)}})


def drawn(tmp_path: Path, selection: str) -> dict[str, run_stage.Node]:
    return {node.name: node for node in run_stage.draw(lambda: compare(config(tmp_path, selection)))}


@pytest.mark.parametrize("selection", LOOKS)
def test_only_what_is_looked_at_is_an_input(tmp_path, selection):
    nodes = drawn(tmp_path, selection)
    node = nodes["arm-s0-r2-select"]
    assert set(node.inputs) == {"preferences", *LOOKS[selection]}
    came = {
        "rollouts": "pending:arm-s0-r2-rollout",
        "policy": "pending:arm-s0-r1-ppo/policy",
        "reference": "pending:sft-s0/policy",
        "reward": "pending:arm-s0-r1-refresh/model",
    }
    for name in LOOKS[selection]:
        assert node.inputs[name].uri == came[name]
    identity = identity_of(node.config)
    assert {name for name in TOKENS if identity[name] is not None} == {
        name for name, model in TOKENS.items() if model in LOOKS[selection]
    }


@pytest.mark.parametrize("selection", LOOKS)
def test_the_pool_must_hold_as_many_pairs_as_are_asked_for(tmp_path, selection):
    least = drawn(tmp_path, selection)["aggregate"].config.least_train_pairs
    assert least == (600 if "{type: likelihood}" in selection else LEAST.get(selection, 7))


def test_each_encoder_is_an_input_of_its_own(tmp_path, monkeypatch):
    found = []

    def model(path, revision, where, cache):
        from inverse_alignment.core.artifact import Artifact

        found.append(where)
        return Artifact(kind="model", uri=path, digest="pending")

    monkeypatch.setattr("tasks.external.model", model)
    sentence = "encoder: {type: sentence_transformers, path: %s}"
    keep = f"keep: {{type: top_k_per_cluster, k: 7, {sentence % 'prompts'}}}"
    members = f"[{{type: margin, {keep}}}, {{type: similarity, {sentence % 'answers'}, {keep}}}]"
    node = drawn(tmp_path, f"{{type: intersection, of: {members}}}")["arm-s0-r1-select"]
    encoders = {name: artifact.uri for name, artifact in node.inputs.items() if "encoder" in name}
    assert encoders == {
        "of.0.keep.encoder": "prompts",
        "of.1.encoder": "answers",
        "of.1.keep.encoder": "prompts",
    }
    assert {f"selection.{name}" for name in encoders} <= set(found)
