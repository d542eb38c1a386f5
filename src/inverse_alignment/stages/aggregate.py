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
    evaluation: tuple[SourceConfig, ...] = ()
    aggregate: AggregateSettings
    context: int = Field(description="most tokens of prompt and answer together, in policy tokens")
    reward_context: int = Field(description="the same in the reward model's tokens")
    least_train_pairs: int = Field(0, ge=0, description="most pairs that a selection of this run asks for")


def build(inputs: Mapping[str, Path], config: AggregateStage, context: StageContext) -> dict[str, Any]:
    """Write a file of `Comparison`s for each split, the other rows by kind, and `statistics.json`."""
    from inverse_alignment.core.artifact import external
    from inverse_alignment.data.aggregate import aggregate
    from inverse_alignment.text.render import PairEncoder
    from inverse_alignment.text.tokenizers import load_tokenizer

    limits = {"policy": config.context, "reward": config.reward_context}
    distinct = {  # policy and reward model often read alike: then every pair is encoded once
        (external("tokenizer", inputs["tokenizers"] / role).digest, tokens): role for role, tokens in limits.items()
    }
    encoders = [
        PairEncoder(
            load_tokenizer(inputs["tokenizers"] / role).tokenizer, limits[role], too_long=config.aggregate.too_long
        )
        for role in distinct.values()
    ]
    statistics = aggregate(
        context.out,
        config.sources,
        config.aggregate,
        encoders,
        config.evaluation,
        {source.name: inputs[f"source.{source.name}"] for source in (*config.sources, *config.evaluation)},
        context.report.progress,
    )
    available = statistics["splits"]["train"]["pairs"]
    if available < config.least_train_pairs:  # now, not after an hour of training
        raise UserError(
            f"a selection asks for {config.least_train_pairs} pairs, but only {available} are in the train split",
            where="the k of a selection, in arms or selection",
            fix=f"set it to at most {available}, or add preference data",
        )
    return {
        "pairs": statistics["pairs"],
        **{f"{split}_pairs": counts["pairs"] for split, counts in statistics["splits"].items()},
        "other_rows": sum(other["kept"] for other in statistics["others"].values()),
    }
