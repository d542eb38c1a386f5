"""What the numbers of a comparison say, as plain values: means over seeds, differences, over-optimisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from inverse_alignment.report.comparison import Comparison, CurvePoint, Evaluation, Interval, Run, SourceAccuracy, Start

NOT_YET = "–"
SMALL_GROUP = 50  # pairs: the 95 % interval of a share near one half is ± 14 points


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its sample standard deviation; `sd` is None for a single seed."""

    mean: float
    sd: float | None
    n: int


def mean_of(values: Iterable[float | None]) -> Mean | None:
    """Mean and sample sd (n - 1) of the values that are there; None if there are none."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    mean = math.fsum(there) / len(there)
    if len(there) == 1:
        return Mean(mean, None, 1)
    return Mean(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in there) / (len(there) - 1)), len(there))


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """A number for people: fixed decimals, a real minus sign, a dash where there is none."""
    if value is None:
        return NOT_YET
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")


def with_sd(value: Mean | None, digits: int = 2, sign: bool = False) -> str:
    """`mean ± sd`, or the mean alone where there is one seed."""
    if value is None:
        return NOT_YET
    spread = "" if value.sd is None else f" ± {number(value.sd, digits)}"
    return number(value.mean, digits, sign) + spread


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage."""
    return NOT_YET if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def path_of(start: Start, run: Run) -> list[CurvePoint]:
    """The way of a run from the SFT policy (step 0, KL 0) through PPO, in the order of steps."""
    at = start.evaluation
    first = CurvePoint(step=0, gold=at.gold_reward, rm_score=at.rm_score, audit_score=at.audit_score, kl=0.0)
    return [first, *sorted((point for round_ in run.rounds for point in round_.curve), key=lambda point: point.step)]


def paths_of(comparison: Comparison, arm: str) -> list[list[CurvePoint]]:
    """`path_of` for every seed of an arm."""
    starts = {start.seed: start for start in comparison.starts}
    return [path_of(starts[run.seed], run) for run in comparison.of_arm(arm)]


def mean_path(paths: Sequence[Sequence[CurvePoint]]) -> list[CurvePoint]:
    """The paths of several seeds averaged at the steps that all of them have."""
    steps = sorted(set.intersection(*({point.step for point in path} for path in paths)))
    at = [{point.step: point for point in path} for path in paths]

    def mean(step: int, value: Callable[[CurvePoint], float | None]) -> float | None:
        values = [value(points[step]) for points in at]
        there = [item for item in values if item is not None]
        return math.fsum(there) / len(there) if len(there) == len(values) else None

    return [
        CurvePoint(
            step=step,
            gold=mean(step, GOLD.of_point),
            audit_score=mean(step, AUDIT.of_point),
            rm_score=mean(step, lambda point: point.rm_score) or 0.0,
            kl=mean(step, lambda point: point.kl) or 0.0,
        )
        for step in steps
    ]


@dataclass(frozen=True)
class Yardstick:
    """What the RM score is held against: something that rises with it only if the answers get better."""

    name: str
    of_point: Callable[[CurvePoint], float | None]
    of_evaluation: Callable[[Evaluation], float | None]
    interval: Callable[[Evaluation], Interval | None]


GOLD = Yardstick("gold reward", lambda p: p.gold, lambda e: e.gold_reward, lambda e: e.gold_reward_ci95)
AUDIT = Yardstick("audit score", lambda p: p.audit_score, lambda e: e.audit_score, lambda e: e.audit_score_ci95)


def yardstick(comparison: Comparison) -> Yardstick | None:
    """Gold where there is gold, else the audit model where there is one."""
    return GOLD if comparison.has_gold else AUDIT if comparison.has_audit else None


def noise(comparison: Comparison, arm: str, held_against: Yardstick) -> float:
    """Half the width of the widest 95 % interval of an arm's final value; 0 where there is none."""
    widths = [held_against.interval(run.final) for run in comparison.of_arm(arm)]
    return max(((high - low) / 2 for low, high in filter(None, widths)), default=0.0)


def overoptimised_of(comparison: Comparison, arm: str, held_against: Yardstick) -> int | None:
    """`overoptimised_from` of an arm's mean path, with the noise of its last evaluations."""
    path = mean_path(paths_of(comparison, arm))
    return overoptimised_from(path, noise(comparison, arm, held_against), held_against, comparison.is_direct(arm))


def overoptimised_from(
    path: Sequence[CurvePoint], noise: float, held_against: Yardstick = GOLD, evaluated: bool = False
) -> int | None:
    """Index of the point after which the yardstick fell while the RM score rose (arXiv 2210.10760), or None.

    The fall from the peak to the end has to exceed `noise`.

    Args:
        evaluated: whether points are evaluations; else they are the few answers that PPO sampled in a step, are
            smoothed over three points first, and have to be four.
    """
    values = [value for point in path if (value := held_against.of_point(point)) is not None]
    if len(path) < (2 if evaluated else 4) or len(values) < len(path):
        return None
    scores = [point.rm_score for point in path]
    true, proxy = (values, scores) if evaluated else (_smooth(values), _smooth(scores))
    peak = max(range(len(true)), key=true.__getitem__)
    fell = true[peak] - true[-1] > noise
    return peak if fell and proxy[-1] > proxy[peak] and peak < len(true) - 1 else None


def _smooth(values: Sequence[float]) -> list[float]:
    windows = [values[max(0, index - 1) : index + 2] for index in range(len(values))]
    return [math.fsum(window) / len(window) for window in windows]


@dataclass(frozen=True)
class Difference:
    """One arm minus another, seed by seed."""

    arm: str
    baseline: str
    gold: Mean
    higher: int
    kl: Mean


def difference(comparison: Comparison, arm: str, baseline: str) -> Difference | None:
    """Final gold reward and KL of one arm minus another, paired by seed; None without gold."""
    pairs = list(zip(comparison.of_arm(arm), comparison.of_arm(baseline), strict=True))
    gold = [
        a.final.gold_reward - b.final.gold_reward
        for a, b in pairs
        if a.final.gold_reward is not None and b.final.gold_reward is not None
    ]
    moved = mean_of(a.final.kl_to_sft - b.final.kl_to_sft for a, b in pairs)
    mean = mean_of(gold)
    if mean is None or moved is None:
        return None
    return Difference(arm, baseline, mean, sum(value > 0 for value in gold), moved)


def finals(comparison: Comparison, arm: str, value: Callable[[Evaluation], float | None]) -> Mean | None:
    """One value of an arm's final evaluations over its seeds."""
    return mean_of(value(run.final) for run in comparison.of_arm(arm))


@dataclass(frozen=True)
class SourceShare:
    """Held-out pairs in which one source policy wrote an answer, and how many of them are ranked as labelled."""

    source: str
    pairs: int
    longer_wins: float | None
    arms: tuple[float | None, ...]

    @property
    def is_small(self) -> bool:
        """Whether chance alone moves its shares by more than is worth reading."""
        return self.pairs < SMALL_GROUP


def by_source(comparison: Comparison) -> list[SourceShare]:
    """Every source policy with the share of every arm's last reward models, seed means; most pairs first."""
    of_arm = [[run.final.offline_by_source for run in comparison.of_arm(arm)] for arm in comparison.arms]
    first = {source: found for seeds in of_arm for seed in seeds for source, found in seed.items()}

    def share(seeds: Sequence[Mapping[str, SourceAccuracy]], source: str) -> float | None:
        mean = mean_of(seed[source].rm_accuracy for seed in seeds if source in seed)
        return mean.mean if mean else None

    rows = [
        SourceShare(source, found.pairs, found.longer_wins, tuple(share(seeds, source) for seeds in of_arm))
        for source, found in first.items()
    ]
    return sorted(rows, key=lambda row: (-row.pairs, row.source))


def one_reward_model(rows: Sequence[SourceShare]) -> bool:
    """Whether several arms' last reward models rank every source's pairs alike, as one does that no arm changed."""
    return any(len(row.arms) > 1 for row in rows) and all(len(set(row.arms)) == 1 for row in rows)


def best_arm(comparison: Comparison) -> str:
    """The arm with the highest mean final gold reward."""
    means = {arm: finals(comparison, arm, lambda final: final.gold_reward) for arm in comparison.arms}
    return max(comparison.arms, key=lambda arm: mean.mean if (mean := means[arm]) else -math.inf)


def accepted_of(comparison: Comparison, arm: str) -> tuple[int, int]:
    """How many refreshes of an arm were accepted, and how many there were."""
    rounds = [round_ for run in comparison.of_arm(arm) for round_ in run.rounds]
    gates = [round_.gate for round_ in rounds if round_.gate and round_.gate.refreshed]
    return sum(gate.accepted for gate in gates), len(gates)


def grouped(texts: Mapping[str, str]) -> str:
    """What is said of each arm, once for arms of which the same is said: `“a” and “b” X; “c” Y`."""
    arms: dict[str, list[str]] = {}
    for arm, text in texts.items():
        arms.setdefault(text, []).append(f"“{arm}”")
    return "; ".join(f"{listed(names)} {text}" for text, names in arms.items())


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def seeds_label(n: int) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{n} seed{'' if n == 1 else 's'}"
