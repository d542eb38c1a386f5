"""The sizes of a model from its configuration alone: its weights are counted, and its passes followed, without numbers.

Torch's fake tensors have shapes and no memory, so that a model of any size can be made and run. What an architecture
keeps for its backward pass is thus seen rather than guessed.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inverse_alignment.core.errors import UserError
from inverse_alignment.models.adapters import require_layers
from inverse_alignment.models.loading import DTYPES, _llama, quiet
from inverse_alignment.models.memory import Footprint
from inverse_alignment.models.specs import InitialisedModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Role = Literal["policy", "reward"]
CAPS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
"""What configurations call a cap or a scale of their logits."""
ROWS = 2**16
"""Rows of the pass that says what a token needs: so many that the gradients of the weights do not matter."""


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters that a policy gets."""

    rank: int
    targets: tuple[str, ...]


def configuration_of(spec: InitialisedModel) -> PretrainedConfig:
    """The configuration of a model that is made here, with as large a vocabulary as its tokenizer may have."""
    config: PretrainedConfig = _llama(spec, _Entries(spec.vocab_size))  # type: ignore[arg-type]
    return config


def read_configuration(path: Path, key: str) -> PretrainedConfig:
    """The configuration in a checkpoint's config.json; no code from the checkpoint is run.

    Raises:
        UserError: this version of transformers does not know the architecture, or the file is damaged.
    """
    from transformers import AutoConfig

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        config: PretrainedConfig = AutoConfig.for_model(values.pop("model_type"), **values)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"no configuration of a model that transformers knows: {str(error).splitlines()[0]}",
            where=f"{path} ({key}.path)",
            fix="fetch the checkpoint again, or give another",
        ) from error
    return config


def footprint(
    config: PretrainedConfig,
    role: Role,
    width: int,
    *,
    dtype: str = "float32",
    training: bool = False,
    adapters: Adapters | None = None,
    eager: bool = False,
) -> Footprint:
    """The sizes of a model.

    Args:
        config: of its architecture.
        role: a policy has a language-model head, a reward model a score head.
        width: tokens of a row; attention's mask makes a token of a longer row cost more.
        dtype: of weights and activations.
        training: whether it is in training mode, so that dropout keeps its masks.
        adapters: those that it gets; everything else is frozen then.
        eager: whether attention shows its weights, and so has them all.

    Raises:
        UserError: transformers has no model of that role for this architecture.
    """
    model = _made(config, role, dtype, eager).train(training)
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings() if role == "policy" else None
    parameters, trunk = _numbers(model.parameters()), _numbers(model.base_model.parameters())
    tied = head is not None and head.weight is table
    added = _adapted(model, adapters) if adapters else 0
    with FakeTensorMode():
        _move(model)
        reading, learning = (_alive(model, width, learns) / (ROWS * width) for learns in (False, True))
    text = config.get_text_config()
    heads = text.num_attention_heads
    return Footprint(
        parameters=parameters,
        trunk=trunk,
        adapters=added,
        embedding=table.numel(),
        tied=tied,
        vocabulary=head.weight.shape[0] if head is not None else 0,
        capped=any(getattr(text, name, None) not in (None, 1.0) for name in CAPS),
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        reading=reading,
        learning=learning,
        itemsize=DTYPES[dtype].itemsize,
    )


@dataclass(frozen=True)
class _Entries:
    """As much of a tokenizer as an architecture asks for."""

    entries: int
    pad_token_id: int = 0
    eos_token_id: int = 1

    def __len__(self) -> int:
        return self.entries


def _made(config: PretrainedConfig, role: Role, dtype: str, eager: bool) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto: Any = AutoModelForCausalLM if role == "policy" else AutoModelForSequenceClassification
    attention = {"attn_implementation": "eager"} if eager else {}
    if role == "reward":
        config = type(config).from_dict({**config.to_dict(), "id2label": {0: "score"}, "label2id": {"score": 0}})
    try:
        with torch.device("meta"), quiet():
            return auto.from_config(config, dtype=DTYPES[dtype], **attention)
    except ValueError as error:
        raise UserError(
            f"transformers has no {role} model of this architecture: {config.model_type}",
            where=f"models.{role}.path",
            fix="give another checkpoint",
        ) from error


def _adapted(model: Any, adapters: Adapters) -> int:
    from peft import LoraConfig

    require_layers(model, adapters.targets)
    where = list(adapters.targets) if adapters.targets else "all-linear"
    model.add_adapter(LoraConfig(r=adapters.rank, target_modules=where, lora_dropout=0.0))
    return _numbers(weight for weight in model.parameters() if weight.requires_grad)


def _move(model: nn.Module) -> None:
    """Give a model without storage fake weights, tied ones once: meta tensors take other paths than those of a CPU."""
    moved: dict[int, Any] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), requires_grad=weight.requires_grad)
                module._parameters[name] = moved.setdefault(id(weight), fake)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _numbers(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() for weight in weights)


def _alive(model: Any, width: int, learns: bool) -> int:
    """Bytes that a pass of the trunk over rows of equal length has at one time, beside the weights."""

    def run() -> None:
        ids = torch.zeros((ROWS, width), dtype=torch.int64)
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        if learns:
            states.sum().backward()

    with torch.set_grad_enabled(learns):
        return peak_of(model, run)


def peak_of(model: nn.Module, run: Callable[[], object]) -> int:
    """Bytes of the tensors that are made while something runs, at the moment when most of them are there.

    Args:
        model: its weights do not count.
    """
    meter = _Meter({weight.untyped_storage()._cdata for weight in model.parameters()})
    with meter:
        run()
    return meter.peak


class _Meter(TorchDispatchMode):
    """Watches storages come and go."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self._known, self._live, self.peak = known, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return made

    def _see(self, storage: Any) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self._live += storage.nbytes()
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size
