"""A KL-regularised problem small enough to enumerate: its optimum, KL and gradients are exact. float64 throughout.

Prompts x = 0..P-1; responses y = all V**T token sequences of length T over a vocabulary of V, in lexicographic order
(`sequences`). The problem is

    J(π) = (1/P) Σₓ Σ_y π(y|x) [ r(x, y) - β log π(y|x)/π_ref(y|x) ]

whose optimum is π*(y|x) = π_ref(y|x) exp(r(x, y)/β) / Z(x), with value (1/P) Σₓ β log Z(x)
(Rafailov et al. 2023, eq. 4). As β → ∞ it is π_ref, as β → 0 the best response.

Shapes: P prompts, S = V**T sequences, N prefixes, n rows of a batch. Log-probabilities are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inverse_alignment.core.seeding import derive_seed, uniforms


def sequences(vocabulary: int, length: int) -> Tensor:
    """All token sequences, int64 (V**T, T), in lexicographic order: row i is i written in base V."""
    place = vocabulary ** torch.arange(length - 1, -1, -1)
    return torch.arange(vocabulary**length).unsqueeze(1) // place % vocabulary


def sequence_index(tokens: Tensor, vocabulary: int) -> Tensor:
    """Row of each sequence in `sequences`: Σₜ yₜ V**(T-1-t). int64 (..., T) -> (...)."""
    place = vocabulary ** torch.arange(tokens.shape[-1] - 1, -1, -1, device=tokens.device)
    return (tokens * place).sum(-1)


def prefix_index(tokens: Tensor, vocabulary: int) -> Tensor:
    """Table row of the prefix before each position. int64 (..., T) -> (..., T).

    Prefixes are numbered by length, then lexicographically: the empty one is 0, those of length t start at
    1 + V + ... + V**(t-1).
    """
    rows = torch.zeros_like(tokens)
    for t in range(1, tokens.shape[-1]):
        rows[..., t] = rows[..., t - 1] * vocabulary + tokens[..., t - 1] + 1
    return rows


def absorbing(logits: Tensor, length: int, end: int) -> Tensor:
    """Logits (P, N, V) under which a sequence that has reached the token `end` stays at it: answers of unequal length.

    A sequence that leaves `end` again has probability zero; what had not ended is as likely as before.
    """
    vocabulary = logits.shape[-1]
    is_end = torch.arange(vocabulary) == end
    level = torch.zeros(1, dtype=torch.bool)
    levels = [level]
    for _ in range(length - 1):
        level = (level.unsqueeze(-1) | is_end).flatten()
        levels.append(level)
    surely_end = torch.where(is_end, 0.0, -torch.inf).to(logits.dtype)
    return torch.where(torch.cat(levels).unsqueeze(-1), surely_end, logits)


class TabularPolicy(nn.Module):
    """An autoregressive policy with one free row of logits per prompt and prefix.

        log π(y|x) = Σₜ log softmax(θ[x, y_<t])[yₜ]

    It can represent any full-support distribution over sequences, so that an optimiser, not the class, is what limits
    how near to π* one comes.

    Args:
        logits: θ, float64 (P, N, V) with N = 1 + V + ... + V**(T-1).
        length: T.
    """

    def __init__(self, logits: Tensor, length: int) -> None:
        super().__init__()
        prefixes = sum(logits.shape[-1] ** t for t in range(length))
        if logits.ndim != 3 or logits.shape[1] != prefixes:
            raise ValueError(f"logits must be (prompts, {prefixes}, vocabulary), not {tuple(logits.shape)}")
        self.logits = nn.Parameter(logits.detach().double().clone())
        self.length = length

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.logits.shape[-1]

    @staticmethod
    def from_log_probs(log_probs: Tensor, vocabulary: int, length: int) -> TabularPolicy:
        """The policy with given sequence log-probabilities (P, V**T).

            θ[x, s, a] = log Σ_{y starts with s, a} π(y|x)

        The normaliser of each row cancels in the softmax. A prefix of probability zero gets a uniform row.
        """
        by_token = log_probs.reshape(log_probs.shape[0], *(vocabulary,) * length)
        rows = []
        for t in range(length):
            tail = tuple(range(t + 2, length + 1))
            marginal = by_token.logsumexp(tail) if tail else by_token
            row = marginal.reshape(log_probs.shape[0], vocabulary**t, vocabulary)
            rows.append(torch.where((row == -torch.inf).all(-1, keepdim=True), torch.zeros_like(row), row))
        return TabularPolicy(torch.cat(rows, dim=1), length)

    def token_log_probs(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """log π(yₜ | x, y_<t). prompts int64 (n,), tokens int64 (n, T) -> float64 (n, T)."""
        rows = self.logits[prompts.unsqueeze(1), prefix_index(tokens, self.vocabulary)]
        return rows.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """log π(y|x), summed over tokens. prompts int64 (n,), tokens int64 (n, T) -> float64 (n,)."""
        return self.token_log_probs(prompts, tokens).sum(-1)

    def log_prob_table(self) -> Tensor:
        """log π(y|x) of every sequence, float64 (P, V**T), differentiable."""
        every = sequences(self.vocabulary, self.length)
        n_prompts = self.logits.shape[0]
        prompts = torch.arange(n_prompts).repeat_interleave(len(every))
        return self.log_prob(prompts, every.repeat(n_prompts, 1)).reshape(n_prompts, -1)

    @torch.no_grad()
    def sample(self, prompts: Tensor, uniform: Tensor) -> Tensor:
        """Sequences by inverting the distribution function: yₜ = #{a : F(a | x, y_<t) <= uₜ}.

        Args:
            prompts: int64 (n,).
            uniform: numbers in [0, 1), float64 (n, T); the same numbers give the same sequences.

        Returns:
            int64 (n, T).
        """
        tokens = torch.zeros(uniform.shape, dtype=torch.int64)
        row = torch.zeros_like(prompts)
        for t in range(self.length):
            cumulative = self.logits[prompts, row].softmax(-1).cumsum(-1)
            # The last entry may round to just below one; without it, no uniform can fall past the vocabulary.
            tokens[:, t] = (cumulative[:, :-1] <= uniform[:, t : t + 1]).sum(-1)
            row = row * self.vocabulary + tokens[:, t] + 1
        return tokens


@dataclass(frozen=True)
class TabularProblem:
    """A reference policy, a reward for each (prompt, sequence) and a price of KL.

    Attributes:
        reference: π_ref.
        reward: r, float64 (P, V**T).
        beta: β > 0, reward units per nat.
    """

    reference: TabularPolicy
    reward: Tensor
    beta: float

    def __post_init__(self) -> None:
        expected = (self.reference.logits.shape[0], self.reference.vocabulary**self.reference.length)
        if tuple(self.reward.shape) != expected:
            raise ValueError(f"reward must be {expected}, not {tuple(self.reward.shape)}")
        if not self.beta > 0:
            raise ValueError(f"beta must be positive, not {self.beta}")

    def optimum(self) -> TabularPolicy:
        """π* as an autoregressive policy."""
        log_probs = optimum_log_probs(self.reference.log_prob_table().detach(), self.reward, self.beta)
        return TabularPolicy.from_log_probs(log_probs, self.reference.vocabulary, self.reference.length)

    def value(self) -> Tensor:
        """J(π*) = (1/P) Σₓ β log Z(x), a scalar."""
        return optimal_value(self.reference.log_prob_table().detach(), self.reward, self.beta)

    def objective(self, policy: TabularPolicy) -> Tensor:
        """J(policy), a scalar, differentiable in the policy."""
        reference = self.reference.log_prob_table().detach()
        return objective(policy.log_prob_table(), reference, self.reward, self.beta)

    def gradient(self, policy: TabularPolicy) -> Tensor:
        """∂J/∂θ in closed form, of the shape of the policy's logits; see `objective_gradient`."""
        return objective_gradient(policy, self.reference.log_prob_table().detach(), self.reward, self.beta)


def make_problem(
    seed: int = 0, *, prompts: int = 3, vocabulary: int = 3, length: int = 3, beta: float = 0.5, end: int | None = None
) -> TabularProblem:
    """A problem with reference logits uniform in [-1, 1) and rewards uniform in [-1, 1), the same on every platform.

    Args:
        end: a token that ends an answer, see `absorbing`; None for answers of equal length.
    """
    n_prefixes = sum(vocabulary**t for t in range(length))

    def table(purpose: str, *shape: int) -> Tensor:
        row = uniforms([derive_seed("tabular", purpose, seed)], torch.Size(shape).numel())
        return 2 * torch.from_numpy(row).reshape(shape) - 1

    logits = table("reference", prompts, n_prefixes, vocabulary)
    reference = TabularPolicy(logits if end is None else absorbing(logits, length, end), length)
    return TabularProblem(reference, table("reward", prompts, vocabulary**length), beta)


def optimum_log_probs(reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """log π*(y|x) = log π_ref(y|x) + r(x, y)/β - log Z(x). All (P, S), reference in log-probabilities."""
    return (reference + reward / beta).log_softmax(-1)


def optimal_value(reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """J(π*) = (1/P) Σₓ β log Σ_y π_ref(y|x) exp(r(x, y)/β), a scalar."""
    return beta * (reference + reward / beta).logsumexp(-1).mean()


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) = Σ_y p(y) (log p(y) - log q(y)) per prompt, in nats. Log-probabilities (P, S) -> (P,).

    A sequence of probability zero under p contributes nothing, whatever q gives it.
    """
    terms = log_p.exp() * (log_p - log_q)
    return torch.where(log_p == -torch.inf, torch.zeros_like(terms), terms).sum(-1)


def expected_reward(log_p: Tensor, reward: Tensor) -> Tensor:
    """E_p[r] = Σ_y p(y|x) r(x, y) per prompt. Both (P, S) -> (P,)."""
    return (log_p.exp() * reward).sum(-1)


def objective(log_p: Tensor, reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """J = (1/P) Σₓ (E_p[r] - β KL(p || π_ref)), a scalar. All (P, S), p and reference in log-probabilities."""
    return (expected_reward(log_p, reward) - beta * kl_divergence(log_p, reference)).mean()


@torch.no_grad()
def objective_gradient(policy: TabularPolicy, reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The exact policy gradient, without automatic differentiation. float64 (P, N, V), as the logits.

        ∂J/∂θ[x, s, a] = (1/P) Σ_{y passes s} π(y|x) A(x, y) (1[y goes on with a] - π(a|x, s))
        A(x, y) = r(x, y) - β log π(y|x)/π_ref(y|x)

    Any baseline that depends on x alone leaves it as it is, since Σ_y π ∂log π = 0; the term from ∂(log π) inside A
    vanishes for the same reason.

    Args:
        policy: π.
        reference: log π_ref, (P, S).
        reward: r, (P, S).
        beta: β.
    """
    n_prompts, _, vocabulary = policy.logits.shape
    log_p = policy.log_prob_table()
    flow = log_p.exp() * (reward - beta * (log_p - reference))
    flow = torch.where(log_p == -torch.inf, torch.zeros_like(flow), flow)  # what cannot happen teaches nothing
    every = sequences(vocabulary, policy.length)
    rows = prefix_index(every, vocabulary)
    through = torch.zeros(policy.logits.shape, dtype=policy.logits.dtype)
    for t in range(policy.length):
        # Adds each sequence's weighted advantage to the (prefix, next token) it passes at position t.
        cell = (rows[:, t] * vocabulary + every[:, t]).expand(n_prompts, -1)
        through.view(n_prompts, -1).scatter_add_(1, cell, flow)
    passing = through.sum(-1, keepdim=True)
    return (through - passing * policy.logits.softmax(-1)) / n_prompts
