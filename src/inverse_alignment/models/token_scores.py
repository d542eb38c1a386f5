"""What a reward model says of every token of a policy's answer, beside the one score it gives to the whole.

The reward model reads `text.render.encode_full`, as it does everywhere; what it says of its own tokens is said of the
policy's by `text.alignment`. Whatever it reads after the last of them (the end token) belongs to the last policy token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from inverse_alignment.core.batches import length_groups, pad_right
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Prompt
from inverse_alignment.models.loading import place
from inverse_alignment.models.reward_scores import RewardScorer
from inverse_alignment.models.token_heads import load_token_head
from inverse_alignment.text.alignment import Aligner
from inverse_alignment.text.render import encode_full, encode_prompt, prompt_budget
from inverse_alignment.text.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class SampledAnswer(Protocol):
    """An answer as tokens of the policy and as text; `generation.answers.Answer` is one."""

    @property
    def response_ids(self) -> list[int]:
        """What was sampled, the end token included if there is one."""

    @property
    def text(self) -> str:
        """The same as text."""


@dataclass(frozen=True)
class Reading:
    """What a model reads of one answer.

    Attributes:
        ids: prompt and answer in the reader's tokens.
        start: where the answer begins.
        owners: (len(ids) - start,) int64, never falling: the policy token that each token of the answer belongs to.
        tokens: T, policy tokens of the answer.
    """

    ids: list[int]
    start: int
    owners: np.ndarray
    tokens: int

    def summed(self, values: np.ndarray) -> np.ndarray:
        """(T,) sums over what each policy token owns, of values at the reader's tokens of the answer."""
        return np.bincount(self.owners, weights=values, minlength=self.tokens)

    def last(self, values: np.ndarray, before: float) -> np.ndarray:
        """(T + 1,) the value at the newest of the reader's tokens that are owned so far; `before` where none is."""
        newest = np.searchsorted(self.owners, np.arange(-1, self.tokens), side="right")
        return np.concatenate([[before], values])[newest]


class AnswerReader:
    """Turns answers into what a reader with a tokenizer of its own sees of them.

    Args:
        policy_tokenizer: the tokenizer of the policy that sampled the answers.
        tokenizer: that of the reader.
        max_tokens: most tokens of prompt and answer together that the reader sees.
    """

    def __init__(
        self, policy_tokenizer: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase, max_tokens: int
    ) -> None:
        self._align = Aligner(policy_tokenizer, tokenizer)
        self._tokenizer, self._max_tokens = tokenizer, max_tokens

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[SampledAnswer]) -> list[Reading]:
        """One reading per answer, in order."""
        starts: dict[tuple[Any, ...], int] = {}
        aligned = self._align([given.response_ids for given in answers], [given.text for given in answers])
        readings = []
        for prompt, given, answer in zip(prompts, answers, aligned, strict=True):
            ids = encode_full(self._tokenizer, prompt, given.text, self._max_tokens)
            if prompt.messages not in starts:
                budget = prompt_budget(self._max_tokens)
                starts[prompt.messages] = len(encode_prompt(self._tokenizer, prompt, budget))
            start = starts[prompt.messages]
            kept = len(ids) - start - 1  # an answer that is too long for the reader loses its last tokens
            assert ids[start:-1] == answer.ids[:kept]  # both encode the same text
            owners = np.append(answer.owners[:kept], len(given.response_ids) - 1)
            readings.append(Reading(ids, start, owners, len(given.response_ids)))
        return readings


class TokenScorer:
    """Reads a reward model's score at every prefix of an answer, and where it looked for the score of the whole.

    Args:
        scorer: the reward model as everyone else asks it; the last prefix score is its score.
        policy_tokenizer: the tokenizer of the policy whose answers are scored.

    Raises:
        UserError: the model has no score head that reads every position, or its tokenizer names no characters.
    """

    def __init__(self, scorer: RewardScorer, policy_tokenizer: PreTrainedTokenizerBase) -> None:
        self._model, self._most = scorer.model, scorer.rows * scorer.max_tokens
        self._head = _score_head(scorer.model)
        self._pad = scorer.tokenizer.pad_token_id
        self._read = AnswerReader(policy_tokenizer, scorer.tokenizer, scorer.max_tokens)

    def prefix_scores(self, prompts: Sequence[Prompt], answers: Sequence[SampledAnswer]) -> list[np.ndarray]:
        """`S_0 … S_T` of each answer, float64 (T + 1,), in the reward model's own units.

        S_0 is the score at the last token of the bare prompt, S_T the score of the whole answer as `RewardScorer` gives
        it, S_t the score at the newest token of the reward model that belongs to the first t policy tokens. Hence
        `Σ (S_t - S_{t-1}) = R(x, y) - R(x, empty)`. One forward pass: the model is causal.

        Raises:
            FloatingPointError: a score is not finite.
        """
        return self._batched(prompts, answers, self._prefixes)

    def attention(self, prompts: Sequence[Prompt], answers: Sequence[SampledAnswer]) -> list[np.ndarray]:
        """Attention of each answer's scored position to its tokens, float64 (T,), not renormalised.

        Mean over heads of the last layer's attention from the position that is scored; the attention to several tokens
        that belong to one policy token is added up.

        Raises:
            UserError: the model shows no attention weights.
        """
        with _eager(self._model):
            return self._batched(prompts, answers, self._looked)

    @torch.no_grad()
    def _batched(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[SampledAnswer],
        of_batch: Callable[[list[Reading]], list[np.ndarray]],
    ) -> list[np.ndarray]:
        return _in_batches(self._read(prompts, answers), self._most, of_batch)

    def _prefixes(self, readings: list[Reading]) -> list[np.ndarray]:
        seen: list[Tensor] = []
        watch = self._head.register_forward_hook(lambda module, given, scores: seen.append(scores))
        try:
            whole = self._forward(readings)
        finally:
            watch.remove()
        positions, final = seen[-1].squeeze(-1).double().cpu().numpy(), whole.squeeze(-1).double().cpu().numpy()
        if not np.isfinite(final).all():
            raise FloatingPointError(f"the reward model's score is {final[~np.isfinite(final)][0]}")
        prefixes = []
        for reading, scores, score in zip(readings, positions, final, strict=True):
            inside = np.append(scores[reading.start : len(reading.ids) - 1], score)
            prefixes.append(reading.last(inside, scores[reading.start - 1]))
        return prefixes

    def _looked(self, readings: list[Reading]) -> list[np.ndarray]:
        weights = _last_attention(self._model, lambda: self._forward(readings))
        pad = self._model.config.get_text_config().pad_token_id
        looked = []
        for reading, heads in zip(readings, weights, strict=True):
            scored = max(i for i, token in enumerate(reading.ids) if token != pad)  # where the model itself reads
            row = heads[:, scored].double().mean(0).cpu().numpy()
            looked.append(reading.summed(row[reading.start : len(reading.ids)]))
        return looked

    def _forward(self, readings: list[Reading]) -> Tensor:
        tokens, mask = pad_right([reading.ids for reading in readings], self._pad, self._model.device)
        logits: Tensor = self._model(input_ids=tokens, attention_mask=mask.long()).logits
        return logits


class TokenHead:
    """A token-level reward model as everyone but its trainer sees it.

    Args:
        model: a token classifier with one label.
        tokenizer: its tokenizer.
        policy_tokenizer: the tokenizer of the policy whose answers are judged.
        max_tokens: most tokens of prompt and answer together.
        rows: answers of full length judged at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        policy_tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        rows: int,
    ) -> None:
        self._model, self._pad, self._most = model.eval(), tokenizer.pad_token_id, rows * max_tokens
        self._read = AnswerReader(policy_tokenizer, tokenizer, max_tokens)

    @staticmethod
    def load(
        folder: Path, policy_tokenizer: PreTrainedTokenizerBase, device: torch.device, max_tokens: int, rows: int
    ) -> TokenHead:
        """The model of an artifact, ready to judge the answers of a policy."""
        model = place(load_token_head(folder), device)
        return TokenHead(model, load_tokenizer(folder).tokenizer, policy_tokenizer, max_tokens, rows)

    @torch.no_grad()
    def token_rewards(self, prompts: Sequence[Prompt], answers: Sequence[SampledAnswer]) -> list[np.ndarray]:
        """g of each policy token, float64 (T,): the sum over the model's tokens that belong to it.

        Raises:
            FloatingPointError: a reward is not finite.
        """
        return _in_batches(self._read(prompts, answers), self._most, self._rewards)

    def _rewards(self, readings: list[Reading]) -> list[np.ndarray]:
        tokens, mask = pad_right([reading.ids for reading in readings], self._pad, self._model.device)
        logits = self._model(input_ids=tokens, attention_mask=mask.long()).logits
        rows = logits.squeeze(-1).double().cpu().numpy()
        rewards = [
            reading.summed(row[reading.start : len(reading.ids)]) for reading, row in zip(readings, rows, strict=True)
        ]
        if not all(np.isfinite(row).all() for row in rewards):
            raise FloatingPointError("a token reward is not finite")
        return rewards


def _in_batches(
    readings: Sequence[Reading], most: int, of_batch: Callable[[list[Reading]], list[np.ndarray]]
) -> list[np.ndarray]:
    """One array per reading, in order, from batches of readings of like length."""
    found: dict[int, np.ndarray] = {}
    for chunk in length_groups([len(reading.ids) for reading in readings], most):
        found |= zip(chunk, of_batch([readings[i] for i in chunk]), strict=True)
    return [found[i] for i in range(len(readings))]


def _score_head(model: PreTrainedModel) -> nn.Module:
    """The layer that turns the state at every position into a score: every decoder of transformers calls it `score`."""
    head = dict(model.named_children()).get("score")
    if head is None:
        raise UserError(
            f"the reward model scores no prefix of an answer: {type(model).__name__} has no score head on every token",
            where="models.reward, ppo.credit.type",
            fix="give a decoder with a score head, or set ppo.credit.type to terminal, uniform, potential or token",
        )
    return head


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Attention in the one implementation that shows its weights, for as long as it is wanted."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _last_attention(model: PreTrainedModel, forward: Callable[[], object]) -> Tensor:
    """Attention weights (b, heads, l, l) of the last layer in a forward pass.

    Asking transformers for them keeps those of every layer; watching keeps the newest only.
    """
    newest: list[Tensor] = []

    def look(module: nn.Module, given: object, made: object) -> None:
        if isinstance(made, tuple) and len(made) > 1 and isinstance(made[1], Tensor) and made[1].ndim == 4:
            newest[:] = [made[1]]

    watches = [module.register_forward_hook(look) for module in model.base_model.modules()]
    try:
        forward()
    finally:
        for watch in watches:
            watch.remove()
    if not newest or newest[0].shape[-1] != newest[0].shape[-2]:
        raise UserError(
            f"the reward model shows no attention weights: {type(model).__name__}",
            where="models.reward, ppo.credit.type",
            fix="set ppo.credit.type to terminal, uniform, red, potential or token",
        )
    return newest[0]
