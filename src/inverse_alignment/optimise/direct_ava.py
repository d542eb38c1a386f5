"""AVA on the policy itself: the Q that explains the answers is the policy's own. Source: arXiv 2411.09341.

`Q = log softmax(z)` with the logits z of the policy, so that the policy which goes with it is the policy; rewards are
two numbers for every token, which learn beside it and are not needed afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inverse_alignment.core.batches import Sequences
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import Report
from inverse_alignment.maths.masked import masked_sum
from inverse_alignment.maths.variational import last_reward, transitions
from inverse_alignment.models.adapters import adapt_policy
from inverse_alignment.models.beliefs import AvaObjective, TqrCollator
from inverse_alignment.models.log_probs import Head
from inverse_alignment.models.loss_trainer import BatchLoss, fit_loss
from inverse_alignment.models.tqr import Tqr, TqrForm, new_tqr
from inverse_alignment.models.trl_training import presented
from inverse_alignment.optimise.direct import answer_log_probs
from inverse_alignment.optimise.direct_settings import AvaD, AvaP

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEADS_FILE = "heads.safetensors"
MEASURED = ("sft_margin", "sft_accuracy", "good_log_ratio", "bad_log_ratio", "reward_margin")


@dataclass(frozen=True)
class Believer:
    """A policy with beliefs about the reward of every token.

    Attributes:
        policy: changes in place.
        model: the same weights, and heads for the reward.
        sft: the frozen SFT policy, to which metrics are reported.
    """

    policy: PreTrainedModel
    model: Tqr
    sft: PreTrainedModel


def believing(policy: PreTrainedModel, sft: PreTrainedModel, method: AvaD, seed: int) -> Believer:
    """A policy that is to learn by `method`; adapters and heads are fresh.

    Raises:
        UserError: the policy's logits are no linear map of its last states, or its head shares a matrix with its
            embeddings and has a bias beside it.
    """
    if method.lora is not None:
        lora = method.lora
        adapt_policy(policy, lora.rank, lora.alpha, lora.targets, seed, reference=False, where="optimise.lora.targets")
    model = new_tqr(policy, TqrForm("pretrained", 1.0, method.reward_weights, method.log_std_bound), seed)
    output = policy.get_output_embeddings()
    if model.q_head is not None:
        if output.weight is policy.get_input_embeddings().weight:
            raise UserError(
                f"the head of {type(policy).__name__} has a bias beside a matrix that is its table of embeddings",
                where="models.policy, optimise.type",
                fix="choose another method, or another policy",
            )
        model.q_head = output  # the policy's own, not a copy
    return Believer(policy, model, sft.eval().requires_grad_(False))


def objective_of(method: AvaD) -> AvaObjective:
    """AVA-d, or AVA-p of pairs."""
    objective = AvaObjective(
        paired=isinstance(method, AvaP),
        beta=method.beta,
        gamma=method.gamma,
        consistency=method.consistency,
        inverse=method.inverse,
    )
    if not isinstance(method, AvaP):
        return objective
    of_pairs = {name: getattr(method, name) for name in ("negatives", "floor", "cer", "cer_form")}
    return replace(objective, **of_pairs)


def ava_loss(given: Believer, objective: AvaObjective) -> BatchLoss:
    """The objective of a batch from `TqrCollator`, and how the policy has moved since SFT.

    AVA's evidence ends before the last token of an answer, which has no residual. A policy that learned from it alone
    would never learn to end, and with rejected answers not to end: `β log π` of the last chosen token is added to it.
    """

    def of_batch(model: Tqr, inputs: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        ids, counts, weights = inputs["input_ids"], inputs["counts"], inputs["weights"]
        beliefs = model(input_ids=ids, attention_mask=inputs["attention_mask"], counts=counts)
        totals = [total for total in objective(beliefs, counts, weights) if total.amount > 0]
        own = counts[: len(weights)]
        ends = weights * last_reward(beliefs.log_probs[: len(weights)], own)
        choices = (weights * transitions(own).sum(-1)).sum()
        loss = -objective.beta * ends.sum() / (choices if choices > 0 else weights.sum())
        loss = loss + torch.stack([total.value / total.amount for total in totals]).sum() if totals else loss
        moved = masked_sum(beliefs.log_probs.detach(), counts, -1) - _log_probs(given.sft, ids, counts)
        good = moved[: len(weights)]
        measured = {"good_log_ratio": good.mean()}
        if objective.paired:
            bad, last = moved[len(weights) :], model.score(beliefs.posterior, counts).detach()
            measured |= {
                "bad_log_ratio": bad.mean(),
                "sft_margin": (good - bad).mean(),
                "sft_accuracy": (good > bad).float().mean(),
                "reward_margin": (last[: len(weights)] - last[len(weights) :]).mean(),
            }
        return loss, measured

    return of_batch


@torch.no_grad()
def _log_probs(policy: PreTrainedModel, ids: Tensor, counts: Tensor) -> Tensor:
    """Log-probabilities (n,) of the tokens that count, summed over each right-padded row."""
    rows, places = counts[:, 1:].nonzero(as_tuple=True)
    return answer_log_probs(Head(policy), Sequences(ids, rows, places, ids[counts], counts))


def belief_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `optimise.direct.encoded` as AVA's collator takes them.

    One whose label is soft is there twice, once each way round, weighted by the label: the expectation of any loss.
    """
    found = []
    for row in rows:
        written = [row["prompt"] + answer for answer in row["answers"]]
        for turned, share in ((written, row["soft_label"]), (written[::-1], 1.0 - row["soft_label"])):
            if share:
                named = dict(zip(("chosen_ids", "rejected_ids"), turned, strict=False))
                found.append({**named, "start": len(row["prompt"]), "weight": share * row["weight"]})
    return found


def fit(
    given: Believer,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    arguments: dict[str, Any],
    method: AvaD,
    partial: Path,
    report: Report,
    checkpoint_seconds: float,
) -> dict[str, float]:
    """Optimise a policy on rows, in place.

    Args:
        rows: from `optimise.direct.encoded`, two answers each for AVA-p, one for AVA-d.
        arguments: from `models.trl_training.arguments`.
        partial: where checkpoints live; training goes on from the newest whole one, heads included.
    """
    objective = objective_of(method)
    rows = belief_rows(rows)
    sides = ("chosen_ids", "rejected_ids")[: 1 + objective.paired]
    rows, arguments = presented(rows, [max(len(row[side]) for side in sides) for row in rows], arguments)
    arguments |= {"gradient_accumulation_steps": method.accumulation, "max_grad_norm": method.max_grad_norm}
    return fit_loss(
        given.model,
        tokenizer,
        rows,
        arguments,
        ava_loss(given, objective),
        TqrCollator(tokenizer.pad_token_id, objective.paired),
        partial,
        report,
        checkpoint_seconds,
        measured=MEASURED,
    )


def save_heads(model: Tqr, path: Path) -> None:
    """Write what is believed of rewards, which the next round goes on from."""
    from safetensors.torch import save_file

    kept = {
        name: weight for name, weight in model.state_dict().items() if name.split(".")[0] not in ("trunk", "q_head")
    }
    save_file({name: weight.contiguous() for name, weight in kept.items()}, str(path))


def load_heads(model: Tqr, path: Path) -> None:
    """Read what `save_heads` wrote, in place."""
    from safetensors.torch import load_file

    model.load_state_dict(load_file(str(path)), strict=False)
