"""Where probability goes that pairs move: a policy whose answers share features, trained on a few of them.

One prompt, 64 answers. Eight pairs are known, in each of which the rejected answer has much in common with the chosen
one; the first policy says one of these sixteen four times out of five. The other 48 answers are out of distribution:
nobody ever compared them. Our own, in the spirit of the toy study of arXiv 2404.09656, whose definition is not public.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from inverse_alignment.maths.direct import dpo_loss, ipo_loss, kto_loss, log_ratio_gap
from inverse_alignment.maths.trajectories import at_first_reach

ANSWERS, FEATURES, PAIRS, ALIKE, SAID = 64, 8, 8, 0.8, 2.5
STEPS, EVERY, BETA, RATE = 800, 20, 0.1, 0.01
CHOSEN, REJECTED = torch.arange(PAIRS), torch.arange(PAIRS, 2 * PAIRS)
ONE = torch.ones(PAIRS, dtype=torch.float64)


class Mass(NamedTuple):
    """Probability of the chosen, the rejected and the never compared answers, and the KL to the first policy, nats."""

    chosen: float
    rejected: float
    unseen: float
    kl: float


class Reference(NamedTuple):
    """How the reference moves: α after every step, or a copy after so many; neither: it stays."""

    alpha: float = 0.0
    every: int = 0


METHODS: dict[str, tuple[str, Reference]] = {
    "dpo": ("dpo", Reference()),
    "tr_dpo": ("dpo", Reference(alpha=0.6)),
    "tr_dpo_hard": ("dpo", Reference(every=32)),
    "ipo": ("ipo", Reference()),
    "tr_ipo": ("ipo", Reference(alpha=0.6)),
    "kto": ("kto", Reference()),
    "tr_kto": ("kto", Reference(alpha=0.6)),
}


def policy_of(seed: int) -> Callable[[Tensor], Tensor]:
    """Log-probabilities (64,) as a function of 8 weights, which are zero for the first policy."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(ANSWERS, FEATURES, generator=generator, dtype=torch.float64) / FEATURES**0.5
    features[REJECTED] = ALIKE * features[CHOSEN] + (1 - ALIKE**2) ** 0.5 * features[REJECTED]
    said = torch.zeros(ANSWERS, dtype=torch.float64)
    said[: 2 * PAIRS] = SAID
    start = features @ torch.randn(FEATURES, generator=generator, dtype=torch.float64) + said
    return lambda weights: torch.log_softmax(start + features @ weights, -1)


def loss_of(kind: str, policy: Tensor, reference: Tensor) -> Tensor:
    """The loss of all pairs, at certain labels."""
    if kind == "kto":
        seen = torch.cat([CHOSEN, REJECTED])
        baseline = (policy.exp() * (policy - reference)).sum().detach()
        good = torch.arange(2 * PAIRS) < PAIRS
        return kto_loss((policy - reference)[seen], good, torch.cat([ONE, ONE]), baseline, BETA)
    gaps = log_ratio_gap(policy[CHOSEN], policy[REJECTED], reference[CHOSEN], reference[REJECTED])
    return (dpo_loss if kind == "dpo" else ipo_loss)(gaps, ONE, ONE, BETA)


def run(method: str, seed: int, steps: int = STEPS) -> list[Mass]:
    """The masses at the start and after every few steps."""
    kind, moving = METHODS[method]
    log_probs = policy_of(seed)
    weights = torch.zeros(FEATURES, dtype=torch.float64, requires_grad=True)
    reference = torch.zeros(FEATURES, dtype=torch.float64)
    first, optimizer = log_probs(reference), torch.optim.Adam([weights], lr=RATE)

    def masses() -> Mass:
        now = log_probs(weights.detach())
        said = now.exp()
        shares = [float(part.sum()) for part in (said[CHOSEN], said[REJECTED], said[2 * PAIRS :])]
        return Mass(*shares, float((said * (now - first)).sum()))

    found = [masses()]
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss_of(kind, log_probs(weights), log_probs(reference)).backward()
        optimizer.step()
        if moving.every and step % moving.every == 0:
            reference = weights.detach().clone()
        reference = reference.lerp(weights.detach(), moving.alpha)
        if step % EVERY == 0:
            found.append(masses())
    return found


def unseen_at_kl(way: list[Mass], kl: float) -> float | None:
    """Mass of answers nobody compared where the KL is first reached; None where it never is."""
    return at_first_reach([at.kl for at in way], [at.unseen for at in way], kl)
