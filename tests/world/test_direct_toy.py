"""The toy in which direct methods move probability to answers that nobody compared."""

from __future__ import annotations

import pytest

from benchmarks.direct import toy
from benchmarks.direct.study import win_rate


@pytest.mark.parametrize("method", ["dpo", "ipo", "kto"])
def test_probability_leaks_to_answers_that_no_pair_is_about(method: str) -> None:
    ways = [toy.run(method, seed, steps=500) for seed in range(2)]
    for way in ways:
        assert all(abs(at.chosen + at.rejected + at.unseen - 1) < 1e-9 for at in way)
        assert way[-1].rejected < way[0].rejected and way[0].kl == 0 < way[-1].kl
    gained = [way[-1].unseen - way[0].unseen for way in ways]
    assert sum(gained) / len(gained) > 0.1


def test_a_reference_that_moves_goes_farther_in_as_many_steps() -> None:
    for frozen, moving in (("dpo", "tr_dpo"), ("ipo", "tr_ipo"), ("kto", "tr_kto")):
        assert toy.run(moving, 0, steps=100)[-1].kl > toy.run(frozen, 0, steps=100)[-1].kl


def test_without_common_features_nothing_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: where every answer has a weight of its own, those in no pair only lose by what others gain."""
    monkeypatch.setattr(toy, "FEATURES", toy.ANSWERS)
    real = toy.torch.randn

    def own(*shape: object, **more: object) -> object:
        given = real(*shape, **more)  # type: ignore[arg-type]
        return toy.torch.eye(toy.ANSWERS, dtype=given.dtype) * toy.FEATURES**0.5 if given.ndim == 2 else 0 * given

    monkeypatch.setattr(toy.torch, "randn", own)
    monkeypatch.setattr(toy, "ALIKE", 0.0)
    way = toy.run("dpo", 0, steps=400)
    assert way[-1].unseen < way[0].unseen and way[-1].chosen > way[0].chosen


def test_a_tie_counts_one_half() -> None:
    assert win_rate([1.0, 2.0, 0.0, 1.0], [0.0, 2.0, 1.0, 0.5]) == pytest.approx(2.5 / 4)
