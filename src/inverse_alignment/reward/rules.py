"""Which weights of a reward model a refresh lets learn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inverse_alignment.models.adapters import adapt_trunk, merged_weights, trunk_of
from inverse_alignment.models.loading import load_reward_model, place
from inverse_alignment.reward.settings import ExtremesRule, HeadRule, LoraRule, RefreshRule

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def open_up(model: PreTrainedModel, rule: RefreshRule, seed: int) -> None:
    """Let learn what the rule lets learn, in place: everything, the score head, or it and adapters below it.

    Args:
        seed: of adapters.

    Raises:
        UserError: the model has no trunk, or none of its layers has the name of a target.
    """
    match rule:
        case LoraRule(rank=rank, alpha=alpha, targets=targets):
            adapt_trunk(model, rank, alpha, targets, seed)
        case HeadRule() | ExtremesRule():
            trunk_of(model).requires_grad_(False)
        case _:
            pass


def closed(model: PreTrainedModel, rule: RefreshRule, start: Path) -> PreTrainedModel:
    """The trained model as one that anybody can load: adapters are added to the weights below them.

    Args:
        start: folder of what the training started from.
    """
    if not isinstance(rule, LoraRule):
        return model
    plain = place(load_reward_model(start), model.device)
    plain.load_state_dict(merged_weights(model))
    return plain
