"""Low-rank adapters: a few weights learn, and without them a policy is its own reference.

`W x` becomes `W x + (α / r) B A x` with A (r, in) random and B (out, r) zero at first. Source: Hu et al. 2021, arXiv
2106.09685. Through peft, which transformers integrates; what is written is safetensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inverse_alignment.core.errors import UserError, nearest
from inverse_alignment.core.seeding import derive_seed

if TYPE_CHECKING:
    from peft import LoraConfig

POLICY, REFERENCE = "policy", "reference"
"""Names of the adapters: the one that learns, and the copy that a moving reference is."""


def add_adapters(model: PreTrainedModel, rank: int, alpha: float, targets: tuple[str, ...], seed: int) -> None:
    """Put adapters on every linear layer whose name ends in one of `targets` (empty: all but the head), in place.

    The model's own weights are frozen. A depends on the seed alone.
    """
    _add(model, POLICY, rank, alpha, targets)
    _draw_a(model, seed)


def adapt_trunk(
    model: PreTrainedModel,
    rank: int,
    alpha: float,
    targets: tuple[str, ...],
    seed: int,
    where: str = "refresh.rule.targets",
) -> None:
    """Put adapters on the linear layers of a reward model's trunk, in place; its score head learns as before.

    To everyone else the model looks like a plain one, so what a trainer saves of it is all of its weights.

    Raises:
        UserError: a target is not there, or the model has no trunk beside its head.
    """
    from peft import inject_adapter_in_model

    trunk = trunk_of(model)
    require_layers(trunk, targets, "reward model", where)
    inject_adapter_in_model(_adapters(rank, alpha, targets), trunk, POLICY)
    _draw_a(model, seed)


def adapt_policy(
    model: PreTrainedModel, rank: int, alpha: float, targets: tuple[str, ...], seed: int, *, reference: bool, where: str
) -> None:
    """Put adapters on a policy as `adapt_trunk` does on a trunk, and with `reference` a frozen copy of them.

    Raises:
        UserError: a target is not there.
    """
    from peft import inject_adapter_in_model

    require_layers(model, targets, where=where)
    head = model.get_output_embeddings()
    chosen = targets or tuple(
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head
    )
    inject_adapter_in_model(_adapters(rank, alpha, chosen), model, POLICY)
    _draw_a(model, seed)
    if reference:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`", category=UserWarning)
            inject_adapter_in_model(_adapters(rank, alpha, chosen), model, REFERENCE)
        with using(model, POLICY):
            pass  # the one that learns is the one that answers
        _copy_to_reference(model)


def trunk_of(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a model below its head.

    Raises:
        UserError: there is no such part.
    """
    trunk = model.base_model
    assert isinstance(trunk, PreTrainedModel)
    if trunk is model:
        raise UserError(
            f"a {type(model).__name__} has no trunk of its own below its head",
            where="models.reward",
            fix="set refresh.rule.type=full, or use another architecture",
        )
    return trunk


def _draw_a(model: PreTrainedModel, seed: int) -> None:
    """A random and small, by the seed alone."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if f".{POLICY}." in name and "lora_A" in name:
                generator = torch.Generator().manual_seed(derive_seed("adapter", seed, name))
                bound = weight.shape[1] ** -0.5
                weight.copy_(torch.rand(weight.shape, generator=generator) * 2 * bound - bound)


def add_reference(model: PreTrainedModel, rank: int, alpha: float, targets: tuple[str, ...]) -> None:
    """A second, frozen set of adapters that begins as a copy of the policy's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`", category=UserWarning)
        _add(model, REFERENCE, rank, alpha, targets)
    model.set_adapter(POLICY)
    _copy_to_reference(model)


@torch.no_grad()
def _copy_to_reference(model: PreTrainedModel) -> None:
    mine = adapter_weights(model, POLICY)
    for name, weight in adapter_weights(model, REFERENCE).items():
        weight.requires_grad_(False).copy_(mine[name.replace(f".{REFERENCE}.", f".{POLICY}.")])


def _add(model: PreTrainedModel, name: str, rank: int, alpha: float, targets: tuple[str, ...]) -> None:
    require_layers(model, targets)
    model.add_adapter(_adapters(rank, alpha, targets), name)


def _adapters(rank: int, alpha: float, targets: tuple[str, ...]) -> LoraConfig:
    from peft import LoraConfig

    where = list(targets) if targets else "all-linear"
    # peft annotates α as a whole number, and divides by r like by any
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=where, lora_dropout=0.0)  # type: ignore[arg-type]


def require_layers(
    model: PreTrainedModel, targets: tuple[str, ...], role: str = "policy", where: str = "ppo.lora.targets"
) -> None:
    """Every target is the end of the name of a layer.

    Raises:
        UserError: one is not.
    """
    layers = [
        name for name, module in model.named_modules() if getattr(getattr(module, "weight", None), "ndim", 0) == 2
    ]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            raise UserError(
                f"no layer of the {role} is called '{target}'",
                where=where,
                fix=nearest(target, sorted({name.rpartition(".")[2] for name in layers})),
            )


@contextmanager
def using(model: PreTrainedModel, name: str | None) -> Iterator[None]:
    """Inside the block the model answers with other adapters; None: with none."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(name is not None)
        if name is not None:
            layer.set_adapter(name)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
            layer.set_adapter(POLICY)


def adapter_weights(model: PreTrainedModel, name: str = POLICY) -> dict[str, Tensor]:
    """The weights of one set of adapters, by name."""
    return {key: weight for key, weight in model.named_parameters() if f".{name}." in key}


def save_adapters(model: PreTrainedModel, path: Path, name: str = POLICY) -> None:
    """Write one set of adapters as safetensors."""
    from safetensors.torch import save_file

    save_file({key: weight.contiguous() for key, weight in adapter_weights(model, name).items()}, str(path))


def load_adapters(model: PreTrainedModel, path: Path, name: str = POLICY) -> None:
    """Read what `save_adapters` wrote into adapters that are there already."""
    from safetensors.torch import load_file

    saved = load_file(str(path))
    with torch.no_grad():
        for key, weight in adapter_weights(model, name).items():
            weight.copy_(saved[key])


@torch.no_grad()
def merged_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of a plain model that says what this one does with its adapters; the model stays as it is."""
    from peft.tuners.lora import Linear

    weights = {
        key.replace(".base_layer.", "."): weight for key, weight in model.state_dict().items() if "lora_" not in key
    }
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            key = f"{name}.weight"
            weights[key] = weights[key] + module.get_delta_weight(POLICY).to(weights[key].dtype)
    return weights


def merge_adapters(model: PreTrainedModel) -> None:
    """Add the adapters of `adapt_trunk` to the weights below them, in place: a plain model, all of which may learn."""
    from peft.tuners.lora import LoraLayer

    weights = merged_weights(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            above, _, own = name.rpartition(".")
            setattr(model.get_submodule(above), own, module.get_base_layer())
    model.load_state_dict(weights)
    model.requires_grad_(True)
