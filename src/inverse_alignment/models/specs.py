"""Which model a policy or reward model starts from. Light: imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inverse_alignment.core.configuration import NOT_IDENTITY, Section


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


ModelSpec = Annotated[InitialisedModel | CheckpointModel, Field(discriminator="type")]
