"""Log-probabilities of answers under a policy, without ever holding the logits of a whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from inverse_alignment.core.batches import Sequences, TokenBatch, length_groups
from inverse_alignment.maths.kl import exact_kl
from inverse_alignment.maths.surrogate import token_entropy

HEAD_NUMBERS = 2**24
"""Logits that exist at one time: 64 MiB in float32."""
LOOK_TOKENS = 16_384
"""Padded tokens that are read at once where nobody says otherwise."""


class TokenView(NamedTuple):
    """What a policy says about the n response tokens of some sequences, (n,) each."""

    log_probs: Tensor
    entropy: Tensor


class ReferenceView(NamedTuple):
    """What policy and reference say about the same answers; (b, t) each, zero where the response mask is False."""

    log_probs: Tensor
    ref_log_probs: Tensor
    kl: Tensor


def trunk_states(trunk: torch.nn.Module, sequences: Sequences) -> Tensor:
    """Hidden states (n, d) in which the response tokens were chosen."""
    hidden = trunk(input_ids=sequences.input_ids, use_cache=False).last_hidden_state
    return hidden[sequences.rows, sequences.places]


class Head:
    """How a policy's hidden states become logits.

    In most models the logits are a linear map of the last hidden states; then only those of response tokens are made,
    some at a time. A model that does more (caps or scales them) is asked for its own logits.
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        self.policy = policy
        self._linear = policy.get_output_embeddings()
        self.is_linear = self._linear is not None and self._agrees()

    def states(self, sequences: Sequences) -> Tensor:
        """What `logits` takes: hidden states (n, d), or logits (n, v) of a model that is asked for its own."""
        if self.is_linear:
            return trunk_states(self.policy.base_model, sequences)
        logits = self.policy(input_ids=sequences.input_ids, use_cache=False).logits
        return logits[sequences.rows, sequences.places]

    def logits(self, states: Tensor, temperature: float) -> Tensor:
        """Logits (n, v) divided by the sampling temperature, in float32."""
        logits: Tensor = self._linear(states) if self.is_linear else states
        return logits.float() / temperature

    @torch.no_grad()
    def _agrees(self) -> bool:
        ids = torch.arange(4, device=self.policy.device).unsqueeze(0) % self.policy.config.get_text_config().vocab_size
        theirs = self.policy(input_ids=ids, use_cache=False).logits
        ours = self._linear(self.policy.base_model(input_ids=ids, use_cache=False).last_hidden_state)
        return bool(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4))


def token_view(head: Head, states: Tensor, targets: Tensor, temperature: float) -> TokenView:
    """Log-probabilities and entropies of n response tokens.

    Where gradients are wanted and the logits are many, they are made again for the backward pass instead of kept.
    """
    parts = [
        _recomputed(_chunk_view, head, part, target, temperature) for part, target in _chunks(head, states, targets)
    ]
    return TokenView(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))


def _chunks(head: Head, states: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, HEAD_NUMBERS // head.policy.config.get_text_config().vocab_size)
    yield from zip(states.split(rows), targets.split(rows), strict=True)


def _recomputed(function: Callable[..., Any], head: Head, states: Tensor, targets: Tensor, temperature: float) -> Any:
    few = len(states) * head.policy.config.get_text_config().vocab_size < HEAD_NUMBERS // 2
    if few or not torch.is_grad_enabled():
        return function(head, states, targets, temperature)
    return checkpoint(function, head, states, targets, temperature, use_reentrant=False)


def _chunk_view(head: Head, states: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = head.logits(states, temperature)
    with torch.no_grad():
        entropy = token_entropy(logits)
    return chosen_log_probs(logits, targets), entropy


def chosen_log_probs(logits: Tensor, response_ids: Tensor) -> Tensor:
    """`log softmax(logits)` at the response tokens: (..., v) and (...) to (...)."""
    return logits.gather(-1, response_ids.unsqueeze(-1)).squeeze(-1) - torch.logsumexp(logits, -1)


@torch.no_grad()
def compare_with_reference(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    batch: TokenBatch,
    temperature: float,
    tokens: int = LOOK_TOKENS,
) -> ReferenceView:
    """Log-probabilities under both, and the exact KL(π || π_ref) in nats at each state the answer visited.

    Args:
        tokens: padded tokens read at once; changes nothing but speed, memory and rounding.
    """
    heads = Head(policy), Head(reference)
    found = torch.zeros((3, *batch.response_mask.shape), device=batch.response_ids.device)
    for index in grouped(batch, tokens):
        sequences = Sequences.of(batch.rows(index))
        states = [head.states(sequences) for head in heads]
        view = compared(heads, states, sequences.targets, temperature)
        width = sequences.mask.shape[-1]
        for place, values in enumerate(view):
            found[place, index, :width] = sequences.spread(values)
    return ReferenceView(*found)


def compared(heads: tuple[Head, Head], states: list[Tensor], targets: Tensor, temperature: float) -> ReferenceView:
    """The three numbers for n response tokens, (n,) each, some logits at a time."""
    rows = max(1, HEAD_NUMBERS // heads[0].policy.config.get_text_config().vocab_size // 2)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for mine, theirs, target in zip(states[0].split(rows), states[1].split(rows), targets.split(rows), strict=True):
        logits, ref_logits = (head.logits(part, temperature) for head, part in zip(heads, (mine, theirs), strict=True))
        kl = exact_kl(logits, ref_logits)
        parts.append((chosen_log_probs(logits, target), chosen_log_probs(ref_logits, target), kl))
    return ReferenceView(*(torch.cat(column) for column in zip(*parts, strict=True)))


def grouped(batch: TokenBatch, tokens: int) -> list[Tensor]:
    """Rows of a batch in groups of like length, each at most `tokens` wide and high."""
    lengths = batch.attention_mask.sum(-1).tolist()
    device = batch.response_ids.device
    return [torch.tensor(rows, device=device) for rows in length_groups(lengths, tokens)]
