"""sources + tokenizers -> one preference set: pooled, cleaned, split by prompt, counted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.core.errors import UserError
from inverse_alignment.data.aggregate import AggregateSettings
from inverse_alignment.data.sources import SourceConfig


class AggregateStage(Section):
    """Identity of the stage."""

    sources: tuple[SourceConfig, ...]
    aggregate: AggregateSettings
    context: int = Field(description="most tokens of prompt and answer together, in policy tokens")
    reward_context: int = Field(description="the same in the reward model's tokens")
    least_train_pairs: int = Field(0, ge=0, description="most pairs that a selection of this run asks for")


def build(inputs: Mapping[str, Path], config: AggregateStage, context: StageContext) -> dict[str, Any]:
    """Write one `Comparison` a line for each split, and `statistics.json`."""
    from inverse_alignment.core.artifact import external
    from inverse_alignment.core.records import SPLITS
    from inverse_alignment.data.aggregate import aggregate, write_preferences
    from inverse_alignment.text.render import PairEncoder
    from inverse_alignment.text.tokenizers import load_tokenizer

    limits = {"policy": config.context, "reward": config.reward_context}
    distinct = {  # policy and reward model often read alike: then every pair is encoded once
        (external("tokenizer", inputs["tokenizers"] / role).digest, tokens): role for role, tokens in limits.items()
    }
    encoders = [
        PairEncoder(load_tokenizer(inputs["tokenizers"] / role).tokenizer, limits[role]) for role in distinct.values()
    ]
    preferences = aggregate(
        config.sources,
        config.aggregate,
        encoders,
        {source.name: inputs[f"source.{source.name}"] for source in config.sources},
    )
    available = len(preferences.split("train"))
    if available < config.least_train_pairs:  # now, not after an hour of training
        raise UserError(
            f"a selection asks for {config.least_train_pairs} pairs, but only {available} are in the train split",
            where="the k of a selection, in arms or selection",
            fix=f"set it to at most {available}, or add preference data",
        )
    write_preferences(context.out, preferences)
    counts = {split: sum(pair.provenance.split == split for pair in preferences.comparisons) for split in SPLITS}
    return {"pairs": len(preferences.comparisons), **{f"{split}_pairs": count for split, count in counts.items()}}
