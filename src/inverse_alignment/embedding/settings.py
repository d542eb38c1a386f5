"""What turns a text into a vector, as a configuration names it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inverse_alignment.core.configuration import NOT_IDENTITY, Section


class LexicalEncoder(Section):
    """Hashed word and character n-grams: offline, fast, knows spelling but no meaning."""

    type: Literal["lexical"] = "lexical"
    dimensions: int = Field(1024, ge=16, description="buckets of the hashing trick")


class SentenceEncoder(Section):
    """A sentence-transformers model."""

    type: Literal["sentence_transformers"] = "sentence_transformers"
    path: str = Field(description="folder or hub id of the model", json_schema_extra=NOT_IDENTITY)
    revision: str | None = Field(None, description="commit of a hub id", json_schema_extra=NOT_IDENTITY)


EncoderConfig = Annotated[LexicalEncoder | SentenceEncoder, Field(discriminator="type")]
