"""Pairs with an answer of the policy in them: nobody has labelled these, the rules that make them assume a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison, Prompt, Provenance, Rollout

POLICY, INCUMBENT = "policy", "incumbent reward model"


@dataclass(frozen=True)
class WithOwn:
    """Pairs in the order given.

    Attributes:
        own: whether the rejected answer of a pair is the policy's own.
    """

    pairs: list[Comparison]
    own: np.ndarray


def by_prompt(rollouts: Sequence[Rollout]) -> dict[str, list[Rollout]]:
    """The answers to each prompt, by its key, in order."""
    found: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        found.setdefault(rollout.prompt.key, []).append(rollout)
    return found


def policy_negatives(
    pairs: Sequence[Comparison], allowed: np.ndarray, rollouts: Sequence[Rollout], share: float, seed: int
) -> WithOwn:
    """A share of the allowed pairs with an answer of the policy to the same prompt in place of the rejected one.

    Such a pair's label is taken as certain, and it has no margin. Answers that equal the chosen one say nothing and are
    not used. Source: RFT (arXiv 2405.17888).

    Args:
        allowed: (n,) which pairs may be changed.
        share: of the allowed ones; fewer where the policy has not answered enough of their prompts.

    Raises:
        UserError: the policy has answered no prompt of an allowed pair.
    """
    answers = by_prompt(rollouts)
    other = [[r.response for r in answers.get(p.prompt.key, ()) if r.response != p.chosen] for p in pairs]
    possible = np.array([row for row in np.flatnonzero(allowed) if other[row]], dtype=np.int64)
    if not len(possible):
        raise UserError(
            "the policy has answered no prompt of a selected pair, other than by its chosen answer",
            where="refresh.rule.type, which is policy_negatives",
            fix="set rollout.prompts to 0, and rollout.split to train",
        )
    generator = np.random.Generator(np.random.Philox(key=seed))
    wanted = min(max(round(share * int(allowed.sum())), 1), len(possible))
    own = np.zeros(len(pairs), dtype=bool)
    own[generator.choice(possible, size=wanted, replace=False)] = True
    return WithOwn([_against(p, other[i], generator) if own[i] else p for i, p in enumerate(pairs)], own)


def _against(pair: Comparison, answers: Sequence[str], generator: np.random.Generator) -> Comparison:
    fields = {"rejected": answers[int(generator.integers(len(answers)))], "soft_label": None, "margin": None}
    provenance = pair.provenance.model_copy(update={"source_rejected": POLICY})
    return pair.model_copy(update={**fields, "provenance": provenance})


def extremes(rollouts: Sequence[Rollout], scores: np.ndarray) -> list[Comparison]:
    """For each prompt, the answer with the best score against the one with the worst; the first of equals.

    Equal texts have equal scores but for rounding, and make no pair.

    Args:
        scores: (n,) of the answers, by the model that is to learn from them.

    Raises:
        UserError: there is no prompt with two answers of different score.
    """
    rows: dict[str, list[int]] = {}
    for row, rollout in enumerate(rollouts):
        rows.setdefault(rollout.prompt.key, []).append(row)
    found = []
    for key, group in rows.items():
        best, worst = max(group, key=lambda row: scores[row]), min(group, key=lambda row: scores[row])
        chosen, rejected = rollouts[best].response, rollouts[worst].response
        if scores[best] > scores[worst] and chosen != rejected:
            found.append(_judged(key, rollouts[best].prompt, chosen, rejected))
    if not found:
        raise UserError(
            "no prompt has two answers that the incumbent tells apart",
            where="refresh.rule.type, which is extremes",
            fix="set rollout.samples to 2 or more",
        )
    return found


def _judged(key: str, prompt: Prompt, chosen: str, rejected: str) -> Comparison:
    origin = Provenance(
        dataset="rollouts", original_id=key, source_chosen=POLICY, source_rejected=POLICY, annotator=INCUMBENT
    )
    return Comparison(prompt=prompt, chosen=chosen, rejected=rejected, provenance=origin)
