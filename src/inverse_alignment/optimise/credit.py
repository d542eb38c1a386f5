"""The one hook between scores and advantages: a reward per token, before the price of KL.

`assign` is pure but for what it asks of a `TokenScores`; terminal and uniform credit ask nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from inverse_alignment.core.records import Comparison, Demonstration, Prompt
from inverse_alignment.generation.answers import Answer
from inverse_alignment.maths.credit import (
    attention_credit,
    final_positions,
    potential_credit,
    redistributed_credit,
    terminal_credit,
    token_credit,
    uniform_credit,
)
from inverse_alignment.maths.overlap import prefix_f1
from inverse_alignment.models.reward_scores import CalibratedReward
from inverse_alignment.models.token_scores import TokenHead, TokenScorer
from inverse_alignment.models.tqr_scores import DenseReader, TqrScorer
from inverse_alignment.optimise.credit_settings import (
    AttentionCredit,
    CreditConfig,
    DenseCredit,
    PotentialCredit,
    RedistributedCredit,
    TerminalCredit,
    TokenCredit,
    UniformCredit,
)
from inverse_alignment.text.render import encode_response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenScores(Protocol):
    """What is known of the single tokens of an answer, each asked for only where it is needed.

    One float64 array per answer, over its T response tokens.
    """

    def prefix_scores(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[np.ndarray]:
        """(T + 1,) standardised scores of every beginning of an answer, that of the bare prompt first."""

    def attention(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[np.ndarray]:
        """(T,) attention of the reward model to each token where it scores, not negative."""

    def token_rewards(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[np.ndarray]:
        """(T,) rewards of a token-level reward model."""

    def dense_rewards(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[np.ndarray]:
        """(T,) rewards that the reward model itself gives to tokens, in standard deviations of its scores."""

    def potentials(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[np.ndarray]:
        """(T,) likeness in [0, 1] of what stood before each token with a given answer to the prompt."""


def assign(
    config: CreditConfig,
    scores: Tensor,
    mask: Tensor,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    tokens: TokenScores | None,
    gamma: float,
) -> Tensor:
    """Rewards (b, t) of the tokens of some answers, before the price of KL, in the type of the scores.

    What was done to a score after the reward model gave it (clipping, the missing-EOS penalty) stays with it: RED reads
    the whole answer's score as the one given here, so that the last token bears the difference.

    Args:
        scores: (b,) shaped scores, standardised.
        mask: (b, t) bool, True at response tokens; rows begin with their answer.
        prompts: one per answer.
        answers: what was sampled.
        tokens: asked for what the method needs; terminal and uniform need nothing.
        gamma: γ of the advantages that are estimated from these rewards.

    Raises:
        ValueError: an answer does not have as many tokens as its row of the mask, or nothing is known of tokens.
    """
    exact = scores.double()
    match config:
        case TerminalCredit():
            return terminal_credit(scores, mask)
        case UniformCredit():
            return uniform_credit(scores, mask)
    if tokens is None:
        raise ValueError(f"{config.type} credit needs to know of single tokens")
    match config:
        case RedistributedCredit(mix=mix):
            prefixes = _table(tokens.prefix_scores(prompts, answers), mask, more=1)
            ends = final_positions(mask).unsqueeze(-1) + 1
            credit = redistributed_credit(prefixes.scatter(-1, ends, exact.unsqueeze(-1)), exact, mask, mix)
        case AttentionCredit(mix=mix):
            credit = attention_credit(exact, _table(tokens.attention(prompts, answers), mask), mask, mix)
        case PotentialCredit(weight=weight):
            potentials = weight * _table(tokens.potentials(prompts, answers), mask)
            credit = potential_credit(exact, potentials, mask, gamma)
        case TokenCredit(share=share):
            credit = token_credit(_table(tokens.token_rewards(prompts, answers), mask), exact, mask, share)
        case DenseCredit(share=share):
            credit = token_credit(_table(tokens.dense_rewards(prompts, answers), mask), exact, mask, share)
    return credit.to(scores.dtype)


@dataclass(frozen=True)
class KnownTokens:
    """A `TokenScores` made of a reward model, a token head and given answers, as far as they are there.

    It scores texts too: what red and abc read of the reward model for the scores is then not read again.

    Attributes:
        reward: the reward model.
        tokenizer: of the policy.
        scorer: the reward model, read per token; for red and abc.
        look: whether it is read for abc.
        head: the token-level reward model; for token.
        references: a given answer to a prompt, by the prompt's key; for potential. Others have potential 0.
        dense: the reward model, asked for its own rewards of tokens; for dense.
    """

    reward: CalibratedReward
    tokenizer: PreTrainedTokenizerBase
    scorer: TokenScorer | None = None
    look: bool = False
    head: TokenHead | None = None
    references: Mapping[str, str] | None = None
    dense: DenseReader | None = None

    @staticmethod
    def of(
        config: CreditConfig,
        reward: CalibratedReward,
        tokenizer: PreTrainedTokenizerBase,
        head: TokenHead | None = None,
        references: Mapping[str, str] | None = None,
    ) -> KnownTokens:
        """What a method needs, made before anything is sampled.

        Raises:
            UserError: the reward model cannot be read per token.
        """
        looks = isinstance(config, AttentionCredit)
        reads = looks or isinstance(config, RedistributedCredit)
        scorer = TokenScorer(reward.classifier, tokenizer) if reads else None
        dense = None
        if isinstance(config, DenseCredit):
            assert isinstance(reward.scorer, TqrScorer)  # the configuration refuses any other
            dense = DenseReader(reward.scorer, tokenizer)
        return KnownTokens(reward, tokenizer, scorer, looks, head, references, dense)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """Standardised scores, float64 (n,): see `core.protocols.Score`."""
        if self.scorer is None:
            return self.reward(prompts, responses)
        return self.reward.calibration.standardise(self.scorer.scores(prompts, responses, self.look))

    def prefix_scores(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[np.ndarray]:
        """See `TokenScores.prefix_scores`."""
        assert self.scorer is not None
        standardise = self.reward.calibration.standardise
        return [standardise(row) for row in self.scorer.prefix_scores(prompts, answers)]

    def attention(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[np.ndarray]:
        """See `TokenScores.attention`."""
        assert self.scorer is not None
        return self.scorer.attention(prompts, answers)

    def token_rewards(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[np.ndarray]:
        """See `TokenScores.token_rewards`."""
        assert self.head is not None
        return self.head.token_rewards(prompts, answers)

    def dense_rewards(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[np.ndarray]:
        """See `TokenScores.dense_rewards`."""
        assert self.dense is not None
        return [rewards / self.reward.calibration.std for rewards in self.dense.token_rewards(prompts, answers)]

    def potentials(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[np.ndarray]:
        """See `TokenScores.potentials`: F1 between the tokens before and those of the given answer, `prefix_f1`."""
        return [
            np.array(prefix_f1(answer.response_ids, self._reference_ids[prompt.key]))
            if prompt.key in self._reference_ids
            else np.zeros(len(answer.response_ids))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    @cached_property
    def _reference_ids(self) -> dict[str, list[int]]:
        references = self.references or {}
        return {key: encode_response(self.tokenizer, text)[:-1] for key, text in references.items()}


def given_answers(demonstrations: Iterable[Demonstration], pairs: Iterable[Comparison]) -> dict[str, str]:
    """One given answer per prompt, by its key: the first demonstration, or else the chosen answer of the first pair."""
    shown: dict[str, str] = {}
    for row in demonstrations:
        shown.setdefault(row.prompt.key, row.response)
    for pair in pairs:
        shown.setdefault(pair.prompt.key, pair.chosen)
    return shown


def _table(rows: Sequence[np.ndarray], mask: Tensor, more: int = 0) -> Tensor:
    """Rows of T + `more` numbers as float64 (b, t + more), zero behind them."""
    counts = mask.sum(-1).tolist()
    lengths = [len(row) - more for row in rows]
    if lengths != counts:
        raise ValueError(f"the answers have {lengths} tokens, but their rows of the mask {counts}")
    table = np.zeros((len(rows), mask.shape[-1] + more))
    for place, row in zip(table, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(table).to(mask.device)
