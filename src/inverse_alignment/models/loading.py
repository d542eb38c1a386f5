"""Making, loading and saving models: the only `from_pretrained` of the project, safetensors only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.models.specs import InitialisedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

M = TypeVar("M", bound=torch.nn.Module)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """The device of a RuntimeConfig: `auto` takes a GPU if torch sees one.

    Raises:
        UserError: cuda is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU is visible to torch", where="runtime.device", fix="set runtime.device=auto or cpu")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name if name != "auto" else "cpu")


def place(model: M, device: torch.device | str) -> M:
    """The model on a device. `model.to(device)` hides its type behind a wrapper of transformers."""
    torch.nn.Module.to(model, device)
    return model


def new_policy(spec: InitialisedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A small Llama-shaped causal LM with random weights that depend on the seed alone."""
    from transformers import LlamaForCausalLM

    return _seeded(lambda: LlamaForCausalLM(_llama(spec, tokenizer)), seed)


def new_reward_model(spec: InitialisedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """The same shape with a score head of one label."""
    from transformers import LlamaForSequenceClassification

    return _seeded(lambda: LlamaForSequenceClassification(_llama(spec, tokenizer, num_labels=1)), seed)


def load_policy(path: Path, dtype: str = "float32") -> PreTrainedModel:
    """A causal LM from a folder.

    Raises:
        UserError: the folder holds no causal LM in safetensors.
    """
    from transformers import AutoModelForCausalLM

    _require_safetensors(path)
    model, info = _quietly(
        lambda: AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], output_loading_info=True, **_SAFE)
    )
    if missing := sorted(info["missing_keys"]):  # transformers would fill them with noise
        raise UserError(
            f"not a causal language model: it lacks {missing[0]}",
            where=str(path),
            fix="give the folder of a causal language model",
        )
    return model


def load_reward_model(path: Path, dtype: str = "float32") -> PreTrainedModel:
    """A sequence classifier with one label from a folder.

    Raises:
        UserError: the folder's model has no trained score head, or more than one label.
    """
    from transformers import AutoModelForSequenceClassification

    _require_safetensors(path)
    model, info = _quietly(
        lambda: AutoModelForSequenceClassification.from_pretrained(
            path, dtype=DTYPES[dtype], output_loading_info=True, **_SAFE
        )
    )
    missing = sorted(info["missing_keys"])
    if missing or model.config.num_labels != 1:
        found = f"lacks {missing[0]}" if missing else f"has {model.config.num_labels} labels"
        raise UserError(
            f"not a reward model: it {found}",
            where=str(path),
            fix="give a sequence classifier with one label, or set reward.type=train",
        )
    return model


def reward_model_from_trunk(path: Path, seed: int, dtype: str = "float32") -> PreTrainedModel:
    """A sequence classifier on the trunk of a causal LM, with a fresh score head that depends on the seed alone."""
    from transformers import AutoModelForSequenceClassification

    _require_safetensors(path)
    model: PreTrainedModel = _quietly(
        lambda: AutoModelForSequenceClassification.from_pretrained(path, dtype=DTYPES[dtype], num_labels=1, **_SAFE)
    )
    generator = torch.Generator().manual_seed(derive_seed("score head", seed))
    for name, parameter in model.named_parameters():
        if name.startswith(("score.", "classifier.")):  # the head's two names in transformers
            noise = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
            parameter.data.copy_(noise if parameter.ndim > 1 else torch.zeros_like(noise))
    return model


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights, configuration and tokenizer as a folder that plain transformers loads.

    Pads are named in the configuration, since sequence classifiers find the last token by them. Paths of the machine
    that trained the model are left out, so that equal models have equal bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.config.pad_token_id = tokenizer.pad_token_id
    _quietly(lambda: model.save_pretrained(folder))
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        values = json.loads(path.read_text(encoding="utf-8"))
        for key in ("_name_or_path", "name_or_path", "transformers_version", "local_files_only", "is_local"):
            values.pop(key, None)
        path.write_text(json.dumps(values, indent=1, sort_keys=True), encoding="utf-8")


_SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}


def _llama(spec: InitialisedModel, tokenizer: PreTrainedTokenizerBase, **extra: Any) -> Any:
    from transformers import LlamaConfig

    if spec.hidden_size % spec.heads:
        raise UserError(
            f"hidden_size {spec.hidden_size} is not a multiple of heads {spec.heads}",
            where="models",
            fix="change one of the two",
        )
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden_size,
        intermediate_size=4 * spec.hidden_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        max_position_embeddings=spec.context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **extra,
    )


def _seeded(make: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("weights", seed))
        return make()


def _quietly(load: Any) -> Any:
    """Without transformers' progress bar and load report: what is missing on purpose is not news to a person."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return load()
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _require_safetensors(path: Path) -> None:
    if not any(path.glob("*.safetensors")):
        raise UserError(
            "no safetensors weights",
            where=str(path),
            fix="convert the checkpoint with `model.save_pretrained(folder)`; pickled weights are not loaded",
        )
