"""`plan --memory`: what it says of a configuration, and that what it offers helps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaConfig
from typer.testing import CliRunner

from flows.cli import app
from flows.memory import GIB, RESULT, SPEED, Device, Load, Unknown, changes, device_of, needs
from inverse_alignment.config import PipelineConfig, load
from inverse_alignment.core.errors import UserError
from inverse_alignment.models.memory import Need

MIB = 2**20
MODEL = {"type": "initialise", "vocab_size": 512, "hidden_size": 32, "layers": 2, "heads": 2, "context": 128}
HUB = {"type": "checkpoint", "path": "nobody/nothing-here", "revision": "0" * 40, "context": 128}


def written(folder: Path, **sections: Any) -> Path:
    """A configuration file of small models."""
    path = folder / "params.yaml"
    whole = {"models": {"policy": MODEL, "reward": MODEL}, "sft": {"type": "train"}, "reward": {"type": "train"}}
    path.write_text(yaml.safe_dump({**whole, **sections}))
    return path


def loading(path: Path) -> Load:
    return lambda more: load(path, None, more)


def by_stage(config: PipelineConfig, device: Device) -> dict[str, Need]:
    return {need.stage: need for need in needs(config, device) if isinstance(need, Need)}


def gpu(size: float) -> Device:
    return Device(True, int(size), "a GPU")


def totals(load_: Load, overrides: Sequence[str] = ()) -> dict[str, int]:
    return {stage: need.total for stage, need in by_stage(load_(overrides), gpu(GIB)).items()}


def test_every_stage_that_computes_with_models_is_planned(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert list(totals(loading(path))) == ["sft", "rollout", "reward_model", "refresh", "ppo", "evaluate"]
    assert "refresh" not in totals(loading(path), ["arms={only: {selection: {type: none}}}"])
    assert "token_reward" in totals(loading(path), ["ppo.credit={type: token}"])


def test_looking_ahead_takes_more(tmp_path: Path) -> None:
    load_ = loading(written(tmp_path))
    plain, few, many = (
        totals(load_, rule)["refresh"]
        for rule in ([], ["refresh.rule={type: meta, prompts: 1}"], ["refresh.rule={type: meta, prompts: 64}"])
    )
    assert plain < few < many


@pytest.mark.parametrize(
    ("override", "stage"),
    [
        ("runtime.training_tokens=128", "ppo"),
        ("runtime.generation_rows=16", "rollout"),
        ("ppo.critic={type: shared}", "ppo"),
        ("ppo.lora={rank: 4}", "ppo"),
        ("sft.batch_size=4", "sft"),
        ("reward.batch_size=4", "reward_model"),
        ("refresh.batch_size=4", "refresh"),
    ],
)
def test_settings_that_take_less(tmp_path: Path, override: str, stage: str) -> None:
    load_ = loading(written(tmp_path))
    assert totals(load_, [override])[stage] < totals(load_)[stage]


@pytest.mark.parametrize(
    "override",
    [
        "ppo.reference={type: soft}",
        "ppo.credit={type: token}",
        "ppo.batch_size=128",
        "arms.random.ppo={reference: {type: soft}}",  # one arm is enough
    ],
)
def test_settings_that_take_more(tmp_path: Path, override: str) -> None:
    load_ = loading(written(tmp_path))
    assert totals(load_, [override])["ppo"] > totals(load_)["ppo"]


def test_a_model_of_every_token_has_the_heads_that_it_is_made_with(tmp_path: Path) -> None:
    width, entries = MODEL["hidden_size"], MODEL["vocab_size"]
    tokens, logits = 2 * 32 * 128, 3 * 2 * 32 * 128 * entries  # of 32 pairs; log softmax, its gradient, and theirs
    load_ = loading(written(tmp_path))
    found = {
        name: by_stage(load_([f"reward={reward}", "arms={only: {selection: {type: none}}}"]), gpu(GIB))["reward_model"]
        for name, reward in {
            "bt": "{type: train}",
            "transformer": "{type: preference_transformer}",
            "ava": "{type: ava}",
            "demonstrations": "{type: ava, objective: {type: demonstrations}}",
            "fresh": "{type: ava, q: {type: fresh}}",
            "plain": "{type: ava, reward_weights: false}",
        }.items()
    }
    heads = 2 * (width + 1) + 2 * width**2  # mean and log σ, queries and keys
    assert found["transformer"].kept["reward"] - found["bt"].kept["reward"] == 4 * (heads - width)  # BT has w alone
    assert found["ava"].kept["reward"] - found["plain"].kept["reward"] == 4 * 2 * width**2
    assert found["ava"].kept == found["transformer"].kept  # the policy's head is its table of embeddings
    assert found["fresh"].kept["reward"] - found["ava"].kept["reward"] == 4 * entries * width
    assert tokens * entries < 2**24
    learns = {name: need.phases[0].total for name, need in found.items()}
    assert learns["ava"] - learns["transformer"] >= 4 * logits
    assert learns["demonstrations"] < 0.55 * learns["ava"]


def test_processes_share_the_rows_on_gpus_and_the_memory_of_one_machine(tmp_path: Path) -> None:
    alone, two = (
        loading(written(tmp_path))(more) for more in ([], ["runtime.launcher={type: torchrun, processes: 2}"])
    )
    assert by_stage(two, gpu(GIB))["ppo"].total < by_stage(alone, gpu(GIB))["ppo"].total
    here = Device(False, GIB, "here")
    assert by_stage(two, here)["ppo"].kept["policy"] == 2 * by_stage(alone, here)["ppo"].kept["policy"]
    assert by_stage(two, here)["rollout"].total == by_stage(alone, here)["rollout"].total


def test_nothing_is_offered_where_everything_fits(tmp_path: Path) -> None:
    assert changes(loading(written(tmp_path)), gpu(GIB))[0] == []


def test_what_changes_no_result_is_offered_first(tmp_path: Path) -> None:
    load_ = loading(
        written(tmp_path, sft={"type": "train", "batch_size": 1}, ppo={"batch_size": 512, "minibatches": 1})
    )
    room = gpu(
        1.1 * max(total for stage, total in totals(load_).items() if stage not in ("ppo", "rollout", "evaluate"))
    )
    assert totals(load_)["ppo"] > room.size
    found, after = changes(load_, room)
    assert found and {change.cost for change in found} == {SPEED}
    assert all(isinstance(need, Need) and need.total <= room.size for need in after)


def test_what_is_offered_fits_and_none_of_it_is_idle(tmp_path: Path) -> None:
    load_ = loading(written(tmp_path))
    room = gpu(30 * MIB)
    found, after = changes(load_, room)
    assert RESULT in {change.cost for change in found}
    assert all(isinstance(need, Need) and need.total <= room.size for need in after)
    overrides = [change.override for change in found]
    for override in overrides:
        rest = [other for other in overrides if other != override]
        assert max(totals(load_, rest).values()) > room.size, override
    assert all(change.after < change.before for change in found)


def test_an_arm_that_sets_ppo_is_changed_where_it_does(tmp_path: Path) -> None:
    arms = {"slow": {"ppo": {"critic": {"type": "separate"}, "lora": {"rank": 4}}}}
    load_ = loading(
        written(tmp_path, arms=arms, runtime={"generation_rows": 1, "scoring_rows": 1, "training_tokens": 128})
    )
    found, _ = changes(load_, gpu(totals(load_)["ppo"] - 1))
    assert "arms.slow.ppo.critic={type: shared}" in [change.override for change in found]


def test_a_dtype_is_offered_for_checkpoints_alone(tmp_path: Path) -> None:
    """Models that are made here have none, and nothing but a checkpoint's first training is computed in it."""
    folder = tmp_path / "model"
    config = LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    config.save_pretrained(folder)
    checkpoint = {"type": "checkpoint", "path": str(folder), "context": 128}
    one = {"batch_size": 1}
    rows = {
        "sft": {"type": "train", **one},
        "reward": {"type": "train", **one},
        "ppo": {**one, "minibatches": 1, "critic": {"type": "shared"}, "lora": {"rank": 1}},
        "arms": {"only": {"selection": {"type": "none"}}},
        "runtime": {"generation_rows": 1, "scoring_rows": 1, "training_tokens": 128},
    }
    load_ = loading(written(tmp_path, models={"policy": checkpoint, "reward": checkpoint}, **rows))
    found, _ = changes(load_, gpu(totals(load_)["sft"] - 1))
    assert "models.policy.dtype=bfloat16" in [change.override for change in found]
    made = loading(written(tmp_path / "model", **rows))
    found, _ = changes(made, gpu(totals(made)["sft"] - 1))
    assert not [change for change in found if "dtype" in change.override]
    for role, stage in (("policy", "sft"), ("reward", "reward_model")):
        half = totals(load_, [f"models.{role}.dtype=bfloat16"])
        assert half[stage] < totals(load_)[stage]
        assert {name for name, total in half.items() if total != totals(load_)[name]} == {stage}


def test_a_model_of_the_hub_that_is_not_here_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    config = load(written(tmp_path, models={"policy": MODEL, "reward": HUB}))
    found = needs(config, gpu(GIB))
    unknown = {need.stage: need.models for need in found if isinstance(need, Unknown)}
    assert unknown == dict.fromkeys(("reward_model", "refresh", "ppo", "evaluate"), (HUB["path"],))
    assert {need.stage for need in found if isinstance(need, Need)} == {"sft", "rollout"}


def test_the_size_of_a_device_is_given_or_asked(tmp_path: Path) -> None:
    config = load(written(tmp_path))
    given = device_of(config, "1.5GiB")
    assert (given.size, given.cuda) == (3 * GIB // 2, True)
    assert device_of(config, "24GB").size == 24 * 10**9
    on_cpu = load(written(tmp_path, runtime={"device": "cpu"}))
    assert not device_of(on_cpu, "24GiB").cuda
    assert 0 < device_of(on_cpu, None).size < 2**50
    for wrong in ("24", "much", "0GiB", "-1GiB"):
        with pytest.raises(UserError, match="device-memory"):
            device_of(config, wrong)


@pytest.mark.slow
def test_the_verb_says_what_fits_and_what_would_help(tmp_path: Path) -> None:
    path = written(tmp_path)
    fits = CliRunner().invoke(app, ["plan", "--memory", "--params", str(path), "--device-memory", "8GiB"])
    assert fits.exit_code == 0 and "does not fit" not in fits.output and "ppo" in fits.output
    small = CliRunner().invoke(app, ["plan", "--params", str(path), "--device-memory", "30MiB"])
    assert small.exit_code == 2 and "does not fit" in small.output and "It fits with:" in small.output
    hopeless = CliRunner().invoke(app, ["plan", "--params", str(path), "--device-memory", "1MiB"])
    assert hopeless.exit_code == 2 and "take a smaller model" in hopeless.output


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["sft", "reward", "reward, AVA-p", "reward, AVA-d", "rollout", "ppo", "ppo, shared critic", "ppo, adapters"]
)
def test_what_is_planned_is_what_is_measured(case: str) -> None:
    from benchmarks.memory_plan.__main__ import TOLERANCE, compare

    assert compare("5M", case)["ratio"] == pytest.approx(1, abs=TOLERANCE)
