"""preferences + reward model -> a token-level reward model: what in an answer is good, and what is bad."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext


class TokenRewardConfig(Section):
    """How a token head is trained on pairs whose answers differ little; used by `ppo.credit.type: token` alone."""

    most_edited: float = Field(
        0.7, gt=0, le=1, description="largest share of edited tokens among those of both answers of a pair"
    )
    neutral_weight: float = Field(0.5, ge=0, description="η, weight of the squared reward of tokens that nobody edited")
    epochs: float = Field(3, gt=0, description="passes over the answers of those pairs")
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate of AdamW, linear decay")
    batch_size: int = Field(32, ge=1, description="answers per optimiser step")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises")


class TokenRewardStage(Section):
    """Identity of the stage."""

    token_reward: TokenRewardConfig
    context: int = Field(description="most tokens of prompt and answer together, in the reward model's tokens")


def build(inputs: Mapping[str, Path], config: TokenRewardStage, context: StageContext) -> dict[str, Any]:
    """Write `model/`: a token classifier with one label on the reward model's trunk, and its tokenizer.

    Raises:
        UserError: no pair of the train split differs little enough.
    """
    from inverse_alignment.core.errors import UserError
    from inverse_alignment.core.parallel import group
    from inverse_alignment.data.aggregate import read_split
    from inverse_alignment.models.loading import pick_device, place, save_model
    from inverse_alignment.models.token_heads import token_head_from_trunk
    from inverse_alignment.models.trl_training import scheduled
    from inverse_alignment.reward.token_head import edit_rows, fit_token_head, separation
    from inverse_alignment.text.tokenizers import load_tokenizer

    settings, runtime = config.token_reward, context.runtime
    tokenizer = load_tokenizer(inputs["reward"]).tokenizer
    pairs = read_split(inputs["preferences"], "train")
    rows = edit_rows(tokenizer, pairs, config.context, settings.most_edited)
    if not rows:
        raise UserError(
            f"the answers of none of {len(pairs)} pairs differ in at most {settings.most_edited:.0%} of their tokens",
            where="token_reward.most_edited",
            fix="raise it, or use another ppo.credit.type than token: these pairs are no minimal edits",
        )
    model = place(token_head_from_trunk(inputs["reward"]), pick_device(runtime.device))
    trained = fit_token_head(
        model,
        tokenizer,
        rows,
        scheduled(settings, model.device, context),
        settings.neutral_weight,
        context.partial,
        context.report,
        runtime.checkpoint_seconds,
    )
    if group().rank:
        return {}  # the first process has the same weights
    held_out = edit_rows(
        tokenizer, read_split(inputs["preferences"], "validation"), config.context, settings.most_edited
    )
    measured = separation(model.eval(), held_out, tokenizer.pad_token_id, runtime.scoring_rows * config.context)
    save_model(place(model, "cpu"), tokenizer, context.out / "model")
    return {
        **trained,
        "parameters": model.num_parameters(),
        "pairs": len(rows) // 2,
        "validation_pairs": len(held_out) // 2,
        **{f"validation_{name}": value for name, value in measured.items()},
    }
