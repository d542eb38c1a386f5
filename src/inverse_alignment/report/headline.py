"""The first thing a reader sees: what came out, in words no stronger than the evidence."""

from __future__ import annotations

from dataclasses import dataclass

from inverse_alignment.report.analysis import (
    SMALL_GROUP,
    Difference,
    Mean,
    accepted_of,
    best_arm,
    by_source,
    difference,
    finals,
    listed,
    mean_of,
    number,
    percent,
    seeds_label,
    with_sd,
)
from inverse_alignment.report.certainty import gain_of
from inverse_alignment.report.comparison import Comparison
from inverse_alignment.report.costs import equal_kl, gold_at

MOST_RIVALS = 3
"""Arms that the verdict names."""
ALIKE_KL = 0.05
"""Nats between the ends of arms below which they have gone equally far."""
ONE_SEED = "1 seed: no interval across seeds; differences may be noise."


@dataclass(frozen=True)
class Headline:
    """A sentence, what supports it, and what limits it."""

    verdict: str
    findings: tuple[str, ...]
    caveat: str


def headline(comparison: Comparison) -> Headline:
    """What the comparison says first."""
    return _with_gold(comparison) if comparison.has_gold else _without_gold(comparison)


def _with_gold(comparison: Comparison) -> Headline:
    best = best_arm(comparison)
    gold = finals(comparison, best, lambda final: final.gold_reward)
    kl = finals(comparison, best, lambda final: final.kl_to_sft)
    start = mean_of(start.evaluation.gold_reward for start in comparison.starts)
    finished = {finals(comparison, arm, lambda final: final.gold_reward) for arm in comparison.arms}
    if len(comparison.arms) > 1 and len(finished) == 1:
        verdict = f"All arms end with the same gold reward, {with_sd(gold)} at {with_sd(kl, 1)} nats of KL to SFT."
    else:
        verdict = (
            f"“{best}” ends with the highest gold reward, {with_sd(gold)} at {with_sd(kl, 1)} nats of KL to "
            f"SFT{_rivals(comparison, best)}."
        )
    findings = [f"The SFT policy all arms start from has gold reward {with_sd(start)}."] if start else []
    findings += [*_at_equal_kl(comparison), *_refresh_findings(comparison), *_audit_finding(comparison)]
    return Headline(verdict, tuple(findings), _caveat(comparison))


def _rivals(comparison: Comparison, best: str) -> str:
    """The arms that the best one is not shown to be better than: the interval of its gain over them holds 0."""
    gains = {arm: gain_of(comparison, best, arm) for arm in comparison.arms if arm != best}
    rivals = [f"“{arm}”" for arm, gain in gains.items() if gain is not None and gain.gain.low <= 0]
    if not rivals:
        return ""
    return f", not told apart from {listed(rivals) if len(rivals) <= MOST_RIVALS else f'{len(rivals)} others'}"


def _at_equal_kl(comparison: Comparison) -> list[str]:
    """Which arm is best where all have gone equally far, if that is not where they end."""
    kl = equal_kl(comparison)
    golds = {arm: mean_of(gold_at(comparison, run, kl) for run in comparison.of_arm(arm)) for arm in comparison.arms}
    known = {arm: gold.mean for arm, gold in golds.items() if gold is not None and gold.n == len(comparison.seeds)}
    ends = [mean.mean for arm in comparison.arms if (mean := finals(comparison, arm, lambda e: e.kl_to_sft))]
    if len(known) < 2 or max(ends) - min(ends) < ALIKE_KL:
        return []
    best, last = max(known, key=lambda arm: known[arm]), best_arm(comparison)
    beside = f", “{last}” {number(known[last])}" if last != best and last in known else ""
    return [
        f"At {number(kl)} nats, the most that every run reaches, gold is highest in “{best}”: {number(known[best])}"
        f"{beside}; linear between the ends of rounds."
    ]


def _refresh_findings(comparison: Comparison) -> list[str]:
    refreshing = [arm for arm in comparison.arms if comparison.refreshes(arm)]
    plain = [arm for arm in comparison.arms if not comparison.refreshes(arm)]
    found = [
        f"Refreshing, “{arm}” against “{baseline}”, which never refreshes: {_difference(comparison, of)}"
        for baseline in plain[:1]
        for arm in refreshing
        if (of := difference(comparison, arm, baseline))
    ]
    if "random" in refreshing:
        found += [
            f"Choosing pairs, “{arm}” against “random”: {_difference(comparison, of)}"
            for arm in refreshing
            if arm != "random" and (of := difference(comparison, arm, "random"))
        ]
    gates = [f"“{arm}” {a} of {n}" for arm in refreshing for a, n in [accepted_of(comparison, arm)] if n]
    return [*found, f"Refreshed reward models accepted: {', '.join(gates)}."] if gates else found


def _difference(comparison: Comparison, of: Difference) -> str:
    moved = (
        f"{number(abs(of.kl.mean), 1)} nats {'more' if of.kl.mean > 0 else 'less'}"
        if abs(of.kl.mean) >= 0.05
        else "equal"
    )
    gold = f"gold {with_sd(of.gold, sign=True)} with {moved} KL"
    if of.gold.n == 1:
        return f"{gold}; {_within_interval(comparison, of)}."
    if of.higher in (0, of.gold.n):
        return f"{gold}; higher in {'all' if of.higher else 'none of'} {of.gold.n} seeds."
    return f"{gold}; higher in {of.higher} of {of.gold.n} seeds, so the seeds disagree."


def _within_interval(comparison: Comparison, of: Difference) -> str:
    """One seed has no spread, but its evaluation has: overlapping intervals over prompts decide nothing."""
    mine = comparison.of_arm(of.arm)[0].final.gold_reward_ci95
    theirs = comparison.of_arm(of.baseline)[0].final.gold_reward_ci95
    if mine is None or theirs is None:
        return "one run of each"
    apart = mine[0] > theirs[1] or theirs[0] > mine[1]
    return f"the evaluations' own 95\N{NO-BREAK SPACE}% intervals {'do not overlap' if apart else 'overlap'}"


def _without_gold(comparison: Comparison) -> Headline:
    means = [finals(comparison, arm, lambda final: final.offline_accuracy) for arm in comparison.arms]
    shares = sorted(mean.mean for mean in means if mean)
    longer = finals(comparison, comparison.arms[0], lambda final: final.longer_wins_accuracy)
    if not shares:
        verdict = "No gold reward and no held-out pairs: only the reward model's own view of its policy is known."
    else:
        low, high = percent(shares[0], 1), percent(shares[-1], 1)
        between = high if low == high else f"{low} to {high}"
        beside = f"; “longer answer wins” agrees with {percent(longer.mean, 1)}" if longer else ""
        verdict = f"The last reward models agree with {between} of the held-out preferences{beside}."
    findings = [
        "There is no gold reward here: nobody knows which policy is better, so no arm is called the winner.",
        *_audit_finding(comparison),
        *(_beats_length(comparison, arm) for arm in comparison.arms),
    ]
    gates = [f"“{arm}” {a} of {n}" for arm in comparison.arms for a, n in [accepted_of(comparison, arm)] if n]
    findings += [f"Refreshed reward models accepted: {', '.join(gates)}."] if gates else []
    return Headline(verdict, tuple(text for text in findings if text), _caveat(comparison))


def _beats_length(comparison: Comparison, arm: str) -> str:
    place = comparison.arms.index(arm)
    large = [
        (row.arms[place] or 0.0, row.longer_wins)
        for row in by_source(comparison)
        if row.longer_wins is not None and row.arms[place] is not None and not row.is_small
    ]
    if not large:
        return ""
    wins = sum(rm > longer for rm, longer in large)
    return (
        f"“{arm}”: the reward model beats “longer answer wins” on {wins} of {len(large)} source policies "
        f"with {SMALL_GROUP} held-out pairs or more."
    )


def _audit_finding(comparison: Comparison) -> list[str]:
    """By how much the score rose under the model that PPO raised it for, and under the one that only looks on."""
    if not comparison.has_audit:
        return []
    starts = [start.evaluation for start in comparison.starts]
    before = mean_of(e.rm_score for e in starts), mean_of(e.audit_score for e in starts)

    def rise(after: Mean | None, start: Mean | None) -> str:
        return number(after.mean - start.mean if after and start else None, sign=True)

    parts = [
        f"“{arm}” {rise(finals(comparison, arm, lambda e: e.rm_score), before[0])} by its own reward model and "
        f"{rise(finals(comparison, arm, lambda e: e.audit_score), before[1])} by the audit model"
        for arm in comparison.arms
    ]
    return [f"Rise of the score from the SFT policy to the last one, in sd: {'; '.join(parts)}."]


def _caveat(comparison: Comparison) -> str:
    n = len(comparison.seeds)
    if n == 1:
        return ONE_SEED
    return f"{seeds_label(n)}: ± is the standard deviation across seeds, not a confidence interval."
