"""References that follow a policy: copies of its weights or of its adapters, moved now and then.

`θ_ref ← (1 - α) θ_ref + α θ`, hard updates with α = 1. Source: Gorbatovski et al., arXiv 2404.09656, eq. 4 and 5.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from inverse_alignment.models.adapters import POLICY, REFERENCE, adapter_weights
from inverse_alignment.models.log_probs import Anchor


@torch.no_grad()
def follow(reference: Anchor, policy: PreTrainedModel, alpha: float) -> None:
    """`θ_ref ← (1 - α) θ_ref + α θ`, in place, of a reference that may move; α = 1 is a copy to the bit."""
    if not reference.borrows:
        pairs = zip(reference.model.parameters(), policy.parameters(), strict=True)
    else:
        sets = (adapter_weights(policy, name) for name in (REFERENCE, POLICY))
        pairs = zip(*(weights.values() for weights in sets), strict=True)
    for old, new in pairs:
        old.copy_(new) if alpha == 1.0 else old.lerp_(new, alpha)


def save_parameters(model: PreTrainedModel, path: Path) -> None:
    """Write the weights of a reference with a model of its own, as safetensors."""
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in model.named_parameters()}, str(path))


def load_parameters(model: PreTrainedModel, path: Path) -> None:
    """Read what `save_parameters` wrote, in place."""
    from safetensors.torch import load_file

    saved = load_file(str(path))
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(saved[name])
