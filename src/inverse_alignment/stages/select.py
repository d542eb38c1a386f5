"""preferences + rollouts of the frozen policy -> the part of the offline set that a refresh will use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from inverse_alignment.core.configuration import NOT_IDENTITY, Section
from inverse_alignment.core.context import StageContext


class NoSelection(Section):
    """No refresh: vanilla PPO against the first reward model."""

    type: Literal["none"] = "none"


class RandomSelection(Section):
    """k pairs drawn uniformly without replacement: the control of equal size."""

    type: Literal["random"] = "random"
    k: int = Field(600, ge=1, description="pairs to keep")


class AllSelection(Section):
    """Every pair of the train split. The refresh still sees `refresh.pairs_seen` pairs, like every other arm."""

    type: Literal["all"] = "all"


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


class TopK(Section):
    """Keep the k best scores."""

    type: Literal["top_k"] = "top_k"
    k: int = Field(600, ge=1, description="pairs to keep")


class Threshold(Section):
    """Keep every pair whose score reaches a bound."""

    type: Literal["threshold"] = "threshold"
    score: float = Field(0.6, ge=-1, le=1, description="least score of a kept pair")


class SimilaritySelection(Section):
    """FRFT (arXiv 2412.10529): pairs whose answers resemble what the policy writes now."""

    type: Literal["similarity"] = "similarity"
    score: Literal["pair_max", "pair_min", "mean", "chosen", "rejected", "gap"] = Field(
        "mean", description="how the similarities of chosen and rejected become one score"
    )
    compare_with: Literal["same_prompt", "all_rollouts"] = Field(
        "same_prompt", description="policy answers a pair is compared with: those to its own prompt, or all of them"
    )
    keep: Annotated[TopK | Threshold, Field(discriminator="type")] = Field(TopK(), description="how many pairs to keep")
    max_pair_similarity: float = Field(
        0.95, ge=-1, le=1, description="pairs whose two answers are more alike than this carry no signal and are left out"
    )
    encoder: EncoderConfig = Field(LexicalEncoder(), description="what turns an answer into a vector")


SelectionConfig = Annotated[
    NoSelection | RandomSelection | AllSelection | SimilaritySelection, Field(discriminator="type")
]


class SelectStage(Section):
    """Identity of the stage."""

    selection: SelectionConfig
