"""Supervised fine-tuning through TRL, on token ids that our own rendering made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from inverse_alignment.core.metrics import Report
from inverse_alignment.core.records import Prompt
from inverse_alignment.models.trl_training import apart, configure, presented, shared_out, train
from inverse_alignment.text.render import encode_full, encode_prompt, prompt_budget

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100  # the label that PyTorch's cross entropy leaves out


def demonstrations(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Prompt, str]], max_tokens: int
) -> list[dict[str, list[int]]]:
    """Token ids and labels of prompt-answer pairs; prompt tokens carry no loss."""
    rows = []
    for prompt, response in pairs:
        ids = encode_full(tokenizer, prompt, response, max_tokens)
        start = len(encode_prompt(tokenizer, prompt, prompt_budget(max_tokens)))
        rows.append({"input_ids": ids, "labels": [IGNORED] * start + ids[start:]})
    return rows


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, list[int]]],
    arguments: dict[str, Any],
    partial: Path,
    report: Report,
    checkpoint_seconds: float,
) -> dict[str, float]:
    """Minimise `-Σ log π(y_t | x, y_<t)` over answer tokens, in place.

    Args:
        arguments: from `models.trl_training.arguments`.
        partial: where checkpoints live; training goes on from the newest whole one.
    """
    from trl import SFTConfig, SFTTrainer

    rows, arguments = presented(rows, [len(row["input_ids"]) for row in rows], arguments)
    rows, arguments = shared_out(rows, arguments, lambda row: {**row, "labels": [IGNORED] * len(row["labels"])})
    trainer = SFTTrainer(
        model=apart(model),
        args=configure(SFTConfig, arguments),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
    )
    return train(trainer, model, partial, report, checkpoint_seconds)
