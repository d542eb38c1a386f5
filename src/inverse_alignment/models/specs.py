"""Which model a policy or reward model starts from. Light: imports no torch."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from inverse_alignment.core.configuration import NOT_IDENTITY, Section


def _iso_date(value: Any) -> str:
    """A date in its one spelling, as text, because a fingerprint needs JSON; YAML reads an unquoted one as a date."""
    text = value.isoformat() if isinstance(value, datetime.date) else value
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except (TypeError, ValueError):
        raise PydanticCustomError("iso_date", "should be a date such as 2024-07-26") from None


IsoDate = Annotated[str, BeforeValidator(_iso_date)]


class InitialisedModel(Section):
    """A small decoder made from a configuration and trained here, with a tokenizer trained on the data."""

    type: Literal["initialise"] = "initialise"
    vocab_size: int = Field(
        1024, ge=264, description="entries of the byte-level BPE tokenizer, special tokens included"
    )
    hidden_size: int = Field(64, ge=8, description="width of the residual stream")
    layers: int = Field(2, ge=1, description="transformer blocks")
    heads: int = Field(4, ge=1, description="attention heads; divides hidden_size")
    context: int = Field(128, ge=16, description="most tokens of prompt and response together")


class CheckpointModel(Section):
    """A Hugging Face checkpoint: a folder, or a hub id at a pinned revision."""

    type: Literal["checkpoint"] = "checkpoint"
    path: str = Field(description="folder, or hub id such as EleutherAI/pythia-160m", json_schema_extra=NOT_IDENTITY)
    revision: str | None = Field(
        None,
        description="commit of a hub id; required for one, so that a run can be repeated",
        json_schema_extra=NOT_IDENTITY,
    )
    context: int = Field(1024, ge=16, description="most tokens of prompt and response together")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="weights while training")
    template_date: IsoDate | None = Field(
        None,
        description="date that a chat template asking for today's date is given; null: such a template is refused",
    )


ModelSpec = Annotated[InitialisedModel | CheckpointModel, Field(discriminator="type")]
