"""Critics: one number per state, on a trunk of their own or on the policy's."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inverse_alignment.core.batches import Sequences
from inverse_alignment.models.log_probs import trunk_states


class ValueHead(nn.Module):
    """`V(s_t) = w · h_t + b`, w and b zero at first; h_t are the hidden states of whoever has a trunk."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @staticmethod
    def of_policy(policy: PreTrainedModel) -> ValueHead:
        """A head that fits a policy's hidden states."""
        return ValueHead(policy.config.get_text_config().hidden_size)

    def values(self, states: Tensor) -> Tensor:
        """Values (n,) of hidden states (n, d), in float32."""
        return self.head(states.to(self.head.weight.dtype)).squeeze(-1).float()

    def save(self, path: Path) -> None:
        """Write all weights as safetensors."""
        from safetensors.torch import save_model

        save_model(self, str(path))

    def load(self, path: Path) -> None:
        """Read all weights from safetensors."""
        from safetensors.torch import load_model

        load_model(self, str(path), strict=True)


class ValueModel(ValueHead):
    """A value head on a trunk of its own."""

    def __init__(self, trunk: nn.Module, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.trunk = trunk

    @staticmethod
    def from_policy(policy: PreTrainedModel) -> ValueModel:
        """A value model whose trunk starts as a copy of the policy's."""
        return ValueModel(copy.deepcopy(policy.base_model), policy.config.get_text_config().hidden_size)

    def forward(self, sequences: Sequences) -> Tensor:
        """Values (n,) of the states in which the response tokens were chosen."""
        return self.values(trunk_states(self.trunk, sequences))


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
