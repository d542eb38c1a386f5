"""PPO that is watched: looks do not change what is learned, and a round ends where an alarm is to end it."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from inverse_alignment.core.artifact import list_files
from inverse_alignment.core.metrics import read_metrics
from inverse_alignment.optimise.alarms import Alarm
from tests.stages import chain


def run(built, name, audit=True, **watch):
    inputs = {k: v for k, v in chain.ppo_inputs(built, "refreshed").items() if audit or k != "audit"}
    stage = chain.ppo_stage(chain.PPO.model_copy(update={"watch": chain.WatchConfig(prompts=4, **watch)}))
    return built.run(name, "ppo", inputs, stage)


def test_looks_change_nothing_that_is_learned(built):
    looked, blind = built.made["ppo"], run(built, "unwatched", every=0)
    weights = [load_file(folder / "policy" / "model.safetensors") for folder in (looked, blind)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    rows = [read_metrics(built.partial(name) / "metrics.jsonl") for name in ("ppo", "unwatched")]
    assert [row["step"] for row in rows[0] if "look_rm_score" in row] == [1, 2, 4]
    assert not any("look_rm_score" in row for row in rows[1]) and (blind / "looks.jsonl").read_text() == ""
    shared = rows[1][0].keys()
    assert {name: rows[0][0][name] for name in shared} == rows[1][0]
    looks = [json.loads(line) for line in (looked / "looks.jsonl").read_text().splitlines()]
    assert [look["step"] for look in looks] == [1] * 8 + [2] * 8 + [4] * 8
    assert [look["prompt"] for look in looks[:8]] == [look["prompt"] for look in looks[8:16]]


def test_without_an_audit_model_it_is_not_asked(built):
    folder = run(built, "unaudited", audit=False, every=4)
    looks = [json.loads(line) for line in (folder / "looks.jsonl").read_text().splitlines()]
    assert {look["audit_score"] for look in looks} == {None} and len(looks) == 16


@pytest.mark.parametrize(("stop_at", "steps"), [(("length",), 2), (("audit",), 4)])
def test_a_round_ends_where_an_alarm_is_to_end_it(built, monkeypatch, stop_at, steps):
    """The alarm is planted: it is there from the second look on."""
    planted = Alarm("length", 2, "planted")
    monkeypatch.setattr(
        "inverse_alignment.optimise.alarms.findings",
        lambda metrics, looks: [planted] if metrics[-1]["step"] >= 2 else [],
    )
    name = f"stopped-{stop_at[0]}"
    folder = run(built, name, every=2, stop_at=stop_at)
    assert built.metrics[name]["step"] == steps and built.metrics[name]["alarms"] == 1
    assert json.loads((folder / "alarms.json").read_text()) == {"alarms": [planted._asdict()]}
    samples = [json.loads(line)["step"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert max(samples) == steps == json.loads((folder / "state" / "state.json").read_text())["step"]
    assert "alarms.json" in list_files(folder)
