"""A reward model as everyone but its trainer sees it: texts in, standardised scores out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from inverse_alignment.core.batches import length_groups, pad_right
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Prompt
from inverse_alignment.models.loading import load_reward_model, place
from inverse_alignment.text.render import encode_answers
from inverse_alignment.text.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CALIBRATION = "calibration.json"


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


class RewardScorer:
    """Scores texts with a sequence classifier, in batches of similar length."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int, rows: int) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_tokens, self.rows = max_tokens, rows

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """Raw scores, float64 (n,)."""
        ids = encode_answers(self.tokenizer, prompts, responses, self.max_tokens)
        lengths = [len(row) for row in ids]
        scores = np.empty(len(ids))
        for chunk in length_groups(lengths, self.rows * self.max_tokens):
            tokens, mask = pad_right([ids[i] for i in chunk], self.tokenizer.pad_token_id, self.model.device)
            logits = self.model(input_ids=tokens, attention_mask=mask.long()).logits
            scores[chunk] = logits.squeeze(-1).double().cpu().numpy()
        if not np.isfinite(scores).all():
            bad = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise FloatingPointError(
                f"the reward model's score is {scores[bad]} for the answer {responses[bad][:80]!r}"
            )
        return scores


@dataclass(frozen=True)
class CalibratedReward:
    """A reward model whose scores are in standard deviations of the reference sample."""

    scorer: RewardScorer
    calibration: Calibration

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """Standardised scores, float64 (n,)."""
        return self.calibration.standardise(self.scorer(prompts, responses))


def load_calibrated(folder: Path, device: torch.device, max_tokens: int, rows: int) -> CalibratedReward:
    """A reward artifact's model with its calibration."""
    scorer = RewardScorer(place(load_reward_model(folder), device), load_tokenizer(folder).tokenizer, max_tokens, rows)
    return CalibratedReward(scorer, Calibration(**json.loads((folder / CALIBRATION).read_text())))


def save_calibration(calibration: Calibration, folder: Path) -> None:
    """Write it beside the model it belongs to."""
    (folder / CALIBRATION).write_text(json.dumps(asdict(calibration), sort_keys=True))
