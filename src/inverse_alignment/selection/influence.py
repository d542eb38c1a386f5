"""MetaRM's idea as a selector: the pairs whose gradient spreads the scores of what the policy writes now."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inverse_alignment.core.errors import UserError
from inverse_alignment.maths.linear_reward import gradient_agreement, spread_gradient
from inverse_alignment.models.score_features import PairFeatures, Scored
from inverse_alignment.selection.keep import PairScores, scored


def influence_scores(
    pairs: PairFeatures,
    keys: Sequence[str],
    rollouts: Scored,
    rollout_keys: Sequence[str],
    same_prompt: bool,
    ties: np.ndarray,
) -> PairScores:
    """How far a step on each pair moves the last layer towards telling the policy's answers to one prompt apart.

    Args:
        keys: prompt key of each pair.
        rollouts: of the policy's answers.
        rollout_keys: prompt key of each of them.
        same_prompt: by the answers to the pair's own prompt; otherwise by the mean gradient over prompts.

    Raises:
        UserError: the policy has given no prompt two answers, or no pair's prompt.
    """
    of_prompt: dict[str, list[int]] = {}
    for row, key in enumerate(rollout_keys):
        of_prompt.setdefault(key, []).append(row)
    slopes = {
        key: spread_gradient(rollouts.features[rows].astype(np.float64), rollouts.scores[rows])
        for key, rows in of_prompt.items()
        if len(rows) > 1
    }
    if not slopes:
        raise UserError(
            "no prompt has two rollouts, whose scores could be told apart",
            where="rollout.samples",
            fix="set rollout.samples to at least 2",
        )
    values = np.full(len(keys), np.nan)
    if not same_prompt:
        slope = np.mean(list(slopes.values()), axis=0)
        for rows, differences, gaps in pairs.blocks():
            values[rows] = gradient_agreement(differences, gaps, slope)
        return scored(values, ties)
    asked = np.array([key in slopes for key in keys])
    if not asked.any():
        raise UserError(
            "no pair's prompt is among the prompts with two rollouts",
            where="selection.compare_with=same_prompt",
            fix="set rollout.prompts=0 (all prompts), or selection.compare_with=all_rollouts",
        )
    unknown = np.full(len(pairs.weights), np.nan)
    for rows, differences, gaps in pairs.blocks():
        values[rows] = gradient_agreement(differences, gaps, np.array([slopes.get(key, unknown) for key in keys[rows]]))
    why = f"of {len(keys)} are candidates ({int((~asked).sum())} without two rollouts to their prompt)"
    return scored(values, ties, why=why)
