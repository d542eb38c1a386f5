"""A world whose over-optimisation has no sampling noise: a linear reward model learns from some comparisons, and the
policies that are optimal for it, at every price of KL and at every n of best of n, are enumerated.

Gold is linear in an answer's traits, which the reward model sees, and a part that it cannot see. Where there are
exploits, the answers that the reference hardly ever gives are of odd kinds: their traits are large, so that they look
good, and being odd is worth so much less that they are bad. The reward model sees the kind too, but few comparisons
show it one. Comparisons are of answers of the reference policy, labelled by gold without error, as in arXiv 2210.10760.
What is left of that paper's setting is what a proxy learned from so many pairs gets wrong; networks, PPO's own errors
and text are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from inverse_alignment.maths.linear_reward import fit_linear_reward
from inverse_alignment.world.tabular import expected_reward, kl_divergence, make_problem, optimum_log_probs

PROMPTS, VOCABULARY, LENGTH = 6, 4, 4
TRAITS, UNSEEN = 12, 0.5
KINDS, ODD_SHARE, STRETCH, PENALTY = 8, 0.3, 2.5, 3.0
"""Odd kinds of answers, share of the answers (the rarest) that are odd, how large their traits are, what they cost."""
PRIOR = 1.0
MOST_DISTANCE = 2.2  # √nats: beyond, the enumerated policies run out of answers, and no law holds
PRICES = np.geomspace(8.0, 0.05, 60)
NS = np.unique(np.round(np.geomspace(1, 64, 16))).astype(int)


class Path(NamedTuple):
    """Policies ever further from the reference: √KL and gold less that of the reference, in sd of gold; (m,)."""

    distance: np.ndarray
    gold: np.ndarray


@dataclass(frozen=True)
class World:
    """One draw of everything but the comparisons; P prompts, S answers to each, f features.

    Attributes:
        reference: (P, S) log-probabilities.
        features: (P, S, f).
        gold: (P, S), mean 0 and sd 1 under the reference, over all prompts.
    """

    reference: np.ndarray
    features: np.ndarray
    gold: np.ndarray

    @staticmethod
    def of(seed: int, exploits: bool) -> World:
        """A world of a seed, with odd answers or without."""
        problem = make_problem(seed, prompts=PROMPTS, vocabulary=VOCABULARY, length=LENGTH)
        reference = problem.reference.log_prob_table().detach().numpy()
        draw = np.random.default_rng(seed)
        traits = draw.normal(size=(*reference.shape, TRAITS))
        odd = (reference <= np.quantile(reference, ODD_SHARE, axis=-1, keepdims=True)) & exploits
        kinds = np.eye(KINDS)[draw.integers(KINDS, size=reference.shape)] * odd[..., None]
        traits = traits * np.where(odd, STRETCH, 1.0)[..., None]
        features = np.concatenate([traits, kinds], -1)
        seen = traits @ draw.normal(size=TRAITS) / np.sqrt(TRAITS) - PENALTY * odd
        raw = seen + UNSEEN * draw.normal(size=reference.shape)
        weights = np.exp(reference) / PROMPTS
        mean = (weights * raw).sum()
        return World(reference, features, (raw - mean) / np.sqrt((weights * (raw - mean) ** 2).sum()))

    def proxy(self, pairs: int, seed: int) -> np.ndarray:
        """(P, S) scores of a Bradley-Terry model that is linear in the features, fitted to so many comparisons."""
        draw = np.random.default_rng(seed)
        prompts = draw.integers(PROMPTS, size=pairs)
        chances = np.exp(self.reference[prompts])
        first, second = ((chances.cumsum(-1) > draw.random((pairs, 1))).argmax(-1) for _ in range(2))
        gap = self.gold[prompts, first] - self.gold[prompts, second]
        told = gap != 0
        differences = np.sign(gap)[:, None] * (self.features[prompts, first] - self.features[prompts, second])
        w = fit_linear_reward(differences[told], np.ones(told.sum()), PRIOR, np.zeros(TRAITS + KINDS))
        scores: np.ndarray = self.features @ w
        weights = np.exp(self.reference) / PROMPTS
        mean = (weights * scores).sum()
        standard: np.ndarray = (scores - mean) / np.sqrt((weights * (scores - mean) ** 2).sum())
        return standard

    def optimised(self, proxy: np.ndarray) -> Path:
        """The optimal policies `π_ref exp(r/β)/Z` at falling prices of KL: what RL converges to."""
        reference, reward, gold = (torch.from_numpy(table) for table in (self.reference, proxy, self.gold))
        policies = [optimum_log_probs(reference, reward, float(beta)) for beta in PRICES]
        distance = np.array([float(kl_divergence(policy, reference).mean()) for policy in policies]) ** 0.5
        worth = np.array([float(expected_reward(policy, gold).mean()) for policy in policies])
        near = distance <= MOST_DISTANCE
        return Path(distance[near], worth[near])

    def best_of_n(self, proxy: np.ndarray) -> Path:
        """Best of n under the proxy, by `P(best is the j-th) = F_j^n - F_{j-1}^n` with answers in its order."""
        order = proxy.argsort(-1)
        reference, gold = (np.take_along_axis(table, order, -1) for table in (self.reference, self.gold))
        below = np.minimum(np.exp(reference).cumsum(-1), 1.0)
        start = np.concatenate([np.zeros((PROMPTS, 1)), below[:, :-1]], -1)
        distance, worth = [], []
        for n in NS:
            chosen = np.maximum(below**n - start**n, 1e-300)
            distance.append(max(float((chosen * (np.log(chosen) - reference)).sum(-1).mean()), 0.0) ** 0.5)
            worth.append(float((chosen * gold).sum(-1).mean()))
        return Path(np.array(distance), np.array(worth))
