"""Where inputs come from, by records written by hand: what a refresh hands on is not what it made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.ancestry import Records


def record(root: Path, stage: str, name: str, digest: str, parts: dict[str, str], inputs: dict[str, str]) -> None:
    folder = root / stage / name
    folder.mkdir(parents=True)
    identity = {"stage": stage, "seed": 0, "inputs": inputs}
    (folder / "artifact.json").write_text(
        json.dumps({"fingerprint": name, "digest": digest, "parts": parts, "identity": identity})
    )


@pytest.fixture
def records(tmp_path):
    """A reward model in office through two refused refreshes; the second looks at what the first has kept."""
    record(tmp_path, "reward_model", "reward0", "whole", {"model": "weights"}, {})
    record(tmp_path, "rollout", "rollout1", "answers", {}, {})
    given = {"reward": "weights", "rollouts": "answers"}
    record(tmp_path, "refresh", "refresh1", "first", {"model": "weights", "seen": "answers"}, given)
    parts = {"model": "weights", "seen": "answers"}
    record(tmp_path, "refresh", "refresh2", "second", parts, {**given, "rollouts": "later", "seen": "answers"})
    record(tmp_path, "ppo", "ppo2", "policy", {}, {"reward": "weights"})
    return Records(tmp_path)


def test_weights_left_in_office_are_those_of_the_stage_that_trained_them(records):
    (reward,) = records.origins(records.by_fingerprint["ppo2"])
    assert (reward.made.fingerprint, reward.part, reward.kept_by) == ("reward0", "model", 2)


def test_answers_that_a_refresh_has_kept_are_those_of_the_rollout_and_no_refusal(records):
    origins = {origin.name: origin for origin in records.origins(records.by_fingerprint["refresh2"])}
    assert origins["seen"].made.fingerprint == "rollout1" and origins["seen"].kept_by == 0
    assert origins["reward"].kept_by == 1 and origins["rollouts"].made is None
    first = {origin.name: origin for origin in records.origins(records.by_fingerprint["refresh1"])}
    assert first["rollouts"].made.fingerprint == "rollout1" and first["rollouts"].kept_by == 0
