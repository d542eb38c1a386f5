"""How a recovered reward agrees with others: on the answers of both policies, and on pairs that people judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from inverse_alignment.core.protocols import Score
from inverse_alignment.core.records import Comparison, Prompt, Provenance
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.evaluation.reward_accuracy import longer_wins, score_pairs
from inverse_alignment.evaluation.rewardbench import Benchmark
from inverse_alignment.maths.bootstrap import Interval, mean_interval
from inverse_alignment.maths.grouping import group_means, order_agreement, within_group_correlation


class Agreement(NamedTuple):
    """How two rewards compare on answers to the same prompts; None where one of them sees no difference.

    Attributes:
        order: share of pairs of answers to one prompt that they order alike.
        correlation: of the rewards less their means over the answers to each prompt.
    """

    order: float | None
    correlation: float | None


@dataclass(frozen=True)
class Audit:
    """What a recovered reward is worth, where it was not fitted.

    Attributes:
        told_apart: share of (aligned policy's, reference's) answers in which the first has the higher recovered reward.
        agreement: of the recovered reward with each other one, on the answers of both policies.
        accuracy: on labelled pairs, of every reward and of the longer answer; empty without pairs.
        pairs: how many those are.
    """

    told_apart: Interval
    agreement: dict[str, Agreement]
    accuracy: dict[str, Interval]
    pairs: int


def audit(
    recovered: Score,
    others: Mapping[str, Score],
    opposed: Sequence[Comparison],
    labelled: Sequence[Comparison],
    seed: int,
) -> Audit:
    """Compare a recovered reward with others, at prompts that it was not fitted at.

    Args:
        opposed: an answer of the aligned policy as chosen and one of the reference as rejected.
        labelled: pairs that people, or the reward that the policy was aligned with, judged.
        seed: of the bootstrap.
    """
    told = score_pairs(recovered, opposed).correct()
    prompts = [pair.prompt for pair in opposed] * 2
    answers = [pair.chosen for pair in opposed] + [pair.rejected for pair in opposed]
    scores = recovered(prompts, answers)
    return Audit(
        _over_prompts(told, opposed, seed),
        {name: agreement(scores, other(prompts, answers), prompts) for name, other in others.items()},
        accuracies({"recovered": recovered, **others}, labelled, seed) if labelled else {},
        len(labelled),
    )


def agreement(recovered: np.ndarray, other: np.ndarray, prompts: Sequence[Prompt]) -> Agreement:
    """Of two rewards (n,) of answers."""
    keys = [prompt.key for prompt in prompts]
    found = order_agreement(recovered, other, keys), within_group_correlation(recovered, other, keys)
    return Agreement(*(None if np.isnan(value) else value for value in found))


def accuracies(scores: Mapping[str, Score], pairs: Sequence[Comparison], seed: int) -> dict[str, Interval]:
    """Share of pairs that each reward, and the longer answer, ranks as labelled; 95 % bootstrap over prompts."""
    correct = {name: score_pairs(score, pairs).correct() for name, score in scores.items()}
    correct["longer_wins"] = longer_wins(pairs)
    return {name: _over_prompts(right, pairs, seed) for name, right in correct.items()}


def labelled_pairs(benchmarks: Sequence[Benchmark]) -> list[Comparison]:
    """Every right answer against every wrong one to the same prompt."""
    return [
        Comparison(
            prompt=item.prompt,
            chosen=right,
            rejected=wrong,
            provenance=Provenance(dataset=benchmark.name, original_id=f"{name}/{row}"),
        )
        for benchmark in benchmarks
        for name, items in benchmark.sections.items()
        for row, item in enumerate(items)
        for right in item.answers[: item.right]
        for wrong in item.answers[item.right :]
    ]


def _over_prompts(values: np.ndarray, pairs: Sequence[Comparison], seed: int) -> Interval:
    means = group_means(values, [pair.prompt.key for pair in pairs])
    return mean_interval(torch.from_numpy(means), derive_seed("recovered", seed))
