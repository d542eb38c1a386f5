"""Scores of whole sequences to learn from: no pass over padding, and no mask where the model needs none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from inverse_alignment.core.batches import length_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PART_TOKENS = 4096
"""Padded tokens that a CPU reads at once: what its caches hold is read faster. A longer sequence is read alone."""
PASS_COSTS = {"cpu": 128}
"""What one more pass costs on a device, in tokens read."""
PASS_COSTS_ELSEWHERE = 4096


def plain_scores(model: torch.nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Scores (n,) of right-padded rows in one pass, float32."""
    scores: Tensor = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    return scores.squeeze(-1).float()


def sequence_scores(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Scores (n,) of right-padded rows, float32: those of `plain_scores` up to rounding, and so are their gradients.

    Rows of like length are read together, whatever pair they belong to, so that few tokens are padding. What a causal
    model reads comes before its padding: it needs no mask to ignore it, and attention without one is faster.

    Args:
        ids: (n, t) int64.
        mask: (n, t) True, or 1, at tokens; each row has them first.
    """
    if not is_causal(model):
        return plain_scores(model, ids, mask)
    lengths = mask.sum(-1).tolist()
    on_cpu = ids.device.type == "cpu"
    most = PART_TOKENS if on_cpu else ids.numel()
    groups = length_groups(lengths, most, PASS_COSTS.get(ids.device.type, PASS_COSTS_ELSEWHERE))
    scores = [model(input_ids=ids[rows, : lengths[rows[-1]]], use_cache=False).logits for rows in groups]
    order = torch.tensor([row for rows in groups for row in rows], device=ids.device)
    return torch.cat(scores).squeeze(-1).float()[order.argsort()]


_IS_CAUSAL: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()
"""Found out once per model."""


def is_causal(model: PreTrainedModel) -> bool:
    """Whether no state of a sequence depends on what comes after it: asked of gradients, which then are exactly 0."""
    if model not in _IS_CAUSAL:
        _IS_CAUSAL[model] = _looks_back_only(model)
    return _IS_CAUSAL[model]


@torch.enable_grad()
def _looks_back_only(model: PreTrainedModel) -> bool:
    trunk, learning = model.base_model, model.training
    if trunk is model:
        return False
    read: list[Tensor] = []

    def embedded(module: torch.nn.Module, given: Any, made: Tensor) -> Tensor:
        read.append(made.detach().requires_grad_())
        return read[-1].clone()  # models may add to it in place

    watch = model.get_input_embeddings().register_forward_hook(embedded)
    model.eval()  # dropout would draw numbers, which a training that is taken up again would draw once more
    try:
        ids = (torch.arange(8, device=model.device) + 2).unsqueeze(0) % model.config.get_text_config().vocab_size
        first = trunk(input_ids=ids).last_hidden_state[
            :, :4, 0
        ]  # one coordinate: the sum of a normalised state is fixed
        (slope,) = torch.autograd.grad(first.sum(), read[0])
    finally:
        watch.remove()
        model.train(learning)
    return not bool(slope[:, 4:].any())
