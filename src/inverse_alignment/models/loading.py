"""Making, loading and saving models: the only `from_pretrained` of the project, safetensors only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.models.checks import SCORE_HEADS
from inverse_alignment.models.specs import InitialisedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

M = TypeVar("M", bound=torch.nn.Module)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HEAD_LAYERS = ("pre_classifier.", "head.", "dense.")  # fresh layers below a score head, in some encoders


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


def new_reward_model(
    spec: InitialisedModel, tokenizer: PreTrainedTokenizerBase, seed: int, outputs: int = 1
) -> PreTrainedModel:
    """The same shape with a score head of one label, or of more outputs."""
    from transformers import LlamaForSequenceClassification

    return _seeded(lambda: LlamaForSequenceClassification(_llama(spec, tokenizer, num_labels=outputs)), seed)


def load_policy(path: Path, dtype: str = "float32") -> PreTrainedModel:
    """A causal LM from a folder.

    Raises:
        UserError: the folder holds no causal LM in safetensors.
    """
    from transformers import AutoModelForCausalLM

    model, missing = _loaded(AutoModelForCausalLM, path, dtype)
    _require_causal(path, missing)
    return model


def load_reward_model(path: Path, dtype: str = "float32", outputs: int = 1) -> PreTrainedModel:
    """A sequence classifier with one label, or with as many outputs, from a folder.

    Raises:
        UserError: the folder's model has no trained score head, or another number of labels.
    """
    from transformers import AutoModelForSequenceClassification

    model, missing = _loaded(AutoModelForSequenceClassification, path, dtype)
    if missing or model.config.num_labels != outputs:
        found = f"lacks {missing[0]}" if missing else f"has {model.config.num_labels} labels"
        raise UserError(
            f"not a reward model: it {found}",
            where=str(path),
            fix="give a sequence classifier with one label, or set reward.type=train",
        )
    return model


def load_trunk(path: Path, dtype: str = "float32") -> PreTrainedModel:
    """A causal model without a head from a folder.

    Raises:
        UserError: the folder lacks weights of it.
    """
    from transformers import AutoModel

    model, missing = _loaded(AutoModel, path, dtype)
    _require_trunk(path, missing)
    return model


def reward_model_from_trunk(path: Path, seed: int, dtype: str = "float32", outputs: int = 1) -> PreTrainedModel:
    """A sequence classifier on the trunk of a causal LM, with a fresh score head that depends on the seed alone.

    Raises:
        UserError: the folder holds no model of an architecture with a score head, or lacks weights of its trunk.
    """
    from transformers import AutoModelForSequenceClassification

    model, missing = _seeded(
        lambda: _loaded(AutoModelForSequenceClassification, path, dtype, num_labels=outputs),
        seed,
    )
    _require_trunk(path, missing)
    draw_head(model, seed)
    return model


def draw_head(model: PreTrainedModel, seed: int) -> None:
    """A fresh score head that depends on the seed alone, in place."""
    generator = torch.Generator().manual_seed(derive_seed("score head", seed))
    for name, parameter in model.named_parameters():
        if name.startswith(SCORE_HEADS):
            noise = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
            parameter.data.copy_(noise if parameter.ndim > 1 else torch.zeros_like(noise))


def rehearse_policy(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Load a policy without its weights: what would be refused at its training is refused now, in seconds.

    Raises:
        UserError: see `load_policy`; or the tokenizer has ids that the model has no embedding for.
    """
    from transformers import AutoModelForCausalLM

    model, missing = _loaded(AutoModelForCausalLM, path, "float32", device_map="meta")
    _require_causal(path, missing)
    _require_embeddings(path, model, tokenizer)


def rehearse_reward_model(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """The same for the trunk of a reward model; whether its score head is trained, `models.checks` says.

    Raises:
        UserError: see `reward_model_from_trunk`; or the tokenizer has ids that the model has no embedding for.
    """
    from transformers import AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification
    model, missing = _loaded(auto, path, "float32", num_labels=1, device_map="meta")
    _require_trunk(path, missing)
    _require_embeddings(path, model, tokenizer)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights, configuration and tokenizer as a folder that plain transformers loads.

    Pads are named in the configuration, since sequence classifiers find the last token by them. Paths of the machine
    that trained the model are left out, so that equal models have equal bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.config.pad_token_id = tokenizer.pad_token_id
    with quiet():
        model.save_pretrained(folder)
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


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and load reports: what is missing on purpose is not news to a person."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _loaded(auto: Any, path: Path, dtype: str, **more: Any) -> tuple[PreTrainedModel, list[str]]:
    """A model of an auto class, and the names of the weights that its folder lacks: transformers fills them with noise.

    Raises:
        UserError: the folder has no safetensors weights, they have other shapes than its configuration says, or
            transformers cannot load it.
    """
    if not any(path.glob("*.safetensors")):
        raise UserError(
            "no safetensors weights",
            where=str(path),
            fix="convert the checkpoint with `model.save_pretrained(folder)`; pickled weights are not loaded",
        )
    safely = {**_SAFE, "ignore_mismatched_sizes": True, "output_loading_info": True}  # refused below, by name
    try:
        with quiet():
            model, info = auto.from_pretrained(path, dtype=DTYPES[dtype], **safely, **more)
    except Exception as error:  # transformers and safetensors each raise types of their own, some bare Exception
        said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UserError(
            f"transformers cannot load the model: {said[0]}",
            where=str(path),
            fix="fetch the checkpoint again, or give one whose architecture this version of transformers knows",
        ) from error
    other = sorted(info["mismatched_keys"])
    for name, found, wanted in other:
        if not _is_head(name):
            raise UserError(
                f"the weights are not those of the configuration: {name} is {_shape(found)}, not {_shape(wanted)}",
                where=f"{path / 'config.json'}, and the weights beside it",
                fix="fetch the checkpoint again",
            )
    return model, sorted({*info["missing_keys"], *(name for name, *_ in other)})


def _is_head(name: str) -> bool:
    return name.startswith((*SCORE_HEADS, *HEAD_LAYERS)) or ".pooler." in name


def _shape(extents: Any) -> str:
    return " x ".join(str(extent) for extent in extents)


def _require_causal(path: Path, missing: list[str]) -> None:
    if missing:
        raise UserError(
            f"not a causal language model: it lacks {missing[0]}",
            where=str(path),
            fix="give the folder of a causal language model",
        )


def _require_trunk(path: Path, missing: list[str]) -> None:
    trunk = [name for name in missing if not _is_head(name)]
    if trunk:
        raise UserError(
            f"a reward model cannot start from it: it lacks {trunk[0]}",
            where=str(path),
            fix="give the folder of a causal language model or sequence classifier",
        )


def _require_embeddings(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    embeddings = model.get_input_embeddings().weight
    assert isinstance(embeddings, torch.Tensor)
    rows = embeddings.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model embeds only {rows}",
            where=f"{path}, tokenizer.json",
            fix="give the tokenizer that the model was trained with, or a model with resized embeddings",
        )
