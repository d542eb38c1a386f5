"""The reward that an aligned policy implies: how much likelier than its reference it makes an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Prompt
from inverse_alignment.models.answer_log_probs import answer_log_probs
from inverse_alignment.models.loading import load_policy, place
from inverse_alignment.text.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ImplicitReward:
    """Scores answers by `β (log π(y|x) - log π_ref(y|x))`, Rafailov et al., arXiv 2305.18290 eq. 5 without log Z(x).

    The partition function Z depends on the prompt alone, so that only scores of answers to one prompt compare.

    Attributes:
        policy: the aligned one, frozen.
        reference: the one it was aligned from, frozen.
        tokenizer: of both.
        context: most tokens of prompt and answer together.
        tokens: padded tokens read at once.
        beta: reward per nat; what the policy was trained with, where the unit matters.
    """

    policy: PreTrainedModel
    reference: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context: int
    tokens: int
    beta: float = 1.0

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """See `core.protocols.Score`."""
        own, other = (
            answer_log_probs(model, self.tokenizer, prompts, responses, self.context, self.tokens).sums
            for model in (self.policy, self.reference)
        )
        return self.beta * (own - other)


def load_implicit_reward(
    policy: Path, reference: Path, device: torch.device, context: int, tokens: int, beta: float = 1.0
) -> ImplicitReward:
    """The implicit reward of the policy in a folder with respect to the one in another.

    Raises:
        UserError: a folder holds no causal language model, or their tokenizers differ.
    """
    tokenizer = load_tokenizer(policy).tokenizer
    if tokenizer.get_vocab() != load_tokenizer(reference).tokenizer.get_vocab():
        raise UserError(
            "policy and reference have different tokenizers, so that their log-probabilities do not compare",
            where=f"{policy}, {reference}",
            fix="give the checkpoint that the policy was aligned from",
        )
    models = [place(load_policy(folder), device).eval() for folder in (policy, reference)]
    return ImplicitReward(models[0], models[1], tokenizer, context, tokens, beta)
