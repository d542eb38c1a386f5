"""Scores of whole sequences to learn from: no pass over padding, and no mask where the model needs none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional

from inverse_alignment.core.batches import length_groups
from inverse_alignment.core.errors import UserError
from inverse_alignment.models.score_features import score_layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PART_TOKENS = 4096
"""Padded tokens that a CPU reads at once: what its caches hold is read faster. A longer sequence is read alone."""
PASS_COSTS = {"cpu": 128}
"""What one more pass costs on a device, in tokens read."""
PASS_COSTS_ELSEWHERE = 4096


def plain_scores(model: torch.nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Scores (n,) of right-padded rows in one pass, float32."""
    return _in_one_pass(model, ids, mask).squeeze(-1)


def sequence_scores(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Scores (n,) of right-padded rows, float32: those of `plain_scores` up to rounding, and so are their gradients.

    Args:
        ids: (n, t) int64.
        mask: (n, t) True, or 1, at tokens; each row has them first.
    """
    return sequence_outputs(model, ids, mask).squeeze(-1)


def sequence_outputs(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """What the k outputs of a classifier say of right-padded rows, (n, k) float32.

    Rows of like length are read together, whatever pair they belong to, so that few tokens are padding. What a causal
    model reads comes before its padding: it needs no mask to ignore it, and attention without one is faster.
    """
    if not is_causal(model):
        return _in_one_pass(model, ids, mask)
    parts = [(rows, model(input_ids=shown, use_cache=False).logits) for rows, shown in _parts(ids, mask)]
    return torch.cat([outputs for _, outputs in parts]).float()[_order(parts, ids)]


def _in_one_pass(model: torch.nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    outputs: Tensor = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    return outputs.float()


class WatchedScores(NamedTuple):
    """What a model says of sequences and of their beginnings.

    Attributes:
        final: (n,) scores of the sequences, float32.
        values: (n, t) scores at every position, float32; anything at padding.
        features: (n, d) what the score head reads at the last token, float32.
    """

    final: Tensor
    values: Tensor
    features: Tensor


def watched_scores(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> WatchedScores:
    """`sequence_scores`, with what the score head makes of every position and reads at the last.

    Raises:
        UserError: the model's score is not read off at one position of a causal model.
    """
    if not is_causal(model):
        raise _no_prefixes(model)
    seen: list[tuple[Tensor, Tensor]] = []
    watch = score_layer(model).register_forward_hook(lambda module, given, made: seen.append((given[0], made)))
    finals, values, features = [], [], []
    last = mask.sum(-1).long() - 1
    try:
        for rows, shown in _parts(ids, mask):
            finals.append((rows, model(input_ids=shown, use_cache=False).logits))
            states, scores = seen[-1]
            if scores.shape != (*shown.shape, 1):
                raise _no_prefixes(model)
            values.append(functional.pad(scores.squeeze(-1), (0, ids.shape[1] - shown.shape[1])))
            features.append(states[torch.arange(len(rows), device=ids.device), last[rows]])
    finally:
        watch.remove()
    order, found = _order(finals, ids), ([scores.squeeze(-1) for _, scores in finals], values, features)
    return WatchedScores(*(torch.cat(parts).float()[order] for parts in found))


def _no_prefixes(model: PreTrainedModel) -> UserError:
    return UserError(
        f"a {type(model).__name__} says nothing of the beginning of an answer",
        where="reward.prefixes.type, reward.contrast.type",
        fix="set them to off, or use a decoder whose score head reads one position",
    )


def _parts(ids: Tensor, mask: Tensor) -> list[tuple[list[int], Tensor]]:
    """Rows that are read together, and their ids as wide as the longest of them."""
    lengths = mask.sum(-1).tolist()
    most = PART_TOKENS if ids.device.type == "cpu" else ids.numel()
    groups = length_groups(lengths, most, PASS_COSTS.get(ids.device.type, PASS_COSTS_ELSEWHERE))
    return [(rows, ids[rows, : lengths[rows[-1]]]) for rows in groups]


def _order(parts: Sequence[tuple[list[int], Tensor]], ids: Tensor) -> Tensor:
    """Where in the parts, one after another, each row is."""
    return torch.tensor([row for rows, _ in parts for row in rows], device=ids.device).argsort()


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
