"""One unit of the bake-off for real, in a tiny world: stopped between its rows, it goes on and says the same."""

from pathlib import Path

import pytest

from benchmarks.bakeoff import plan, work
from benchmarks.bakeoff.plan import Unit, arms
from benchmarks.bakeoff.work import Job, run
from inverse_alignment.config import merge

TINY = {
    "world": {"topics": 2, "prompts": 24, "pairs": 400},
    "config": {
        "models": {
            role: {"vocab_size": 400, "hidden_size": 16, "layers": 1, "heads": 2, "context": 64}
            for role in ("policy", "reward")
        },
        "sft": {"epochs": 1},
        "rounds": 2,
        "refresh": {"pairs_seen": 128},
        "reference_sample": {"samples": 1, "max_new_tokens": 12},
        "rollout": {"max_new_tokens": 12},
        "ppo": {"steps": 2, "batch_size": 8, "max_new_tokens": 12, "value_warmup_steps": 1},
        "evaluation": {"samples": 2, "max_new_tokens": 12},
    },
    "selectors": {"random": {"selection": {"k": 20}}},
}


class Enough(Exception):
    """Somebody stops the worker."""


@pytest.fixture
def tiny(monkeypatch):
    whole = plan.read_plan()
    selectors = {name: merge(whole["selectors"][name], TINY["selectors"].get(name, {})) for name in ("none", "random")}
    smaller = {**merge(whole, TINY), "selectors": selectors}
    monkeypatch.setattr(plan, "read_plan", lambda: smaller)


@pytest.mark.slow
def test_a_unit_that_is_stopped_goes_on_and_says_the_same(tiny, tmp_path: Path):
    job, first, second = Job(Unit(1.0, 0), tuple(arms(["none", "random"], ["full", "gate_off"]))), [], []

    def stop(row):
        first.append(row)
        if len(first) == 2:
            raise Enough

    with pytest.raises(Enough):
        run(job, tmp_path, stop)
    made = sorted(path.name for path in (tmp_path / "h1-s0/artifacts/ppo").iterdir())
    assert made  # of the two arms that are done; the rest comes now
    run(job, tmp_path, second.append)
    assert [row["arm"] for row in second] == ["none", "random", "random+gate_off"]
    for again, before in zip(second, first, strict=False):
        times = ("seconds", "seconds_probe", "cpu_seconds", "start", "start_cpu")
        assert {k: v for k, v in again.items() if k not in times} == {k: v for k, v in before.items() if k not in times}
    none, gated, ungated = second
    assert none["way"]["step"] == [1, 2, 3, 4] and len(none["rounds"]) == 2
    assert none["rounds"][0]["gate"] is None and none["before_rl"].keys() == {"start"}
    assert gated["rounds"][0]["selected"] == 20 and gated["before_rl"].keys() == {"start", "refreshed", "subset"}
    assert all(round_["gate"]["accepted"] for round_ in ungated["rounds"])
    assert gated["before_rl"]["refreshed"] == ungated["before_rl"]["refreshed"] != gated["before_rl"]["start"]
    if not any(round_["gate"]["accepted"] for round_ in gated["rounds"]):
        assert gated["way"] == none["way"]
    left = {path.name for path in (tmp_path / "h1-s0/artifacts").iterdir()}
    assert not left & set(work.HEAVY) and "sft" in left
