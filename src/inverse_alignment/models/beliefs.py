"""What models that believe something of every token learn from: objectives, their loss, and batches of answers.

Sources: AVA is Cai et al. 2024, arXiv 2411.09341; the Preference Transformer Kim et al. 2023, arXiv 2303.00957.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from inverse_alignment.core import parallel
from inverse_alignment.core.batches import pad_right
from inverse_alignment.maths.masked import masked_mean
from inverse_alignment.maths.pairwise import bradley_terry_loss
from inverse_alignment.maths.variational import (
    contrastive_return,
    demonstration_evidence,
    log_contrastive_return,
    transitions,
    unlikelihood,
)
from inverse_alignment.models.loss_trainer import BatchLoss
from inverse_alignment.models.tqr import TokenBeliefs
from inverse_alignment.models.tqr_scores import answers_of


class Total(NamedTuple):
    """A loss as a sum over a batch, and how much of the batch it is a sum over.

    Attributes:
        value: ().
        amount: (), never negative.
    """

    value: Tensor
    amount: Tensor


class Objective(Protocol):
    """What is to be minimised: the sum of some means over a batch."""

    @property
    def paired(self) -> bool:
        """Whether it looks at rejected answers."""

    def __call__(self, beliefs: TokenBeliefs, counts: Tensor, weights: Tensor) -> list[Total]:
        """Means as totals, so that several processes can add theirs up.

        Args:
            beliefs: of the chosen answers of n pairs and then, if it is paired, of the n rejected ones.
            counts: bool, True at response tokens; shaped like the beliefs.
            weights: (n,).
        """


@dataclass(frozen=True)
class AvaObjective:
    """`-Σ w F / Σ w m - w_c Σ w CER / Σ w`, over pairs with m choices in the chosen answer.

    F is F_p or, without pairs, F_d; the paper adds them up over tokens and pairs alike, which is `w_c = Σ w / Σ w m`.
    Source: AVA, arXiv 2411.09341, Alg. 1.

    Attributes:
        paired: AVA-p; otherwise AVA-d.
        fresh: whether Q is a head's own; β is then in its policy, and weighs nothing here.
        beta, gamma, consistency: β, γ and λ of `maths.variational.demonstration_evidence`.
        inverse: weight of divergence and consistency.
        negatives: weight of the unlikelihood of rejected answers.
        floor: its bound per token.
        cer: w_c.
        cer_form: CER as printed, or its logarithm.
    """

    paired: bool
    fresh: bool = False
    beta: float = 1.0
    gamma: float = 1.0
    consistency: float = 1.0
    inverse: float = 1.0
    negatives: float = 1.0
    floor: float = -10.0
    cer: float = 1.0
    cer_form: Literal["log", "printed"] = "log"

    def __call__(self, beliefs: TokenBeliefs, counts: Tensor, weights: Tensor) -> list[Total]:
        """See `Objective`."""
        pairs = len(weights)
        chosen, own = _rows(beliefs, slice(pairs)), counts[:pairs]
        beta = 1.0 if self.fresh else self.beta
        evidence = demonstration_evidence(
            chosen.log_probs, chosen.action_values, chosen.posterior, own, beta, self.gamma, self.consistency
        )
        gained = evidence.log_policy + self.inverse * (evidence.consistency - evidence.divergence)
        totals = []
        if self.paired:
            rejected, other = _rows(beliefs, slice(pairs, None)), counts[pairs:]
            gained = gained + self.negatives * beta * unlikelihood(rejected.log_probs, other, self.floor)
            contrast = log_contrastive_return if self.cer_form == "log" else contrastive_return
            returned = contrast(chosen.posterior.mean, own, rejected.posterior.mean, other)
            totals.append(Total(-self.cer * (weights * returned).sum(), weights.sum()))
        return [Total(-(weights * gained).sum(), (weights * transitions(own).sum(-1)).sum()), *totals]


@dataclass(frozen=True)
class PreferenceTransformerObjective:
    """Bradley-Terry on `Σ_t w_t μ_t`, the mean of weighted rewards. Source: arXiv 2303.00957, eq. 5.

    Attributes:
        smoothing: assumed probability that a label is wrong.
    """

    smoothing: float = 0.0
    paired: bool = True

    def __call__(self, beliefs: TokenBeliefs, counts: Tensor, weights: Tensor) -> list[Total]:
        """See `Objective`."""
        chosen, rejected = masked_mean(beliefs.posterior.mean, counts, -1).chunk(2)
        margins, labels = torch.zeros_like(chosen), torch.ones_like(chosen)
        loss = bradley_terry_loss(chosen, rejected, weights, margins, labels, self.smoothing)
        return [Total(weights.sum() * loss, weights.sum())]


def _rows(beliefs: TokenBeliefs, rows: slice) -> TokenBeliefs:
    posterior = type(beliefs.posterior)(*(table[rows] for table in beliefs.posterior))
    return TokenBeliefs(beliefs.log_probs[rows], beliefs.action_values[rows], posterior)


def beliefs_loss(objective: Objective) -> BatchLoss:
    """The loss of a batch of pairs: of its means, each times the share that a process's part has in it."""

    def of_batch(model: Any, inputs: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        counts = inputs["counts"]
        beliefs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], counts=counts)
        totals = objective(beliefs, counts, inputs["weights"])
        parts = parallel.shares(parallel.group(), *(total.amount for total in totals))
        loss = 0.0 * beliefs.posterior.mean.sum()  # rows that only fill up a batch count for nothing
        for total, part in zip(totals, parts, strict=True):
            if part:
                loss = loss + part * total.value / total.amount
        return loss, {}

    return of_batch


class TqrCollator:
    """Pads the answers of pairs, chosen ones first, and says which of their tokens count."""

    def __init__(self, pad_token_id: int, paired: bool) -> None:
        self._pad, self._sides = pad_token_id, ("chosen_ids", "rejected_ids")[: 1 + paired]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """One batch."""
        ids, mask = pad_right([example[side] for side in self._sides for example in examples], self._pad)
        starts = [example["start"] for _ in self._sides for example in examples]
        return {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "counts": answers_of(mask, starts),
            "weights": torch.tensor([float(example["weight"]) for example in examples]),
        }
