"""The verdict of the race against TRL: ratios are medians over rounds, and unlike work does not count."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ppo_vs_trl.judge import verdict

BATCH = 4


def lap(seconds: float, memory: int = 100, length: int = 7, policy_loss: float = 0.0, value: float = 1.0) -> Any:
    """Two iterations of four answers."""
    return {
        "wall_seconds": [seconds, seconds],
        "cpu_seconds": [seconds / 2, seconds / 2],
        "collect_seconds": [seconds / 4, seconds / 4],
        "lengths": [[length, 3, length, 5], [4, length, length, 6]] * 16,
        "metrics": [{"policy_loss": policy_loss, "value_loss": value}] * 2,
        "peak_memory_bytes": memory,
    }


def test_ratios_are_medians_over_rounds():
    found = verdict([lap(1.0), lap(1.0), lap(1.0)], [lap(2.0, 50), lap(3.0, 200), lap(10.0, 400)], BATCH)
    assert found["valid"] and not found["reasons"]
    assert found["ratio"] == found["cpu_ratio"] == 3.0
    assert found["ratio_without_trl_collecting_garbage"] == 2.25
    assert found["peak_memory_ratio"] == 0.5
    assert found["ours"]["episodes_per_second"] == 4.0
    assert found["theirs"]["episodes_per_cpu_second"] == pytest.approx(8 / 3)


@pytest.mark.parametrize(
    ("unlike", "reason"),
    [
        ({"policy_loss": 0.02}, "policy losses differ"),
        ({"policy_loss": float("nan")}, "policy losses differ"),
        ({"value": 1.5}, "value losses differ"),
        ({"length": 60}, "lengths are not distributed alike"),
    ],
)
def test_unlike_work_does_not_count(unlike: dict[str, Any], reason: str):
    found = verdict([lap(1.0)], [lap(3.0, **unlike)], BATCH)
    assert not found["valid"]
    assert [each.partition(" by ")[0].partition(":")[0] for each in found["reasons"]] == [reason]
    assert found["ratio"] == 3.0
