"""How far apart a reward model puts the answers to one prompt."""

from __future__ import annotations

from torch import Tensor


def score_spread(scores: Tensor) -> Tensor:
    """`J = mean over prompts of 2/k² Σ_{i<j} |r_i - r_j|` of k answers to each prompt, in score units.

    It knows no offset: adding a constant to the scores of a prompt changes nothing. The difference loss of MetaRM
    (arXiv 2405.00438, and the section on it in arXiv 2401.06080).

    Args:
        scores: (g, k) scores, k answers to each of g prompts.

    Raises:
        ValueError: there is no prompt, or fewer than two answers to each.
    """
    count = scores.shape[-1]
    if scores.ndim != 2 or not len(scores) or count < 2:
        raise ValueError(f"a spread needs prompts with two answers or more, got {tuple(scores.shape)}")
    gaps = (scores.unsqueeze(-1) - scores.unsqueeze(-2)).abs()  # every pair twice
    return gaps.sum((-1, -2)).mean() / count**2
