"""Prompts in, answers out: rendering, sampling, decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from inverse_alignment.core.batches import TokenBatch, pad_left, pad_right
from inverse_alignment.core.protocols import Generate
from inverse_alignment.core.records import Prompt
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.generation.hf import HfGenerate
from inverse_alignment.text.render import decode_response, encode_prompts, prompt_budget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_new_tokens: longest answer.
        temperature: divides the logits.
        context: most tokens of prompt and answer together; a longer prompt loses its oldest part.
        rows: rows sampled at once; changes nothing but speed and memory.
    """

    max_new_tokens: int
    temperature: float
    context: int
    rows: int

    @property
    def prompt_tokens(self) -> int:
        """Most tokens of a prompt: as in training, unless a long answer leaves less."""
        return min(prompt_budget(self.context), self.context - self.max_new_tokens)


@dataclass(frozen=True)
class Answer:
    """One sampled answer, as tokens and as text."""

    prompt_ids: list[int]
    response_ids: list[int]
    ended: bool
    text: str


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    sampling: Sampling,
) -> list[Answer]:
    """One answer of a model in this process per prompt and seed, in order."""
    return list(answers_by(of_model(model, tokenizer, sampling), tokenizer, prompts, seeds, sampling))


def of_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> HfGenerate:
    """A model in this process as somebody who answers."""
    return HfGenerate(
        model,
        sampling.max_new_tokens,
        sampling.temperature,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        sampling.rows,
    )


def answers_by(
    generate: Generate,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    sampling: Sampling,
) -> Iterator[Answer]:
    """One answer per prompt and seed, in order, as they become known."""
    ids = encode_prompts(tokenizer, prompts, sampling.prompt_tokens)
    for prompt_ids, tokens in zip(ids, generate(ids, seeds), strict=True):
        text = decode_response(tokenizer, tokens)
        yield Answer(prompt_ids, tokens, tokenizer.eos_token_id in tokens, text)


def batch_of(answers: Sequence[Answer], pad_token: int, device: torch.device) -> TokenBatch:
    """The answers as one padded batch."""
    prompt_ids, prompt_mask = pad_left([a.prompt_ids for a in answers], pad_token, device)
    response_ids, response_mask = pad_right([a.response_ids for a in answers], pad_token, device)
    return TokenBatch(prompt_ids, prompt_mask, response_ids, response_mask)


def choose_prompts(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` distinct prompts (0 for all), in an order that depends on their content and the seed alone."""
    distinct = {prompt.key: prompt for prompt in prompts}
    order = sorted(distinct, key=lambda key: derive_seed("prompts", seed, key))
    return [distinct[key] for key in (order[:count] if count else order)]
