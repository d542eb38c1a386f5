"""Alarms: each found where it is planted, none in a quiet round, and none from noise."""

import numpy as np
import pytest

from inverse_alignment.optimise.alarms import audit_fell, findings

QUIET = {
    "tokens": 20.0,
    "length_correlation": 0.6,
    "refusal_share": 0.01,
    "stock_phrase_share": 0.2,
    "common_opening_share": 0.1,
    "distinct_2": 0.8,
    "look_reward_variance": 0.5,
    "look_disagreement": 0.3,
    "look_ess": 0.9,
}
PLANTED = {
    "length": {"tokens": 26.0},
    "refusal": {"refusal_share": 0.12},
    "stock_phrases": {"common_opening_share": 0.4},
    "repetition": {"distinct_2": 0.3},
    "variance": {"look_reward_variance": 0.1},
    "disagreement": {"look_disagreement": 0.5},
    "coverage": {"look_ess": 0.04},
}


def metrics(**last):
    return [{"step": step, **QUIET, **(last if step > 4 else {})} for step in range(1, 9)]


def looks(rm, audit, noise=0.0, prompts=16, seed=0):
    """Two answers to each prompt at every look; noise per prompt and look."""
    generator, rows = np.random.default_rng(seed), []
    for step, (mean, second) in enumerate(zip(rm, audit, strict=True)):
        for prompt in range(prompts):
            shift = noise * generator.normal(size=2)
            for sample in (-0.1, 0.1):
                score, audited = mean + shift[0] + sample, None if second is None else second + shift[1] - sample
                row = {"prompt": {"turn": f"{prompt}"}, "rm_score": score, "audit_score": audited}
                rows.append({"step": 10 * step, **row})
    return rows


def test_a_quiet_round_has_none():
    assert findings(metrics(), looks([0.0, 1.0, 2.0], [0.0, 0.5, 0.9])) == []
    assert findings([], []) == [] and findings(metrics()[:1], looks([0.0], [0.0])) == []


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found_and_nothing_else(name):
    found = findings(metrics(**PLANTED[name]), [])
    assert [alarm.name for alarm in found] == [name] and found[0].step == 8
    value = next(iter(PLANTED[name].values()))
    assert (f"{value:.0%}" if name in ("refusal", "stock_phrases") else f"{value:.2g}") in found[0].text


def test_values_that_are_missing_are_passed_over():
    rows = [{"step": step, "look_ess": 0.01} if step % 4 == 0 else {"step": step} for step in range(1, 9)]
    assert [alarm.name for alarm in findings(rows, [])] == ["coverage"]
    assert findings([{"step": 1, "look_ess": 0.01}, {"step": 2, "look_ess": None}], []) == []


def test_an_audit_that_falls_behind_a_rising_score():
    alarm = audit_fell(looks([0.0, 1.0, 2.0, 2.5], [0.0, 0.8, 0.3, 0.2], noise=0.1))
    assert alarm and alarm.step == 30 and "From step 10 to step 30 the audit score fell by 0.6" in alarm.text
    assert "same 16 held-out prompts" in alarm.text


@pytest.mark.parametrize(
    ("rm", "audit"),
    [
        ([0.0, 1.0, 2.0], [0.0, 0.8, 0.9]),  # it keeps up
        ([0.0, 1.0, 0.5], [0.0, 0.8, 0.3]),  # both fell
        ([0.0, 1.0, 2.0], [0.0, 0.8, None]),  # no audit at the last look
        ([0.0, 1.0], [None, None]),
    ],
)
def test_an_audit_that_does_not(rm, audit):
    assert audit_fell(looks(rm, audit, noise=0.1)) is None


def test_noise_alone_seldom_alarms():
    """Negative control: no true change between looks."""
    alarms = [audit_fell(looks([0.0] * 3, [0.0] * 3, noise=0.5, seed=seed)) for seed in range(60)]
    assert sum(alarm is not None for alarm in alarms) <= 3
