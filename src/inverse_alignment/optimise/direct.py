"""Direct preference optimisation with a reference that may move.

TRL's DPOTrainer and KTOTrainer have neither weights nor soft labels of pairs, move a reference of full models alone,
and do not resume one; what they do have is the same here, and a test holds the losses together. See docs/decisions/018.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from inverse_alignment.core import checkpoint
from inverse_alignment.core.batches import Sequences, TokenBatch, pad_left, pad_right
from inverse_alignment.core.metrics import Report
from inverse_alignment.core.records import Prompt
from inverse_alignment.maths.direct import (
    clipped_reference_gap,
    dpo_loss,
    ipo_loss,
    kto_baseline,
    kto_loss,
    log_ratio_gap,
    optimism,
)
from inverse_alignment.maths.pairwise import contrast_loss, hinge_loss
from inverse_alignment.models.adapters import REFERENCE, adapt_policy, merged_weights
from inverse_alignment.models.log_probs import Anchor, Head, token_log_probs
from inverse_alignment.models.loss_trainer import BatchLoss, fit_loss
from inverse_alignment.models.trl_training import presented
from inverse_alignment.optimise.direct_settings import (
    MOVING,
    Anchored,
    AnchoredMethod,
    DirectMethod,
    Dpo,
    FixedAnchor,
    HardAnchor,
    Ipo,
    Irft,
    Kto,
    Selm,
    SoftAnchor,
)
from inverse_alignment.optimise.reference import follow, load_parameters, save_parameters
from inverse_alignment.text.render import encode_written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFERENCE_FILE = "reference.safetensors"
MEASURED = ("sft_margin", "sft_accuracy", "good_log_ratio", "bad_log_ratio", "kto_baseline")
"""What is reported beside the loss, against the SFT policy, which never moves."""


@dataclass(frozen=True)
class Row:
    """Answers to one prompt that enter the loss together.

    Attributes:
        answers: chosen and rejected, and the reference's own third for SELM; one answer for KTO.
        good: of one answer, whether it is a good one.
        soft_label: probability that the first answer is the better one.
    """

    prompt: Prompt
    answers: tuple[str, ...]
    weight: float = 1.0
    soft_label: float = 1.0
    good: bool = True


@dataclass(frozen=True)
class Learning:
    """A policy, and what its log-ratios are against.

    Attributes:
        reference: the anchor itself, or a copy of it that moves.
        sft: the frozen SFT policy, to which metrics are reported.
        moves_alone: whether the reference is a model of its own that changes: then a checkpoint has to hold it.
    """

    policy: PreTrainedModel
    reference: Anchor
    sft: Anchor
    moves_alone: bool = False


def learning(
    policy: PreTrainedModel, sft: PreTrainedModel, anchor: PreTrainedModel, config: Anchored, seed: int
) -> Learning:
    """What a round learns with. Adapters are fresh in every round, and so is a reference made of them.

    Args:
        policy: changes in place.
        sft: where the first round began; frozen.
        anchor: what the reference is at first: `sft` itself, or where this round begins.
    """
    moves, first = isinstance(config.reference, MOVING), Anchor(sft.eval().requires_grad_(False))
    if config.lora is None:
        kept = copy.deepcopy(anchor) if moves else anchor
        return Learning(policy, first if kept is sft else Anchor(kept.eval().requires_grad_(False)), first, moves)
    lora = config.lora
    adapt_policy(policy, lora.rank, lora.alpha, lora.targets, seed, reference=moves, where="optimise.lora.targets")
    if isinstance(config.reference, FixedAnchor):
        return Learning(policy, first, first)
    return Learning(policy, Anchor(policy, REFERENCE if moves else None), first)


class Following(TrainerCallback):
    """Moves the reference after optimiser steps, however many passes each of them took, and keeps it in checkpoints."""

    def __init__(self, given: Learning, config: AnchoredMethod) -> None:
        self._given, self._config = given, config

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See `follow`."""
        match self._config.reference:
            case HardAnchor(every=every) if state.global_step % every == 0:
                follow(self._given.reference, self._given.policy, 1.0)
            case SoftAnchor(alpha=alpha) if alpha > 0:
                follow(self._given.reference, self._given.policy, alpha)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Before the checkpoint is sealed: callbacks are called in the order in which they came."""
        if self._given.moves_alone:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            save_parameters(self._given.reference.model, folder / REFERENCE_FILE)


def direct_loss(given: Learning, method: Anchored) -> BatchLoss:
    """`loss_of` a batch of rows."""

    def of_batch(model: Any, inputs: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch = TokenBatch(*(inputs[name] for name in ("prompt_ids", "prompt_mask", "response_ids", "response_mask")))
        mine, reference, sft = _log_probs(given, batch)
        return loss_of(method, Answers(mine, reference, sft, len(mine) // len(inputs["weights"])), inputs)

    return of_batch


def _log_probs(given: Learning, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities (rows,) of whole answers: of the policy, its reference and the SFT policy."""
    sequences = Sequences.of(batch)
    own = answer_log_probs(Head(given.policy), sequences)
    with torch.no_grad():
        reference = answer_log_probs(Head(*given.reference), sequences)
        sft = reference if given.reference == given.sft else answer_log_probs(Head(*given.sft), sequences)
    return own, reference, sft


def answer_log_probs(head: Head, sequences: Sequences) -> Tensor:
    """Log-probabilities (b,) of whole answers."""
    states = head.states(sequences)
    return sequences.spread(token_log_probs(head, states, sequences.targets, 1.0)).sum(-1)


@dataclass(frozen=True)
class Answers:
    """Log-probabilities of all answers of a batch, (k·n,): the first of every row, then the second, and so on."""

    policy: Tensor
    reference: Tensor
    sft: Tensor
    each: int

    def of(self, which: int) -> tuple[Tensor, Tensor, Tensor]:
        """(n,) of the policy, the reference and the SFT policy, of one answer of every row."""
        return tuple(side.chunk(self.each)[which] for side in (self.policy, self.reference, self.sft))  # type: ignore[return-value]


def loss_of(method: Anchored, answers: Answers, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and what is reported of it.

    Args:
        given: `weights`, `soft_labels` and `good`, (n,) each.
    """
    if isinstance(method, Kto):
        return _kto(method, answers, given)
    (chosen, ref_chosen, sft_chosen), (rejected, ref_rejected, sft_rejected) = answers.of(0), answers.of(1)
    clipped = isinstance(method, Dpo) and method.reference_gap == "clipped"
    gaps = (clipped_reference_gap if clipped else log_ratio_gap)(chosen, rejected, ref_chosen, ref_rejected)
    loss = _of_gaps(method, gaps, given["weights"], given["soft_labels"])
    if isinstance(method, Selm):
        own, ref_own, _ = answers.of(2)
        loss = loss + optimism(own - ref_own, given["weights"], method.optimism, method.beta)
    good, bad = (chosen - sft_chosen).detach(), (rejected - sft_rejected).detach()
    return loss, {
        "sft_margin": method.beta * (good - bad).mean(),
        "sft_accuracy": (good > bad).float().mean(),
        "good_log_ratio": good.mean(),
        "bad_log_ratio": bad.mean(),
    }


def _of_gaps(method: Anchored, gaps: Tensor, weights: Tensor, labels: Tensor) -> Tensor:
    match method:
        case Ipo():
            return ipo_loss(gaps, weights, labels, method.beta, method.label_smoothing)
        case Irft(loss="hinge"):
            return hinge_loss(method.beta * gaps, torch.zeros_like(gaps), weights)
        case Irft(loss="linear"):
            return contrast_loss(method.beta * gaps, torch.zeros_like(gaps), weights)
        case Dpo() | Selm():
            return dpo_loss(gaps, weights, labels, method.beta, method.label_smoothing)
        case _:
            return dpo_loss(gaps, weights, labels, method.beta)


def _kto(method: Kto, answers: Answers, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The first answer of a row is its own, the second belongs to another prompt."""
    (policy, reference, sft), (other, ref_other, _) = answers.of(0), answers.of(1)
    good, ratios = given["good"], (policy - sft).detach()
    baseline = kto_baseline(other - ref_other)
    loss = kto_loss(policy - reference, good, given["weights"], baseline, method.beta, method.undesirable_weight)
    found = {"kto_baseline": baseline}
    found |= {
        name: ratios[side].mean() for name, side in (("good_log_ratio", good), ("bad_log_ratio", ~good)) if side.any()
    }
    return loss, found


class RowCollator:
    """Pads prompts and answers: all first answers, then all second ones, and so on."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """One batch."""
        each = len(examples[0]["answers"])
        prompts = [example["prompt"] for _ in range(each) for example in examples]
        responses = [example["answers"][which] for which in range(each) for example in examples]
        names = ("prompt_ids", "prompt_mask", "response_ids", "response_mask")
        padded = (*pad_left(prompts, self._pad), *pad_right(responses, self._pad))
        return {
            **dict(zip(names, padded, strict=True)),
            "weights": torch.tensor([float(example["weight"]) for example in examples]),
            "soft_labels": torch.tensor([float(example["soft_label"]) for example in examples]),
            "good": torch.tensor([bool(example["good"]) for example in examples]),
        }


def encoded(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_tokens: int) -> list[dict[str, Any]]:
    """Token ids of rows, cut as in any other training.

    Raises:
        UserError: see `text.render.encode_prompt`.
    """
    prompts = [row.prompt for row in rows for _ in row.answers]
    written = iter(encode_written(tokenizer, prompts, [answer for row in rows for answer in row.answers], max_tokens))
    found = []
    for row in rows:
        ids = [next(written) for _ in row.answers]
        given = {"weight": row.weight, "soft_label": row.soft_label, "good": row.good}
        found.append({"prompt": list(ids[0][0]), "answers": [list(answer) for _, answer in ids], **given})
    return found


def fit(
    given: Learning,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    arguments: dict[str, Any],
    method: Anchored,
    partial: Path,
    report: Report,
    checkpoint_seconds: float,
) -> dict[str, float]:
    """Optimise a policy on rows, in place.

    Args:
        rows: from `encoded`.
        arguments: from `models.trl_training.arguments`.
        partial: where checkpoints live; training goes on from the newest whole one, the reference included.
    """
    lengths = [len(row["prompt"]) + max(map(len, row["answers"])) for row in rows]
    rows, arguments = presented(rows, lengths, arguments)
    if isinstance(method, Kto):
        rows = with_others(rows, arguments["per_device_train_batch_size"])
    arguments |= {"gradient_accumulation_steps": method.accumulation, "max_grad_norm": method.max_grad_norm}
    resume = checkpoint.newest(partial)
    if resume and given.moves_alone:
        load_parameters(given.reference.model, resume / REFERENCE_FILE)
    return fit_loss(
        given.policy,
        tokenizer,
        rows,
        arguments,
        direct_loss(given, method),
        RowCollator(tokenizer.pad_token_id),
        partial,
        report,
        checkpoint_seconds,
        callbacks=[Following(given, method)],
        measured=MEASURED,
    )


def with_others(rows: Sequence[dict[str, Any]], batch: int) -> list[dict[str, Any]]:
    """Rows of KTO with the answer to the next prompt of their batch beside their own, of which z_0 is made.

    In a batch of one it is the row's own answer, as in TRL: then nothing says how far the policy has moved.
    """
    found = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        for row, following in zip(part, [*part[1:], part[0]], strict=True):
            found.append({**row, "answers": [row["answers"][0], following["answers"][0]]})
    return found


def plain(policy: PreTrainedModel, method: DirectMethod, begun: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The policy as a model without adapters.

    Args:
        begun: loads the model that adapters were put on.
    """
    if method.lora is None:
        return policy
    model = begun()
    model.load_state_dict(merged_weights(policy))
    return model
