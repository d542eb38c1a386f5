"""The posterior of a reward model's weights through laplace-torch; the only file that imports it.

With slopes J of the score and weights w, the linearised model of a pair is `r_i = J_i · w + o_i`. laplace-torch's
likelihood for reward modelling is a softmax over both answers of a pair, whose Gauss-Newton matrix is
`Σ p (1-p) (J_c - J_r)(J_c - J_r)ᵀ`, and the prior adds λ I. Every pair counts once, whatever its weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison
from inverse_alignment.models.laplace_scores import ReadSlopes

PAIRS = 64
"""Pairs whose slopes are held at once."""
MOST_WEIGHTS = 8192
"""Weights of a full posterior: half a gigabyte, and a minute of linear algebra on a core."""


class Posterior(NamedTuple):
    """A Gaussian over P weights, around where training ended.

    Attributes:
        precision: float64 (P, P).
        prior: λ, precision of the prior: as given, or of most evidence.
    """

    precision: np.ndarray
    prior: float


def require_laplace() -> Any:
    """The library.

    Raises:
        UserError: it is not installed.
    """
    try:
        import laplace
    except ImportError as error:
        raise UserError(
            "laplace-torch is not installed",
            where="reward.type, which is laplace",
            fix="pip install -c constraints.txt -e '.[laplace]'",
        ) from error
    return laplace


def fit_posterior(read: ReadSlopes, pairs: Sequence[Comparison], weights: np.ndarray, prior: float | None) -> Posterior:
    """The Laplace approximation at weights (P,), from the curvature of all pairs.

    Args:
        read: scores and slopes of answers.
        prior: λ; None: the one of most evidence (`log p(pairs) - ½ λ |w|² - ½ log det(H / λ)`).

    Raises:
        UserError: there are too many weights for a full posterior, or laplace-torch is not installed.
    """
    if len(weights) > MOST_WEIGHTS:
        raise UserError(
            f"a posterior over {len(weights):,} weights is too large: at most {MOST_WEIGHTS:,}",
            where="reward.weights",
            fix="lower the rank, name fewer targets, or set its type to last_layer",
        )
    library = require_laplace()
    from laplace.curvature import GGNInterface

    model = _Linearised(torch.from_numpy(weights.astype(np.float64)))
    found = library.Laplace(
        model,
        "reward_modeling",
        subset_of_weights="all",
        hessian_structure="full",
        prior_precision=1.0 if prior is None else prior,
        backend=GGNInterface,
    )
    found.fit(_Batches(read, pairs, weights))
    if prior is None:
        found.optimize_prior_precision(pred_type="glm", method="marglik")
    chosen = float(torch.as_tensor(found.prior_precision).reshape(-1)[0])
    return Posterior(found.posterior_precision.detach().double().cpu().numpy(), chosen)


class _Linearised(nn.Module):
    """`r = J · w + o` of pairs; inputs are (b, 2, P + 1), the last column o."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, given: Tensor) -> Tensor:
        return given[..., :-1] @ self.weights + given[..., -1]


class _Batches:
    """Pairs as laplace-torch goes through them: slopes and offsets, and the place of the chosen answer."""

    def __init__(self, read: ReadSlopes, pairs: Sequence[Comparison], weights: np.ndarray) -> None:
        self._read, self.dataset, self._weights = read, pairs, weights
        self.batch_size = PAIRS

    def __len__(self) -> int:
        return -(-len(self.dataset) // PAIRS)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.dataset), PAIRS):
            block = self.dataset[start : start + PAIRS]
            prompts = [pair.prompt for pair in block for _ in range(2)]
            slopes = self._read(prompts, [answer for pair in block for answer in (pair.chosen, pair.rejected)])
            offsets = slopes.scores - slopes.jacobian @ self._weights
            given = torch.from_numpy(np.concatenate([slopes.jacobian, offsets[:, None]], axis=1))
            yield given.reshape(len(block), 2, -1), torch.zeros(len(block), dtype=torch.int64)
