"""Comparisons of several runs -> one, with the arms of all of them."""

from __future__ import annotations

from collections.abc import Mapping

from inverse_alignment.core.errors import UserError
from inverse_alignment.report.comparison import Comparison

RUN_NODES = ("select", "refresh", "ppo", "direct", "evaluate")
"""What belongs to an arm among the nodes of the lineage, as in ppo.ARM.s0.r1."""


def merged(comparisons: Mapping[str, Comparison]) -> Comparison:
    """One comparison whose arms are called `label/arm`, over the seeds that all have; of one comparison, itself.

    Args:
        comparisons: by label, at least one.

    Raises:
        UserError: runs have no seed in common, different numbers of rounds, or start from different SFT policies, to
            which their KL is measured.
    """
    first = next(iter(comparisons.values()))
    if len(comparisons) == 1:
        return first
    _require_alike(comparisons)
    seeds = tuple(seed for seed in first.seeds if all(seed in one.seeds for one in comparisons.values()))
    lineage = {name: node for name, node in first.lineage.items() if name.partition(".")[0] not in RUN_NODES}
    runs = []
    for label, one in comparisons.items():
        runs += [
            run.model_copy(update={"arm": f"{label}/{run.arm}"})
            for arm in one.arms
            for run in one.of_arm(arm)
            if run.seed in seeds
        ]
        for name, node in one.lineage.items():
            kind, _, rest = name.partition(".")
            if kind in RUN_NODES:
                lineage[f"{kind}.{label}/{rest}"] = node
    return first.model_copy(
        update={
            "title": " against ".join(comparisons),
            "arms": tuple(f"{label}/{arm}" for label, one in comparisons.items() for arm in one.arms),
            "seeds": seeds,
            "starts": tuple(start for start in first.starts if start.seed in seeds),
            "runs": tuple(runs),
            "lineage": lineage,
        }
    )


def _require_alike(comparisons: Mapping[str, Comparison]) -> None:
    named = " and ".join(comparisons)
    if len({one.rounds for one in comparisons.values()}) > 1:
        counts = ", ".join(f"{label} has {one.rounds}" for label, one in comparisons.items())
        raise UserError("the runs have different numbers of rounds", where=counts, fix="compare runs of as many rounds")
    seeds = set.intersection(*(set(one.seeds) for one in comparisons.values()))
    if not seeds:
        raise UserError("the runs have no seed in common", where=named, fix="compare runs of the same seeds")
    for seed in sorted(seeds):
        policies = {one.lineage[f"sft.s{seed}"].digest for one in comparisons.values()}
        if len(policies) > 1:
            raise UserError(
                f"the runs start from different SFT policies (seed {seed}), to which their KL is measured",
                where=named,
                fix="compare runs of one data set and one sft section; make a report of each otherwise",
            )
