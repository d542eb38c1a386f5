"""The reward that a policy was aligned with, fitted to its own answers and to those of the policy it came from.

Of an answer of π and one of π_ref, drawn independently and shown in either order, the odds that the first is that of π
are those of `log π(y|x) / π_ref(y|x)` of both: so that is the reward that Bradley-Terry finds, up to a function of the
prompt. Where π ∝ π_ref exp(r / β), it is r / β. Source: Insights from the Inverse, arXiv 2410.12491, whose loss is not
bounded below; the two here are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from inverse_alignment.core.metrics import Report
from inverse_alignment.core.records import Comparison, Prompt, Provenance
from inverse_alignment.generation.answers import Sampling, of_model
from inverse_alignment.generation.rollouts import Progress, ask, draw
from inverse_alignment.maths.pairwise import bradley_terry_loss, hinge_loss
from inverse_alignment.maths.variational import last_reward
from inverse_alignment.models.beliefs import Total
from inverse_alignment.models.loading import load_policy, place
from inverse_alignment.models.tqr import TokenBeliefs, Tqr, TqrForm, new_tqr
from inverse_alignment.models.trl_training import arguments
from inverse_alignment.reward.ava import belief_rows, fit_tqr
from inverse_alignment.text.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORM = TqrForm(q="none", weighted=False, score="last", uncertain=False)


@dataclass(frozen=True)
class RecoverObjective:
    """The rewards of last tokens, of answers of the aligned policy against answers of the reference.

    Attributes:
        loss: logistic is consistent, see above; hinge finds an order.
    """

    loss: Literal["logistic", "hinge"] = "logistic"
    paired: bool = True

    def __call__(self, beliefs: TokenBeliefs, counts: Tensor, weights: Tensor) -> list[Total]:
        """See `reward.ava.Objective`."""
        aligned, reference = last_reward(beliefs.posterior.mean, counts).chunk(2)
        if self.loss == "hinge":
            loss = hinge_loss(aligned, reference, weights)
        else:
            none = torch.zeros_like(aligned)
            loss = bradley_terry_loss(aligned, reference, weights, none, none + 1.0)
        return [Total(weights.sum() * loss, weights.sum())]


def opposed(prompts: Sequence[Prompt], aligned: Sequence[str], reference: Sequence[str]) -> list[Comparison]:
    """The answers of both policies as pairs; equal ones, which say nothing, are left out.

    Args:
        prompts: one per pair.
        aligned, reference: answers that were drawn independently: with the same noise they would be alike.
    """
    return [
        Comparison(
            prompt=prompt,
            chosen=own,
            rejected=other,
            provenance=Provenance(
                dataset="samples", original_id=str(i), source_chosen="aligned", source_rejected="reference"
            ),
        )
        for i, (prompt, own, other) in enumerate(zip(prompts, aligned, reference, strict=True))
        if own != other
    ]


def sampled(
    folder: Path,
    prompts: Sequence[Prompt],
    samples: int,
    sampling: Sampling,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> list[str]:
    """Answers of the policy in a folder, all samples of a prompt in a row.

    Args:
        seed: another one for every policy, so that none knows the noise of the other.
    """
    tokenizer = load_tokenizer(folder).tokenizer
    policy = place(load_policy(folder), device).eval()
    asked = ask(prompts, samples, seed)
    return [given.text for given in draw(of_model(policy, tokenizer, sampling), tokenizer, asked, sampling, progress)]


def fit_recovered(
    reference: Path,
    pairs: Sequence[Comparison],
    objective: RecoverObjective,
    max_tokens: int,
    partial: Path,
    report: Report,
    device: torch.device,
    seed: int,
    epochs: float,
    learning_rate: float,
    batch_size: int,
) -> tuple[Tqr, PreTrainedTokenizerBase, dict[str, Any]]:
    """A reward head on the reference's trunk, all of it trained, with its tokenizer and what training gave.

    Args:
        pairs: from `opposed`.
        partial: where checkpoints live.
    """
    tokenizer = load_tokenizer(reference).tokenizer
    model = place(new_tqr(load_policy(reference), FORM, seed), device)
    given = arguments(
        partial=partial,
        device=device.type,
        seed=seed,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        warmup_share=0.1,
    )
    rows = belief_rows(tokenizer, pairs, max_tokens)
    return model, tokenizer, fit_tqr(model, tokenizer, rows, given, objective, partial, report, 60.0)
