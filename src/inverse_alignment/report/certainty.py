"""How sure it is that an arm is better than another, or than the SFT policy: intervals of paired gains.

Several seeds are the units of what is said of a method: interquartile means and the probability of improvement
(arXiv 2108.13264). One seed has nothing but its prompts, and what they say is true of that one policy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inverse_alignment.report import analysis
from inverse_alignment.report.analysis import grouped, number, percent
from inverse_alignment.report.comparison import Comparison, Evaluation

if TYPE_CHECKING:
    from inverse_alignment.maths.bootstrap import Interval

SFT = "SFT start"
ENOUGH_SEEDS = 5
"""With fewer, a bootstrap over seeds has so few different draws that its intervals are too narrow."""
RESAMPLES, SEED = 2000, 0
MOST_SAID = 3
"""Arms that the sentence names for being best; those whose interval lies below 0 are named besides."""


@dataclass(frozen=True)
class Gain:
    """What the last policies of an arm are worth beside others.

    Attributes:
        against: another arm, or `SFT`.
        gain: interquartile mean of the gains of all seeds, or the mean over the prompts of one seed; with its 95 %
            bootstrap interval.
        units: how many seeds, or of one seed how many prompts.
        higher: in how many of them the arm is worth more.
        improvement: how probably a run of this arm is worth more than one of the other; None for one seed.
    """

    arm: str
    against: str
    gain: Interval
    units: int
    higher: int
    improvement: Interval | None


def baselines(comparison: Comparison) -> tuple[str, ...]:
    """What every arm is held against: the SFT policy, the first arm without a refresh, and `random` if there is one."""
    plain = [arm for arm in comparison.arms if not comparison.refreshes(arm)]
    return (SFT, *plain[:1], *(arm for arm in comparison.arms if arm == "random" and arm not in plain[:1]))


def gains(comparison: Comparison) -> list[Gain]:
    """Every arm against every baseline, two baselines once; none where there is neither gold nor an audit model.

    One seed has none either where its evaluations do not tell what each prompt's answers are worth.
    """
    known = baselines(comparison)
    found = [
        gain_of(comparison, arm, against)
        for place, against in enumerate(known)
        for arm in comparison.arms
        if arm not in known[: place + 1]
    ]
    return [gain for gain in found if gain is not None]


def gain_of(comparison: Comparison, arm: str, against: str) -> Gain | None:
    """One arm against one baseline, paired by seed, or the prompts of one seed."""
    import numpy as np

    from inverse_alignment.maths.runs import improvement_interval, interquartile_interval

    held_against = analysis.yardstick(comparison)
    if held_against is None:
        return None
    mine = [held_against.of_evaluation(run.final) for run in comparison.of_arm(arm)]
    theirs = [held_against.of_evaluation(one) for one in _finals(comparison, against)]
    if len(comparison.seeds) == 1:
        return _over_prompts(comparison, arm, against)
    one, other = np.array(mine, dtype=float), np.array(theirs, dtype=float)
    if np.isnan(one).any() or np.isnan(other).any():
        return None
    return Gain(
        arm,
        against,
        interquartile_interval([one - other], SEED, resamples=RESAMPLES),
        len(one),
        int((one > other).sum()),
        improvement_interval([one], [other], SEED, resamples=RESAMPLES),
    )


def _finals(comparison: Comparison, against: str) -> list[Evaluation]:
    if against == SFT:
        return [start.evaluation for start in comparison.starts]
    return [run.final for run in comparison.of_arm(against)]


def _over_prompts(comparison: Comparison, arm: str, against: str) -> Gain | None:
    """Of one seed: the mean over prompts, which have to be the same for both."""
    import torch

    from inverse_alignment.maths.bootstrap import mean_interval

    (run,), (start,) = comparison.of_arm(arm), comparison.starts
    other = start.worth if against == SFT else comparison.of_arm(against)[0].worth
    if not run.worth or run.worth.keys() != other.keys():
        return None
    difference = torch.tensor([run.worth[key] - other[key] for key in run.worth], dtype=torch.float64)
    return Gain(
        arm,
        against,
        mean_interval(difference, SEED, resamples=RESAMPLES),
        len(difference),
        int((difference > 0).sum()),
        None,
    )


def _said(gains: Sequence[Gain]) -> str:
    """The best, and all others whose interval lies below 0; the table has the rest."""
    if len(gains) <= MOST_SAID + 1:
        return grouped({gain.arm: between(gain.gain) for gain in gains})
    rest = gains[MOST_SAID:]
    worse = {gain.arm: between(gain.gain) for gain in rest if gain.gain.high < 0}
    parts = [grouped({gain.arm: between(gain.gain) for gain in gains[:MOST_SAID]})]
    parts += [f"worse: {grouped(worse)}"] if worse else []
    parts += [f"{len(rest) - len(worse)} more in the table"] if len(rest) > len(worse) else []
    return "; ".join(parts)


def between(value: Interval, digits: int = 2) -> str:
    """A gain and its interval, for people."""
    low, high = number(value.low, digits, sign=True), number(value.high, digits, sign=True)
    return f"{number(value.mean, digits, sign=True)} ({low} to {high})"


def columns(comparison: Comparison) -> tuple[str, ...]:
    """What `cells` holds; a probability of improvement only where there are several runs."""
    one = len(comparison.seeds) == 1
    return ("gain", "higher in (prompts)") if one else ("gain", "higher in (seeds)", "probability of improvement")


def cells(comparison: Comparison, gain: Gain) -> tuple[str, ...]:
    """One gain for people."""
    chance = () if len(comparison.seeds) == 1 or gain.improvement is None else (_share(gain.improvement),)
    return between(gain.gain), f"{gain.higher} of {gain.units}", *chance


def _share(value: Interval) -> str:
    return f"{percent(value.mean)} ({percent(value.low)} to {percent(value.high)})"


def caption(comparison: Comparison) -> str:
    """What the columns are."""
    held_against = analysis.yardstick(comparison)
    name = held_against.name if held_against else ""
    n = len(comparison.seeds)
    if n == 1:
        return (
            f"Gain in {name} over the prompts of this one seed, with the 95 % interval of a paired bootstrap over "
            "prompts. It is about these policies; another seed may tell another story."
        )
    few = (
        f" With fewer than {ENOUGH_SEEDS} seeds these intervals are too narrow: resampled, they are the same few "
        "numbers again."
        if n < ENOUGH_SEEDS
        else ""
    )
    return (
        f"Gain in {name}: interquartile mean of the differences inside each seed, with its 95 % bootstrap interval "
        "over seeds. Probability of improvement: that a run of the one has more than a run of the other, whatever "
        f"their seeds; one half is no better.{few}"
    )


def sentence(comparison: Comparison) -> str:
    """How sure it is, in a sentence or two."""
    n, found = len(comparison.seeds), gains(comparison)
    said = f"{n} seeds." if n > 1 else "Not across runs: one seed."
    if not found:
        return f"{said} Intervals here are over prompts of single runs." if n == 1 else f"{said} No gain is known."
    held_against = analysis.yardstick(comparison)
    assert held_against is not None
    over = f"over {found[0].units} prompts of that seed" if n == 1 else "over seeds"
    parts = []
    for against in baselines(comparison)[:2]:
        of = sorted((gain for gain in found if gain.against == against), key=lambda gain: -gain.gain.mean)
        if of:
            parts.append(f"against {'the SFT policy' if against == SFT else f'“{against}”'}: {_said(of)}")
    narrow = " Too narrow with so few seeds." if 1 < n < ENOUGH_SEEDS else ""
    return f"{said} Gain in {held_against.name} with 95 % intervals {over}, {'; '.join(parts)}.{narrow}"
