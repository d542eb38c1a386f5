"""frozen policy + prompts -> sampled answers with their log-probabilities under policy and reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.core.records import Split
from inverse_alignment.generation.settings import GenerationConfig, HfGeneration


class RolloutConfig(Section):
    """Sampling from a frozen policy."""

    split: Split = Field(
        "train", description="prompts come from this split: those of its pairs, and those that came alone"
    )
    prompts: int = Field(0, ge=0, description="distinct prompts; 0 for all of the split")
    samples: int = Field(4, ge=1, description="answers per prompt")
    max_new_tokens: int = Field(64, ge=1, description="longest answer in policy tokens")
    temperature: float = Field(1.0, gt=0, description="divides the logits; 1 samples the policy itself")
    generation: GenerationConfig = Field(HfGeneration(), description="who samples: this process, or a vLLM server")


class RolloutStage(Section):
    """Identity of the stage."""

    rollout: RolloutConfig
    context: int = Field(description="most tokens of prompt and answer together")


def build(inputs: Mapping[str, Path], config: RolloutStage, context: StageContext) -> dict[str, Any]:
    """Write `rollouts.jsonl`, one `Rollout` a line."""
    from inverse_alignment.core.records import write_jsonl
    from inverse_alignment.data.aggregate import read_prompts
    from inverse_alignment.generation.answers import Sampling, choose_prompts
    from inverse_alignment.generation.rollouts import ask, roll_out

    rollout = config.rollout
    prompts = read_prompts(inputs["preferences"], rollout.split)
    rollouts = roll_out(
        inputs["policy"],
        inputs["reference"],
        ask(choose_prompts(prompts, rollout.prompts, context.seed), rollout.samples, context.seed),
        rollout.generation,
        Sampling(rollout.max_new_tokens, rollout.temperature, config.context, context.runtime.generation_rows),
        context,
    )
    write_jsonl(context.out / "rollouts.jsonl", rollouts)
    count = len(rollouts)
    return {
        "answers": count,
        "kl_to_sft": sum(r.kl_estimate for r in rollouts) / count,
        "tokens": sum(r.tokens for r in rollouts) / count,
        "ended_share": sum(r.ended for r in rollouts) / count,
    }
