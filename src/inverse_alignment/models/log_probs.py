"""Log-probabilities of answers under a policy, without ever holding the logits of a whole batch."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from inverse_alignment.core.batches import Sequences, TokenBatch, length_groups
from inverse_alignment.maths.kl import exact_kl
from inverse_alignment.maths.surrogate import token_entropy
from inverse_alignment.models.adapters import POLICY, using

HEAD_NUMBERS = 2**24
"""Logits that exist at one time: 64 MiB in float32."""
CACHED_NUMBERS = 2**20
"""The same on a CPU where nobody learns from them: what its caches hold is read twice as fast."""
LOOK_TOKENS = 16_384
"""Padded tokens that are read at once where nobody says otherwise."""


class ReferenceView(NamedTuple):
    """What policy and reference say about the same answers; (b, t) each, zero where the response mask is False.

    Attributes:
        kl: exact KL(π || π_ref) in nats at each state.
        entropy: of the policy's next-token distribution, nats.
    """

    log_probs: Tensor
    ref_log_probs: Tensor
    kl: Tensor
    entropy: Tensor


def trunk_states(trunk: torch.nn.Module, sequences: Sequences) -> Tensor:
    """Hidden states (n, d) in which the response tokens were chosen."""
    hidden = trunk(input_ids=sequences.input_ids, use_cache=False).last_hidden_state
    return hidden[sequences.rows, sequences.places]


class Anchor(NamedTuple):
    """A policy to look at: a model as it is, or with other adapters than its own (None: with none)."""

    model: PreTrainedModel
    adapters: str | None = POLICY

    @property
    def borrows(self) -> bool:
        """Whether the model belongs to the policy, and answers for this one only with other adapters."""
        return self.adapters != POLICY


_IS_LINEAR: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
"""Found out once per model: two more passes per minibatch would be felt where models are small."""


class Head:
    """How a policy's hidden states become logits.

    In most models the logits are a linear map of the last hidden states; then only those of response tokens are made,
    some at a time. A model that does more (caps or scales them) is asked for its own logits.
    """

    def __init__(self, policy: PreTrainedModel, adapters: str | None = POLICY) -> None:
        self.policy = policy
        self._adapters = adapters
        self._linear = policy.get_output_embeddings()
        if policy not in _IS_LINEAR:
            _IS_LINEAR[policy] = self._linear is not None and self._agrees()
        self.is_linear = _IS_LINEAR[policy]

    def states(self, sequences: Sequences) -> Tensor:
        """What `logits` takes: hidden states (n, d), or logits (n, v) of a model that is asked for its own."""
        with using(self.policy, self._adapters) if self._adapters != POLICY else nullcontext():
            if self.is_linear:
                return trunk_states(self.policy.base_model, sequences)
            logits = self.policy(input_ids=sequences.input_ids, use_cache=False).logits
            return logits[sequences.rows, sequences.places]

    def logits(self, states: Tensor, temperature: float) -> Tensor:
        """Logits (n, v) divided by the sampling temperature, in float32."""
        logits: Tensor = self._linear(states) if self.is_linear else states
        return logits.float() if temperature == 1.0 else logits.float() / temperature

    @torch.no_grad()
    def _agrees(self) -> bool:
        ids = torch.arange(4, device=self.policy.device).unsqueeze(0) % self.policy.config.get_text_config().vocab_size
        theirs = self.policy(input_ids=ids, use_cache=False).logits
        ours = self._linear(self.policy.base_model(input_ids=ids, use_cache=False).last_hidden_state)
        return bool(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4))


def token_log_probs(head: Head, states: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (n,) of n response tokens.

    Where gradients are wanted and the logits are many, they are made again for the backward pass instead of kept.
    """
    vocabulary = head.policy.config.get_text_config().vocab_size
    keep = len(states) * vocabulary < HEAD_NUMBERS // 2 or not torch.is_grad_enabled()

    def of(part: Tensor, target: Tensor) -> Tensor:
        return chosen_log_probs(head.logits(part, temperature), target)

    cached = states.device.type == "cpu" and not torch.is_grad_enabled()
    rows = max(1, (CACHED_NUMBERS if cached else HEAD_NUMBERS) // vocabulary)
    parts = zip(states.split(rows), targets.split(rows), strict=True)
    return torch.cat([of(*part) if keep else checkpoint(of, *part, use_reentrant=False) for part in parts])


def chosen_log_probs(logits: Tensor, response_ids: Tensor) -> Tensor:
    """`log softmax(logits)` at the response tokens: (n, v) and (n,) to (n,)."""
    return -torch.nn.functional.cross_entropy(logits, response_ids, reduction="none")


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
    found = torch.zeros((len(ReferenceView._fields), *batch.response_mask.shape), device=batch.response_ids.device)
    for index in grouped(batch, tokens):
        sequences = Sequences.of(batch.rows(index))
        states = [head.states(sequences) for head in heads]
        view = compared(heads, states, sequences.targets, temperature)
        width = sequences.mask.shape[-1]
        for place, values in enumerate(view):
            found[place, index, :width] = sequences.spread(values)
    return ReferenceView(*found)


def compared(heads: tuple[Head, Head], states: list[Tensor], targets: Tensor, temperature: float) -> ReferenceView:
    """`ReferenceView` of n response tokens, (n,) each, some logits at a time."""
    rows = max(1, HEAD_NUMBERS // heads[0].policy.config.get_text_config().vocab_size // 2)
    parts: list[tuple[Tensor, ...]] = []
    for mine, theirs, target in zip(states[0].split(rows), states[1].split(rows), targets.split(rows), strict=True):
        logits, ref_logits = (head.logits(part, temperature) for head, part in zip(heads, (mine, theirs), strict=True))
        log_probs = chosen_log_probs(logits, target), chosen_log_probs(ref_logits, target)
        parts.append((*log_probs, exact_kl(logits, ref_logits), token_entropy(logits)))
    return ReferenceView(*(torch.cat(column) for column in zip(*parts, strict=True)))


def grouped(batch: TokenBatch, tokens: int) -> list[Tensor]:
    """Rows of a batch in groups of like length, each at most `tokens` wide and high."""
    lengths = batch.attention_mask.sum(-1).tolist()
    device = batch.response_ids.device
    return [torch.tensor(rows, device=device) for rows in length_groups(lengths, tokens)]
