"""Every preset is valid and pinned, and the ones for users with a network plan without it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from flows.compare import compare
from inverse_alignment.config import PipelineConfig, load, presets
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.store import Store
from inverse_alignment.data.sources import HhSource, reference
from inverse_alignment.embedding.settings import SentenceEncoder
from inverse_alignment.models.loading import new_policy, save_model
from inverse_alignment.models.specs import CheckpointModel
from inverse_alignment.reward.settings import GateOn
from inverse_alignment.selection.settings import RandomSelection, SimilaritySelection, TopK
from inverse_alignment.stages.evaluate import NoGold
from tasks import external
from tasks.run_stage import Plan, plan
from tests.unit.models import tiny

ROOT = Path(__file__).parents[2]
HUB = ("hh-pythia", "tldr-qwen")
ENCODER = "sentence-transformers/all-MiniLM-L6-v2@c9745ed"
WITHOUT = {  # what nobody has before the first run, by the node that names it first
    "hh-pythia": {
        "tokenizers": "EleutherAI/pythia-160m@50f5173 and EleutherAI/pythia-70m@a39f36b are not downloaded yet",
        "aggregate": "depends on tokenizers; Anthropic/hh-rlhf@09be8c5 is not downloaded yet",
        "random-s0-r1-refresh": f"depends on reward-s0; {ENCODER} is not downloaded yet",
        "similarity-s0-r1-select": "depends on aggregate",
    },
    "tldr-qwen": {
        "tokenizers": "Qwen/Qwen2.5-0.5B-Instruct@7ae5576 is not downloaded yet",
        "aggregate": "depends on tokenizers; CarperAI/openai_summarize_comparisons@a320fae is not downloaded yet",
        "random-s0-r1-refresh": f"depends on reward-s0; {ENCODER} is not downloaded yet",
        "similarity-s0-r1-select": "depends on aggregate",
    },
}


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A machine without network and with an empty hub cache that is not told to be offline; what it asked for."""
    hosts: list[str] = []

    def refuse(*address: Any, **_: Any) -> None:
        hosts.append(str(address))
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield hosts


def preset(name: str, tmp_path: Path, *overrides: str) -> PipelineConfig:
    return load(root=ROOT, preset=name, overrides=[f"store={tmp_path / 'store'}", *overrides])


def planned(config: PipelineConfig) -> Plan:
    return plan(lambda: compare(config), Store(Path(config.store)))


def of_hub(config: PipelineConfig) -> dict[str, tuple[str, str | None]]:
    """Everything that may come from the hub: its key, its id and its revision."""
    found: dict[str, tuple[str, str | None]] = {}
    for index, source in enumerate(config.data.sources):
        if part := reference(source):
            found[f"data.sources[{index}]"] = (source.path, part.revision)
    for role, spec in config.models:
        if isinstance(spec, CheckpointModel):
            found[f"models.{role}"] = (spec.path, spec.revision)
    for name in config.arms:
        arm = config.for_arm(name)
        encoders = [arm.selection.encoder] if isinstance(arm.selection, SimilaritySelection) else []
        encoders += [arm.refresh.gate.encoder] if isinstance(arm.refresh.gate, GateOn) else []
        for index, encoder in enumerate(encoders):
            if isinstance(encoder, SentenceEncoder):
                found[f"arms.{name}, encoder {index}"] = (encoder.path, encoder.revision)
    return found


@pytest.mark.parametrize("name", presets(ROOT))
def test_every_preset_is_valid_differs_from_the_defaults_and_is_pinned(name: str) -> None:
    config = load(root=ROOT, preset=name)
    assert config.digest() != load(root=ROOT).digest()
    for key, (_, revision) in of_hub(config).items():
        assert re.fullmatch("[0-9a-f]{40}", revision or ""), key


@pytest.mark.parametrize("name", HUB)
def test_plan_names_what_a_run_would_download_and_asks_nobody(name: str, tmp_path: Path, asked: list[str]) -> None:
    found = planned(preset(name, tmp_path))
    assert asked == []
    assert {node: found.planned[node].why for node in WITHOUT[name]} == WITHOUT[name]
    statuses = {node: item.status for node, item in found.planned.items()}
    assert [node for node, status in statuses.items() if status == "run"] == ["tokenizers"]
    reused = {node: item.why for node, item in found.planned.items() if item.status == "reuse"}
    assert reused == {f"{arm}-s0-r1-rollout": "same as none-s0-r1-rollout" for arm in ("random", "similarity")}
    assert statuses["audit-s0"] == statuses["compare"] == "depends"


@pytest.mark.parametrize("name", HUB)
def test_outside_a_plan_the_hub_is_asked(name: str, tmp_path: Path, asked: list[str]) -> None:
    policy = preset(name, tmp_path).models.policy
    assert isinstance(policy, CheckpointModel)
    with pytest.raises(UserError, match="cannot be downloaded: no network in this test"):
        external.model(policy.path, policy.revision, "models.policy", tmp_path)
    assert asked


def test_what_has_been_downloaded_is_known_to_the_plan(tmp_path: Path, asked: list[str]) -> None:
    config = preset("hh-pythia", tmp_path)
    spec = tiny.SPEC.model_copy(update={"context": 2048})
    models = (value for key, value in of_hub(config).items() if key.startswith("models."))
    for seed, (path, revision) in enumerate(models):
        snapshot = tmp_path / "hub" / f"models--{path.replace('/', '--')}" / "snapshots" / str(revision)
        save_model(new_policy(spec, tiny.tokenizer(), seed), tiny.tokenizer(), snapshot)
    found = planned(config)
    assert asked == []
    assert found.planned["tokenizers"].why == "never built"
    digests = {name: item.digest for name, item in found.planned["tokenizers"].node.inputs.items()}
    assert len(digests) == len(set(digests.values())) == 2 and "pending" not in digests.values()
    assert found.planned["aggregate"].why == WITHOUT["hh-pythia"]["aggregate"]


def test_two_encoders_that_nobody_has_are_not_the_same_stage(tmp_path: Path, asked: list[str]) -> None:
    other = "arms.other={selection: {type: similarity, encoder: {type: sentence_transformers, path: %s, revision: %s}}}"
    similarity = preset("hh-pythia", tmp_path).for_arm("similarity").selection
    assert isinstance(similarity, SimilaritySelection) and isinstance(similarity.encoder, SentenceEncoder)
    for revision, why in ((similarity.encoder.revision, "same as similarity-s0-r1-select"), ("f" * 40, None)):
        override = other % (similarity.encoder.path, revision)
        keep = "arms.other.selection.keep={type: top_k, k: 2000}"
        found = planned(preset("hh-pythia", tmp_path, override, keep)).planned["other-s0-r1-select"]
        assert found.why == (why or f"depends on aggregate; {similarity.encoder.path}@fffffff is not downloaded yet")


def test_the_tranches_of_hh_keep_the_names_of_their_generators(tmp_path: Path) -> None:
    config = preset("hh-pythia", tmp_path)
    tranches = {}
    for source in config.data.sources:
        assert isinstance(source, HhSource) and source.dataset is not None
        assert source.source_chosen == source.source_rejected
        assert (source.dataset.split, source.on_bad_row, source.cap) == ("train", "drop", 8000)
        tranches[source.dataset.data_dir] = source.source_chosen
    assert tranches == {
        "helpful-base": "context-distilled-helpful",
        "helpful-rejection-sampled": "rejection-sampled",
        "helpful-online": "online-rlhf",
        "harmless-base": "context-distilled-red-teamed",
    }


@pytest.mark.parametrize("name", HUB)
def test_what_the_presets_change_takes_effect(name: str, tmp_path: Path) -> None:
    config = preset(name, tmp_path)
    assert list(config.arms) == ["none", "random", "similarity"]
    assert config.for_arm("random").selection == RandomSelection(k=2000)
    similarity, gate = config.for_arm("similarity").selection, config.refresh.gate
    assert isinstance(similarity, SimilaritySelection) and isinstance(gate, GateOn)
    assert similarity.keep == TopK(k=2000) and similarity.score == "pair_min"
    assert isinstance(similarity.encoder, SentenceEncoder) and gate.encoder == similarity.encoder
    assert isinstance(config.evaluation.gold, NoGold)
    assert config.data.aggregate.shares.audit == 0.25
    assert config.ppo.learning_rate == 3e-6 and config.ppo.kl.coefficient == 0.05
    assert config.models.policy.context == config.models.reward.context == 1024


def test_a_preset_with_an_ensemble_plans_no_refresh_and_one_reward_model_for_all_arms(tmp_path: Path) -> None:
    found = planned(preset("cautious", tmp_path, "rounds=1")).planned
    assert {name for name in found if name.endswith("-ppo")} == {
        f"{arm}-s0-r1-ppo" for arm in ("none", "lower-bound", "worst-case", "uwo")
    }
    assert not [name for name in found if name.endswith(("-select", "-refresh"))]
    assert "trunk" in found["reward-s0"].node.inputs  # that of the SFT policy, as for type train
