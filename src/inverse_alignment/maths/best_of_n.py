"""Best-of-n sampling, estimated from N ≥ n answers without sampling again."""

from __future__ import annotations

from math import comb

import numpy as np


def best_of_n(scores: np.ndarray, values: np.ndarray, n: int) -> float:
    """Mean value of the answer with the highest score among n of a prompt's N answers; (p, N) scores and values.

    `1/C(N, n) Σ_{i=n}^{N} C(i - 1, n - 1) v_(i)` with values in the order of their scores: the mean over all subsets of
    size n, hence unbiased (Nakano et al., arXiv 2112.09332, appendix I). Answers of equal score share their mean value,
    as if ties were broken at random.

    Raises:
        ValueError: n is not between 1 and N, or the shapes differ.
    """
    if scores.shape != values.shape:
        raise ValueError(f"{scores.shape} scores of {values.shape} values")
    prompts, answers = scores.shape
    if not 1 <= n <= answers:
        raise ValueError(f"best of {n} needs 1 to {answers} answers of a prompt")
    weights = np.array([comb(place, n - 1) for place in range(answers)]) / comb(answers, n)
    return float(np.mean([_shared(scores[row], values[row]) @ weights for row in range(prompts)]))


def _shared(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values in the order of their scores, those of equal score replaced by their mean."""
    _, group = np.unique(scores, return_inverse=True)
    means = np.bincount(group, values) / np.bincount(group)
    shared: np.ndarray = means[np.sort(group)]
    return shared
