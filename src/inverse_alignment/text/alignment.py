"""Which token of the policy each token of a reader of its answers belongs to, when the two have different tokenizers.

A reward model reads an answer as text, in tokens of its own. What it says of one of them is said of the policy token by
which everything that it had read was written, so that no token is credited with what was not there yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inverse_alignment.core.errors import UserError
from inverse_alignment.text.render import decode_response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"  # what bytes that are no whole character are decoded to


@dataclass(frozen=True)
class Alignment:
    """An answer in the reader's tokens.

    Attributes:
        ids: the reader's ids of the text, as `text.render.encode_response` gives them, its end token left out.
        owners: (n,) int64, never falling: the index of the policy token that each of them belongs to.
    """

    ids: list[int]
    owners: np.ndarray


class Aligner:
    """Aligns answers of a policy with the tokens of a reader.

    Raises:
        UserError: the reader's tokenizer does not say which characters a token came from.
    """

    def __init__(self, policy: PreTrainedTokenizerBase, reader: PreTrainedTokenizerBase) -> None:
        if not reader.is_fast:
            raise UserError(
                f"the reward model's tokenizer does not say where in the text a token is: {type(reader).__name__}",
                where="tokenizer of models.reward",
                fix="give a checkpoint with a tokenizer.json, or set ppo.credit.type to terminal, uniform or potential",
            )
        self._policy, self._reader = policy, reader
        self._alike = policy.get_vocab() == reader.get_vocab()

    def __call__(self, response_ids: Sequence[Sequence[int]], texts: Sequence[str]) -> list[Alignment]:
        """One alignment per answer.

        Args:
            response_ids: what the policy sampled, its end token included where it wrote one.
            texts: the same as `text.render.decode_response` reads it.
        """
        aligned = []
        for sampled, text, (ids, spans) in zip(response_ids, texts, _tokens(self._reader, texts), strict=True):
            if self._alike and list(sampled[: len(ids)]) == ids:  # one to one, pieces of a character included
                owners = np.arange(len(ids))
            else:
                touched = np.maximum.accumulate([0, *(end for _, end in spans)])[1:]
                owners = np.searchsorted(complete_characters(self._policy, sampled, text), touched, side="left")
            aligned.append(Alignment(ids, np.minimum(owners, len(sampled) - 1)))
        return aligned


def complete_characters(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> list[int]:
    """How many characters of a sampled answer are written in full after each of its tokens; never falls.

    A policy need not write a text in the tokens that its tokenizer would encode it in, so what was written by token t
    is found by decoding the first t tokens. Where it did, the characters that the tokenizer names say the same sooner.
    """
    if tokenizer.is_fast:
        ((encoded, spans),) = _tokens(tokenizer, [text])
        if list(ids[: len(encoded)]) == encoded:
            starts = [*(start for start, _ in spans), len(text)][1:]
            complete = [min(end, start) for (_, end), start in zip(spans, starts, strict=True)]
            return [*complete, *[len(text)] * (len(ids) - len(complete))]
    counts = [_agreeing(decode_response(tokenizer, ids[:count]), text) for count in range(1, len(ids) + 1)]
    return [int(count) for count in np.maximum.accumulate(counts)]


def _agreeing(written: str, text: str) -> int:
    """Characters at the beginning that two texts share."""
    for candidate in (written, written.rstrip(_INCOMPLETE)):
        if text.startswith(candidate):
            return len(candidate)
    return next(i for i, (a, b) in enumerate(zip(written, text, strict=False)) if a != b)


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Ids of every text without its end token, and the characters [start, end) that each came from."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    rows = []
    for ids, spans in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        kept = [i for i, token in enumerate(ids) if token != tokenizer.eos_token_id]
        rows.append(([ids[i] for i in kept], [tuple(spans[i]) for i in kept]))
    return rows
