"""One model out of several: the mean of their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def average_weights(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """`θ = Σ_i θ_i / m`, of every weight by name, in its own precision; summed in float64.

    Of models that are linear in their weights it is the model of the mean score; of networks that were fine-tuned from
    one start, nearly so (WARM, arXiv 2401.12187).

    Raises:
        ValueError: there are none, or they differ in names or shapes of weights.
    """
    if not members:
        raise ValueError("an average needs at least one model")
    shapes = [{name: weight.shape for name, weight in member.items()} for member in members]
    if any(each != shapes[0] for each in shapes):
        raise ValueError("models of different shapes have no average")
    return {
        name: torch.stack([member[name].double() for member in members]).mean(0).to(weight.dtype)
        for name, weight in members[0].items()
    }
