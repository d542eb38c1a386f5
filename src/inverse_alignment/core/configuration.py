"""The base of every configuration section: frozen, strict, described; and what of it bears identity."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

NOT_IDENTITY: dict[str, Any] = {"identity": False}
"""`json_schema_extra` of a field that says where something lies, not what it is."""


class Section(BaseModel):
    """A configuration section: unknown keys are refused, values are never changed after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def identity_of(value: Any) -> Any:
    """The JSON-able part of a configuration value that decides results.

    Fields marked `NOT_IDENTITY` (paths, hub ids) are left out: what they point to enters a fingerprint by content.
    """
    if isinstance(value, BaseModel):
        return {
            name: identity_of(getattr(value, name))
            for name, field in type(value).model_fields.items()
            if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("identity") is False)
        }
    if isinstance(value, dict):
        return {name: identity_of(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [identity_of(item) for item in value]
    return value
