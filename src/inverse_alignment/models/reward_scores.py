"""A reward model as everyone but its trainer sees it: texts in, standardised scores out.

A reward artifact's folder is a sequence classifier with one label, or has a `reward.json` that names its family:
`load_scorer` reads both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from inverse_alignment.core.batches import length_groups, pad_right
from inverse_alignment.core.errors import UserError, nearest
from inverse_alignment.core.estimates import RewardEstimate
from inverse_alignment.core.records import Prompt
from inverse_alignment.maths.caution import lower_bound, uncertainty_weighted, worst_case
from inverse_alignment.models.caution_settings import LowerBound, MeanScore, UncertaintyWeighted, WorstCase
from inverse_alignment.models.checks import FAMILY
from inverse_alignment.models.loading import load_reward_model, place
from inverse_alignment.text.render import encode_answers
from inverse_alignment.text.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NO_CAUTION = MeanScore()
CALIBRATION = "calibration.json"


class Scorer(Protocol):
    """A loaded reward model of any family, in its own units."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """Means of the estimates, float64 (n,): see `core.protocols.Score`."""

    def estimate(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> RewardEstimate:
        """All that the model says: see `core.protocols.Estimate`."""


@dataclass(frozen=True)
class Calibration:
    """Mean and standard deviation of a reward model's scores on the fixed reference sample.

    Standardising on this sample, drawn once from the SFT policy, keeps the reward's scale through a refresh.
    Standardising on the current batch would inflate the reward as the policy's answers become alike.
    """

    mean: float
    std: float
    answers: int

    @staticmethod
    def of(scores: np.ndarray) -> Calibration:
        """Calibrate on the scores (n,) of the reference sample.

        Raises:
            UserError: all scores are equal, so that there is no scale.
        """
        std = float(scores.std())
        if not std > 1e-8 * max(1.0, abs(float(scores.mean()))):
            raise UserError(
                "the reward model gives every answer of the reference sample the same score",
                where=f"{len(scores)} answers of the SFT policy",
                fix="train it longer or on more pairs; it cannot tell answers apart",
            )
        return Calibration(float(scores.mean()), std, len(scores))

    def standardise(self, scores: np.ndarray) -> np.ndarray:
        """`(s - mean) / std`."""
        return (scores - self.mean) / self.std

    def standardised(self, estimate: RewardEstimate) -> RewardEstimate:
        """The same of all that an estimate holds; rewards of tokens and standard deviations have a scale alone."""
        tokens = estimate.per_token
        return RewardEstimate(
            self.standardise(estimate.mean),
            None if estimate.std is None else estimate.std / self.std,
            None if tokens is None else tuple(row / self.std for row in tokens),
            None if estimate.members is None else self.standardise(estimate.members),
        )


class RewardScorer:
    """Scores texts with a sequence classifier, in batches of similar length."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int, rows: int) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_tokens, self.rows = max_tokens, rows

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """Raw scores, float64 (n,)."""
        found = read_outputs(self.model, self.tokenizer, prompts, responses, self.max_tokens, self.rows)
        return found.squeeze(-1)

    def estimate(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> RewardEstimate:
        """The scores; a single classifier cannot say how sure it is."""
        return RewardEstimate(self(prompts, responses))


@torch.no_grad()
def read_outputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    max_tokens: int,
    rows: int,
) -> np.ndarray:
    """What a sequence classifier with k outputs says of n answers, each to its prompt: float64 (n, k)."""
    ids = encode_answers(tokenizer, prompts, responses, max_tokens)
    outputs = model.config.num_labels or 1
    found = np.empty((len(ids), outputs))
    for chunk in length_groups([len(row) for row in ids], rows * max_tokens):
        tokens, mask = pad_right([ids[i] for i in chunk], tokenizer.pad_token_id, model.device)
        found[chunk] = model(input_ids=tokens, attention_mask=mask.long()).logits.double().cpu().numpy()
    finite = np.isfinite(found).all(1)
    if not finite.all():
        bad = int(np.flatnonzero(~finite)[0])
        said = found[bad][~np.isfinite(found[bad])][0]
        raise FloatingPointError(f"the reward model's score is {said} for the answer {responses[bad][:80]!r}")
    return found


@dataclass(frozen=True)
class CalibratedReward:
    """A reward model whose scores are in standard deviations of the reference sample."""

    scorer: Scorer
    calibration: Calibration
    caution: MeanScore | LowerBound | WorstCase | UncertaintyWeighted = NO_CAUTION

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """Standardised scores, float64 (n,): means, or what caution makes of them."""
        if isinstance(self.caution, MeanScore):
            return self.calibration.standardise(self.scorer(prompts, responses))
        return conservative(self.estimate(prompts, responses), self.caution)

    def cautious(self, caution: MeanScore | LowerBound | WorstCase | UncertaintyWeighted) -> CalibratedReward:
        """The same model, scoring as cautiously as is said."""
        return replace(self, caution=caution)

    def estimate(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> RewardEstimate:
        """All that the model says, standardised."""
        return self.calibration.standardised(self.scorer.estimate(prompts, responses))

    @property
    def classifier(self) -> RewardScorer:
        """The scorer, for what looks inside a sequence classifier: its last layer, its attention, its prefixes.

        Raises:
            UserError: the model is of another family.
        """
        if not isinstance(self.scorer, RewardScorer):
            raise UserError(
                "the reward model is no single sequence classifier, which is what is looked into here",
                where="reward.type, and selection.type or ppo.credit.type",
                fix="set reward.type=train, or choose a selection and a credit that ask for whole scores alone",
            )
        return self.scorer


def conservative(
    estimate: RewardEstimate, caution: MeanScore | LowerBound | WorstCase | UncertaintyWeighted
) -> np.ndarray:
    """Scores (n,) that heed how sure a model is.

    Raises:
        UserError: the model does not say what the caution asks for.
    """
    if isinstance(caution, MeanScore):
        return estimate.mean
    known = estimate.members if isinstance(caution, WorstCase) else estimate.std
    if known is None:
        raise UserError(
            f"the caution {caution.type} asks {'an ensemble' if isinstance(caution, WorstCase) else 'how sure it is'}, "
            "which this reward model does not say",
            where="ppo.caution.type",
            fix="set it to mean, or use a reward model that says it, such as reward.type=ensemble",
        )
    match caution:
        case LowerBound(k=k):
            return lower_bound(estimate.mean, known, k)
        case UncertaintyWeighted(coefficient=coefficient):
            return uncertainty_weighted(estimate.mean, known, coefficient)
        case WorstCase():
            return worst_case(known)


def load_calibrated(folder: Path, device: torch.device, max_tokens: int, rows: int) -> CalibratedReward:
    """A reward artifact's model with its calibration."""
    calibration = Calibration(**json.loads((folder / CALIBRATION).read_text()))
    return CalibratedReward(load_scorer(folder, device, max_tokens, rows), calibration)


def load_scorer(folder: Path, device: torch.device, max_tokens: int, rows: int) -> Scorer:
    """A reward model of any family.

    Raises:
        UserError: its family is not known, or it is no reward model.
    """
    kind = family(folder).get("type")
    match kind:
        case None:
            return load_classifier(folder, device, max_tokens, rows)
        case "ava":
            from inverse_alignment.models.tqr_scores import TqrScorer

            return TqrScorer.load(folder, device, max_tokens, rows)
        case "ensemble":
            from inverse_alignment.models.ensembles import load_ensemble

            return load_ensemble(folder, device, max_tokens, rows)
        case "laplace":
            from inverse_alignment.models.laplace_scores import load_laplace

            return load_laplace(folder, device, max_tokens, rows)
        case _:
            raise UserError(
                f"a reward model of an unknown family '{kind}'",
                where=str(folder / FAMILY),
                fix=nearest(str(kind), ["ava", "ensemble", "laplace"]),
            )


def load_classifier(folder: Path, device: torch.device, max_tokens: int, rows: int) -> RewardScorer:
    """A sequence classifier with one label."""
    tokenizer = load_tokenizer(folder).tokenizer
    model = place(load_reward_model(folder), device)
    model.config.pad_token_id = tokenizer.pad_token_id  # a classifier finds the last token by it
    return RewardScorer(model, tokenizer, max_tokens, rows)


def family(folder: Path) -> dict[str, Any]:
    """What `reward.json` says; empty for a plain sequence classifier.

    Raises:
        UserError: it is no JSON object.
    """
    path = folder / FAMILY
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_bytes())
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError("holds no JSON object", where=str(path), fix="fetch the reward model again")
    return values


def save_family(values: dict[str, Any], folder: Path) -> None:
    """Write `reward.json` beside the weights it explains."""
    (folder / FAMILY).write_text(json.dumps(values, indent=1, sort_keys=True))


def save_calibration(calibration: Calibration, folder: Path) -> None:
    """Write it beside the model it belongs to."""
    (folder / CALIBRATION).write_text(json.dumps(asdict(calibration), sort_keys=True))
