"""A pooled set or a subset of one round as a DVC-tracked dataset; the verb `publish`."""

from __future__ import annotations

from pathlib import Path

from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.errors import UserError, nearest
from inverse_alignment.core.store import Entry, open_store
from tasks import publish as datasets
from tasks import run_stage
from tasks.publish import Published
from tasks.run_stage import Flow, Plan


def node_of(node: str | None, run: str | None, round_: int | None) -> str:
    """The node that is meant: named, or the selection of a round of a run; the pooled set where nothing is said.

    Raises:
        UserError: the options do not go together.
    """
    if node and (run or round_):
        raise UserError("a node and a run are given", where="--node, --run", fix="give one of them")
    if (run is None) != (round_ is None):
        raise UserError("a run and a round go together", where="--run, --round", fix="give both, or neither")
    return node or (f"{run}-r{round_}-select" if run else "aggregate")


def publish(name: str, node: str, flow: Flow, config: PipelineConfig) -> Published:
    """Publish what a finished node made.

    Raises:
        UserError: the node does not exist, is not built, or makes no dataset; the name is none, or DVC refuses.
    """
    root = Path()
    datasets.require_dvc(name, root)
    plan = run_stage.plan(flow, open_store(config.store))
    entry = _built(plan, node)
    match entry.record["identity"]["stage"]:
        case "aggregate":
            return datasets.publish_set(name, node, entry, root)
        case "select":
            of = run_stage.producer(plan.planned[node].node.inputs["preferences"])
            return datasets.publish_subset(name, node, entry, _built(plan, str(of)), root)
        case stage:
            raise UserError(
                f"the stage {stage} makes no dataset", where=node, fix="name a node of the stage aggregate or select"
            )


def lines(name: str, made: Published) -> tuple[str, ...]:
    """What was made, and what to do with it."""
    what = "a new version" if made.new else "the version that is there already"
    record = f"{made.folder}.dvc"
    return (
        f"{made.folder}: {made.pairs} pairs, {what}, DVC's md5 {made.md5}",
        f"  git add {record} {made.folder.parent}/.gitignore && git commit -m 'Publish {name}'",
        "  dvc push   # to the remote, so that `dvc pull` brings it into other clones",
    )


def _built(plan: Plan, node: str) -> Entry:
    if node not in plan.planned:
        raise UserError(f"no node '{node}' in the plan", where="publish", fix=nearest(node, list(plan.planned)))
    entry = plan.planned[node].entry
    if entry is None:
        raise UserError(f"'{node}' is not built yet", where="publish", fix=f"run `inverse-alignment stage {node}`")
    return entry
