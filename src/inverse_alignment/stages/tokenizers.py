"""sources or checkpoints -> the tokenizers of policy and reward model, each with its chat template."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.data.sources import SourceConfig
from inverse_alignment.models.specs import InitialisedModel, ModelSpec


class TokenizersConfig(Section):
    """Which tokenizers to make or to copy."""

    policy: ModelSpec = Field(InitialisedModel(), description="the policy's base model")
    reward: ModelSpec = Field(InitialisedModel(), description="the reward model's base model")
    sources: tuple[SourceConfig, ...] = Field((), description="texts a new tokenizer is trained on")


def build(inputs: Mapping[str, Path], config: TokenizersConfig, context: StageContext) -> dict[str, Any]:
    """Write `policy/` and `reward/`: equal bytes where both are trained here with one vocabulary size."""
    from inverse_alignment.text.tokenizers import load_tokenizer, train_tokenizer

    trained: dict[int, Any] = {}
    sizes: dict[str, int] = {}
    notes: list[str] = []
    for done, (role, spec) in enumerate((("policy", config.policy), ("reward", config.reward)), start=1):
        if isinstance(spec, InitialisedModel):
            if spec.vocab_size not in trained:
                trained[spec.vocab_size] = train_tokenizer(_texts(config.sources, inputs), spec.vocab_size)
            tokenizer = trained[spec.vocab_size]
        else:
            date = datetime.date.fromisoformat(spec.template_date) if spec.template_date else None
            loaded = load_tokenizer(inputs[f"{role}_model"], date)
            tokenizer = loaded.tokenizer
            notes += loaded.notes
            _rehearse(role, inputs[f"{role}_model"], tokenizer)
        tokenizer.save_pretrained(context.out / role)
        sizes[role] = len(tokenizer)
        context.report.progress(done, 2, "tokenizers")
    return {"policy_vocabulary": sizes["policy"], "reward_vocabulary": sizes["reward"]} | (
        {"notes": notes} if notes else {}
    )


def _rehearse(role: str, checkpoint: Path, tokenizer: Any) -> None:
    """Refuse a checkpoint that its own stage could not load, hours before that stage."""
    from inverse_alignment.models.loading import rehearse_policy, rehearse_reward_model

    (rehearse_policy if role == "policy" else rehearse_reward_model)(checkpoint, tokenizer)


def _texts(sources: tuple[SourceConfig, ...], inputs: Mapping[str, Path]) -> Iterator[str]:
    """Every turn and answer of the sources, each once: one answer is often compared with many others."""
    from inverse_alignment.core.records import Example
    from inverse_alignment.data.read import read

    seen: set[int] = set()
    for source in sources:
        for example in read(source, inputs[f"source.{source.name}"]):
            if not isinstance(example, Example):  # a row that was dropped
                continue
            turns = (message.content for message in example.prompt.messages)
            for text in (*turns, *example.answers):
                if hash(text) not in seen:
                    seen.add(hash(text))
                    yield text
