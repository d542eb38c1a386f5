"""Extrapolation of a policy beyond where training has brought it, without training.

Source: ExPO, arXiv 2404.16792, eq. 1.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from inverse_alignment.core.errors import UserError


@torch.no_grad()
def extrapolate(model: PreTrainedModel, start: PreTrainedModel, alpha: float) -> None:
    """`θ ← θ_1 + α (θ_1 - θ_0)` in place, computed in float32: α = 0 leaves θ_1, α = -1 gives θ_0.

    With adapters on θ_0 it is the same as scaling what they add by 1 + α.

    Args:
        model: θ_1, the policy that was trained.
        start: θ_0, what it was trained from.

    Raises:
        UserError: the two have weights of other names or shapes.
    """
    mine, theirs = dict(model.named_parameters()), dict(start.named_parameters())
    for name in sorted(mine.keys() | theirs.keys()):
        shapes = [tuple(weights[name].shape) if name in weights else None for weights in (mine, theirs)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{name} is {shapes[0] or 'not'} in the policy and {shapes[1] or 'not'} in what it began as",
                where="the two folders",
                fix="give a policy and the very checkpoint that its training began with",
            )
    for name, weight in mine.items():
        old = theirs[name].float()
        weight.copy_(weight.float() + alpha * (weight.float() - old))
