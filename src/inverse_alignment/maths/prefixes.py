"""Scores of the beginnings of an answer, as values: what a reward model thinks so far of how it will end.

r_k is the score at the k-th of an answer's positions, from the last token of its prompt (k = 0) to its end (k = K);
sg[·] is followed by no gradient. Both penalties are least where r_k is the mean of what may follow (for TCRM see arXiv
2604.22981, which adds them to the loss of pairs). They are means over positions here, so that their weights do not
depend on how long answers are.
"""

from __future__ import annotations

from torch import Tensor

from inverse_alignment.maths.masked import masked, masked_sum


def temporal_smoothness(values: Tensor, mask: Tensor) -> Tensor:
    """`1/K Σ_{k=1}^{K} (r_{k-1} - sg[r_k])²` of each answer, (n,); zero for one without steps.

    Args:
        values: (n, t) scores at every position.
        mask: (n, t) bool, an unbroken run of True in each row.
    """
    steps, kept = mask[:, 1:] & mask[:, :-1], masked(values, mask)
    gaps = (kept[:, :-1] - kept[:, 1:].detach()) ** 2
    return masked_sum(gaps, steps, -1) / steps.sum(-1).clamp(min=1)


def look_ahead(values: Tensor, final: Tensor, mask: Tensor) -> Tensor:
    """`1/K Σ_{k=0}^{K-1} (r_k - sg[r_K])²` of each answer, (n,); zero for one without steps.

    Args:
        values: (n, t) scores at every position.
        final: (n,) r_K, scores of the whole answers.
        mask: (n, t) bool, an unbroken run of True in each row, the last at r_K.
    """
    steps, kept = mask[:, 1:] & mask[:, :-1], masked(values, mask)
    gaps = (kept[:, :-1] - final.detach().unsqueeze(-1)) ** 2
    return masked_sum(gaps, steps, -1) / steps.sum(-1).clamp(min=1)
