"""What a comparison says of the mismatch of objectives: Gao's curve of each arm, and which metric to trust."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from inverse_alignment.maths.bootstrap import Interval
from inverse_alignment.maths.overoptimisation import Fit, fit_curve, obstacle, policy_peak, policy_terms
from inverse_alignment.maths.ranks import rank_correlation, rank_correlation_interval
from inverse_alignment.report import analysis, certainty
from inverse_alignment.report.analysis import grouped, mean_of, number, percent
from inverse_alignment.report.comparison import Comparison, Evaluation, Round, Run

LEAST_RUNS, LEAST_CHECKPOINTS = 5, 5
FIT_SEED = 0
DRAWN = 60


@dataclass(frozen=True)
class ArmCurve:
    """The curve of one arm.

    Attributes:
        fit: None where no curve can be told.
        why: why there is none.
        now: √KL of the arm's last policies, mean over seeds.
        by_run: whether the intervals come from runs as units; else they say how the points of few runs scatter.
        refreshed: the same with the law's term for several reward models one after the other; None where every point
            has one, or no curve can be told.
    """

    arm: str
    fit: Fit | None
    why: str
    now: float
    by_run: bool
    refreshed: Fit | None = None

    def sentence(self) -> str:
        """What the curve says, in words no stronger than its interval; empty where there is none."""
        if self.fit is None:
            return ""
        a, b, peak = self.fit.a, self.fit.b, self.fit.peak
        shape = f"“{self.arm}”: R(d) = d (a - b log d) with a {_interval(a)} and b {_interval(b)}"
        if b.low <= 0:
            return f"{shape}: no peak can be told from these points."
        where = f"{shape}, highest at √KL {_interval(peak, 1)}; the last policies are at {number(self.now, 1)}"
        if self.now > peak.high:
            return f"{where}, past it."
        return f"{where}, {'before it' if self.now < peak.low else 'as near as can be told'}."

    def of_refreshes(self) -> str:
        """Whether points lie nearer to the law with its term for several reward models; empty where there is none."""
        if self.fit is None or self.refreshed is None:
            return ""
        plain, with_term = number(self.fit.residual, 3), number(self.refreshed.residual, 3)
        return (
            f"“{self.arm}” was optimised against several reward models. If each covered an equal part of the distance, "
            f"R(d) = d (a - b log d/k) with b {_interval(self.refreshed.b)}; points lie {with_term} from that curve, "
            f"{plain} from the one without k."
        )

    def points(self, start: float, most: float) -> list[tuple[float, float]]:
        """The fitted curve from a start at distance 0 to the largest distance; none where there is no fit."""
        if self.fit is None:
            return []
        distance = np.linspace(0.0, most, DRAWN)
        values = start + policy_terms(distance) @ np.array([self.fit.a.mean, self.fit.b.mean])
        return list(zip(distance.tolist(), values.tolist(), strict=True))


def _interval(value: Interval, digits: int = 2) -> str:
    high = "∞" if value.high == float("inf") else number(value.high, digits)
    mean = "∞" if value.mean == float("inf") else number(value.mean, digits)
    return f"{mean} ({number(value.low, digits)} to {high})"


def curves(comparison: Comparison) -> list[ArmCurve]:
    """Gao's law for PPO, fitted to the yardstick of each arm along its way; none without gold and audit model.

    Runs are the units of the intervals where an arm has five or more.
    """
    held_against = analysis.yardstick(comparison)
    return [curve_of(comparison, arm, held_against) for arm in comparison.arms] if held_against else []


def without_curve(found: list[ArmCurve]) -> str:
    """Which arms have no curve, and why; empty where all have one."""
    why = {curve.arm: curve.why for curve in found if curve.fit is None}
    return f"No curve: {grouped({arm: f'({text})' for arm, text in why.items()})}." if why else ""


def curve_of(comparison: Comparison, arm: str, held_against: analysis.Yardstick) -> ArmCurve:
    """The curve of one arm."""
    paths, runs = analysis.paths_of(comparison, arm), comparison.of_arm(arm)
    points = [
        (
            unit,
            max(point.kl, 0.0) ** 0.5,
            value - (held_against.of_point(path[0]) or 0.0),
            models_until(run, point.step),
        )
        for unit, (run, path) in enumerate(zip(runs, paths, strict=True))
        for point in path
        if (value := held_against.of_point(point)) is not None
    ]
    run, distance, gold, models = (np.array(column) for column in zip(*points, strict=True))
    now = mean_of(max(one.final.kl_to_sft, 0.0) ** 0.5 for one in runs)
    assert now is not None
    by_run = len(paths) >= LEAST_RUNS
    units = run if by_run else np.arange(len(run))

    def fitted(refreshes: int | np.ndarray) -> tuple[Fit | None, str]:
        terms = policy_terms(distance.astype(float), refreshes)
        why = obstacle(terms)
        return None if why else fit_curve(terms, gold.astype(float), units, policy_peak, FIT_SEED), why

    fit, why = fitted(1)
    return ArmCurve(arm, fit, why, now.mean, by_run, fitted(models)[0] if models.max() > 1 else None)


def models_until(run: Run, step: int) -> int:
    """k, how many reward models a policy was optimised against, one after the other, until a step of PPO.

    A refresh in the first round comes before any optimisation, so that the first round counts as one either way.
    """
    started = [round_ for round_ in run.rounds[1:] if round_.curve and round_.curve[0].step <= step]
    return 1 + sum(round_.gate is not None and round_.gate.accepted and round_.gate.refreshed for round_ in started)


@dataclass(frozen=True)
class Trust:
    """How well one metric of reward models orders the policies that were trained against them.

    Attributes:
        rho: Spearman's correlation with the gold reward of the policy, over all arms, seeds and rounds.
        interval: by resampling whole runs; None where there are too few runs.
    """

    metric: str
    rho: float
    interval: Interval | None
    checkpoints: int

    def text(self) -> str:
        """The number for people."""
        between = f" ({number(self.interval.low)} to {number(self.interval.high)})" if self.interval else ""
        return number(self.rho, sign=True) + between


def _at(value: Callable[[Evaluation], float | None]) -> Callable[[Round], float | None]:
    return lambda round_: value(round_.evaluation)


def _accuracy_times_variance(evaluation: Evaluation) -> float | None:
    both = evaluation.on_policy_accuracy, evaluation.reward_variance
    return None if both[0] is None or both[1] is None else both[0] * both[1]


RM_METRICS: dict[str, Callable[[Round], float | None]] = {
    "accuracy on held-out offline pairs": _at(lambda e: e.offline_accuracy),
    "accuracy where the round began": _at(lambda e: e.on_policy_accuracy_after or e.on_policy_accuracy_before),
    "accuracy on the final policy": _at(lambda e: e.on_policy_accuracy),
    "calibration error on the policy, negated": _at(lambda e: None if e.on_policy_ece is None else -e.on_policy_ece),
    "variance among a prompt's answers": _at(lambda e: e.reward_variance),
    "accuracy times variance": _at(_accuracy_times_variance),
    "agreement with the audit model": _at(lambda e: e.audit_agreement),
    "the RM score itself": _at(lambda e: e.rm_score),
    "the audit score": _at(lambda e: e.audit_score),
}
"""What is known of a reward model without training on it, and of the policy it made (methods: arXiv 2311.00168)."""


def trust(comparison: Comparison) -> list[Trust]:
    """Which metric of a reward model orders policies as gold does; none without gold, or with few checkpoints."""
    rounds = [(number_, round_) for number_, run in enumerate(comparison.runs) for round_ in run.rounds]
    found = []
    for metric, value in RM_METRICS.items():
        rows = [
            (unit, given, round_.evaluation.gold_reward)
            for unit, round_ in rounds
            if (given := value(round_)) is not None and round_.evaluation.gold_reward is not None
        ]
        if len(rows) < LEAST_CHECKPOINTS:
            continue
        units, values, gold = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
        rho = rank_correlation(values, gold)
        if rho is not None:
            many = len(set(units)) >= LEAST_RUNS
            interval = rank_correlation_interval(values, gold, units, FIT_SEED) if many else None
            found.append(Trust(metric, rho, interval, len(rows)))
    return sorted(found, key=lambda one: -one.rho)


@dataclass(frozen=True)
class Cost:
    """One line of the table of what else changed: the SFT start, or an arm after its last round."""

    arm: str
    index: int
    values: tuple[str, ...]


COST_COLUMNS = (
    *("wins against SFT", "at like length", "proxy to truth, MMD²", "calibration error", "score and length", "refuses"),
)
OPTIONAL_COLUMNS = ("wins by the judge", "refuses harmless", "probe, nats per token")


def cost_columns(comparison: Comparison) -> tuple[str, ...]:
    """The columns of `costs`; those of files that the user names only where there are some."""
    finals = [run.final for run in comparison.runs]
    there = (
        any(final.judge_win_rate is not None for final in finals),
        any(final.over_refusal_share is not None for final in finals),
        any(final.probe_nll is not None for final in finals),
    )
    return (*COST_COLUMNS, *(name for name, is_there in zip(OPTIONAL_COLUMNS, there, strict=True) if is_there))


def costs(comparison: Comparison) -> list[Cost]:
    """What the policies are worth against the SFT policy, and what changed that no reward asked for."""
    groups = [("SFT start", -1, [start.evaluation for start in comparison.starts])]
    groups += [(arm, index, [run.final for run in comparison.of_arm(arm)]) for index, arm in enumerate(comparison.arms)]
    columns = cost_columns(comparison)
    return [Cost(arm, index, tuple(_cost(group)[name] for name in columns)) for arm, index, group in groups]


def _cost(evaluations: list[Evaluation]) -> dict[str, str]:
    def mean(value: Callable[[Evaluation], float | None]) -> float | None:
        found = mean_of(value(evaluation) for evaluation in evaluations)
        return found.mean if found else None

    cells = (
        percent(mean(lambda e: e.win_rate)),
        percent(mean(lambda e: e.like_length_win_rate)),
        number(mean(lambda e: e.proxy_truth_mmd)),
        f"{number(mean(lambda e: e.offline_ece))} → {number(mean(lambda e: e.on_policy_ece))}",
        number(mean(lambda e: e.length_correlation), sign=True),
        percent(mean(lambda e: e.refusal_share)),
        percent(mean(lambda e: e.judge_win_rate)),
        percent(mean(lambda e: e.over_refusal_share)),
        f"{number(mean(lambda e: e.probe_nll_sft), 3)} → {number(mean(lambda e: e.probe_nll), 3)}",
    )
    return dict(zip((*COST_COLUMNS, *OPTIONAL_COLUMNS), cells, strict=True))


@dataclass(frozen=True)
class Finding:
    """An alarm of one round."""

    arm: str
    index: int
    where: str
    text: str


def alarms(comparison: Comparison) -> list[Finding]:
    """What speaks against single rounds, as PPO reported it."""
    return [
        Finding(run.arm, comparison.arms.index(run.arm), f"seed {run.seed}, round {round_.round}", alarm.text)
        for run in comparison.runs
        for round_ in run.rounds
        for alarm in round_.alarms
    ]


def four_answers(comparison: Comparison) -> list[tuple[str, str]]:
    """The questions a reader comes with, each answered in a sentence or two."""
    return [
        ("Is the policy better?", _better(comparison)),
        ("How sure is that?", certainty.sentence(comparison)),
        ("Is it over-optimised?", _overoptimised(comparison)),
        ("What did the refresh do?", _refreshed(comparison)),
    ]


def _better(comparison: Comparison) -> str:
    if analysis.yardstick(comparison) is None:
        return "Nobody can say: nothing is known of it but the score that PPO raised."
    by = "gold reward" if comparison.has_gold else "the audit model, which is not gold"
    said, shares = {}, {}
    for arm in comparison.arms:
        wins = mean_of(run.final.win_rate for run in comparison.of_arm(arm))
        like = mean_of(run.final.like_length_win_rate for run in comparison.of_arm(arm))
        if wins:
            at_like = f", {percent(like.mean)} at like length" if like else ""
            shares[arm] = wins.mean
            said[arm] = f"{percent(wins.mean)}{at_like}"
    if not said:
        return "Not measured: these evaluations know no win rate against the SFT policy."
    best_first = {arm: said[arm] for arm in sorted(said, key=lambda arm: -shares[arm])}
    return f"Answers that beat the SFT policy's, by {by}: {grouped(best_first)}. Half is no better."


def _overoptimised(comparison: Comparison) -> str:
    held_against = analysis.yardstick(comparison)
    if held_against is None:
        return "That cannot be seen: nothing is known but the score that PPO raised."
    fell = [arm for arm in comparison.arms if analysis.overoptimised_of(comparison, arm, held_against) is not None]
    count = len(alarms(comparison))
    more = f" PPO's own looks found {count} thing{'s' if count != 1 else ''} to look at." if count else ""
    if fell:
        names, others = ", ".join(f"“{arm}”" for arm in fell), len(comparison.arms) - len(fell)
        beside = f", and in no other of {len(comparison.arms)} arms" if others else ""
        return (
            f"Yes, as far as the {held_against.name} tells: it fell while the RM score rose in {names}{beside}.{more}"
        )
    return f"Not seen: in no arm did the {held_against.name} fall by more than noise while the RM score rose.{more}"


def _refreshed(comparison: Comparison) -> str:
    refreshing = [arm for arm in comparison.arms if comparison.refreshes(arm)]
    if not refreshing:
        return "Nothing was refreshed."
    said = {}
    for arm in refreshing:
        accepted, there = analysis.accepted_of(comparison, arm)
        rounds = [round_.evaluation for run in comparison.of_arm(arm) for round_ in run.rounds]
        before = mean_of(e.on_policy_accuracy_before for e in rounds if e.on_policy_accuracy_after is not None)
        after = mean_of(e.on_policy_accuracy_after for e in rounds)
        moved = (
            f", right on the policy's answers {number(before.mean)} → {number(after.mean)}" if before and after else ""
        )
        said[arm] = f"accepted {accepted} of {there}{moved}"
    return f"{grouped(said)}."
