"""Bradley-Terry reward models through TRL's RewardTrainer, with the weights and soft labels that it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from inverse_alignment.core.metrics import Report
from inverse_alignment.core.parallel import group, shares
from inverse_alignment.core.records import Comparison
from inverse_alignment.maths.pairwise import bradley_terry_loss
from inverse_alignment.models.trl_training import apart, configure, presented, shared_out, train
from inverse_alignment.text.render import encode_full

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PairLoss:
    """What `maths.pairwise.bradley_terry_loss` needs besides scores."""

    smoothing: float
    centring: float
    use_margins: bool


class WeightedRewardTrainer(RewardTrainer):
    """RewardTrainer with our loss: weights and soft labels of pairs, smoothing (TRL ignores it), margins, centring."""

    def __init__(self, *, pair_loss: PairLoss, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._pair_loss = pair_loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a batch whose first half are chosen and second half rejected sequences.

        Of one process's part of a batch, the loss times its share: the mean over processes is that of the whole batch.
        """
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        chosen, rejected = outputs.logits.squeeze(-1).float().chunk(2)
        weights, settings = inputs["weights"], self._pair_loss
        margins = inputs["margin"] if settings.use_margins else torch.zeros_like(chosen)
        counts = weights > 0  # the others only fill up a batch that several processes share
        by_weight, by_pair = shares(group(), weights.sum(), counts.sum())
        if by_pair:
            loss = by_weight * bradley_terry_loss(
                chosen[counts],
                rejected[counts],
                weights[counts],
                margins[counts],
                inputs["soft_labels"][counts],
                settings.smoothing,
                settings.centring * by_pair / by_weight,
            )
        else:
            loss = 0.0 * (chosen + rejected).sum()
        return (loss, outputs) if return_outputs else loss


class PairCollator:
    """TRL's collator, and the weights and soft labels that it would drop."""

    def __init__(self, pad_token_id: int) -> None:
        self._pairs = DataCollatorForPreference(pad_token_id=pad_token_id)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad the pairs of a batch."""
        batch: dict[str, Tensor] = self._pairs(examples)
        ours = {"weights": "weight", "soft_labels": "soft_label"}
        return {**batch, **{key: torch.tensor([example[name] for example in examples]) for key, name in ours.items()}}


def pair_rows(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Comparison], weights: Sequence[float], max_tokens: int
) -> list[dict[str, Any]]:
    """Token ids of pairs as the trainer takes them.

    A pair's own weight multiplies the given one; without a soft label its label is certain.
    """
    return [
        {
            "chosen_ids": encode_full(tokenizer, pair.prompt, pair.chosen, max_tokens),
            "rejected_ids": encode_full(tokenizer, pair.prompt, pair.rejected, max_tokens),
            "margin": pair.margin or 0.0,
            "weight": weight * pair.weight,
            "soft_label": 1.0 if pair.soft_label is None else pair.soft_label,
        }
        for pair, weight in zip(pairs, weights, strict=True)
    ]


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    arguments: dict[str, Any],
    pair_loss: PairLoss,
    partial: Path,
    report: Report,
    checkpoint_seconds: float,
) -> dict[str, float]:
    """Fit a reward model to preference pairs, in place.

    Args:
        rows: from `pair_rows`.
        arguments: from `models.trl_training.arguments`.
        partial: where checkpoints live; training goes on from the newest whole one.
    """
    lengths = [max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    rows, arguments = shared_out(*presented(rows, lengths, arguments), lambda row: {**row, "weight": 0.0})
    trainer = WeightedRewardTrainer(
        pair_loss=pair_loss,
        model=apart(model),
        args=configure(RewardConfig, arguments),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        data_collator=PairCollator(tokenizer.pad_token_id),
    )
    return train(trainer, model, partial, report, checkpoint_seconds)
