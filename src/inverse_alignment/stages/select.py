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
        "pair_min", description="how the similarities of chosen and rejected become one score"
    )
    compare_with: Literal["same_prompt", "all_rollouts"] = Field(
        "same_prompt", description="policy answers a pair is compared with: those to its own prompt, or all of them"
    )
    keep: Annotated[TopK | Threshold, Field(discriminator="type")] = Field(TopK(), description="how many pairs to keep")
    max_pair_similarity: float = Field(
        0.95,
        ge=-1,
        le=1,
        description="pairs whose two answers are more alike than this carry no signal and are left out",
    )
    encoder: EncoderConfig = Field(LexicalEncoder(), description="what turns an answer into a vector")


SelectionConfig = Annotated[
    NoSelection | RandomSelection | AllSelection | SimilaritySelection, Field(discriminator="type")
]


class SelectStage(Section):
    """Identity of the stage."""

    selection: SelectionConfig


def build(inputs: Mapping[str, Path], config: SelectStage, context: StageContext) -> dict[str, Any]:
    """Write `selection.jsonl` (row, id, weight, score of each kept pair) and `audit.json` (what was picked)."""
    import json

    import numpy as np

    from inverse_alignment.data.aggregate import read_split
    from inverse_alignment.selection.selection import shares

    pool = read_split(inputs["preferences"], "train")
    selection, pair_similarity = _choose(pool, inputs, config.selection, context)
    with (context.out / "selection.jsonl").open("w", encoding="utf-8") as file:
        for row, weight, score in zip(selection.indices, selection.weights, selection.scores, strict=True):
            kept = {"row": int(row), "id": pool[row].id, "weight": float(weight)}
            file.write(json.dumps({**kept, "score": None if np.isnan(score) else float(score)}) + "\n")
    of_pool, of_selection = shares(pool), shares(pool, selection)
    scored = not np.isnan(selection.scores).any()
    audit = {
        "pool": len(pool),
        "selected": len(selection),
        "selected_by_source": of_selection["source"],
        "pool_by_source": of_pool["source"],
        "selected_by_annotator": of_selection["annotator"],
        "pool_by_annotator": of_pool["annotator"],
        "mean_score": float(selection.scores.mean()) if scored else None,
        "mean_pair_similarity": pair_similarity,
    }
    (context.out / "audit.json").write_text(json.dumps(audit, indent=1, sort_keys=True))
    return {"selected": len(selection), "pool": len(pool), "mean_score": audit["mean_score"]}


def encoder(config: EncoderConfig, inputs: Mapping[str, Path], context: StageContext) -> Any:
    """The configured encoder; a sentence-transformers model comes in as the input `encoder`."""
    if isinstance(config, LexicalEncoder):
        from inverse_alignment.embedding.lexical import LexicalEncoder as Lexical

        return Lexical(config.dimensions)
    from inverse_alignment.embedding.sentence import SentenceTransformerEncoder
    from inverse_alignment.models.loading import pick_device

    device = pick_device(context.runtime.device).type
    return SentenceTransformerEncoder(inputs["encoder"], device, context.runtime.scoring_rows)


def _choose(
    pool: Any, inputs: Mapping[str, Path], config: SelectionConfig, context: StageContext
) -> tuple[Any, float | None]:
    from inverse_alignment.core.seeding import derive_seed
    from inverse_alignment.selection.controls import select_all, select_random

    match config:
        case RandomSelection():
            rollouts = inputs["rollouts"] / "rollouts.jsonl"  # another draw in every round, like the policy's answers
            return select_random(len(pool), config.k, derive_seed("select", context.seed, _digest(rollouts))), None
        case AllSelection():
            return select_all(len(pool)), None
        case SimilaritySelection():
            return _most_similar(pool, inputs, config, context)
        case NoSelection():
            raise AssertionError("an arm without refresh has no selection to build")


def _most_similar(
    pool: Any, inputs: Mapping[str, Path], config: SimilaritySelection, context: StageContext
) -> tuple[Any, float]:
    from inverse_alignment.core.records import Rollout, read_jsonl
    from inverse_alignment.selection.selection import require_at_most
    from inverse_alignment.selection.similarity import pair_similarity, select_above, select_top

    if isinstance(config.keep, TopK):
        require_at_most(config.keep.k, len(pool), "are in the train split", "selection.keep.k")
    rollouts = read_jsonl(inputs["rollouts"] / "rollouts.jsonl", Rollout)
    similarity = pair_similarity(
        [pair.chosen for pair in pool],
        [pair.rejected for pair in pool],
        [pair.prompt.key for pair in pool],
        [rollout.response for rollout in rollouts],
        [rollout.prompt.key for rollout in rollouts],
        encoder(config.encoder, inputs, context),
        config.compare_with == "same_prompt",
        context.report.progress,
    )
    match config.keep:
        case TopK(k=k):
            selection = select_top(similarity, config.score, config.max_pair_similarity, k)
        case Threshold(score=score):
            selection = select_above(similarity, config.score, config.max_pair_similarity, score)
    return selection, float(similarity.between[selection.indices].mean())


def _digest(path: Path) -> str:
    from inverse_alignment.core.artifact import sha256_file

    return sha256_file(path)
