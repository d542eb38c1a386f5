"""A TQR model as everyone but its trainer sees it: texts in, rewards of answers and of their tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inverse_alignment.core.batches import length_groups, pad_right
from inverse_alignment.core.estimates import RewardEstimate
from inverse_alignment.core.records import Prompt
from inverse_alignment.models.loading import place
from inverse_alignment.models.token_scores import SampledAnswer, Spans
from inverse_alignment.models.tqr import Tqr, load_tqr
from inverse_alignment.text.render import encode_answers, encode_prompts, prompt_budget
from inverse_alignment.text.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TqrScorer:
    """Scores texts with a TQR model, in batches of similar length; `core.protocols.Score` and `Estimate`.

    What was read last is kept: to know the token rewards of answers that have just been scored takes no second pass.

    Args:
        model: the model; its weights stay as they are from now on.
        tokenizer: its tokenizer.
        max_tokens: most tokens of prompt and answer together.
        rows: answers of full length scored at once.
    """

    def __init__(self, model: Tqr, tokenizer: PreTrainedTokenizerBase, max_tokens: int, rows: int) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_tokens, self.rows = max_tokens, rows
        self._kept: tuple[list[list[int]], list[int], RewardEstimate] | None = None

    @staticmethod
    def load(folder: Path, device: torch.device, max_tokens: int, rows: int) -> TqrScorer:
        """The model of an artifact."""
        return TqrScorer(place(load_tqr(folder), device), load_tokenizer(folder).tokenizer, max_tokens, rows)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """Raw scores, float64 (n,)."""
        return self.estimate(prompts, responses).mean

    def estimate(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> RewardEstimate:
        """Raw scores, their standard deviations if the model has any, and a reward for every token of its own.

        The end token is the last of them. Rewards of tokens add up to the score where that is their sum or mean.

        Raises:
            FloatingPointError: a score is not finite.
        """
        ids = encode_answers(self.tokenizer, prompts, responses, self.max_tokens)
        starts = [len(row) for row in encode_prompts(self.tokenizer, prompts, prompt_budget(self.max_tokens))]
        found = self.read(ids, starts)
        if not np.isfinite(found.mean).all():
            bad = int(np.flatnonzero(~np.isfinite(found.mean))[0])
            raise FloatingPointError(
                f"the reward model's score is {found.mean[bad]} for the answer {responses[bad][:80]!r}"
            )
        return found

    def read(self, ids: Sequence[list[int]], starts: Sequence[int]) -> RewardEstimate:
        """The same of token ids.

        Args:
            starts: where the answer begins in each row.
        """
        if self._kept is None or self._kept[:2] != (list(ids), list(starts)):
            self._kept = list(ids), list(starts), self._read(ids, starts)
        return self._kept[2]

    @torch.no_grad()
    def _read(self, ids: Sequence[list[int]], starts: Sequence[int]) -> RewardEstimate:
        form = self.model.form
        mean, std = np.empty(len(ids)), np.empty(len(ids))
        tokens: dict[int, np.ndarray] = {}
        for chunk in length_groups([len(row) for row in ids], self.rows * self.max_tokens):
            inputs, mask = pad_right([ids[i] for i in chunk], self.tokenizer.pad_token_id, self.model.device)
            counts = answers_of(mask, [starts[i] for i in chunk])
            posterior = self.model.rewards(inputs, mask.long(), counts)
            mean[chunk] = _numbers(self.model.score(posterior, counts))
            std[chunk] = _numbers(self.model.deviation(posterior, counts))
            for i, row, own in zip(chunk, posterior.mean, counts, strict=True):
                rewards = _numbers(row[own])
                tokens[i] = rewards / len(rewards) if form.score == "mean" else rewards
        per_token = tuple(tokens[i] for i in range(len(ids)))
        return RewardEstimate(mean, std if form.uncertain else None, per_token)


class DenseReader:
    """A TQR model's rewards of the tokens of a policy's answers.

    Args:
        scorer: the model.
        policy_tokenizer: the tokenizer of the policy whose answers are judged.
    """

    def __init__(self, scorer: TqrScorer, policy_tokenizer: PreTrainedTokenizerBase) -> None:
        self._scorer = scorer
        self._spans = Spans(policy_tokenizer, scorer.tokenizer, scorer.max_tokens)

    def token_rewards(self, prompts: Sequence[Prompt], answers: Sequence[SampledAnswer]) -> list[np.ndarray]:
        """Rewards of each policy token, float64 (T,), raw: sums over the model's tokens that belong to it.

        Raises:
            FloatingPointError: a reward is not finite.
        """
        ids = self._spans.ids(prompts, [given.text for given in answers])
        spans = self._spans(prompts, answers, ids)
        found = self._scorer.read(ids, [span.start for span in spans]).per_token
        assert found is not None
        rewards = [
            span.summed(np.concatenate([np.zeros(span.start), row])) for span, row in zip(spans, found, strict=True)
        ]
        for reward, given in zip(rewards, answers, strict=True):
            if not np.isfinite(reward).all():
                raise FloatingPointError(f"a token reward is not finite for the answer {given.text[:80]!r}")
        return rewards


def answers_of(mask: Tensor, starts: Sequence[int]) -> Tensor:
    """Where the tokens of answers are: (b, l) bool, from the start of each row to its end.

    Args:
        mask: (b, l) bool, True at tokens.
    """
    columns = torch.arange(mask.shape[-1], device=mask.device)
    return mask & (columns >= torch.tensor(list(starts), device=mask.device).unsqueeze(-1))


def _numbers(tensor: Tensor) -> np.ndarray:
    numbers: np.ndarray = tensor.double().cpu().numpy()
    return numbers
