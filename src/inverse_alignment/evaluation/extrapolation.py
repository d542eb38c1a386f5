"""How far to extrapolate a policy, as a reward model has it that the policy was not optimised against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inverse_alignment.core.protocols import Score
from inverse_alignment.core.records import Prompt, Rollout
from inverse_alignment.generation.answers import Sampling, of_model
from inverse_alignment.generation.rollouts import Asked, draw, judge
from inverse_alignment.models.extrapolate import extrapolate
from inverse_alignment.models.loading import load_policy, pick_device, place, save_model
from inverse_alignment.text.tokenizers import load_tokenizer

Gold = Callable[[Prompt, str], float]


@dataclass(frozen=True)
class Tried:
    """One α, on the same prompts with the same noise as every other.

    Attributes:
        rm_score: mean score of the answers, standard deviations of the reference sample.
        gold_reward: mean gold reward, where there is one. It decides nothing.
        kl_to_sft: mean KL of an answer to what training began with, nats.
    """

    alpha: float
    rm_score: float
    gold_reward: float | None
    kl_to_sft: float
    response_tokens: float
    ended_share: float


def try_alphas(
    policy: Path,
    start: Path,
    alphas: Sequence[float],
    asked: Sequence[Asked],
    sampling: Sampling,
    score: Score,
    gold: Gold | None,
    device: str,
    progress: Callable[[int, int, str], None],
) -> list[Tried]:
    """What each α is worth, in the order given.

    Args:
        policy, start: folders of θ_1 and θ_0.
        score: standardised, of a reward model that the policy was not optimised against if there is one.

    Raises:
        UserError: the two are not of one kind, see `extrapolate`.
    """
    place_on = pick_device(device)
    frozen, tokenizer = place(load_policy(start), place_on).eval(), load_tokenizer(policy).tokenizer
    found = []
    for number, alpha in enumerate(alphas, 1):
        model = place(load_policy(policy), place_on).eval()
        extrapolate(model, frozen, alpha)
        answers = draw(of_model(model, tokenizer, sampling), tokenizer, asked, sampling, lambda done, total, unit: None)
        rollouts = judge(
            model, frozen, tokenizer.pad_token_id, asked, answers, sampling, lambda done, total, unit: None
        )
        found.append(_described(alpha, rollouts, score, gold))
        progress(number, len(alphas), "values of α tried")
    return found


def _described(alpha: float, rollouts: Sequence[Rollout], score: Score, gold: Gold | None) -> Tried:
    scores = score([one.prompt for one in rollouts], [one.response for one in rollouts])
    return Tried(
        alpha=alpha,
        rm_score=float(scores.mean()),
        gold_reward=None if gold is None else float(np.mean([gold(one.prompt, one.response) for one in rollouts])),
        kl_to_sft=float(np.mean([one.kl_estimate for one in rollouts])),
        response_tokens=float(np.mean([one.tokens for one in rollouts])),
        ended_share=float(np.mean([one.ended for one in rollouts])),
    )


def best(tried: Sequence[Tried]) -> Tried:
    """The α with the highest score; of equal ones that nearest to the policy as it is."""
    return max(tried, key=lambda one: (one.rm_score, -abs(one.alpha)))


def save_extrapolated(policy: Path, start: Path, alpha: float, out: Path) -> None:
    """Write θ_1 + α (θ_1 - θ_0) as a folder that plain transformers loads."""
    model = load_policy(policy)
    extrapolate(model, load_policy(start), alpha)
    save_model(model, load_tokenizer(policy).tokenizer, out)
