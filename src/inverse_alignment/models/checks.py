"""What can be seen to be wrong with a model's folder without loading it: before any training, in milliseconds.

Light: JSON and the headers of safetensors files, no torch and no transformers. What only loading shows (a weight of
another shape, an architecture nobody knows) is refused by `models.loading`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inverse_alignment.core.errors import UserError

CONFIG, WEIGHTS, INDEX, ADAPTER = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
)
FAMILY = "reward.json"
"""Beside the weights of a reward model that is no plain sequence classifier: which family it is of."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")  # what trainers leave beside them
SCORE_HEADS = ("score.", "classifier.", "classification_head.", "logits_proj.")  # every name transformers has for it
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx")
MODULES = "modules.json"
TOKENIZER, SETTINGS = "tokenizer.json", ("tokenizer_config.json", "special_tokens_map.json")
PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
EMBEDDINGS = (  # the names of the table of token embeddings in transformers
    *("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight"),
)
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")  # one of them makes a tokenizer
LFS = b"version https://git-lfs"
FETCH = "fetch the file again"

Shapes = dict[str, tuple[int, ...]]
"""The shape of every tensor of a checkpoint, by name."""


def require_policy(folder: Path, key: str, context: int) -> None:
    """Refuse a folder from which no policy can be loaded.

    Args:
        folder: a Hugging Face checkpoint.
        key: of the model in the configuration, such as `models.policy`.
        context: most tokens that the model will be asked to read.

    Raises:
        UserError: it holds no configuration, no tokenizer or no whole safetensors weights, or reads fewer positions.
    """
    _require_positions(_config(folder, key), folder, key, context)
    _require_tokenizer(folder, key, shapes(folder, key))


def require_reward_model(folder: Path, key: str, context: int, trained: bool) -> None:
    """Refuse a folder from which no reward model can be loaded; see `require_policy`.

    Args:
        trained: whether it is used as it is, so that a score head with one label must be in it.

    Raises:
        UserError: see `require_policy`; or a trained one is asked for and it has no score head of one label.
    """
    _require_positions(_config(folder, key), folder, key, context)
    weights = shapes(folder, key)
    _require_tokenizer(folder, key, weights)
    heads = {
        name: shape for name, shape in weights.items() if name.startswith(SCORE_HEADS) and name.endswith(".weight")
    }
    if not trained:
        return
    train = "set reward.type=train, which gives it one"
    if not heads:
        raise UserError(
            "not a trained reward model: its weights have no score head",
            where=f"{folder} ({key}.path)",
            fix=f"give a sequence classifier with one label, or {train}",
        )
    name, shape = min(heads.items(), key=lambda item: item[1])  # of several layers the narrowest gives the score
    if shape[0] != 1:
        raise UserError(
            f"not a reward model: it has {shape[0]} labels ({name} is {' x '.join(map(str, shape))})",
            where=f"{folder} ({key}.path)",
            fix="give a sequence classifier with one label, or set reward.type=train, which starts from its trunk",
        )


def require_encoder(folder: Path, key: str) -> None:
    """Refuse a folder from which no sentence-transformers model can be loaded without running or unpickling anything.

    Args:
        key: of the encoder in the configuration, such as `selection.encoder`.

    Raises:
        UserError: it has no list of modules, a module runs code of its own, or weights are missing, pickled or cut.
    """
    at = f"{folder} ({key}.path)"
    if not (folder / MODULES).is_file():
        raise UserError(
            f"not a sentence-transformers model: it has no {MODULES}",
            where=at,
            fix="give a folder that SentenceTransformer.save wrote, or set the encoder's type to lexical",
        )
    modules = _json(folder / MODULES, key)
    if not isinstance(modules, list) or not all(isinstance(module, dict) and "path" in module for module in modules):
        raise UserError("is not a list of modules", where=f"{folder / MODULES} ({key}.path)", fix=FETCH)
    for module in modules:
        kind, inside = str(module.get("type")), folder / str(module["path"])
        if not kind.startswith("sentence_transformers."):
            raise UserError(
                f"a module would run code from the checkpoint: {kind}",
                where=f"{folder / MODULES} ({key}.path)",
                fix="use a model whose modules are those of sentence-transformers",
            )
        if kind.endswith(".Transformer"):
            _config(inside, key)
        if kind.endswith(".Transformer") or _pickles(inside) or (inside / WEIGHTS).exists():
            shapes(inside, key)


def shapes(folder: Path, key: str) -> Shapes:
    """The shapes of a checkpoint's tensors, from the headers of its safetensors files.

    Raises:
        UserError: there are none, one is missing or cut short, or is no safetensors file.
    """
    if (folder / WEIGHTS).is_file():
        return _header(folder / WEIGHTS, key)
    if (folder / INDEX).is_file():
        where = _object(folder / INDEX, key).get("weight_map")
        if not isinstance(where, Mapping) or not where:
            raise UserError("names no file of weights", where=f"{folder / INDEX} ({key}.path)", fix=FETCH)
        found: Shapes = {}
        for name in sorted({str(file) for file in where.values()}):
            if not (folder / name).is_file():
                raise UserError(
                    f"a part of the weights is missing: {name}", where=f"{folder / name} ({key}.path)", fix=FETCH
                )
            found |= _header(folder / name, key)
        if lacking := sorted(set(where) - set(found)):
            raise UserError(
                f"the weights lack {lacking[0]}, which their index names",
                where=f"{folder / str(where[lacking[0]])} ({key}.path)",
                fix=FETCH,
            )
        return found
    raise _without_weights(folder, key)


def _without_weights(folder: Path, key: str) -> UserError:
    at = f"{folder} ({key}.path)"
    if (folder / ADAPTER).exists():
        return UserError(
            "holds an adapter, not a model",
            where=at,
            fix="merge it into its base with `merge_and_unload()`, save that with `save_pretrained(folder)`",
        )
    if pickles := _pickles(folder):
        return UserError(
            f"no {WEIGHTS}, only pickled weights, which are not loaded because they can run code: {pickles[0]}",
            where=at,
            fix="load them where you trust them and write safetensors with `model.save_pretrained(folder)`",
        )
    inside = sorted(path.name for path in folder.iterdir())
    return UserError(
        f"no safetensors weights, neither {WEIGHTS} nor {INDEX}",
        where=at,
        fix=f"write them with `model.save_pretrained(folder)`; the folder holds {', '.join(inside[:6]) or 'nothing'}",
    )


def _pickles(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    return [] if (folder / WEIGHTS).exists() else [name for name in names if name not in NOT_WEIGHTS]


def _header(path: Path, key: str) -> Shapes:
    """The header of a safetensors file: its length in 8 bytes, then JSON; after it the tensors, without a gap."""
    at, size = f"{path} ({key}.path)", path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if (start + file.read(len(LFS) - 8)) == LFS:
            raise UserError("is a pointer of Git LFS, not the weights", where=at, fix="run `git lfs pull` there")
        file.seek(8)
        length = int.from_bytes(start, "little")
        text = file.read(length) if length <= size else b""
    try:
        header = json.loads(text)
        tensors = {str(name): item for name, item in header.items() if name != "__metadata__"}
        end = 8 + length + max(int(item["data_offsets"][1]) for item in tensors.values())
        found = {name: tuple(int(extent) for extent in item["shape"]) for name, item in tensors.items()}
    except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"is not a safetensors file, or was cut short: {size} bytes, and no whole header", where=at, fix=FETCH
        ) from error
    if size != end:
        raise UserError(f"should have {end} bytes, but has {size}: it was cut short or changed", where=at, fix=FETCH)
    return found


def _config(folder: Path, key: str) -> Mapping[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        inside = [child.name for child in sorted(folder.iterdir()) if (child / CONFIG).is_file()]
        raise UserError(
            f"not a model's folder: it has no {CONFIG}",
            where=f"{folder} ({key}.path)",
            fix=f"set {key}.path to {folder / inside[0]}" if inside else "give a folder that `save_pretrained` wrote",
        )
    values = _object(path, key)
    if not isinstance(values.get("model_type"), str):
        raise UserError(
            "names no model_type, so nobody knows which architecture it is",
            where=f"{path}, model_type ({key}.path)",
            fix=FETCH,
        )
    return values


def _require_positions(config: Mapping[str, Any], folder: Path, key: str, context: int) -> None:
    for name in POSITIONS:
        most = config.get(name)
        if isinstance(most, int) and most < context:
            raise UserError(
                f"a context of {context} tokens is more than the {most} positions that the model has",
                where=f"{key}.context, and {folder / CONFIG}, {name}",
                fix=f"set {key}.context to at most {most}, or give another model",
            )


def _require_tokenizer(folder: Path, key: str, weights: Shapes) -> None:
    """Refuse what the tokenizer's files show; what only its class knows, `text.tokenizers` refuses."""
    if not any(found for pattern in VOCABULARIES for found in folder.glob(pattern)):
        raise UserError(
            "holds no tokenizer: there is no tokenizer.json and no other vocabulary",
            where=f"{folder} ({key}.path)",
            fix="write it there with `tokenizer.save_pretrained(folder)`",
        )
    settings = [_object(folder / name, key) for name in SETTINGS if (folder / name).is_file()]
    plain = any(each.get("tokenizer_class") in PLAIN_CLASSES for each in settings)  # others have an end of their own
    if plain and not any(each.get("eos_token") for each in settings):
        raise UserError(
            "the tokenizer has no end-of-sequence token, so no answer could ever end",
            where=f"{folder / SETTINGS[0]}, eos_token ({key}.path)",
            fix="name one there",
        )
    if (folder / TOKENIZER).is_file():
        _require_embeddings(folder / TOKENIZER, key, weights)


def _require_embeddings(path: Path, key: str, weights: Shapes) -> None:
    tokenizer = _object(path, key)
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    ids = vocabulary.values() if isinstance(vocabulary, Mapping) else range(len(vocabulary))
    most = max([*ids, *(token["id"] for token in tokenizer.get("added_tokens", ()))], default=-1) + 1
    rows = [shape[0] for name, shape in weights.items() if name.endswith(EMBEDDINGS)]
    if rows and most > rows[0]:
        raise UserError(
            f"the tokenizer has {most} tokens, but the model embeds only {rows[0]}",
            where=f"{path} ({key}.path)",
            fix="give the tokenizer that the model was trained with, or a model with resized embeddings",
        )


def _object(path: Path, key: str) -> Mapping[str, Any]:
    values = _json(path, key)
    if not isinstance(values, Mapping):
        raise UserError("holds no JSON object", where=f"{path} ({key}.path)", fix=FETCH)
    return values


def _json(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise UserError(f"not valid JSON: {error}", where=f"{path} ({key}.path)", fix=FETCH) from error
