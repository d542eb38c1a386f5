"""evaluations of every arm, seed and round -> one comparison and one report page."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext


class CompareStage(Section):
    """Identity of the stage: which arms, seeds and rounds are set side by side."""

    title: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    rounds: int
    config_digest: str = Field(description="sha256 of the identity-bearing configuration")


def build(inputs: Mapping[str, Path], config: CompareStage, context: StageContext) -> dict[str, Any]:
    """Write `comparison.json`, `report.html` and `data-card.html`.

    Returns:
        Every arm's final gold reward, RM score and KL, seed means.

    Raises:
        UserError: an input or one of its files is missing or cannot be read.
    """
    from inverse_alignment.report import analysis, card
    from inverse_alignment.report.collect import collect
    from inverse_alignment.report.comparison import PAGE, save
    from inverse_alignment.report.page import render

    comparison = collect(
        inputs,
        title=config.title,
        arms=config.arms,
        seeds=config.seeds,
        rounds=config.rounds,
        config_digest=config.config_digest,
    )
    save(comparison, context.out)
    context.report.progress(1, 3, "file")
    (context.out / PAGE).write_text(render(comparison), encoding="utf-8")
    context.report.progress(2, 3, "file")
    (context.out / card.PAGE).write_text(card.render(comparison.statistics), encoding="utf-8")
    context.report.progress(3, 3, "file")
    headline: dict[str, Any] = {}
    for arm in comparison.arms:
        for name in ("gold_reward", "rm_score", "kl_to_sft"):
            mean = analysis.finals(comparison, arm, attrgetter(name))
            headline[f"{arm}.{name}"] = mean.mean if mean else None
    return headline
