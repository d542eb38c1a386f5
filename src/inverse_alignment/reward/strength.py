"""What is done about weak preferences: pairs turned round, doubted, or given a margin. Secrets of RLHF II."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from inverse_alignment.reward.training_settings import EnsembleStrength

STRATA = 10


def shown_to(count: int, share: float, seed: int) -> np.ndarray:
    """The rows that a member learns from, ascending: a share of `count`, drawn without replacement; at least one."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    return np.sort(generator.permutation(count)[: max(1, round(share * count))])


def treated(
    rows: Sequence[dict[str, Any]], strength: np.ndarray, settings: EnsembleStrength, use_margins: bool
) -> list[dict[str, Any]]:
    """Rows of pairs as they are learned from, in their order.

    The weakest are turned round, the weakest of the others doubted, and so are the strongest; of a pair that is turned
    round the strength is, too. A margin is in proportion to the strength where that is above zero.

    Args:
        rows: of `reward.bradley_terry.pair_rows`.
        strength: (n,) u of each row.
        use_margins: whether the data's margins count; otherwise they are dropped.
    """
    order, count = np.argsort(strength, kind="stable"), len(rows)
    turned, doubted, sure = (round(share * count) for share in (settings.flip, settings.soften, settings.soften_strong))
    flip, soften = set(order[:turned].tolist()), set(order[turned : turned + doubted].tolist())
    soften |= set(order[count - sure :].tolist())
    found = []
    for place, (row, known) in enumerate(zip(rows, strength.tolist(), strict=True)):
        new = dict(row)
        if place in flip:
            new |= {"chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]}
        if place in soften:
            new["soft_label"] = min(row["soft_label"], settings.soft_label)
        margin = settings.margin * max(0.0, -known if place in flip else known)
        found.append({**new, "margin": margin + (row["margin"] if use_margins else 0.0)})
    return found
