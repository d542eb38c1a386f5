"""Token-level reward models: a causal trunk with one number per token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from inverse_alignment.core.errors import UserError
from inverse_alignment.models.loading import _loaded, reward_model_from_trunk

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def token_head_from_trunk(path: Path, dtype: str = "float32") -> PreTrainedModel:
    """A token classifier with one label on the trunk of a causal LM or reward model; it says 0 of every token at first.

    Raises:
        UserError: the folder lacks weights of a trunk, or its architecture has no token classifier.
    """
    from transformers import AutoModelForTokenClassification

    trunk = reward_model_from_trunk(path, 0, dtype)
    config = trunk.config
    config.classifier_dropout = 0.0  # transformers would drop a tenth of the states before the head
    try:
        model: PreTrainedModel = AutoModelForTokenClassification.from_config(config)
    except ValueError as error:
        raise UserError(
            f"transformers knows no token classifier of this architecture: {config.model_type}",
            where=str(path),
            fix="give another trunk, such as a Llama, Qwen, Mistral, GPT-2 or GPT-NeoX model",
        ) from error
    torch.nn.Module.to(model, trunk.dtype)
    model.base_model.load_state_dict(trunk.base_model.state_dict())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(f"{model.base_model_prefix}."):
                parameter.zero_()
    return model


def load_token_head(path: Path, dtype: str = "float32") -> PreTrainedModel:
    """A token classifier with one label from a folder.

    Raises:
        UserError: the folder's model has no trained head on every token, or more than one label.
    """
    from transformers import AutoModelForTokenClassification

    model, missing = _loaded(AutoModelForTokenClassification, path, dtype)
    if missing or model.config.num_labels != 1:
        found = f"lacks {missing[0]}" if missing else f"has {model.config.num_labels} labels"
        raise UserError(
            f"not a token-level reward model: it {found}",
            where=str(path),
            fix="give a token classifier with one label, as the stage token_reward writes it",
        )
    return model
