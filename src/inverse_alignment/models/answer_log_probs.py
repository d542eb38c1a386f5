"""Log-probabilities of given answers under a frozen policy: what selectors ask about a whole pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from inverse_alignment.core.batches import Sequences, length_groups
from inverse_alignment.core.records import Prompt
from inverse_alignment.models.log_probs import Head, token_log_probs
from inverse_alignment.text.render import encode_written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int, str], None]
BLOCK = 4096
"""Answers that are encoded and sorted by length together: bounds memory where a pool is large."""


class LogProbs(NamedTuple):
    """What a policy says of n answers.

    Attributes:
        sums: (n,) float64, `Σ_t log π(y_t | x, y_<t)` in nats over the tokens that count.
        counts: (n,) int64, how many tokens count; at least one.
    """

    sums: np.ndarray
    counts: np.ndarray

    @property
    def means(self) -> np.ndarray:
        """(n,) float64, nats per token: the length-normalised log-probability."""
        return self.sums / self.counts


def answer_log_probs(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    context: int,
    tokens: int,
    first_tokens: int = 0,
    progress: Progress = lambda done, total, unit: None,
) -> LogProbs:
    """Log-probabilities of n answers, each to its prompt, at temperature 1.

    They are encoded as in training, the end token of an answer included; the end token of an answer that is cut at the
    context does not count, like that of a rollout that did not end. A text that a policy has sampled gets the
    log-probability of its rollout where encoding it again gives the tokens that were sampled.

    Args:
        policy: frozen, in evaluation mode.
        context: most tokens of prompt and answer together.
        tokens: padded tokens read at once; changes nothing but speed, memory and rounding.
        first_tokens: only so many tokens of each answer count; 0 for all.
        progress: told how many of the n answers are done.

    Raises:
        UserError: see `text.render.encode_prompt`.
    """
    head = Head(policy)
    sums, counts = np.empty(len(answers)), np.empty(len(answers), dtype=np.int64)
    for start in range(0, len(answers), BLOCK):
        rows = slice(start, start + BLOCK)
        written = encode_written(tokenizer, prompts[rows], answers[rows], context)
        if first_tokens:
            written = [(prompt, answer[:first_tokens]) for prompt, answer in written]
        sums[rows], counts[rows] = _scored(head, written, tokenizer.pad_token_id, tokens)
        progress(min(start + BLOCK, len(answers)), len(answers), "answers scored")
    return LogProbs(sums, counts)


@torch.no_grad()
def _scored(head: Head, written: Sequence[tuple[list[int], list[int]]], pad_token: int, tokens: int) -> LogProbs:
    counts = np.array([len(answer) for _, answer in written], dtype=np.int64)
    sums = np.empty(len(written))
    lengths = [len(prompt) + len(answer) - 1 for prompt, answer in written]  # nobody reads after the last token
    for group in length_groups(lengths, tokens):
        sequences = _sequences([written[row] for row in group], pad_token, head.policy.device)
        found = token_log_probs(head, head.states(sequences), sequences.targets, 1.0).double().cpu().numpy()
        ends = np.cumsum(counts[group])
        sums[group] = np.add.reduceat(found, ends - counts[group])
    return LogProbs(sums, counts)


def _sequences(written: Sequence[tuple[list[int], list[int]]], pad_token: int, device: torch.device) -> Sequences:
    """Prompts and answers side by side, each without its last token, whose successor nobody asks for."""
    prompt = np.array([len(ids) for ids, _ in written])
    counts = np.array([len(answer) for _, answer in written])
    ids = np.full((len(written), int((prompt + counts).max())), pad_token, dtype=np.int64)
    for row, (begun, answer) in enumerate(written):
        ids[row, : prompt[row] + counts[row]] = begun + answer
    rows = np.repeat(np.arange(len(written)), counts)
    steps = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    places = prompt[rows] - 1 + steps
    mask = np.arange(counts.max()) < counts[:, None]
    arrays = (ids[:, :-1], rows, places, ids[rows, places + 1], mask)
    return Sequences(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays))
