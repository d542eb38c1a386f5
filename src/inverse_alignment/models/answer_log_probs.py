"""Log-probabilities of given answers under a frozen policy: what selectors ask about a whole pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from inverse_alignment.core.batches import Sequences, length_groups
from inverse_alignment.core.blocks import blocks, digest, in_order
from inverse_alignment.core.protocols import Cache, Spread
from inverse_alignment.core.records import Prompt
from inverse_alignment.models.loading import load_policy, pick_device, place
from inverse_alignment.models.log_probs import Head, token_log_probs
from inverse_alignment.text.render import encode_written
from inverse_alignment.text.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int, str], None]
Asked = tuple[Prompt, str]
MEAN, MOST = 1024, 4096
"""Answers of a block, on average and at most: they are encoded, sorted by length and kept together."""


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


@dataclass(frozen=True)
class Reading:
    """How answers are read.

    Attributes:
        context: most tokens of prompt and answer together.
        tokens: padded tokens read at once; changes nothing but speed, memory and rounding.
        first_tokens: only so many tokens of each answer count; 0 for all.
    """

    context: int
    tokens: int
    first_tokens: int = 0


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
        progress: told how many of the n answers are done.

    Raises:
        UserError: see `text.render.encode_prompt`.
    """
    head, reading = Head(policy), Reading(context, tokens, first_tokens)
    asked = zip(prompts, answers, strict=True)
    return log_probs_by(lambda some: read(head, tokenizer, some, reading), asked, len(answers), progress)


def log_probs_by(
    score: Callable[[list[Asked]], LogProbs],
    asked: Iterable[Asked],
    total: int,
    progress: Progress = lambda done, total, unit: None,
    spread: Spread = in_order,
) -> LogProbs:
    """The same by anyone who scores a block of answers, wherever: the blocks are a matter of the answers alone.

    Args:
        asked: as many as `total` says; no more than a block is held.
    """
    sums, counts, done = np.empty(total), np.empty(total, dtype=np.int64), 0
    for found in spread(score, blocks(asked, lambda one: one[1], MEAN, MOST)):
        rows = slice(done, done := done + len(found.sums))
        sums[rows], counts[rows] = found
        progress(done, total, "answers scored")
    return LogProbs(sums, counts)


@dataclass
class PolicyScorer:
    """Scores blocks of answers by the policy in a folder, which is loaded for the first block that is not known.

    Attributes:
        device: see `pick_device`.
        space: digest of everything that decides the numbers besides the block: policy, reading, device, versions.
    """

    folder: Path
    device: str
    reading: Reading
    cache: Cache
    space: str

    def __call__(self, asked: list[Asked]) -> LogProbs:
        """Log-probabilities of one block."""
        unit = digest(text for prompt, answer in asked for text in (prompt.key, answer))
        kept = self.cache.get(self.space, unit)
        if kept is not None:
            return LogProbs(kept["sums"], kept["counts"])
        found = read(*self._loaded, asked, self.reading)
        self.cache.put(self.space, unit, found._asdict())
        return found

    @cached_property
    def _loaded(self) -> tuple[Head, PreTrainedTokenizerBase]:
        policy = place(load_policy(self.folder), pick_device(self.device)).eval()
        return Head(policy), load_tokenizer(self.folder).tokenizer

    def __getstate__(self) -> dict[str, Any]:  # another process loads its own
        return {name: value for name, value in vars(self).items() if name != "_loaded"}


@torch.no_grad()
def read(head: Head, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Asked], reading: Reading) -> LogProbs:
    """Log-probabilities of answers, read in batches of like length.

    Raises:
        UserError: see `text.render.encode_prompt`.
    """
    prompts, answers = zip(*asked, strict=True)
    written = encode_written(tokenizer, prompts, answers, reading.context)
    if reading.first_tokens:
        written = [(prompt, answer[: reading.first_tokens]) for prompt, answer in written]
    counts = np.array([len(answer) for _, answer in written], dtype=np.int64)
    sums = np.empty(len(written))
    lengths = [len(prompt) + len(answer) - 1 for prompt, answer in written]  # nobody reads after the last token
    for group in length_groups(lengths, reading.tokens):
        sequences = _sequences([written[row] for row in group], tokenizer.pad_token_id, head.policy.device)
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
