"""Log-probabilities of answers under a policy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inverse_alignment.core.batches import TokenBatch
from inverse_alignment.maths.kl import exact_kl


class ReferenceView(NamedTuple):
    """What policy and reference say about the same answers; (b, t) each, garbage where the response mask is False."""

    log_probs: Tensor
    ref_log_probs: Tensor
    kl: Tensor


def response_logits(model: PreTrainedModel, batch: TokenBatch, temperature: float) -> Tensor:
    """Logits (b, t, v) that predict the response tokens, divided by the sampling temperature, in float32."""
    length = batch.response_ids.shape[-1]
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask.long(),
        position_ids=batch.position_ids,
        logits_to_keep=length + 1,
        use_cache=False,
    ).logits
    return logits[:, :-1].float() / temperature


def chosen_log_probs(logits: Tensor, response_ids: Tensor) -> Tensor:
    """`log softmax(logits)` at the response tokens: (b, t, v) and (b, t) to (b, t)."""
    return torch.log_softmax(logits, -1).gather(-1, response_ids.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def compare_with_reference(
    policy: PreTrainedModel, reference: PreTrainedModel, batch: TokenBatch, temperature: float
) -> ReferenceView:
    """Log-probabilities under both, and the exact KL(π || π_ref) in nats at each state the answer visited."""
    logits = response_logits(policy, batch, temperature)
    ref_logits = response_logits(reference, batch, temperature)
    return ReferenceView(
        chosen_log_probs(logits, batch.response_ids),
        chosen_log_probs(ref_logits, batch.response_ids),
        exact_kl(logits, ref_logits),
    )
