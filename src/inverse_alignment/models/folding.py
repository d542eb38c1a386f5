"""Classifiers with several outputs as one with a single score, and several classifiers as one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.maths.averaging import average_weights
from inverse_alignment.models.loading import load_reward_model
from inverse_alignment.models.score_features import score_layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STARTED = "started.txt"
"""Digest of the weights that a member of an average started from."""


@torch.no_grad()
def folded(model: PreTrainedModel, plain: PreTrainedModel, weight: Tensor, bias: Tensor | None) -> PreTrainedModel:
    """A classifier with one label that reads the trunk of another one, in place of what it was.

    Args:
        model: with several outputs.
        plain: of the same architecture, with one.
        weight: (1, d) of its score head.
        bias: (1,) likewise; None where the architecture has none.
    """
    mine, head = model.state_dict(), score_layer(plain)
    shared = {name: mine[name] for name, value in plain.state_dict().items() if mine[name].shape == value.shape}
    plain.load_state_dict(shared, strict=False)
    head.weight.copy_(weight)
    if bias is not None:
        head.bias.copy_(bias)
    return plain


def new_decoder(size: int, seed: int, device: torch.device) -> nn.Linear:
    """A fresh linear map from codes to a score, which depends on the seed alone."""
    decoder = nn.Linear(size, 1, bias=False)
    generator = torch.Generator().manual_seed(derive_seed("decoder", seed))
    with torch.no_grad():
        decoder.weight.copy_(torch.randn(decoder.weight.shape, generator=generator) / size**0.5)
    return decoder.to(device)


def weights_digest(model: nn.Module) -> str:
    """sha256 of all weights, by name."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def averaged(folders: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of the weights of classifiers that say what they started from.

    Raises:
        UserError: they did not start from the same weights, so that what lies between them may be no good model.
    """
    starts = {(folder / STARTED).read_text() for folder in folders}
    if len(starts) > 1:
        raise UserError(
            "models with different starts have no average",
            where=", ".join(str(folder) for folder in folders),
            fix="fine-tune all of them from the same weights, score head included",
        )
    return average_weights([load_reward_model(folder).state_dict() for folder in folders])
