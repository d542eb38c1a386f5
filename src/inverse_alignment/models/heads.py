"""The value model: a trunk with one number per position."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inverse_alignment.core.batches import TokenBatch


class ValueModel(nn.Module):
    """`V(s_t) = w · h_t + b` on a trunk of its own, w and b zero at first."""

    def __init__(self, trunk: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @staticmethod
    def from_policy(policy: PreTrainedModel) -> ValueModel:
        """A value model whose trunk starts as a copy of the policy's."""
        return ValueModel(copy.deepcopy(policy.base_model), policy.config.get_text_config().hidden_size)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Values (b, t) of the states in which the response tokens were chosen."""
        hidden = self.trunk(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), position_ids=batch.position_ids
        ).last_hidden_state
        length = batch.response_ids.shape[-1]
        return self.head(hidden[:, -length - 1 : -1]).squeeze(-1).float()

    def save(self, path: Path) -> None:
        """Write all weights as safetensors."""
        from safetensors.torch import save_model

        save_model(self, str(path))

    def load(self, path: Path) -> None:
        """Read all weights from safetensors."""
        from safetensors.torch import load_model

        load_model(self, str(path), strict=True)


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Write an optimiser's state as safetensors: no pickle, equal states have equal bytes."""
    from safetensors.torch import save_file

    state = optimizer.state_dict()["state"]
    save_file(
        {
            f"{index}.{name}": torch.as_tensor(value).contiguous()
            for index, slots in state.items()
            for name, value in slots.items()
        },
        str(path),
    )


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Read what `save_optimizer` wrote; hyper-parameters stay as the optimiser was made."""
    from safetensors.torch import load_file

    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(str(path)).items():
        index, _, name = key.partition(".")
        slots.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
