"""Log-probabilities of given answers under a frozen policy: what selectors ask about a whole pool."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from inverse_alignment.core.batches import Sequences, length_groups
from inverse_alignment.core.blocks import ahead, blocks, digest, in_order
from inverse_alignment.core.protocols import Cache, Spread
from inverse_alignment.core.records import Prompt
from inverse_alignment.models.loading import load_policy, pick_device, place
from inverse_alignment.models.log_probs import Head, token_log_probs
from inverse_alignment.text.render import encode_written

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


class Encoded(NamedTuple):
    """A block of answers, ready to be read.

    Attributes:
        ids: of each prompt and its answer.
        pad_token: what fills a batch.
        tokens: padded tokens read at once.
    """

    ids: list[tuple[list[int], list[int]]]
    pad_token: int
    tokens: int


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
    return log_probs_by(partial(read, head), tokenizer, asked, len(answers), reading, progress)


def log_probs_by(
    score: Callable[[Encoded], LogProbs],
    tokenizer: PreTrainedTokenizerBase,
    asked: Iterable[Asked],
    total: int,
    reading: Reading,
    progress: Progress = lambda done, total, unit: None,
    spread: Spread = in_order,
    kept: Kept | None = None,
) -> LogProbs:
    """The same by anyone who scores a block of answers, wherever: the blocks are a matter of the answers alone.

    Args:
        asked: as many as `total` says. A few blocks are held, and the next one is encoded while one is scored.
        kept: what is known already of some blocks.
    """
    sums, counts, done = np.empty(total), np.empty(total, dtype=np.int64), 0
    for found in _remembered(score, tokenizer, asked, reading, spread, kept or Kept()):
        rows = slice(done, done := done + len(found.sums))
        sums[rows], counts[rows] = found
        progress(done, total, "answers scored")
    return LogProbs(sums, counts)


@dataclass(frozen=True)
class Kept:
    """Blocks that were scored before.

    Attributes:
        space: digest of everything that decides the numbers besides a block: policy, reading, device, versions.
    """

    cache: Cache | None = None
    space: str = ""

    def get(self, unit: str) -> LogProbs | None:
        """What is known of a block."""
        found = self.cache.get(self.space, unit) if self.cache else None
        return None if found is None else LogProbs(found["sums"], found["counts"])

    def put(self, unit: str, found: LogProbs) -> None:
        """Keep what was found."""
        if self.cache:
            self.cache.put(self.space, unit, found._asdict())


def _remembered(
    score: Callable[[Encoded], LogProbs],
    tokenizer: PreTrainedTokenizerBase,
    asked: Iterable[Asked],
    reading: Reading,
    spread: Spread,
    kept: Kept,
) -> Iterator[LogProbs]:
    """Each block as it is known, or as it is scored; in order."""
    waiting: deque[tuple[str, LogProbs | None]] = deque()

    def unknown() -> Iterator[Encoded]:
        for block in blocks(asked, lambda one: one[1], MEAN, MOST):
            unit = digest(text for prompt, answer in block for text in (prompt.key, answer))
            known = kept.get(unit)
            waiting.append((unit, known))
            if known is None:
                yield encoded(tokenizer, block, reading)

    for found in spread(score, ahead(unknown())):
        unit, known = waiting.popleft()
        while known is not None:
            yield known
            unit, known = waiting.popleft()
        kept.put(unit, found)
        yield found
    yield from (known for _, known in waiting if known is not None)


def encoded(tokenizer: PreTrainedTokenizerBase, asked: Sequence[Asked], reading: Reading) -> Encoded:
    """Prompts and answers as ids, of each answer as many as count.

    Raises:
        UserError: see `text.render.encode_prompt`.
    """
    prompts, answers = [prompt for prompt, _ in asked], [answer for _, answer in asked]
    written = encode_written(tokenizer, prompts, answers, reading.context)
    first = reading.first_tokens or reading.context
    ids = [(prompt, answer[:first]) for prompt, answer in written]
    return Encoded(ids, tokenizer.pad_token_id, reading.tokens)


@dataclass
class PolicyScorer:
    """Scores blocks of answers by the policy in a folder, which is loaded for the first block that comes.

    Attributes:
        device: see `pick_device`.
    """

    folder: Path
    device: str

    def __call__(self, block: Encoded) -> LogProbs:
        """Log-probabilities of one block."""
        return read(self._head, block)

    @cached_property
    def _head(self) -> Head:
        return Head(place(load_policy(self.folder), pick_device(self.device)).eval())

    def __reduce__(self) -> tuple[Any, ...]:  # another process loads its own
        return PolicyScorer, (self.folder, self.device)


@torch.no_grad()
def read(head: Head, block: Encoded) -> LogProbs:
    """Log-probabilities of answers, read in batches of like length."""
    counts = np.array([len(answer) for _, answer in block.ids], dtype=np.int64)
    sums = np.empty(len(counts))
    lengths = [len(prompt) + len(answer) - 1 for prompt, answer in block.ids]  # nobody reads after the last token
    for group in length_groups(lengths, block.tokens):
        sequences = _sequences([block.ids[row] for row in group], block.pad_token, head.policy.device)
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
