"""Reward models with a Gaussian posterior over some of their weights: how sure they are of a score.

The score is linearised in the weights that have one, `r(θ) = r + J (θ - θ_MAP)`, so its variance is `J H⁻¹ Jᵀ` with the
posterior's precision H. Standardised, a score counts from the mean of the reference sample, and so does J: what shifts
every score alike is not known, and does not matter. Source: arXiv 2402.13210; the centre is ours.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from inverse_alignment.core.batches import length_groups, pad_right
from inverse_alignment.core.estimates import RewardEstimate
from inverse_alignment.core.records import Prompt
from inverse_alignment.maths.linear_reward import gap_variance
from inverse_alignment.models.adapters import adapt_trunk
from inverse_alignment.models.ensembles import ADAPTED, load_member, put_weights
from inverse_alignment.models.loading import load_reward_model, place, save_model
from inverse_alignment.models.reward_scores import RewardScorer, family, save_family
from inverse_alignment.models.score_features import score_features
from inverse_alignment.text.render import encode_answers
from inverse_alignment.text.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSTERIOR = "posterior.safetensors"
BLOCK = 256
"""Answers whose slopes are held at once."""


class Slopes(NamedTuple):
    """Scores of n answers, and how they change with P weights.

    Attributes:
        scores: float64 (n,), raw.
        jacobian: float64 (n, P), J.
    """

    scores: np.ndarray
    jacobian: np.ndarray


ReadSlopes = Callable[[Sequence[Prompt], Sequence[str]], Slopes]


class LaplaceScorer:
    """Scores texts with a classifier, and says how sure it is of them.

    Args:
        read: scores and slopes in the weights that have a posterior.
        precision: float64 (P, P), H.
        centre: float64 (P,), mean slope over the reference sample.
    """

    def __init__(self, read: ReadSlopes, precision: np.ndarray, centre: np.ndarray) -> None:
        self._read, self.precision, self.centre = read, precision, centre

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """Raw scores, float64 (n,)."""
        return self.estimate(prompts, responses).mean

    def estimate(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> RewardEstimate:
        """Raw scores and their standard deviations."""
        means, variances = [np.empty(0)], [np.empty(0)]
        for start in range(0, len(responses), BLOCK):
            block = slice(start, start + BLOCK)
            slopes = self._read(prompts[block], responses[block])
            means.append(slopes.scores)
            variances.append(gap_variance(slopes.jacobian - self.centre, self.precision))
        return RewardEstimate(np.concatenate(means), np.sqrt(np.concatenate(variances)))


def last_layer_slopes(scorer: RewardScorer) -> ReadSlopes:
    """Slopes in the weights of the last layer: what it reads.

    Raises:
        UserError: when read, the score is no linear map of that.
    """

    def read(prompts: Sequence[Prompt], responses: Sequence[str]) -> Slopes:
        found = score_features(scorer, prompts, responses)
        return Slopes(found.scores, found.features.astype(np.float64))

    return read


def learned_slopes(scorer: RewardScorer) -> ReadSlopes:
    """Slopes in all weights that learn, in the order of `named_parameters`: one backward pass an answer."""
    model, tokenizer = scorer.model, scorer.tokenizer
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def read(prompts: Sequence[Prompt], responses: Sequence[str]) -> Slopes:
        ids = encode_answers(tokenizer, prompts, responses, scorer.max_tokens)
        scores, jacobian = np.empty(len(ids)), np.empty((len(ids), sum(weight.numel() for weight in weights)))
        for chunk in length_groups([len(row) for row in ids], scorer.rows * scorer.max_tokens):
            tokens, mask = pad_right([ids[i] for i in chunk], tokenizer.pad_token_id, model.device)
            logits = model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits.squeeze(-1)
            scores[chunk] = logits.detach().double().cpu().numpy()
            for place_, score in zip(chunk, logits, strict=True):
                slopes = torch.autograd.grad(score, weights, retain_graph=True)
                jacobian[place_] = torch.cat([slope.reshape(-1) for slope in slopes]).double().cpu().numpy()
        return Slopes(scores, jacobian)

    return read


def save_laplace(
    scorer: LaplaceScorer,
    model: PreTrainedModel,
    tokenizer: Any,
    weights: dict[str, Any],
    prior: float,
    adapted: Path | None,
    folder: Path,
) -> None:
    """Write the classifier, the posterior and `reward.json`.

    Args:
        model: the classifier; with adapters, what lies below them.
        weights: `type`, and of adapters their `rank`, `alpha` and `targets`.
        prior: precision of the prior.
        adapted: folder of adapters and score head.
    """
    from safetensors.torch import save_file

    save_model(place(model, "cpu"), tokenizer, folder)
    if adapted is not None:
        shutil.copyfile(adapted / ADAPTED, folder / ADAPTED)
    arrays = {"precision": scorer.precision, "centre": scorer.centre}
    save_file({name: torch.from_numpy(array).contiguous() for name, array in arrays.items()}, str(folder / POSTERIOR))
    save_family({"type": "laplace", "weights": weights, "prior": prior}, folder)


def load_laplace(folder: Path, device: torch.device, max_tokens: int, rows: int) -> LaplaceScorer:
    """Read what `save_laplace` wrote."""
    from safetensors.torch import load_file

    kind, tokenizer, model = family(folder)["weights"], load_tokenizer(folder).tokenizer, load_reward_model(folder)
    posterior = {name: tensor.numpy() for name, tensor in load_file(str(folder / POSTERIOR)).items()}
    if kind["type"] == "last_layer":
        read = last_layer_slopes(RewardScorer(place(model, device), tokenizer, max_tokens, rows))
    else:
        adapt_trunk(model, kind["rank"], kind["alpha"], tuple(kind["targets"]), 0)
        put_weights(model, load_member(folder))
        read = learned_slopes(RewardScorer(place(model, device), tokenizer, max_tokens, rows))
    return LaplaceScorer(read, posterior["precision"], posterior["centre"])
