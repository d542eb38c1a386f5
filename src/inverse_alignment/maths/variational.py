"""Variational inverse reinforcement learning of answers: AVRIL, and AVA's two objectives over tokens.

An answer is a way through a token process: in the state y_<t the token y_t is chosen, for sure the next state is y_≤t.
Column t of every (..., t) argument belongs to that choice: `log_probs` and `action_values` say log π(y_t | x, y_<t) and
Q(y_<t, y_t), the posterior is that of the reward R(y_≤t) of having made it. A choice has a residual only if another
choice follows, so that the last token of an answer does not count: the sums of Cai et al. end there, and so do the data
of the code of Chan & van der Schaar.

Symbols: γ discount, β inverse temperature of whoever demonstrates, λ what the consistency of Q and R counts. Rewards,
returns and action values have one unit, that of Q; log-probabilities, divergences and evidence are in nats.

Sources: AVRIL is Chan & van der Schaar 2021, arXiv 2102.06483, with its released code; AVA is Cai et al. 2024,
arXiv 2411.09341.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from inverse_alignment.maths.credit import final_positions
from inverse_alignment.maths.masked import masked, masked_mean, masked_sum
from inverse_alignment.maths.pairwise import preference_log_likelihood


class RewardPosterior(NamedTuple):
    """`q(R_t) = N(μ_t, σ_t²)` of the reward of every token; the prior is N(0, 1). Shapes (..., t).

    Attributes:
        mean: μ, in units of Q.
        log_std: log σ. Where λ > 1 it must be bounded below, see `demonstration_evidence`.
    """

    mean: Tensor
    log_std: Tensor


class Evidence(NamedTuple):
    """The three terms of a lower bound of log evidence, each summed over the choices of an answer: (...), in nats.

    Attributes:
        log_policy: `β Σ_t log π(y_t)`, for preferences less the bounded one of the rejected answer.
        divergence: `Σ_t KL(q(R_t) ‖ N(0, 1))`, never negative.
        consistency: `λ Σ_t log q(δ_t)`.
    """

    log_policy: Tensor
    divergence: Tensor
    consistency: Tensor

    @property
    def total(self) -> Tensor:
        """What is to be maximised: `log_policy - divergence + consistency`, (...)."""
        return self.log_policy - self.divergence + self.consistency


def boltzmann_log_policy(action_values: Tensor, beta: float) -> Tensor:
    """`log B(a | s; Q) = log softmax_a(β Q(s, a))`, in nats. Source: AVRIL, arXiv 2102.06483.

    With the logits z of a language model as Q and β = α it is also the pre-trained Q of AVA, `Q = log softmax(α z)`:
    the paper prints probabilities in place of z. AVA's `β log softmax(α z)` is the log-likelihood of a Boltzmann policy
    for β = 1 alone; otherwise it leaves out the normaliser, `log Σ_a exp(β Q(s, a))`.

    Args:
        action_values: (..., v), Q of every action.
        beta: β > 0.
    """
    return torch.log_softmax(beta * action_values, -1)


def transitions(mask: Tensor) -> Tensor:
    """Where a choice is followed by another one that counts: (..., t) bool, never in the last column."""
    return mask & functional.pad(mask[..., 1:], (0, 1))


def td_residuals(action_values: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """`δ_t = Q(y_<t, y_t) - γ Q(y_≤t, y_{t+1})`, zero where no choice follows.

    At γ = 1 the residuals of an answer add up to `Q_1 - Q_T`. With Q = log π they add up, for any γ, to
    `Q_1 + (1 - γ) Σ_{1<t<T} Q_t - γ Q_T`: a return that is paid by length and likelihood, see `return_correlations`.
    Source: AVA, arXiv 2411.09341, the residual of F_d; AVRIL, arXiv 2102.06483, whose code has γ = 1.

    Args:
        action_values: (..., t), of the tokens that were chosen.
        mask: (..., t) bool, True at response positions, one run of True per row.
        gamma: γ in [0, 1].
    """
    following = functional.pad(action_values[..., 1:], (0, 1))
    return masked(action_values - gamma * following, transitions(mask))


def prior_divergence(mean: Tensor, log_std: Tensor) -> Tensor:
    """`KL(N(μ, σ²) ‖ N(0, 1)) = (σ² + μ² - 1) / 2 - log σ`, in nats: zero for μ = 0 and σ = 1 alone. Elementwise.

    Source: `kl_gaussian` of AVRIL's released code.
    """
    return 0.5 * ((2 * log_std).exp() + mean**2 - 1) - log_std


def residual_log_likelihood(residuals: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """`log N(δ; μ, σ²) = -(δ - μ)² / (2 σ²) - log σ - log(2π) / 2`, in nats. Elementwise.

    Source: the soft constraint of AVRIL, arXiv 2102.06483.
    """
    return -0.5 * ((residuals - mean) ** 2 * (-2 * log_std).exp() + math.log(2 * math.pi)) - log_std


def demonstration_evidence(
    log_probs: Tensor,
    action_values: Tensor,
    posterior: RewardPosterior,
    mask: Tensor,
    beta: float,
    gamma: float,
    consistency: float,
) -> Evidence:
    """AVA-d: `F_d = Σ_t [β log π(y_t) - KL(q(R_t) ‖ N(0, 1)) + λ log q(δ_t)]` of every answer.

    With `log_probs` from `boltzmann_log_policy` and β = 1 here it is AVRIL; that with γ = λ = 1, and per choice, is the
    loss of its code. With Q = `log_probs` = log softmax(α z) it is AVA on a pre-trained Q. λ = 0 leaves rewards at the
    prior.

    In σ it is bounded for λ <= 1 alone: where μ = δ a choice gains `(1 - λ) log σ`, which grows without end as σ → 0 if
    λ > 1. At λ = 1 the best (μ, σ) of one choice is a point, σ → 0, wherever |δ| <= 1, and has σ² = |δ| - 1 elsewhere:
    σ says how well a residual is predicted, and nothing of what the model does not know.
    Source: AVA, arXiv 2411.09341, F_d; AVRIL, arXiv 2102.06483.

    Args:
        log_probs: (..., t), log π of the chosen tokens.
        action_values: (..., t), Q of the chosen tokens.
        posterior: of the rewards of the chosen tokens.
        mask: (..., t) bool, True at response positions, one run of True per row.
        beta: β > 0.
        gamma: γ in [0, 1].
        consistency: λ >= 0.
    """
    counts = transitions(mask)
    mean, log_std = masked(posterior.mean, counts), masked(posterior.log_std, counts)
    fit = residual_log_likelihood(td_residuals(action_values, mask, gamma), mean, log_std)
    return Evidence(
        beta * masked_sum(log_probs, counts, -1),
        masked_sum(prior_divergence(mean, log_std), counts, -1),
        consistency * masked_sum(fit, counts, -1),
    )


def unlikelihood(log_probs: Tensor, mask: Tensor, floor: float) -> Tensor:
    """`U = -Σ_t max(log π(y_t), c)` over the choices of rejected answers: (...), in nats, at most -c for each.

    Printed is `-Σ_t log π(y_t)`, which grows without end as a probability goes to zero, so that forgetting one token
    could pay for everything else. Here a token less likely than e^c has no gradient; above that it is what is printed.
    Source: AVA, arXiv 2411.09341, the second term of F_p; the bound c is ours.

    Args:
        log_probs: (..., t), log π of the tokens of rejected answers.
        mask: (..., t) bool, True at response positions, one run of True per row.
        floor: c < 0, nats.

    Raises:
        ValueError: c is not below zero.
    """
    if not floor < 0:
        raise ValueError(f"the floor of a log-probability must be below zero, not {floor}")
    return -masked_sum(log_probs.clamp(min=floor), transitions(mask), -1)


def preference_evidence(
    chosen: Evidence, rejected_log_probs: Tensor, rejected_mask: Tensor, beta: float, floor: float
) -> Evidence:
    """AVA-p: `F_p = F_d(y_c) - β Σ_t max(log π(y_r,t), c)` of every pair.

    Without the second term, what the paper calls "without negatives", it is AVA-d. Rejected answers change Q alone: no
    reward of theirs is in it. It is `contrastive_return` that compares rewards.
    Source: AVA, arXiv 2411.09341, F_p; bounded as in `unlikelihood`.

    Args:
        chosen: `demonstration_evidence` of the chosen answers, (...).
        rejected_log_probs: (..., t), log π of the tokens of the rejected answers.
        rejected_mask: (..., t) bool, True at their response positions.
        beta: β > 0, as in `chosen`.
        floor: c < 0, nats.

    Raises:
        ValueError: c is not below zero.
    """
    negatives = beta * unlikelihood(rejected_log_probs, rejected_mask, floor)
    return chosen._replace(log_policy=chosen.log_policy + negatives)


def last_reward(means: Tensor, mask: Tensor) -> Tensor:
    """`E_q[R(y)] = μ_T`, of the last token alone: (..., t) to (...). Source: AVA, arXiv 2411.09341, F_c.

    F_d and F_p do not reach that token: as a reward of whole answers, it is F_c alone that trains it.

    Raises:
        ValueError: a row has no position that counts.
    """
    return means.gather(-1, final_positions(mask).unsqueeze(-1)).squeeze(-1)


def contrastive_return(chosen: Tensor, chosen_mask: Tensor, rejected: Tensor, rejected_mask: Tensor) -> Tensor:
    """CER as printed: `σ(E_q[R(y_c)] - E_q[R(y_r)])` of every pair, to be maximised: (..., t) to (...), in (0, 1).

    A pair that is ranked wrongly by a wide margin has next to no gradient. Source: AVA, arXiv 2411.09341, F_c.

    Args:
        chosen, rejected: (..., t) means μ of rewards.
        chosen_mask, rejected_mask: (..., t) bool, True at response positions.

    Raises:
        ValueError: a row has no position that counts.
    """
    return torch.sigmoid(last_reward(chosen, chosen_mask) - last_reward(rejected, rejected_mask))


def log_contrastive_return(chosen: Tensor, chosen_mask: Tensor, rejected: Tensor, rejected_mask: Tensor) -> Tensor:
    """The logarithm of `contrastive_return`, in nats: the Bradley-Terry likelihood of the rewards of last tokens.

    A pair that is ranked wrongly pulls the harder the wider the margin. Arguments, shapes and errors as there.
    """
    return preference_log_likelihood(last_reward(chosen, chosen_mask), last_reward(rejected, rejected_mask))


def optimal_mean(residuals: Tensor, std: Tensor, consistency: float) -> Tensor:
    """`μ* = λ δ / (λ + σ²)`: the mean that `demonstration_evidence` is largest at, σ given. Elementwise.

    The reward is a residual of Q, drawn towards the prior. Source: ours, the zero of ∂F_d / ∂μ.
    """
    return consistency * residuals / (consistency + std**2)


def stationary_variance(residuals: Tensor, mean: Tensor, consistency: float) -> Tensor:
    """`σ*² = (1 - λ + √((1 - λ)² + 4 λ (δ - μ)²)) / 2`: where ∂F_d / ∂σ is zero, μ given. Elementwise.

    At λ = 1 it is `|δ - μ|`, at λ = 0 the variance of the prior, 1. It is the largest value in σ as long as δ ≠ μ, for
    any λ. Source: ours.
    """
    slack = 1 - consistency
    return (slack + (slack**2 + 4 * consistency * (residuals - mean) ** 2).sqrt()) / 2


def attention_received(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """`w_t = 1/n Σ_i softmax_t'(q_i · k_t')_t`: the mean attention that a position gets from the n that count.

    The weights of an answer add up to one, and are 1/n each where all keys are equal; zero where the mask is False.
    Attention goes both ways, back and forth: weights are of finished answers, and no function of the state.
    Source: Preference Transformer, Kim et al. 2023, arXiv 2303.00957, the preference attention layer; AVA,
    arXiv 2411.09341, reward weighting.

    Args:
        queries, keys: (..., t, d).
        mask: (..., t) bool, True at response positions; a row without any gets NaN.
    """
    counts = mask.unsqueeze(-1)
    likeness = masked(queries, counts) @ masked(keys, counts).mT
    lowest = torch.finfo(likeness.dtype).min
    return masked_mean(torch.where(mask.unsqueeze(-2), likeness, lowest).softmax(-1), counts, -2)


def weighted_posterior(posterior: RewardPosterior, weights: Tensor, mask: Tensor, bound: float) -> RewardPosterior:
    """`μ̂_t = n w_t μ_t` and `log σ̂_t = c tanh((log σ_t + log(n w_t)) / c)`, zero where the mask is False; (..., t).

    A reward of normal distribution times n w_t, n the tokens that count: equal weights change nothing but that log σ̂
    stays between -c and c. Then `Σ_t w_t μ_t`, the score of the Preference Transformer, is the mean of μ̂.
    Source: AVA, arXiv 2411.09341, reward weighting, which prints w_t in place of n w_t, so that rewards shrink with the
    length of an answer; the bound is ours, see `demonstration_evidence`.

    Args:
        posterior: of the rewards before they are weighted.
        weights: (..., t), not negative, adding up to one over the positions that count: from `attention_received`.
        mask: (..., t) bool, True at response positions.
        bound: c > 0.
    """
    share = masked(weights, mask) * mask.sum(-1, keepdim=True)
    spread = masked(posterior.log_std, mask) + share.clamp(min=torch.finfo(share.dtype).tiny).log()
    return RewardPosterior(
        share * masked(posterior.mean, mask),
        masked(bound * torch.tanh(spread / bound), mask),
    )


class ReturnCorrelations(NamedTuple):
    """What a sum of token rewards may stand for, if nothing else; numbers in [-1, 1].

    Attributes:
        length: Pearson correlation over answers of return and number of tokens.
        log_likelihood: the same of return and log π of the answer.
    """

    length: Tensor
    log_likelihood: Tensor


def return_correlations(rewards: Tensor, log_probs: Tensor, mask: Tensor) -> ReturnCorrelations:
    """`corr(Σ_t r_t, n)` and `corr(Σ_t r_t, Σ_t log π(y_t))` over answers: has a return become length or likelihood?

    Either is NaN where one side is the same for all answers.

    Args:
        rewards: (..., t).
        log_probs: (..., t).
        mask: (..., t) bool, True at response positions.
    """
    returns = masked_sum(rewards, mask, -1)
    lengths = mask.sum(-1).to(returns.dtype)
    return ReturnCorrelations(correlation(returns, lengths), correlation(returns, masked_sum(log_probs, mask, -1)))


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of two tensors of one shape; NaN, and not a matter of rounding, where one is constant."""
    one, other = first - first.amin(), second - second.amin()  # what is constant is now zero to the bit
    one, other = one - one.mean(), other - other.mean()
    return (one * other).sum() / ((one**2).sum() * (other**2).sum()).sqrt()
