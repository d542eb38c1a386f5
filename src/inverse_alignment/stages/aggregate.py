"""sources + tokenizers -> one preference set: pooled, cleaned, split by prompt, counted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.core.errors import UserError, nearest
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
    source_policies: tuple[str, ...] = Field((), description="source policies that SFT will imitate; empty for all")
    gold: Literal["text_world", "none"] = Field("none", description="the gold reward that prompts must be known to")


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
    _require_what_is_asked_for(config, statistics)  # now, not after an hour of training
    if config.gold == "text_world":
        _require_known_prompts(context.out)
    return {
        "pairs": statistics["pairs"],
        **{f"{split}_pairs": counts["pairs"] for split, counts in statistics["splits"].items()},
        "other_rows": sum(other["kept"] for other in statistics["others"].values()),
    }


def _require_what_is_asked_for(config: AggregateStage, statistics: Mapping[str, Any]) -> None:
    """The train split has as many pairs as a selection keeps, and the answers that SFT imitates.

    Raises:
        UserError: it has not.
    """
    available = statistics["splits"]["train"]["pairs"]
    if available < config.least_train_pairs:
        raise UserError(
            f"a selection asks for {config.least_train_pairs} pairs, but only {available} are in the train split",
            where="the k of a selection, in arms or selection",
            fix=f"set it to at most {available}, or add preference data",
        )
    known = sorted(statistics["policies"])
    for name in config.source_policies:
        if name not in known and not statistics["others"]:  # whose writers are not counted
            raise UserError(f"no source policy '{name}'", where="sft.sources", fix=nearest(name, known))


def _require_known_prompts(folder: Path) -> None:
    """Every prompt is one that the embedded world's gold reward can judge.

    Raises:
        UserError: one is not.
    """
    from inverse_alignment.core.records import SPLITS, Comparison, iter_jsonl
    from inverse_alignment.world.gold import topic_of

    for split in SPLITS:
        for pair in iter_jsonl(folder / f"{split}.jsonl", Comparison):
            try:
                topic_of(pair.prompt)
            except UserError as error:
                raise UserError(
                    f"the gold reward of the embedded world does not know the prompt {pair.prompt.text()[:60]!r}",
                    where=f"evaluation.gold.type=text_world, row {pair.id}",
                    fix="set evaluation.gold.type=none: of other data nobody knows the gold",
                ) from error
