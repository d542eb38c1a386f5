"""Bradley-Terry reward models through TRL's RewardTrainer, with the weights and soft labels that it lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from inverse_alignment.core.batches import pad_right
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import Report
from inverse_alignment.core.parallel import group, shares
from inverse_alignment.core.records import Comparison
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.maths.contrastive import info_nce
from inverse_alignment.maths.pairwise import bradley_terry_loss, contrast_loss
from inverse_alignment.maths.prefixes import look_ahead, temporal_smoothness
from inverse_alignment.maths.spread import score_spread
from inverse_alignment.models.sequence_scores import plain_scores, sequence_scores, watched_scores
from inverse_alignment.models.trl_training import apart, configure, presented, shared_out, train
from inverse_alignment.reward.held_out import HeldOut
from inverse_alignment.text.render import encode_answers, encode_prompts, prompt_budget

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PairLoss:
    """What `maths.pairwise.bradley_terry_loss` needs besides scores, and what is asked of the model besides.

    Attributes:
        smoothness: weight of `maths.prefixes.temporal_smoothness` of both answers of a pair.
        look_ahead: the same of `maths.prefixes.look_ahead`.
        contrast: weight of `maths.contrastive.info_nce` of a pair's difference of features, h(x, y_c) - h(x, y_r), seen
            twice with noise, among those of the batch.
        temperature: of that.
        dropout: probability that a feature is dropped from a view.
    """

    smoothing: float
    centring: float
    use_margins: bool
    smoothness: float = 0.0
    look_ahead: float = 0.0
    contrast: float = 0.0
    temperature: float = 0.1
    dropout: float = 0.1

    @property
    def looks_inside(self) -> bool:
        """Whether more than scores of whole answers matters."""
        return bool(self.smoothness or self.look_ahead or self.contrast)


@dataclass(frozen=True)
class LookAhead:
    """MetaRM (arXiv 2405.00438): every step is taken with the gradient found a step further towards more spread.

    `θ' = θ + η ∇J(θ)` with J the spread of the scores of the policy's own answers, then `θ ← θ - α ∇L(θ')`: to first
    order, pairs count for more whose gradient also tells the policy's answers apart.

    Attributes:
        answers: token ids of the policy's answers, k of them to each of g prompts.
        rate: η, score units per unit of squared gradient.
        prompts: prompts whose answers are looked at in one step.
        seed: of their order.
    """

    answers: Sequence[Sequence[Sequence[int]]]
    rate: float
    prompts: int
    seed: int

    def at(self, step: int) -> list[Sequence[Sequence[int]]]:
        """The prompts of a step: a new shuffle per pass over them, hence the step is the whole cursor."""
        chosen = []
        for position in range(step * self.prompts, (step + 1) * self.prompts):
            epoch, place = divmod(position, len(self.answers))
            generator = np.random.Generator(np.random.Philox(key=derive_seed("look ahead", self.seed, epoch)))
            chosen.append(self.answers[int(generator.permutation(len(self.answers))[place])])
        return chosen


class WeightedRewardTrainer(RewardTrainer):
    """RewardTrainer with our loss: weights and soft labels of pairs, smoothing (TRL ignores it), margins, centring."""

    def __init__(self, *, pair_loss: PairLoss, ahead: LookAhead | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._pair_loss, self._ahead = pair_loss, ahead

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The gradient of a batch, found where `LookAhead` says if there is one; the weights stay for the optimiser."""
        if self._ahead is None:
            return super().training_step(model, inputs, num_items_in_batch)
        with self._shifted(self._ahead):
            return super().training_step(model, inputs, num_items_in_batch)

    @contextmanager
    def _shifted(self, ahead: LookAhead) -> Iterator[None]:
        """Inside, the weights are a step further towards more spread. All processes look at the same answers."""
        model: Any = self.model  # as it is, not wrapped for several processes
        learned = [weight for weight in model.parameters() if weight.requires_grad]
        kept = [weight.detach().clone() for weight in learned]
        gradients = torch.autograd.grad(self._spread(model, ahead), learned, allow_unused=True)
        with torch.no_grad():
            for weight, gradient in zip(learned, gradients, strict=True):
                if gradient is not None:
                    weight.add_(gradient, alpha=ahead.rate)
        yield
        with torch.no_grad():
            for weight, old in zip(learned, kept, strict=True):
                weight.copy_(old)

    def _spread(self, model: Any, ahead: LookAhead) -> Tensor:
        prompts = ahead.at(self.state.global_step)
        model.train()  # as in the step itself, resumed or not
        rows = [list(answer) for answers in prompts for answer in answers]
        ids, mask = pad_right(rows, model.config.pad_token_id, model.device)
        return score_spread(plain_scores(model, ids, mask).reshape(len(prompts), -1))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a batch whose first half are chosen and second half rejected sequences.

        Pairs that are marked linear have `maths.pairwise.contrast_loss`, each pair with its share of the weights.

        Of one process's part of a batch, the loss times its share: the mean over processes is that of the whole batch.
        """
        weights, settings = inputs["weights"], self._pair_loss
        scores, penalties = _read(model, inputs, settings)
        chosen, rejected = scores.chunk(2)
        margins = inputs["margin"] if settings.use_margins else torch.zeros_like(chosen)
        counts = weights > 0  # the others only fill up a batch that several processes share
        by_weight, by_pair = shares(group(), weights.sum(), counts.sum())
        if by_pair:
            loss = (
                by_weight
                * _mixed_loss(
                    chosen[counts],
                    rejected[counts],
                    weights[counts],
                    margins[counts],
                    inputs["soft_labels"][counts],
                    inputs["linear"][counts],
                    settings,
                    by_pair / by_weight,
                )
                + by_weight * (weights * penalties).sum() / weights.sum()
            )
        else:
            loss = 0.0 * (chosen + rejected).sum()
        return (loss, {"logits": scores}) if return_outputs else loss


def _read(model: Any, inputs: dict[str, Tensor], settings: PairLoss) -> tuple[Tensor, Tensor]:
    """Scores (2n,) of a batch of pairs, and what each pair is penalised by besides, (n,)."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if not settings.looks_inside:
        # several processes would wait for each other at every pass: each makes one
        scores = (sequence_scores if group().size == 1 else plain_scores)(model, ids, mask)
        return scores, torch.zeros_like(scores[::2])
    final, values, features = watched_scores(model, ids, mask)
    of_answer = mask.bool() & (torch.arange(ids.shape[1], device=ids.device) >= inputs["starts"].repeat(2)[:, None] - 1)
    both = settings.smoothness * temporal_smoothness(values, of_answer)
    both = both + settings.look_ahead * look_ahead(values, final, of_answer)
    penalties = both[: len(ids) // 2] + both[len(ids) // 2 :]
    if settings.contrast:
        chosen, rejected = features.chunk(2)
        first, second = (functional.dropout(chosen - rejected, settings.dropout) for _ in range(2))
        penalties = penalties + settings.contrast * info_nce(first, second, settings.temperature)
    return final, penalties


def _mixed_loss(
    chosen: Tensor,
    rejected: Tensor,
    weights: Tensor,
    margins: Tensor,
    labels: Tensor,
    linear: Tensor,
    settings: PairLoss,
    centring: float,
) -> Tensor:
    """The weighted mean of two losses, each over its own pairs; centring, `centring` times as strong, over all."""
    share = (weights * linear).sum() / weights.sum()
    loss = centring * settings.centring * ((chosen + rejected) ** 2).mean()
    if not bool(linear.all()):
        r_c, r_r, w, m, p = (part[~linear] for part in (chosen, rejected, weights, margins, labels))
        loss = loss + (1.0 - share) * bradley_terry_loss(r_c, r_r, w, m, p, settings.smoothing)
    if bool(linear.any()):
        loss = loss + share * contrast_loss(chosen[linear], rejected[linear], weights[linear])
    return loss


class PairCollator:
    """TRL's collator, and the weights, soft labels, kinds of loss and lengths of prompts that it would drop."""

    def __init__(self, pad_token_id: int) -> None:
        self._pairs = DataCollatorForPreference(pad_token_id=pad_token_id)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad the pairs of a batch."""
        batch: dict[str, Tensor] = self._pairs(examples)
        ours = {"weights": "weight", "soft_labels": "soft_label", "linear": "linear", "starts": "start"}
        return {**batch, **{key: torch.tensor([example[name] for example in examples]) for key, name in ours.items()}}


def pair_rows(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Comparison],
    weights: Sequence[float],
    max_tokens: int,
    linear: Sequence[bool] = (),
) -> list[dict[str, Any]]:
    """Token ids of pairs as the trainer takes them, but for pairs whose answers are the same to the tokenizer.

    Two answers may become one by being cut; such a pair teaches nothing, and its label is wrong. A pair's own weight
    multiplies the given one; without a soft label its label is certain.

    Args:
        linear: which pairs have the contrast loss; empty: none.
    """
    prompts = [pair.prompt for pair in pairs]
    sides = [encode_answers(tokenizer, prompts, [p.answers[i] for p in pairs], max_tokens) for i in (0, 1)]
    starts = [len(ids) for ids in encode_prompts(tokenizer, prompts, prompt_budget(max_tokens))]
    return [
        {
            "chosen_ids": chosen,
            "rejected_ids": rejected,
            "margin": pair.margin or 0.0,
            "weight": weight * pair.weight,
            "soft_label": 1.0 if pair.soft_label is None else pair.soft_label,
            "linear": kind,
            "start": start,
            "pair": number,
        }
        for number, (chosen, rejected, start, pair, weight, kind) in enumerate(
            zip(*sides, starts, pairs, weights, linear or [False] * len(pairs), strict=True)
        )
        if chosen != rejected
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
    ahead: LookAhead | None = None,
    held_out: HeldOut | None = None,
) -> dict[str, float]:
    """Fit a reward model to preference pairs, in place.

    Args:
        rows: from `pair_rows`.
        arguments: from `models.trl_training.arguments`.
        partial: where checkpoints live; training goes on from the newest whole one.
        ahead: where gradients are found, if not where the weights are.
        held_out: what ends the training early, and says which weights are kept.

    Raises:
        UserError: there is nothing to learn; `ahead` or `held_out` is asked of a model that is sharded over
            processes; or several are to look inside it.
    """
    if not rows:
        raise UserError("no pair has two different answers", where="data", fix="see `inverse-alignment data inspect`")
    if apart(model) is not model:
        _require_whole(ahead, held_out)
    if pair_loss.looks_inside and group().size > 1:
        raise UserError(
            "the beginnings of answers are read, and pairs contrasted, by one process",
            where="runtime.launcher.stages",
            fix="leave reward_model out of it, or set reward.prefixes.type and reward.contrast.type to off",
        )
    lengths = [max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    rows, arguments = shared_out(*presented(rows, lengths, arguments), lambda row: {**row, "weight": 0.0})
    trainer = WeightedRewardTrainer(
        pair_loss=pair_loss,
        ahead=ahead,
        model=apart(model),
        args=configure(RewardConfig, arguments),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        data_collator=PairCollator(tokenizer.pad_token_id),
    )
    if held_out is None:
        return train(trainer, model, partial, report, checkpoint_seconds)
    trainer.add_callback(held_out.watching(model, partial, report))
    metrics = train(trainer, model, partial, report, checkpoint_seconds, held_out.ended)
    return {**metrics, **held_out.restore(model)}


def _require_whole(ahead: LookAhead | None, held_out: HeldOut | None) -> None:
    """What looks at weights by itself needs them all in one place."""
    for asked, what, fix in (
        (ahead, "the rule meta moves", "refresh.rule.type=full"),
        (held_out, "an early stop keeps", "reward.stop.type=last"),
    ):
        if asked is not None:
            raise UserError(
                f"{what} weights by itself, and cannot where they are sharded over processes",
                where="runtime.launcher.config",
                fix=f"take one without FSDP or DeepSpeed, or set {fix}",
            )
