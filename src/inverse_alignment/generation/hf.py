"""Sampling from a transformers model with noise that belongs to the row, not to the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from inverse_alignment.core.batches import TokenBatch, pad_left
from inverse_alignment.core.seeding import uniforms


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
    attention, position = prompt_mask, prompt_mask.long().sum(-1, keepdim=True)
    output = model(
        input_ids=prompt_ids,
        attention_mask=attention.long(),
        position_ids=(prompt_mask.long().cumsum(-1) - 1).clamp(min=0),
        past_key_values=cache,
        logits_to_keep=1,
    )
    running = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    tokens: list[Tensor] = []
    counts: list[Tensor] = []
    for t in range(max_new_tokens):
        token = inverse_cdf(output.logits[:, -1].float() / temperature, noise[:, t])
        tokens.append(torch.where(running, token, torch.full_like(token, pad_token)))
        counts.append(running)
        running = running & (token != end_token)
        if t + 1 == max_new_tokens or not bool(running.any()):
            break
        attention = torch.cat([attention, counts[-1].unsqueeze(-1)], -1)
        output = model(
            input_ids=tokens[-1].unsqueeze(-1),
            attention_mask=attention.long(),
            position_ids=position + t,
            past_key_values=cache,
        )
    return TokenBatch(prompt_ids, prompt_mask, torch.stack(tokens, -1), torch.stack(counts, -1))


def ended(batch: TokenBatch, end_token: int) -> Tensor:
    """Whether each answer holds the end token, (b,) bool."""
    return ((batch.response_ids == end_token) & batch.response_mask).any(-1)
