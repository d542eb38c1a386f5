"""Every configuration key with what it means, read from the schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined


def keys(model: type[BaseModel], prefix: str = "", values: BaseModel | None = None) -> Iterator[tuple[str, str, str]]:
    """Key path, default and description, in the order of the schema; variants show as `selection(random).k`.

    Where a section's default differs from that of its class (`values`), its own is shown.
    """
    for name, field in model.model_fields.items():
        if name in ("type", "format"):
            continue
        path = f"{prefix}{name}"
        default = field.default if values is None else getattr(values, name)
        nested = _sections(field.annotation)
        shown = _short(default)
        yield path, shown, field.description or ""
        for section in nested:
            own = default if isinstance(default, section) else None
            yield from keys(section, f"{path}{_variant(section, nested)}.", own)


def _variant(section: type[BaseModel], among: list[type[BaseModel]]) -> str:
    if len(among) == 1:
        return ""
    tag = section.model_fields.get("type") or section.model_fields.get("format")
    return f"({tag.default})" if tag is not None else f"({section.__name__})"


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) if part is not Ellipsis for section in _sections(part)]


def _short(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel):
        tag = getattr(default, "type", None)
        return f"type: {tag}" if tag else "section"
    if isinstance(default, dict):
        return ", ".join(default)
    if isinstance(default, tuple) and any(isinstance(item, BaseModel) for item in default):
        return f"{len(default)} of them"
    return "null" if default is None else str(list(default) if isinstance(default, tuple) else default)
