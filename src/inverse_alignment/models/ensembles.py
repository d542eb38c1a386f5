"""Ensembles of reward models: the mean score of their members, and how far the members are apart.

Bradley-Terry fixes scores up to a constant, and each member has its own: a member's scores count from its mean on the
reference sample. So a constant that nobody can know is not taken for disagreement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from inverse_alignment.core.estimates import RewardEstimate
from inverse_alignment.core.records import Prompt
from inverse_alignment.models.adapters import adapt_trunk
from inverse_alignment.models.loading import load_reward_model, place, save_model
from inverse_alignment.models.reward_scores import family, read_outputs, save_family
from inverse_alignment.text.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MEMBERS, ADAPTED = "members", "member.safetensors"
Read = Callable[[Sequence[Prompt], Sequence[str]], np.ndarray]
"""Raw scores of all members, float64 (m, n)."""


class EnsembleScorer:
    """Scores texts with several reward models.

    Args:
        read: the members' raw scores.
        offsets: (m,) what each member's scores count from.
    """

    def __init__(self, read: Read, offsets: np.ndarray) -> None:
        self._read, self.offsets = read, offsets

    @staticmethod
    def centred(read: Read, prompts: Sequence[Prompt], responses: Sequence[str]) -> EnsembleScorer:
        """Members whose scores count from their means on the reference sample."""
        return EnsembleScorer(read, read(prompts, responses).mean(1))

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """Mean scores, float64 (n,)."""
        return self.estimate(prompts, responses).mean

    def estimate(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> RewardEstimate:
        """Means and standard deviations over the members (n - 1 in the denominator), and what each of them says."""
        scores = self._read(prompts, responses) - self.offsets[:, None]
        return RewardEstimate(scores.mean(0), scores.std(0, ddof=1), members=scores)


def separate_members(models: Sequence[PreTrainedModel], tokenizer: Any, max_tokens: int, rows: int) -> Read:
    """Members that are whole models."""

    def read(prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        columns = [read_outputs(model, tokenizer, prompts, responses, max_tokens, rows) for model in models]
        return np.concatenate(columns, axis=1).T

    return read


def adapted_members(
    model: PreTrainedModel, members: Sequence[dict[str, Tensor]], tokenizer: Any, max_tokens: int, rows: int
) -> Read:
    """Members that are adapters and a score head on one trunk, which is never copied.

    Args:
        model: with adapters, from `adapt_trunk`.
        members: from `learned_weights` of each.
    """

    def read(prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        columns = []
        for weights in members:
            put_weights(model, weights)
            columns.append(read_outputs(model, tokenizer, prompts, responses, max_tokens, rows))
        return np.concatenate(columns, axis=1).T

    return read


def headed_members(model: PreTrainedModel, tokenizer: Any, max_tokens: int, rows: int) -> Read:
    """Members that are the outputs of one classifier."""
    return lambda prompts, responses: read_outputs(model, tokenizer, prompts, responses, max_tokens, rows).T


def learned_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights that learn, by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def put_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Set the weights of these names, in place."""
    mine = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            mine[name].copy_(weight)


def save_member(weights: dict[str, Tensor], folder: Path) -> None:
    """Write the learned weights of a member with adapters."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.contiguous().cpu() for name, weight in weights.items()}, str(folder / ADAPTED))


def load_member(folder: Path) -> dict[str, Tensor]:
    """Read what `save_member` wrote."""
    from safetensors.torch import load_file

    return load_file(str(folder / ADAPTED))


def save_ensemble(
    scorer: EnsembleScorer,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    members: Sequence[Path],
    trunk: dict[str, Any],
    folder: Path,
) -> None:
    """Write an ensemble: what all members share, what each has of its own below `members/`, and `reward.json`.

    Args:
        model: the classifier whose trunk they share; of separate members the first one, whose configuration is theirs.
        members: folders of what each has of its own; none for heads on a shared trunk.
        trunk: `type`, and of adapters their `rank`, `alpha` and `targets`.
    """
    import shutil

    save_model(place(model, "cpu"), tokenizer, folder)
    if trunk["type"] == "separate":  # the first member's weights are among the others' below
        for path in folder.glob("*.safetensors*"):
            path.unlink()
    for number, member in enumerate(members):
        shutil.copytree(member, folder / MEMBERS / str(number))
    values = {"type": "ensemble", "trunk": trunk, "offsets": scorer.offsets.tolist(), "members": len(scorer.offsets)}
    save_family(values, folder)


def load_ensemble(folder: Path, device: torch.device, max_tokens: int, rows: int) -> EnsembleScorer:
    """Read what `save_ensemble` wrote."""
    values, tokenizer = family(folder), load_tokenizer(folder).tokenizer
    offsets, trunk = np.array(values["offsets"]), values["trunk"]
    folders = [folder / MEMBERS / str(number) for number in range(values["members"])]
    if trunk["type"] == "separate":
        models = [place(load_reward_model(member), device) for member in folders]
        return EnsembleScorer(separate_members(models, tokenizer, max_tokens, rows), offsets)
    heads = 1 if trunk["type"] == "lora" else len(offsets)
    model = load_reward_model(folder, outputs=heads)
    if trunk["type"] == "shared":
        return EnsembleScorer(headed_members(place(model, device), tokenizer, max_tokens, rows), offsets)
    adapt_trunk(model, trunk["rank"], trunk["alpha"], tuple(trunk["targets"]), 0)
    learned = [load_member(member) for member in folders]
    return EnsembleScorer(adapted_members(place(model, device), learned, tokenizer, max_tokens, rows), offsets)
