"""What a reward model says of every token of a policy's answer, beside the one score it gives to the whole.

The reward model reads `text.render.encode_full`, as it does everywhere; what it says of its own tokens is said of the
policy's by `text.alignment`. Whatever it reads after the last of them (the end token) belongs to the last policy token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from inverse_alignment.core.batches import length_groups, pad_right
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Message, Prompt
from inverse_alignment.models.loading import place
from inverse_alignment.models.reward_scores import RewardScorer
from inverse_alignment.models.token_heads import load_token_head
from inverse_alignment.text.alignment import Aligner
from inverse_alignment.text.render import encode_answers, encode_prompt, prompt_budget
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
class Span:
    """Which tokens of a reader make up an answer, and whose they are.

    Attributes:
        start: where the answer begins among the ids that the reader read.
        owners: (n,) int64, never falling: the policy token that each of the n tokens from there on belongs to.
        tokens: T, policy tokens of the answer.
    """

    start: int
    owners: np.ndarray
    tokens: int

    def summed(self, values: np.ndarray) -> np.ndarray:
        """(T,) sums over what each policy token owns, of values at all that was read."""
        inside = values[self.start : self.start + len(self.owners)]
        return np.bincount(self.owners, weights=inside, minlength=self.tokens)

    def newest(self, values: np.ndarray) -> np.ndarray:
        """(T + 1,) the value at the newest token that is owned so far; where none is, at the last of the prompt."""
        counts = np.searchsorted(self.owners, np.arange(-1, self.tokens), side="right")
        return values[self.start - 1 + counts]


class Spans:
    """Finds the answers of a policy in what a reader with a tokenizer of its own reads.

    Args:
        policy_tokenizer: the tokenizer of the policy that sampled the answers.
        tokenizer: that of the reader.
        max_tokens: most tokens of prompt and answer together that the reader reads.
    """

    def __init__(
        self, policy_tokenizer: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase, max_tokens: int
    ) -> None:
        self._align = Aligner(policy_tokenizer, tokenizer)
        self._tokenizer, self._max_tokens = tokenizer, max_tokens

    def ids(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[list[int]]:
        """What the reader reads."""
        return encode_answers(self._tokenizer, prompts, texts, self._max_tokens)

    def __call__(
        self, prompts: Sequence[Prompt], answers: Sequence[SampledAnswer], ids: Sequence[Sequence[int]]
    ) -> list[Span]:
        """One span per answer.

        Args:
            ids: what the reader read of each, from `ids`.
        """
        aligned = self._align([given.response_ids for given in answers], [given.text for given in answers])
        spans = []
        for prompt, given, own, read in zip(prompts, answers, aligned, ids, strict=True):
            start = len(read) - len(own.ids) - 1
            if len(read) >= self._max_tokens:  # the answer may have lost its last tokens
                start = len(encode_prompt(self._tokenizer, prompt, prompt_budget(self._max_tokens)))
            kept = len(read) - start - 1
            assert list(read[start:-1]) == own.ids[:kept]  # both encode the same text
            last = len(given.response_ids) - 1
            spans.append(Span(start, np.append(own.owners[:kept], last), last + 1))
        return spans


class TokenScorer:
    """Reads a reward model's score at every beginning of an answer, and where it looked for the score of the whole.

    What was read for the scores of some answers is kept until the next scores are asked for, so that to know more of
    the same answers takes no second forward pass.

    Args:
        scorer: the reward model as everyone else asks it.
        policy_tokenizer: the tokenizer of the policy whose answers are scored.

    Raises:
        UserError: the model has no score head that reads every position, or its tokenizer names no characters.
    """

    def __init__(self, scorer: RewardScorer, policy_tokenizer: PreTrainedTokenizerBase) -> None:
        self._model, self._most = scorer.model, scorer.rows * scorer.max_tokens
        self._head = _score_head(scorer.model)
        self._pad = scorer.tokenizer.pad_token_id
        self._spans = Spans(policy_tokenizer, scorer.tokenizer, scorer.max_tokens)
        self._positions = _Kept()
        self._attention = _Kept()

    def scores(self, prompts: Sequence[Prompt], texts: Sequence[str], look: bool = False) -> np.ndarray:
        """Raw scores, float64 (n,): those of `RewardScorer`, up to rounding.

        Args:
            look: keep where the model looked rather than its scores on the way.

        Raises:
            FloatingPointError: a score is not finite.
            UserError: the model is to look, and shows no attention weights.
        """
        ids = self._spans.ids(prompts, texts)
        if look:
            with _eager(self._model):
                read = _in_batches(ids, self._most, self._looked)
        else:
            read = _in_batches(ids, self._most, self._scored)
        scores = np.array([row[-1] for row in read])
        if not np.isfinite(scores).all():
            bad = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise FloatingPointError(f"the reward model's score is {scores[bad]} for the answer {texts[bad][:80]!r}")
        kept = self._attention if look else self._positions
        kept.keep(prompts, texts, ids, [row[:-1] for row in read])
        return scores

    def prefix_scores(self, prompts: Sequence[Prompt], answers: Sequence[SampledAnswer]) -> list[np.ndarray]:
        """`S_0 … S_T` of each answer, float64 (T + 1,), in the reward model's own units.

        S_0 is the score at the last token of the bare prompt, S_T the score of the whole answer, S_t the score at the
        newest token of the reward model that belongs to the first t policy tokens. Hence
        `Σ (S_t - S_{t-1}) = R(x, y) - R(x, empty)`. One forward pass for all of them: the model is causal.

        Raises:
            FloatingPointError: a score is not finite.
        """
        spans, rows = self._known(self._positions, prompts, answers)
        return [span.newest(row) for span, row in zip(spans, rows, strict=True)]

    def attention(self, prompts: Sequence[Prompt], answers: Sequence[SampledAnswer]) -> list[np.ndarray]:
        """Attention of each answer's scored position to its tokens, float64 (T,), not renormalised.

        Mean over heads of the last layer's attention from the position that is scored; the attention to several tokens
        that belong to one policy token is added up.

        Raises:
            UserError: the model shows no attention weights.
        """
        spans, rows = self._known(self._attention, prompts, answers)
        return [span.summed(row) for span, row in zip(spans, rows, strict=True)]

    def _known(
        self, kept: _Kept, prompts: Sequence[Prompt], answers: Sequence[SampledAnswer]
    ) -> tuple[list[Span], list[np.ndarray]]:
        texts = [given.text for given in answers]
        if not kept.holds(prompts, texts):
            self.scores(prompts, texts, look=kept is self._attention)
        return self._spans(prompts, answers, kept.ids), kept.rows

    @torch.no_grad()
    def _scored(self, ids: list[list[int]]) -> list[np.ndarray]:
        """The scores at every position of each row, and then the score of the whole."""
        seen: list[Tensor] = []
        watch = self._head.register_forward_hook(lambda module, given, scores: seen.append(scores))
        try:
            whole = self._forward(ids).squeeze(-1).double().cpu().numpy()
        finally:
            watch.remove()
        positions = seen[-1].squeeze(-1).double().cpu().numpy()
        # the score of the whole is the last position's, also where the model's own is one before (pad is end)
        return [
            np.concatenate([row[: len(read) - 1], [score, score]])
            for read, row, score in zip(ids, positions, whole, strict=True)
        ]

    @torch.no_grad()
    def _looked(self, ids: list[list[int]]) -> list[np.ndarray]:
        """The attention of the scored position to every position of each row, and then the score of the whole."""
        whole: list[Tensor] = []
        weights = _last_attention(self._model, lambda: whole.append(self._forward(ids)))
        scores = whole[0].squeeze(-1).double().cpu().numpy()
        pad = self._model.config.get_text_config().pad_token_id
        looked = []
        for read, heads, score in zip(ids, weights, scores, strict=True):
            scored = max(i for i, token in enumerate(read) if token != pad)  # where the model itself reads
            row = heads[:, scored, : len(read)].double().mean(0).cpu().numpy()
            looked.append(np.append(row, score))
        return looked

    def _forward(self, ids: list[list[int]]) -> Tensor:
        tokens, mask = pad_right(ids, self._pad, self._model.device)
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
        self._spans = Spans(policy_tokenizer, tokenizer, max_tokens)

    @staticmethod
    def load(
        folder: Path, policy_tokenizer: PreTrainedTokenizerBase, device: torch.device, max_tokens: int, rows: int
    ) -> TokenHead:
        """The model of an artifact, ready to judge the answers of a policy."""
        model = place(load_token_head(folder), device)
        return TokenHead(model, load_tokenizer(folder).tokenizer, policy_tokenizer, max_tokens, rows)

    def token_rewards(self, prompts: Sequence[Prompt], answers: Sequence[SampledAnswer]) -> list[np.ndarray]:
        """g of each policy token, float64 (T,): the sum over the model's tokens that belong to it.

        Raises:
            FloatingPointError: a reward is not finite.
        """
        ids = self._spans.ids(prompts, [given.text for given in answers])
        spans = self._spans(prompts, answers, ids)
        read = _in_batches(ids, self._most, self._judged)
        rewards = [span.summed(row) for span, row in zip(spans, read, strict=True)]
        for reward, given in zip(rewards, answers, strict=True):
            if not np.isfinite(reward).all():
                raise FloatingPointError(f"a token reward is not finite for the answer {given.text[:80]!r}")
        return rewards

    @torch.no_grad()
    def _judged(self, ids: list[list[int]]) -> list[np.ndarray]:
        tokens, mask = pad_right(ids, self._pad, self._model.device)
        logits = self._model(input_ids=tokens, attention_mask=mask.long()).logits
        return list(logits.squeeze(-1).double().cpu().numpy())


class _Kept:
    """What was read of the newest answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[Message, ...], str]] = []
        self.ids: list[list[int]] = []
        self.rows: list[np.ndarray] = []

    def keep(
        self, prompts: Sequence[Prompt], texts: Sequence[str], ids: list[list[int]], rows: list[np.ndarray]
    ) -> None:
        self.asked, self.ids, self.rows = self._asked(prompts, texts), ids, rows

    def holds(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> bool:
        return self.asked == self._asked(prompts, texts)

    @staticmethod
    def _asked(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[tuple[tuple[Message, ...], str]]:
        return [(prompt.messages, text) for prompt, text in zip(prompts, texts, strict=True)]


def _in_batches(
    ids: Sequence[list[int]], most: int, of_batch: Callable[[list[list[int]]], list[np.ndarray]]
) -> list[np.ndarray]:
    """One array per row of ids, in order, from batches of rows of like length."""
    found: dict[int, np.ndarray] = {}
    for chunk in length_groups([len(row) for row in ids], most):
        found |= zip(chunk, of_batch([ids[i] for i in chunk]), strict=True)
    return [found[i] for i in range(len(ids))]


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
