"""What must hold of every function in `maths`: padding, order and precision change nothing, and one number by hand.

`ENTRIES` lists them all; a function without an entry fails a test here. What each function means is tested beside it,
in tests/unit/maths.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import inverse_alignment.maths
from inverse_alignment.maths.advantages import generalised_advantages
from inverse_alignment.maths.averaging import average_weights
from inverse_alignment.maths.best_of_n import best_of_n
from inverse_alignment.maths.bootstrap import mean_interval
from inverse_alignment.maths.bottleneck import chi_squared_tail, mahalanobis_squared, standard_normal_divergence
from inverse_alignment.maths.calibration import (
    Reliability,
    expected_calibration_error,
    fitted_temperature,
    reliability,
    tempered,
)
from inverse_alignment.maths.caution import lower_bound, uncertainty_weighted, worst_case
from inverse_alignment.maths.contrastive import info_nce
from inverse_alignment.maths.credit import (
    attention_credit,
    final_positions,
    penalised,
    potential_credit,
    redistributed_credit,
    terminal_credit,
    terminal_rewards,
    token_credit,
    uniform_credit,
)
from inverse_alignment.maths.density_ratio import (
    effective_sample_size,
    implicit_margin,
    likelihood_log_weights,
    mean_one_weights,
    pair_log_weights,
    relative_log_ratio,
)
from inverse_alignment.maths.direct import (
    clipped_reference_gap,
    dpo_loss,
    ipo_loss,
    kto_baseline,
    kto_loss,
    log_ratio_gap,
    optimism,
)
from inverse_alignment.maths.disentangle import head_overlap, length_loss, pearson_correlation
from inverse_alignment.maths.drift import median_bandwidth, mmd_squared
from inverse_alignment.maths.edits import (
    BAD,
    GOOD,
    NEUTRAL,
    Edit,
    edit_labels,
    edit_script,
    edited,
    least_share,
    token_label_loss,
)
from inverse_alignment.maths.grouping import (
    group_means,
    order_agreement,
    within_group_correlation,
    within_group_variance,
)
from inverse_alignment.maths.kl import exact_kl, k1, k2, k3, next_kl_coefficient
from inverse_alignment.maths.linear_reward import (
    fit_linear_reward,
    gap_variance,
    gradient_agreement,
    pair_curvature,
    spread_gradient,
)
from inverse_alignment.maths.masked import masked, masked_mean, masked_sum, masked_var, masked_whiten
from inverse_alignment.maths.overlap import prefix_f1
from inverse_alignment.maths.overoptimisation import (
    best_of_n_divergence,
    best_of_n_peak,
    best_of_n_terms,
    fit_curve,
    obstacle,
    policy_peak,
    policy_terms,
)
from inverse_alignment.maths.pairwise import (
    accuracy,
    best_scale,
    bradley_terry_loss,
    contrast_loss,
    hinge_loss,
    paired_gain,
    preference_log_likelihood,
)
from inverse_alignment.maths.prefixes import look_ahead, temporal_smoothness
from inverse_alignment.maths.ranks import average_ranks, rank_correlation, rank_correlation_interval
from inverse_alignment.maths.rewardbench import (
    answer_margins,
    best_of_credit,
    determination,
    overall_score,
    percentile_interval,
    ratio_draws,
    ties_credits,
)
from inverse_alignment.maths.runs import (
    improvement_interval,
    interquartile_interval,
    interquartile_mean,
    probability_of_improvement,
)
from inverse_alignment.maths.spread import score_spread
from inverse_alignment.maths.strength import pair_strength, strata
from inverse_alignment.maths.surrogate import policy_loss, token_entropy, value_loss
from inverse_alignment.maths.trajectories import at_first_reach, running_means
from inverse_alignment.maths.variational import (
    Evidence,
    RewardPosterior,
    attention_received,
    boltzmann_log_policy,
    contrastive_return,
    correlation,
    demonstration_evidence,
    last_reward,
    log_contrastive_return,
    optimal_mean,
    preference_evidence,
    prior_divergence,
    residual_log_likelihood,
    return_correlations,
    stationary_variance,
    td_residuals,
    transitions,
    unlikelihood,
    weighted_posterior,
)

NAN, INF = float("nan"), float("inf")
EXACT = {"rtol": 1e-12, "atol": 1e-12}  # sums in another order
FLOAT = {"rtol": 1e-4, "atol": 1e-4}


class Batch(NamedTuple):
    """What the functions are given: b answers of at most t tokens, padded on the right.

    Attributes:
        x, y, z: (b, t).
        logits, other: (b, t, 4).
        scores: (b,).
        mask: (b, t) bool, a run of True from the first column on.
        groups: a name per row.
    """

    x: Tensor
    y: Tensor
    z: Tensor
    logits: Tensor
    other: Tensor
    scores: Tensor
    mask: Tensor
    groups: tuple[str, ...]

    def padded(self, garbage: float, columns: int, rows: int) -> Batch:
        """The same answers with more padding, and garbage wherever nothing counts. A padded row has a finite score."""
        b, t = self.mask.shape
        mask = torch.zeros(b + rows, t + columns, dtype=torch.bool)
        mask[:b, :t] = self.mask

        def wider(table: Tensor) -> Tensor:
            new = torch.full((*mask.shape, *table.shape[2:]), garbage, dtype=table.dtype)
            new[mask] = table[self.mask]
            return new

        scores = torch.cat([self.scores, self.scores.new_full((rows,), 3.0)])
        tables = (wider(table) for table in self[:5])
        return Batch(*tables, scores, mask, self.groups + ("a",) * rows)

    def reordered(self, order: list[int]) -> Batch:
        """The same answers in another order."""
        tensors = (tensor[order] for tensor in self[:7])
        return Batch(*tensors, tuple(self.groups[row] for row in order))

    def cast(self, dtype: torch.dtype) -> Batch:
        """The same numbers in another precision."""
        return Batch(*(tensor.to(dtype) for tensor in self[:6]), self.mask, self.groups)

    @property
    def before(self) -> Tensor:
        """(b, t + 1): a column for the bare prompt, then x."""
        return torch.cat([self.scores.unsqueeze(-1), self.x], -1)

    @property
    def labels(self) -> Tensor:
        """(b, t): GOOD, BAD or NEUTRAL."""
        return torch.where(self.mask, self.z, 0.0).sign().long()

    @property
    def weights(self) -> Tensor:
        """(b,) positive numbers."""
        return self.scores.abs() + 0.5

    @property
    def certainty(self) -> Tensor:
        """(b,) probabilities in [½, 1]."""
        return 1.0 - 0.5 / (1.0 + self.scores.abs())


@st.composite
def batches(draw: Any) -> Batch:
    """Eighths between -3 and 3: they are the same numbers in float32 and float64, and never lie on a clipping bound."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    b, t = len(lengths), max(lengths)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def table(*shape: int) -> Tensor:
        return torch.randint(-24, 25, shape, generator=generator).double() / 8

    tables = [table(b, t), table(b, t), table(b, t), table(b, t, 4), table(b, t, 4)]
    mask = torch.arange(t) < torch.tensor(lengths).unsqueeze(-1)
    return Batch(*tables, table(b), mask, tuple("aabb"[:b]))


Padding = Literal["rows and columns", "columns", "none"]


class Entry(NamedTuple):
    """One function of `maths`.

    Attributes:
        golden: a call with numbers typed by hand.
        expected: what it gives, worked out by hand.
        call: the function on a batch; None for one that knows neither batch nor tensor.
        padding: what may be added to a batch without changing a result. "columns" where a row without tokens is refused
            or has a weight; "none" where there is nothing to pad.
        learns: whether it knows the mask and may be trained through: then its gradient in `x` is followed.
    """

    golden: Callable[[], Any]
    expected: Any
    call: Callable[[Batch], Any] | None = None
    padding: Padding = "none"
    learns: bool = False


def t(*rows: Any) -> Tensor:
    """A tensor of float64 numbers."""
    return torch.tensor(rows, dtype=torch.float64)


def n(values: np.ndarray) -> Tensor:
    """What NumPy gave, as a tensor."""
    return torch.from_numpy(np.asarray(values))


def rows(function: Callable[..., np.ndarray], *columns: Tensor, **fixed: Any) -> Tensor:
    """A function of columns that says one number per row, as tensors have it; what is fixed has their precision."""
    given = [column.numpy() for column in columns]
    cast = {name: x.astype(given[0].dtype) if isinstance(x, np.ndarray) else x for name, x in fixed.items()}
    return n(function(*given, **cast))


YES = torch.tensor([[True, True, False]])
PAIR, ONES, ZEROS = (t(2.0, 0.0), t(0.0, 1.0)), t(1.0, 1.0), t(0.0, 0.0)  # log σ(2) = -0.126928, log σ(-1) = -1.313262
LOG_P, LOG_Q = t(0.5, 0.5).log(), t(0.25, 0.75).log()

ENTRIES: dict[str, Entry] = {
    "masked.masked": Entry(
        lambda: masked(t([1.0, 2.0, NAN]), YES),
        t([1.0, 2.0, 0.0]),
        lambda c: masked(c.x, c.mask),
        "rows and columns",
        learns=True,
    ),
    "masked.masked_sum": Entry(
        lambda: masked_sum(t([1.0, 2.0, NAN]), YES),
        3.0,
        lambda c: (masked_sum(c.x, c.mask), masked_sum(c.x, c.mask, -1)),
        "rows and columns",
        learns=True,
    ),
    "masked.masked_mean": Entry(
        lambda: masked_mean(t([1.0, 2.0, NAN]), YES),
        1.5,
        lambda c: (masked_mean(c.x, c.mask), masked_mean(c.x, c.mask, -1)),
        "rows and columns",
        learns=True,
    ),
    "masked.masked_var": Entry(
        lambda: masked_var(t([1.0, 3.0, NAN]), YES),
        1.0,
        lambda c: masked_var(c.x, c.mask),
        "rows and columns",
        learns=True,
    ),
    "masked.masked_whiten": Entry(
        lambda: masked_whiten(t([1.0, 3.0, NAN]), YES, 3.0),  # variance 1, so (v - 2) / √(1 + 3)
        t([-0.5, 0.5, 0.0]),
        lambda c: masked_whiten(c.x, c.mask, 0.5),
        "rows and columns",
        learns=True,
    ),
    "advantages.generalised_advantages": Entry(
        # γ = λ = ½: δ = (1 + 1 - 1, 4 - 2), A_1 = 2, A_0 = 1 + ¼ · 2
        lambda: generalised_advantages(t([1.0, 4.0, NAN]), t([1.0, 2.0, NAN]), YES, 0.5, 0.5),
        (t([1.5, 2.0, 0.0]), t([2.5, 4.0, 0.0])),
        lambda c: generalised_advantages(c.x, c.y, c.mask, 0.9, 0.7),
        "rows and columns",
        learns=True,
    ),
    "credit.final_positions": Entry(
        lambda: final_positions(YES), torch.tensor([1]), lambda c: final_positions(c.mask), "columns"
    ),
    "credit.terminal_credit": Entry(
        lambda: terminal_credit(t(6.0), YES),
        t([0.0, 6.0, 0.0]),
        lambda c: terminal_credit(c.scores, c.mask),
        "columns",
    ),
    "credit.uniform_credit": Entry(
        lambda: uniform_credit(t(6.0), YES), t([3.0, 3.0, 0.0]), lambda c: uniform_credit(c.scores, c.mask), "columns"
    ),
    "credit.redistributed_credit": Entry(
        # ½ (S_1 - S_0, S_2 - S_1) and ½ of the score
        lambda: redistributed_credit(t([1.0, 3.0, 2.0, NAN]), t(6.0), YES, 0.5),
        t([1.0, 2.5, 0.0]),
        lambda c: redistributed_credit(c.before, c.scores, c.mask, 0.3),
        "columns",
        learns=True,
    ),
    "credit.attention_credit": Entry(
        lambda: attention_credit(t(6.0), t([0.1, 0.3, NAN]), YES, 0.5),  # ½ · 6 · (¼, ¾) and ½ of the score
        t([0.75, 5.25, 0.0]),
        lambda c: attention_credit(c.scores, c.x.abs() + 0.5, c.mask, 0.3),
        "columns",
    ),
    "credit.potential_credit": Entry(
        lambda: potential_credit(t(6.0), t([2.0, 8.0, NAN]), YES, 0.5),  # ½ · 8 - 2, 0 - 8 + 6
        t([2.0, -2.0, 0.0]),
        lambda c: potential_credit(c.scores, c.x, c.mask, 0.9),
        "columns",
        learns=True,
    ),
    "credit.token_credit": Entry(
        lambda: token_credit(t([1.0, 2.0, NAN]), t(6.0), YES, 0.25),
        t([0.25, 5.0, 0.0]),
        lambda c: token_credit(c.x, c.scores, c.mask, 0.3),
        "columns",
        learns=True,
    ),
    "credit.penalised": Entry(
        lambda: penalised(t([1.0, 2.0, NAN]), t([1.0, -2.0, NAN]), YES, 0.5),
        t([0.5, 3.0, 0.0]),
        lambda c: penalised(c.x, c.y, c.mask, 0.3),
        "rows and columns",
        learns=True,
    ),
    "credit.terminal_rewards": Entry(
        lambda: terminal_rewards(t(6.0), t([1.0, -2.0, NAN]), YES, 0.5),
        t([-0.5, 7.0, 0.0]),
        lambda c: terminal_rewards(c.scores, c.x, c.mask, 0.3),
        "columns",
        learns=True,
    ),
    "surrogate.policy_loss": Entry(
        # ratios 3/2 and 1/2 with ε = 0.2: -(min(3, 2.4) + min(-1/2, -0.8)) / 2, and both are clipped
        lambda: policy_loss(t([math.log(1.5), math.log(0.5), NAN]), t([0.0, 0.0, NAN]), t([2.0, -1.0, NAN]), YES, 0.2),
        (torch.tensor(-0.8).double(), torch.tensor(1.0).double()),
        lambda c: policy_loss(c.x, c.y, c.z, c.mask, 0.2),
        "rows and columns",
        learns=True,
    ),
    "surrogate.value_loss": Entry(
        # errors 1 - 3 and, moved no further than ½ from 0, ½ - 3; the second is not clipped: ½ (2.5² + 1²) / 2
        lambda: value_loss(t([1.0, 0.0, NAN]), t([0.0, 0.25, NAN]), t([3.0, 1.0, NAN]), YES, 0.5),
        (torch.tensor(1.8125).double(), torch.tensor(0.5).double()),
        lambda c: value_loss(c.x, c.y, c.z, c.mask, 0.2),
        "rows and columns",
        learns=True,
    ),
    "surrogate.token_entropy": Entry(
        lambda: token_entropy(LOG_Q),  # ¼ log 4 + ¾ log 4/3
        0.5623351446188083,
        lambda c: token_entropy(c.logits),
        "rows and columns",
    ),
    "kl.k1": Entry(lambda: k1(t(-1.0), t(-3.0)), t(2.0), lambda c: k1(c.x, c.y), "rows and columns"),
    "kl.k2": Entry(lambda: k2(t(-1.0), t(-3.0)), t(2.0), lambda c: k2(c.x, c.y), "rows and columns"),
    "kl.k3": Entry(
        lambda: k3(t(-1.0), t(-3.0)),  # e^-2 - 1 + 2
        t(1.1353352832366127),
        lambda c: k3(c.x, c.y),
        "rows and columns",
    ),
    "kl.exact_kl": Entry(
        lambda: exact_kl(LOG_P, LOG_Q),  # ½ log 2 + ½ log 2/3
        0.14384103622589045,
        lambda c: exact_kl(c.logits, c.other),
        "rows and columns",
    ),
    "kl.next_kl_coefficient": Entry(lambda: next_kl_coefficient(0.1, 6.6, 6.0, 1000, 100), 0.101),
    "pairwise.preference_log_likelihood": Entry(
        lambda: preference_log_likelihood(*PAIR),
        t(-0.12692801104297263, -1.3132616875182228),
        lambda c: preference_log_likelihood(c.x, c.y),
        "rows and columns",
    ),
    "pairwise.bradley_terry_loss": Entry(
        lambda: bradley_terry_loss(*PAIR, ONES, ZEROS, ONES, centring=0.5),  # (0.126928 + 1.313262) / 2 + ½ (4 + 1) / 2
        1.9700948492805977,
        lambda c: bradley_terry_loss(c.x[:, 0], c.y[:, 0], c.weights, c.z[:, 0], c.certainty, 0.1, 0.2),
    ),
    "pairwise.accuracy": Entry(
        lambda: accuracy(t(1.0, 0.0, 2.0, 1.0), t(0.0, 1.0, 2.0, 0.5)),
        0.625,
        lambda c: accuracy(c.x[:, 0], c.y[:, 0]),
    ),
    "pairwise.best_scale": Entry(
        # gaps 1, 1, 1, -1: the mean slope is zero at σ(b) = ¾, so b = log 3
        lambda: best_scale(t(1.0, 2.0, 3.0, 0.0), t(0.0, 1.0, 2.0, 1.0)),
        math.log(3),
        lambda c: best_scale(torch.cat([c.x[:, 0], t(1.0)]), torch.cat([c.y[:, 0], t(0.0)])),
    ),
    "pairwise.paired_gain": Entry(
        # gains 0 and 2: sd √2, so (z_0.5 + z_0.8) · √2 / √2 with z_0.5 = 0; the median of means of two draws is 1
        lambda: paired_gain(t(1.0, 3.0), t(1.0, 1.0), 0.5, 2001, 0),
        (1.0, 1.0, 0.8416212335729143, 2),
        lambda c: paired_gain(torch.cat([c.x[:, 0], t(1.0)]), torch.cat([c.y[:, 0], t(0.0)]), 0.9, 50, 0)[::2],
    ),
    "pairwise.hinge_loss": Entry(
        lambda: hinge_loss(t(2.0, 0.0), t(0.5, 1.0), t(1.0, 3.0)),  # (1 · 0 + 3 · 2) / 4
        1.5,
        lambda c: hinge_loss(c.x[:, 0], c.y[:, 0], c.weights),
    ),
    "contrastive.info_nce": Entry(
        # cosines 1 and 0 of the first row, 0 and 1 of the second; τ = ½: log(1 + exp(-2)) each
        lambda: info_nce(t([2.0, 0.0], [0.0, 1.0]), t([1.0, 0.0], [0.0, 3.0]), 0.5),
        t(0.1269280110429726, 0.1269280110429726),
        lambda c: info_nce(c.logits[:, 0] + 0.1, c.other[:, 0] + 0.1, 0.5),
    ),
    "strength.pair_strength": Entry(
        # of the first pair both judge, of the second the second model alone, of the third nobody, hence both
        lambda: tuple(
            pair_strength(
                t([1.0, 5.0, 2.0], [3.0, -1.0, 4.0]), torch.tensor([[True, False, False], [True, True, False]])
            )
        ),
        (t(2.0, -1.0, 3.0), t(1.0, 0.0, 1.0)),
        lambda c: tuple(pair_strength(torch.stack([c.scores, -2 * c.scores]), torch.stack([c.scores > 0] * 2))),
    ),
    "strength.strata": Entry(
        lambda: strata(t(3.0, 1.0, 2.0, 2.0, 0.0), 2),  # below: 4, 1, 2, 2, 0 of 5
        torch.tensor([1, 0, 0, 0, 0]),
        lambda c: strata(c.scores, 3),
    ),
    "prefixes.temporal_smoothness": Entry(
        lambda: temporal_smoothness(t([9.0, 1.0, 3.0, 6.0]), torch.tensor([[False, True, True, True]])),
        t(6.5),  # ((1 - 3)² + (3 - 6)²) / 2
        lambda c: temporal_smoothness(c.x, c.mask).sum(),
        "rows and columns",
        learns=True,
    ),
    "prefixes.look_ahead": Entry(
        lambda: look_ahead(t([9.0, 1.0, 3.0, 6.0]), t(6.0), torch.tensor([[False, True, True, True]])),
        t(17.0),  # ((1 - 6)² + (3 - 6)²) / 2
        lambda c: look_ahead(c.x, c.scores, c.mask).sum(),
        "rows and columns",
        learns=True,
    ),
    "pairwise.contrast_loss": Entry(
        lambda: contrast_loss(t(2.0, 0.0), t(0.0, 1.0), t(3.0, 1.0)),  # -(3 · 2 + 1 · -1) / 4
        -1.25,
        lambda c: contrast_loss(c.x[:, 0], c.y[:, 0], c.weights),
    ),
    "averaging.average_weights": Entry(
        lambda: average_weights([{"w": t(1.0, 2.0)}, {"w": t(3.0, -2.0)}])["w"],
        t(2.0, 0.0),
        lambda c: average_weights([{"w": c.logits[:, 0]}, {"w": c.other[:, 0]}])["w"],
    ),
    "disentangle.pearson_correlation": Entry(
        lambda: pearson_correlation(t(0.0, 1.0, 2.0), t(0.0, 4.0, 2.0)),  # 2 / √(2 · 8)
        0.5,
        lambda c: pearson_correlation(c.scores, c.x[:, 0]),
    ),
    "disentangle.length_loss": Entry(
        lambda: length_loss(t(0.0, -4.0, -2.0), t(1.0, 0.0, 1.0), t(0.0, 1.0, 2.0)),  # |-½| - 0
        0.5,
        lambda c: length_loss(c.scores, c.y[:, 0], c.x[:, 0]),
    ),
    "disentangle.head_overlap": Entry(
        lambda: head_overlap(t(3.0, 4.0), t(-1.0, 0.0)),
        0.6,
    ),
    "bottleneck.standard_normal_divergence": Entry(
        lambda: standard_normal_divergence(t([2.0, 1.0]), t([0.0, math.log(2.0)])),  # ½ (4 + 1 + 2 - log 2 - 1)
        t(3.0 - math.log(2.0) / 2),
        lambda c: standard_normal_divergence(c.logits[:, 0], c.other[:, 0]),
    ),
    "bottleneck.mahalanobis_squared": Entry(
        lambda: n(mahalanobis_squared(np.array([[3.0, 1.0]]), np.array([1.0, 2.0]), np.diag([4.0, 0.5]))),
        t(3.0),
        lambda c: rows(
            mahalanobis_squared, c.logits[:, 0], centre=np.full(4, 0.5), covariance=np.diag([1.0, 2.0, 3.0, 4.0])
        ),
    ),
    "bottleneck.chi_squared_tail": Entry(
        lambda: n(chi_squared_tail(np.array([0.0, 2.0]), 2)),
        t(1.0, math.exp(-1.0)),
        lambda c: n(chi_squared_tail(c.scores.abs().numpy(), 3)),
    ),
    "calibration.reliability": Entry(
        lambda: tuple(n(part) for part in reliability(np.array([np.log(3), -np.log(3), 0.0]), 2)),
        (t(0.5, 0.75), t(0.5, 0.5), torch.tensor([1, 2])),
        lambda c: [number for part in reliability(c.scores.numpy()) for number in np.nan_to_num(part).tolist()],
    ),
    "calibration.expected_calibration_error": Entry(
        lambda: expected_calibration_error(Reliability(*(np.array(x) for x in ([0.5, 0.75], [0.7, 0.5], [3, 1])))),
        0.2125,  # (3 · 0.2 + 0.25) / 4
        lambda c: expected_calibration_error(reliability(c.scores.numpy())),
    ),
    "calibration.fitted_temperature": Entry(
        lambda: fitted_temperature(np.array([np.log(9), np.log(9), np.log(9), -np.log(9)])),  # log 9 / T = log 3
        2.0,
        lambda c: fitted_temperature(np.concatenate([c.scores.numpy(), [9.0, -9.0, 9.0]])),
    ),
    "calibration.tempered": Entry(
        lambda: n(tempered(np.log(3) * np.array([1.0, 2.0, 1.0, 2.0, 1.0, 2.0, -1.0, -2.0]))),  # T = 1 and 2
        np.log(3) * t(0.5, 2.0, 0.5, 2.0, 0.5, 2.0, -0.5, -2.0),
    ),
    "caution.lower_bound": Entry(
        lambda: n(lower_bound(np.array([1.0, 4.0]), np.array([0.5, 3.0]), 2.0)),
        t(0.0, -2.0),
        lambda c: n(lower_bound(c.x[:, 0].numpy(), c.y[:, 0].numpy(), 0.7)),
    ),
    "caution.uncertainty_weighted": Entry(
        lambda: n(uncertainty_weighted(np.array([1.0, 4.0]), np.array([0.5, 3.0]), 2.0)),
        t(0.5, -14.0),
        lambda c: n(uncertainty_weighted(c.x[:, 0].numpy(), c.y[:, 0].numpy(), 0.7)),
    ),
    "caution.worst_case": Entry(
        lambda: n(worst_case(np.array([[1.0, 4.0], [3.0, -2.0]]))),
        t(1.0, -2.0),
        lambda c: n(worst_case(c.logits[:, 0].numpy().T)),
    ),
    "direct.log_ratio_gap": Entry(
        lambda: log_ratio_gap(t(1.0, 2.0), t(0.0, 3.0), t(0.5, 1.0), t(1.0, 0.0)),  # 1 - (-½), -1 - 1
        t(1.5, -2.0),
        lambda c: log_ratio_gap(c.x[:, 0], c.y[:, 0], c.z[:, 0], c.scores),
    ),
    "direct.clipped_reference_gap": Entry(
        lambda: clipped_reference_gap(t(1.0, 2.0), t(0.0, 3.0), t(0.5, 1.0), t(1.0, 0.0)),  # 1 - 0, -1 - 1
        t(1.0, -2.0),
        lambda c: clipped_reference_gap(c.x[:, 0], c.y[:, 0], c.z[:, 0], c.scores),
    ),
    "direct.dpo_loss": Entry(
        # 0.313262 = -log σ(1); ¾ · 0.974077 + ¼ · 0.474077 of ±½
        lambda: dpo_loss(t(2.0, -1.0), t(3.0, 1.0), t(1.0, 0.75), 0.5),
        (3 * 0.31326168751822286 + 0.8490769841801067) / 4,
        lambda c: dpo_loss(c.x[:, 0], c.weights, c.certainty, 0.5, 0.1),
    ),
    "direct.ipo_loss": Entry(
        lambda: ipo_loss(t(2.0, -1.0), t(3.0, 1.0), t(1.0, 0.75), 0.5),  # (3 · 1 + ¾ · 4 + ¼ · 0) / 4
        1.5,
        lambda c: ipo_loss(c.x[:, 0], c.weights, c.certainty, 0.5, 0.1),
    ),
    "direct.kto_baseline": Entry(
        lambda: torch.stack([kto_baseline(t(1.0, 0.5, -0.75)), kto_baseline(t(-1.0, 0.5))]),
        t(0.25, 0.0),
        lambda c: kto_baseline(c.x[:, 0]),
    ),
    "direct.kto_loss": Entry(
        # 1 - σ(1) = 0.268941 of both: once for each of 3, twice for the bad one
        lambda: kto_loss(t(2.0, 0.0), torch.tensor([True, False]), t(3.0, 1.0), t(1.0)[0], 1.0, 2.0),
        5 * 0.2689414213699951 / 4,
        lambda c: kto_loss(c.x[:, 0], c.y[:, 0] > 0, c.weights, c.z[0, 0] * 0 + 0.5, 0.5, 1.5),
    ),
    "direct.optimism": Entry(
        lambda: optimism(t(1.0, -1.0), t(3.0, 1.0), 0.5, 3.0),  # ½ · 3 · (3 - 1) / 4
        0.75,
        lambda c: optimism(c.x[:, 0], c.weights, 0.5, 2.0),
    ),
    "spread.score_spread": Entry(
        lambda: score_spread(t([0.0, 1.0, 3.0], [2.0, 2.0, 2.0])),  # 2/9 (1 + 3 + 2) and 0
        2 / 3,
        lambda c: score_spread(torch.cat([c.x[:, :1], c.y[:, :1], c.z[:, :1]], -1)),
    ),
    "drift.median_bandwidth": Entry(
        lambda: median_bandwidth(np.array([[0.0], [1.0], [1.0], [3.0]])),  # squares 1, 1, 9, 0, 4, 4: of those apart 4
        2.0,
        lambda c: median_bandwidth(np.concatenate([c.scores[:, None].numpy(), [[9.0], [5.0]]])),
    ),
    "drift.mmd_squared": Entry(
        # within 1 and 1; across 1, 4, 0 and 1, whose kernels have the mean (2 e^(-1/2) + e^-2 + 1) / 4
        lambda: mmd_squared(np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]]), 1.0),
        2 * math.exp(-0.5) - (2 * math.exp(-0.5) + math.exp(-2) + 1) / 2,
        lambda c: mmd_squared(
            np.concatenate([c.scores[:, None].numpy(), [[9.0]]]), np.concatenate([c.y[:, :1].numpy(), [[5.0]]]), 2.0
        ),
    ),
    "bootstrap.mean_interval": Entry(
        lambda: mean_interval(t(2.0, 2.0, 2.0), 0), (2.0, 2.0, 2.0), lambda c: mean_interval(c.scores, 0).mean
    ),
    "grouping.group_means": Entry(
        lambda: group_means(np.array([1.0, 10.0, 3.0]), ["b", "a", "b"]).tolist(),
        [2.0, 10.0],
        lambda c: sorted(group_means(c.scores.numpy(), c.groups).tolist()),
    ),
    "grouping.within_group_variance": Entry(
        lambda: within_group_variance(np.array([1.0, 3.0, 5.0, 5.0, 9.0]), ["a", "a", "b", "b", "c"]),  # (2 + 0) / 2
        1.0,
        lambda c: within_group_variance(c.scores.numpy(), c.groups),
    ),
    "grouping.within_group_correlation": Entry(
        # deviations (-1, 1), (0, 0) and (2, -2), (1, -1): -4 / √(2 · 10)
        lambda: within_group_correlation(
            np.array([1.0, 3.0, 7.0, 7.0]), np.array([4.0, 0.0, 9.0, 7.0]), ["a", "a", "b", "b"]
        ),
        -4 / math.sqrt(20),
        lambda c: within_group_correlation(c.scores.numpy(), c.scores.numpy() ** 2, c.groups),
    ),
    "grouping.order_agreement": Entry(
        # of a: alike, unlike, half; of b: seen by neither
        lambda: order_agreement(
            np.array([1.0, 2.0, 3.0, 5.0, 5.0]), np.array([0.0, 4.0, 0.0, 1.0, 1.0]), ["a", "a", "a", "b", "b"]
        ),
        0.5,
        lambda c: order_agreement(c.scores.numpy(), c.scores.numpy() ** 2, c.groups),
    ),
    "density_ratio.relative_log_ratio": Entry(
        lambda: n(relative_log_ratio(np.log([0.2]), np.log([0.1]), 0.25)),  # 0.2 / (¼ · 0.2 + ¾ · 0.1) = 1.6
        t(0.4700036292457356),
        lambda c: rows(relative_log_ratio, c.x[:, 0], c.y[:, 0], relative=0.1),
    ),
    "density_ratio.pair_log_weights": Entry(
        lambda: n(pair_log_weights(np.array([1.0]), np.array([3.0]), 0.5)),
        t(2.0),
        lambda c: rows(pair_log_weights, c.x[:, 0], c.y[:, 0], temper=0.5),
    ),
    "density_ratio.likelihood_log_weights": Entry(
        lambda: n(likelihood_log_weights(np.array([-1.0, 1.0]), np.array([-2.0, 0.0]))),
        t(-3.0, 0.0),
        lambda c: rows(likelihood_log_weights, c.x[:, 0], c.y[:, 0]),
    ),
    "density_ratio.mean_one_weights": Entry(
        lambda: n(mean_one_weights(np.log([1.0, 3.0]))), t(0.5, 1.5), lambda c: rows(mean_one_weights, c.scores)
    ),
    "density_ratio.effective_sample_size": Entry(
        lambda: effective_sample_size(np.log([1.0, 3.0])), 1.6, lambda c: effective_sample_size(c.scores.numpy())
    ),
    "density_ratio.implicit_margin": Entry(
        lambda: n(implicit_margin(*(np.array([v]) for v in (-1.0, -2.0, -3.0, -1.0)), 0.5)),  # ½ (1 + 2)
        t(1.5),
        lambda c: rows(implicit_margin, c.x[:, 0], c.y[:, 0], c.z[:, 0], c.scores, beta=0.5),
    ),
    "linear_reward.fit_linear_reward": Entry(
        lambda: n(fit_linear_reward(np.array([[1.0], [-1.0]]), np.array([3.0, 1.0]), 1e-12, np.zeros(1))),
        t(math.log(3)),
        lambda c: tuple(fit_linear_reward(c.logits[:, 0].numpy(), c.weights.numpy(), 1.0, np.ones(4)).tolist()),
    ),
    "linear_reward.pair_curvature": Entry(
        lambda: n(pair_curvature(np.array([[2.0]]), np.zeros(1), np.ones(1), 3.0)),  # ¼ · 4 + 3
        t([4.0]),
        lambda c: tuple(pair_curvature(c.logits[:, 0].numpy(), c.scores.numpy(), c.weights.numpy(), 1.0)[0].tolist()),
    ),
    "linear_reward.gap_variance": Entry(
        lambda: n(gap_variance(np.array([[2.0], [4.0]]), np.array([[4.0]]))),
        t(1.0, 4.0),
        lambda c: rows(gap_variance, c.logits[:, 0], precision=np.diag([1.0, 2.0, 3.0, 4.0])),
    ),
    "linear_reward.spread_gradient": Entry(
        lambda: n(spread_gradient(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([2.0, -1.0]))),  # ½ (1, -1)
        t(0.5, -0.5),
        lambda c: tuple(spread_gradient(c.logits[:, 0].numpy(), c.scores.numpy()).tolist()),
    ),
    "linear_reward.gradient_agreement": Entry(
        lambda: n(gradient_agreement(np.array([[2.0, 4.0]]), np.zeros(1), np.array([1.0, -1.0]))),  # ½ (2 - 4)
        t(-1.0),
        lambda c: rows(gradient_agreement, c.logits[:, 0], c.scores, direction=np.array([1.0, -1.0, 0.5, 2.0])),
    ),
    "edits.edit_script": Entry(lambda: edit_script([1, 2, 3], [1, 4, 3, 5]), [Edit(1, 2, (4,)), Edit(3, 3, (5,))]),
    "edits.edited": Entry(lambda: edited([1, 2, 3], [Edit(1, 2, (4,)), Edit(3, 3, (5,))]), [1, 4, 3, 5]),
    "edits.edit_labels": Entry(
        lambda: edit_labels([1, 2, 3], [1, 4, 3, 5]), ([NEUTRAL, BAD, NEUTRAL], [NEUTRAL, GOOD, NEUTRAL, GOOD])
    ),
    "edits.least_share": Entry(lambda: least_share([1, 2, 2], [2, 1]), 0.2),
    "edits.token_label_loss": Entry(
        # -log σ(2) and ½ · 3², two tokens
        lambda: token_label_loss(t([2.0, 3.0, NAN]), torch.tensor([[GOOD, NEUTRAL, BAD]]), YES, t(1.0), t(1.0), 0.5),
        2.3134640055214863,
        lambda c: token_label_loss(c.x, c.labels, c.mask, c.weights, c.certainty, 0.5),
        "columns",
        learns=True,
    ),
    "best_of_n.best_of_n": Entry(
        # of values 1, 2, 6 in the order of scores, pairs give 2, 6 and 6
        lambda: best_of_n(np.array([[0.0, 2.0, 1.0]]), np.array([[1.0, 6.0, 2.0]]), 2),
        14 / 3,
        lambda c: best_of_n(c.scores.numpy()[None], c.x[:, 0].numpy()[None], 1),
    ),
    "runs.interquartile_mean": Entry(
        lambda: float(interquartile_mean(np.array([9.0, 1.0, -7.0, 2.0]))),
        1.5,
        lambda c: float(interquartile_mean(c.scores.numpy())),
    ),
    "runs.interquartile_interval": Entry(
        lambda: interquartile_interval([np.array([2.0]), np.array([4.0])], 0),
        (3.0, 3.0, 3.0),
        lambda c: interquartile_interval([c.scores.numpy()], 0).mean,
    ),
    "runs.probability_of_improvement": Entry(
        # 2 and ½ of 4, and none of 1
        lambda: probability_of_improvement(
            [np.array([1.0, 3.0]), np.array([0.0])], [np.array([1.0, 2.0]), np.array([5.0])]
        ),
        0.3125,
        lambda c: probability_of_improvement([c.scores.numpy()], [c.x[:, 0].numpy()]),
    ),
    "runs.improvement_interval": Entry(
        lambda: improvement_interval([np.array([1.0])], [np.array([1.0])], 0),
        (0.5, 0.5, 0.5),
        lambda c: improvement_interval([c.scores.numpy()], [c.x[:, 0].numpy()], 0).mean,
    ),
    "trajectories.at_first_reach": Entry(lambda: at_first_reach([0.0, 2.0, 1.0], [1.0, 2.0, 9.0], 1.5), 1.75),
    "trajectories.running_means": Entry(lambda: running_means([1.0, 3.0, 8.0], 2), [2.0, 5.5]),
    "rewardbench.best_of_credit": Entry(
        lambda: best_of_credit(np.array([2.0, 1.0, 2.0, 2.0]), 1),
        1 / 3,
        lambda c: best_of_credit(np.append(c.scores.numpy(), c.scores.numpy().min() - 1), len(c.scores)),
    ),
    "rewardbench.answer_margins": Entry(
        lambda: answer_margins(np.array([3.0, 2.0, 1.0, 0.0]), 2),
        (1.0, 1.0),
        lambda c: answer_margins(np.append(c.scores.numpy(), 0.5), len(c.scores)),
    ),
    "rewardbench.ties_credits": Entry(
        lambda: n(ties_credits(*(np.array([v]) for v in (1.0, 3.0, 2.0)))),  # 0.8 + 0.01 tanh(-½)
        t(0.8 - 0.01 * 0.46211715726000973),
    ),
    "rewardbench.overall_score": Entry(lambda: overall_score([1.0, 0.5], 0.25), 0.65),
    "rewardbench.ratio_draws": Entry(
        lambda: n(ratio_draws(np.array([1.0]), np.array([4.0]), 0, resamples=2)), t(0.25, 0.25)
    ),
    "rewardbench.percentile_interval": Entry(
        lambda: percentile_interval(2.0, np.arange(5.0), 0.5),
        (2.0, 1.0, 3.0),
        lambda c: percentile_interval(0.0, c.scores.numpy()),
    ),
    "rewardbench.determination": Entry(
        lambda: determination(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])),
        0.25,
        lambda c: determination(c.x[:, 0].numpy(), c.y[:, 0].numpy()),
    ),
    "overoptimisation.best_of_n_divergence": Entry(
        lambda: n(best_of_n_divergence(np.array([1.0, 2.0]))),  # 0 and log 2 - ½
        t(0.0, 0.1931471805599453),
        lambda c: rows(best_of_n_divergence, c.weights),
    ),
    "overoptimisation.best_of_n_terms": Entry(
        lambda: n(best_of_n_terms(np.array([3.0]))),
        t([3.0, -9.0]),
        lambda c: rows(best_of_n_terms, c.weights),
    ),
    "overoptimisation.policy_terms": Entry(
        lambda: n(policy_terms(np.array([0.0, 6.0]), 3)),  # 0, and 6 log 2
        t([0.0, 0.0], [6.0, -4.1588830833596715]),
        lambda c: rows(policy_terms, c.weights),
    ),
    "overoptimisation.best_of_n_peak": Entry(
        lambda: n(best_of_n_peak(np.array([2.0, 2.0]), np.array([0.5, 0.0]))),
        t(2.0, INF),
        lambda c: rows(best_of_n_peak, c.scores, c.weights),
    ),
    "overoptimisation.policy_peak": Entry(
        lambda: n(policy_peak(np.array([2.0, 2.0]), np.array([1.0, 0.0]), 3)),  # 3 e
        t(8.154845485377136, INF),
        lambda c: rows(policy_peak, c.scores, c.weights),
    ),
    "overoptimisation.obstacle": Entry(
        lambda: obstacle(np.array([[1.0, 0.0], [2.0, 1.0], [2.0, 1.0]])),
        "2 of the 4 different distances that a curve needs",
    ),
    "overoptimisation.fit_curve": Entry(
        # one unit: no draw differs; a = 1, b = ½, a/(2b) = 1
        lambda: fit_curve(
            np.array([[1.0, -1.0], [2.0, -4.0], [3.0, -9.0], [4.0, -16.0]]),
            np.array([0.5, 0.0, -1.5, -4.0]),
            np.zeros(4, dtype=int),
            best_of_n_peak,
            0,
        ),
        ((1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), 0.0),
    ),
    "ranks.average_ranks": Entry(
        lambda: n(average_ranks(np.array([5.0, 1.0, 5.0]))),
        t(2.5, 1.0, 2.5),
        lambda c: n(average_ranks(c.scores.numpy())).to(c.scores.dtype),
    ),
    "ranks.rank_correlation": Entry(
        # ranks 1, 2, 3 and 1, 3, 2
        lambda: rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([0.0, 8.0, 7.0])),
        0.5,
        lambda c: rank_correlation(c.scores.numpy(), c.x[:, 0].numpy()) or 0.0,
    ),
    "ranks.rank_correlation_interval": Entry(
        lambda: rank_correlation_interval(np.array([1.0, 2.0]), np.array([5.0, 3.0]), np.array([4, 4]), 0),
        (-1.0, -1.0, -1.0),
    ),
    "overlap.prefix_f1": Entry(lambda: prefix_f1([1, 9, 2], [1, 2]), [0.0, 2 / 3, 0.5]),
    "variational.boltzmann_log_policy": Entry(
        lambda: boltzmann_log_policy(t(0.0, math.log(2)), 2.0),  # odds 1 : 4
        t(-1.6094379124341003, -0.2231435513142097),
        lambda c: boltzmann_log_policy(c.logits, 0.7),
        "rows and columns",
    ),
    "variational.transitions": Entry(
        lambda: transitions(YES),
        torch.tensor([[True, False, False]]),
        lambda c: transitions(c.mask),
        "rows and columns",
    ),
    "variational.td_residuals": Entry(
        lambda: td_residuals(t([1.0, 4.0, NAN]), YES, 0.5),
        t([-1.0, 0.0, 0.0]),
        lambda c: td_residuals(c.x, c.mask, 0.9),
        "rows and columns",
        learns=True,
    ),
    "variational.prior_divergence": Entry(
        lambda: prior_divergence(t(1.0), t(math.log(2))),  # (4 + 1 - 1) / 2 - log 2
        t(1.3068528194400546),
        lambda c: prior_divergence(c.x, c.y / 4),
        "rows and columns",
    ),
    "variational.residual_log_likelihood": Entry(
        lambda: residual_log_likelihood(t(5.0), t(1.0), t(math.log(2))),  # -16/8 - log 2 - log(2π)/2
        t(-3.612085713764618),
        lambda c: residual_log_likelihood(c.x, c.y, c.z / 4),
        "rows and columns",
    ),
    "variational.demonstration_evidence": Entry(
        # one choice, δ = 3 - ½ · 4 = 1, μ = 1, σ = 1: ½ · -4, ½ and 2 · -log(2π)/2
        lambda: demonstration_evidence(
            t([-4.0, 9.0, NAN]),
            t([3.0, 4.0, NAN]),
            RewardPosterior(t([1.0, 9.0, NAN]), t([0.0, 9.0, NAN])),
            YES,
            0.5,
            0.5,
            2.0,
        ),
        (t(-2.0), t(0.5), t(-1.8378770664093453)),
        lambda c: demonstration_evidence(c.x, c.x, RewardPosterior(c.x, c.x / 4), c.mask, 0.7, 0.9, 1.3),
        "rows and columns",
        learns=True,
    ),
    "variational.unlikelihood": Entry(
        lambda: unlikelihood(t([-9.0, -1.0, NAN]), YES, -5.0),
        t(5.0),
        lambda c: unlikelihood(c.x, c.mask, -1.1),
        "rows and columns",
        learns=True,
    ),
    "variational.preference_evidence": Entry(
        lambda: preference_evidence(Evidence(t(1.0), t(2.0), t(3.0)), t([-9.0, -1.0, NAN]), YES, 0.5, -5.0),
        (t(3.5), t(2.0), t(3.0)),
        lambda c: preference_evidence(Evidence(*(masked_sum(c.y, c.mask, -1),) * 3), c.x, c.mask, 0.7, -1.1),
        "rows and columns",
        learns=True,
    ),
    "variational.last_reward": Entry(
        lambda: last_reward(t([1.0, 4.0, NAN]), YES),
        t(4.0),
        lambda c: last_reward(c.x, c.mask),
        "columns",
        learns=True,
    ),
    "variational.contrastive_return": Entry(
        lambda: contrastive_return(t([9.0, 3.0, NAN]), YES, t([9.0, 1.0, NAN]), YES),  # σ(2)
        t(0.8807970779778823),
        lambda c: contrastive_return(c.x, c.mask, c.y, c.mask),
        "columns",
        learns=True,
    ),
    "variational.log_contrastive_return": Entry(
        lambda: log_contrastive_return(t([9.0, 3.0, NAN]), YES, t([9.0, 1.0, NAN]), YES),
        t(-0.12692801104297263),
        lambda c: log_contrastive_return(c.x, c.mask, c.y, c.mask),
        "columns",
        learns=True,
    ),
    "variational.optimal_mean": Entry(
        lambda: optimal_mean(t(3.0), t(2.0), 2.0),
        t(1.0),
        lambda c: optimal_mean(c.x, c.y, 0.7),
        "rows and columns",
    ),
    "variational.stationary_variance": Entry(
        lambda: stationary_variance(t(3.0), t(1.0), 1.0),
        t(2.0),
        lambda c: stationary_variance(c.x, c.y, 0.7),
        "rows and columns",
    ),
    "variational.attention_received": Entry(
        # q · k: (0, log 3) of the first, (0, 0) of the second
        lambda: attention_received(t([[1.0], [0.0], [NAN]]), t([[0.0], [math.log(3)], [NAN]]), YES),
        t([0.375, 0.625, 0.0]),
        lambda c: attention_received(c.x.unsqueeze(-1), (c.x / 2).unsqueeze(-1), c.mask),
        "columns",
        learns=True,
    ),
    "variational.weighted_posterior": Entry(
        # shares 2 · ¼ and 2 · ¾; log σ̂ of the first is tanh(log 2 + log ½), of the second tanh(log(2/3) + log(3/2))
        lambda: weighted_posterior(
            RewardPosterior(t([3.0, -2.0, NAN]), t([math.log(2), math.log(2 / 3) + 1, NAN])),
            t([0.25, 0.75, NAN]),
            YES,
            1.0,
        ),
        (t([1.5, -3.0, 0.0]), t([0.0, math.tanh(1), 0.0])),
        lambda c: weighted_posterior(
            RewardPosterior(c.x, c.y),
            masked(c.z.abs() + 0.5, c.mask) / masked_sum(c.z.abs() + 0.5, c.mask, -1).unsqueeze(-1),
            c.mask,
            2.0,
        ),
        "rows and columns",
        learns=True,
    ),
    "variational.return_correlations": Entry(
        # returns 1 and 5, lengths 1 and 2, log-likelihoods -1 and -4
        lambda: return_correlations(
            t([1.0, NAN], [2.0, 3.0]), t([-1.0, NAN], [-2.0, -2.0]), torch.tensor([[True, False], [True, True]])
        ),
        (torch.tensor(1.0).double(), torch.tensor(-1.0).double()),
        lambda c: return_correlations(c.x, c.y, c.mask),
        "columns",
    ),
    "variational.correlation": Entry(
        lambda: correlation(t(1.0, 2.0, 3.0), t(4.0, 2.0, 6.0)),  # 2 / √(2 · 8)
        0.5,
        lambda c: correlation(c.x[:, 0], c.y[:, 0]),
    ),
}
ON_BATCHES = [name for name, entry in ENTRIES.items() if entry.call]
PADDED = [name for name, entry in ENTRIES.items() if entry.padding != "none"]
LEARNING = [name for name, entry in ENTRIES.items() if entry.learns]


def functions() -> Iterator[str]:
    """Every public function of `maths`."""
    for found in pkgutil.iter_modules(inverse_alignment.maths.__path__):
        module = importlib.import_module(f"inverse_alignment.maths.{found.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                yield f"{found.name}.{name}"


def test_every_function_of_maths_has_an_entry() -> None:
    assert set(functions()) == set(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_numbers_typed_by_hand(name: str) -> None:
    entry = ENTRIES[name]
    actual = entry.golden()
    if isinstance(actual, Tensor) and isinstance(entry.expected, float):
        actual = float(actual)
    if isinstance(actual, Tensor | float | tuple) and not isinstance(entry.expected, list):
        torch.testing.assert_close(actual, type(actual)(entry.expected) if type(actual) is tuple else entry.expected)
    else:
        assert actual == entry.expected


def leaves(found: Any) -> list[Any]:
    """The tensors and numbers of a result."""
    return [leaf for part in found for leaf in leaves(part)] if isinstance(found, tuple | list) else [found]


def assert_same(found: Any, plain: Any, case: Batch, tolerance: dict[str, float]) -> None:
    """Equal where something counts, and of one shape per answer: numbers of padding are left out."""
    for one, other in zip(leaves(found), leaves(plain), strict=True):
        if not isinstance(one, Tensor) or one.ndim == 0:
            torch.testing.assert_close(one, other, equal_nan=True, **tolerance)
        elif one.ndim == 1:
            torch.testing.assert_close(one[: len(case.mask)], other, **tolerance)
        else:
            b, width = case.mask.shape
            torch.testing.assert_close(one[:b, :width][case.mask], other[case.mask], **tolerance)


@pytest.mark.parametrize("name", PADDED)
@given(batches(), st.sampled_from([NAN, INF, -1e30, 7.0]), st.integers(0, 2), st.integers(0, 1))
@settings(max_examples=15, deadline=None)
def test_padding_changes_nothing(name: str, case: Batch, garbage: float, columns: int, rows: int) -> None:
    entry = ENTRIES[name]
    assert entry.call
    wider = case.padded(garbage, columns, rows if entry.padding == "rows and columns" else 0)
    assert_same(entry.call(wider), entry.call(case), case, EXACT)


def slopes(entry: Entry, case: Batch) -> Tensor:
    """Gradient in `x` of all that counts in a result."""
    assert entry.call
    x = case.x.clone().requires_grad_()
    found = entry.call(case._replace(x=x))
    total = torch.zeros((), dtype=torch.float64)
    for number, leaf in enumerate(leaves(found)):
        if leaf.requires_grad:
            shares = case.mask if leaf.ndim == 2 else case.mask.any(-1) if leaf.ndim == 1 else ...
            kept = leaf[shares]
            total = total + (number + 1) * (kept * torch.arange(1, kept.numel() + 1).reshape(kept.shape)).sum()
    return torch.autograd.grad(total, x)[0]


@pytest.mark.parametrize("name", LEARNING)
@given(batches(), st.sampled_from([NAN, INF, -1e30, 7.0]))
@settings(max_examples=10, deadline=None)
def test_nothing_is_learned_from_padding_and_nothing_else_by_it(name: str, case: Batch, garbage: float) -> None:
    entry = ENTRIES[name]
    wider = case.padded(garbage, 1, 1 if entry.padding == "rows and columns" else 0)
    plain, found = slopes(entry, case), slopes(entry, wider)
    b, width = case.mask.shape
    torch.testing.assert_close(found[:b, :width][case.mask], plain[case.mask], **EXACT)
    assert not found[~wider.mask].any()


@pytest.mark.parametrize("name", ON_BATCHES)
@given(batches(), st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_the_order_of_answers_does_not_matter(name: str, case: Batch, random: Any) -> None:
    call = ENTRIES[name].call
    assert call
    order = list(range(len(case.mask)))
    random.shuffle(order)
    for one, other in zip(leaves(call(case.reordered(order))), leaves(call(case)), strict=True):
        moved = other[order] if isinstance(other, Tensor) and other.ndim else other
        torch.testing.assert_close(one, moved, equal_nan=True, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ON_BATCHES)
@given(batches())
@settings(max_examples=10, deadline=None)
def test_single_precision_gives_the_same_in_single_precision(name: str, case: Batch) -> None:
    call = ENTRIES[name].call
    assert call
    found = leaves(call(case.cast(torch.float32)))
    for one, other in zip(found, leaves(call(case)), strict=True):
        if isinstance(one, Tensor) and one.is_floating_point() and name != "pairwise.accuracy":
            assert one.dtype == torch.float32
            one = one.double()
        torch.testing.assert_close(one, other, equal_nan=True, **FLOAT)


@given(batches())
@settings(max_examples=20, deadline=None)
def test_the_table_can_tell(case: Batch) -> None:
    """Negative control: what multiplies by the mask, or forgets it, is noticed where there is padding."""
    wider = case.padded(NAN, 1, 0)
    assert (wider.x * wider.mask).sum().isnan() and wider.x.mean().isnan()
    with pytest.raises(AssertionError):
        assert_same((wider.x * wider.mask).sum(), masked_sum(case.x, case.mask), case, EXACT)
