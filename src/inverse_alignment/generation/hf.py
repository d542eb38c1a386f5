"""Sampling from a transformers model with noise that belongs to the row, not to the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from inverse_alignment.core.batches import TokenBatch, pad_left, positions
from inverse_alignment.core.seeding import uniforms

KEPT_SHARE = 0.75
"""Rows that have ended are put away once no more than this share still writes: moving the cache has a price too."""


def inverse_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """Sample from `softmax(logits)`: the smallest v with `Σ_{w<=v} p_w > u`. (b, v) and (b,) to (b,) int64.

    One uniform number per token is all the randomness there is, so a row's sample cannot depend on its neighbours.
    """
    cdf = torch.softmax(logits.double(), -1).cumsum(-1)
    threshold = uniform.to(cdf.device, cdf.dtype).unsqueeze(-1) * cdf[:, -1:]
    return torch.searchsorted(cdf, threshold, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    end_token: int,
    pad_token: int,
) -> TokenBatch:
    """Sample one answer per prompt from `softmax(logits / temperature)`, untruncated.

    Row i depends on prompts[i] and seeds[i] alone, up to the rounding of the model's own arithmetic. An answer ends
    with the end token, which counts as part of it, or at `max_new_tokens`.

    Args:
        prompts: token ids of each prompt, not empty.
        seeds: one per row.
    """
    prompt_ids, prompt_mask = pad_left(prompts, pad_token, model.device)
    noise = torch.from_numpy(uniforms(seeds, max_new_tokens)).to(model.device)
    cache = DynamicCache(config=model.config)
    attention, position = prompt_mask.long(), prompt_mask.long().sum(-1, keepdim=True)
    tokens = torch.full((len(prompts), max_new_tokens), pad_token, device=model.device)
    rows = torch.arange(len(prompts), device=model.device)  # whose cache is still carried
    running = torch.ones_like(rows, dtype=torch.bool)  # of these, who is still writing
    lengths = torch.zeros_like(rows)
    logits = model(
        input_ids=prompt_ids,
        attention_mask=attention,
        position_ids=positions(prompt_mask),
        past_key_values=cache,
        logits_to_keep=1,
    ).logits
    for t in range(max_new_tokens):
        token = inverse_cdf(logits[:, -1].float() / temperature, noise[rows, t]).where(running, pad_token)
        tokens[rows, t] = token
        lengths[rows] += running.long()
        attention = torch.cat([attention, running.unsqueeze(-1).long()], -1)
        running = running & (token != end_token)
        writing = int(running.sum())
        if not writing or t + 1 == max_new_tokens:
            break
        if writing <= KEPT_SHARE * len(rows):  # whoever has ended costs as much as whoever has not
            kept = running.nonzero().squeeze(-1)
            cache.batch_select_indices(kept)
            rows, running, token, attention, position = (x[kept] for x in (rows, running, token, attention, position))
        logits = model(
            input_ids=token.unsqueeze(-1), attention_mask=attention, position_ids=position + t, past_key_values=cache
        ).logits
    width = int(lengths.max())
    mask = torch.arange(width, device=model.device) < lengths.unsqueeze(-1)
    return TokenBatch(prompt_ids, prompt_mask, tokens[:, :width], mask)


def ended(batch: TokenBatch, end_token: int) -> Tensor:
    """Whether each answer holds the end token, (b,) bool."""
    return ((batch.response_ids == end_token) & batch.response_mask).any(-1)


@dataclass(frozen=True)
class HfGenerate:
    """`Generate` by a model in this process: row i depends on prompts[i] and seeds[i] alone, up to rounding.

    Attributes:
        rows: sampled at once; changes nothing but speed and memory.
    """

    model: PreTrainedModel
    max_new_tokens: int
    temperature: float
    end_token: int
    pad_token: int
    rows: int

    def __call__(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> Iterator[list[int]]:
        """See `core.protocols.Generate`."""
        for start in range(0, len(prompts), self.rows):
            batch = sample(
                self.model,
                prompts[start : start + self.rows],
                seeds[start : start + self.rows],
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                end_token=self.end_token,
                pad_token=self.pad_token,
            )
            for tokens, mask in zip(batch.response_ids, batch.response_mask, strict=True):
                yield tokens[mask].tolist()
