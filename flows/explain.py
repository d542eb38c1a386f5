"""Which pairs a round has chosen and why: a table, a page and a picture; the verb `select`."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.artifact import METRICS
from inverse_alignment.core.context import StageContext
from inverse_alignment.core.errors import UserError, nearest
from inverse_alignment.core.metrics import FileReport
from inverse_alignment.core.protocols import Embed
from inverse_alignment.core.records import Rollout, read_jsonl
from inverse_alignment.core.store import Entry, Store, open_store
from inverse_alignment.data.pool import open_split
from inverse_alignment.embedding.settings import LexicalEncoder
from inverse_alignment.report import explained_page
from inverse_alignment.report.explained import Explained, Picked, explain
from inverse_alignment.report.explained_page import Facts
from inverse_alignment.selection.settings import LowestSimilaritySelection, SimilaritySelection, TopKPerCluster
from inverse_alignment.stages.encoders import encoder
from inverse_alignment.stages.select import SelectStage
from tasks import run_stage
from tasks.run_stage import Flow, Node, Plan

SELECT, ROLLOUT = "-select", "-rollout"
MEASURED = (SimilaritySelection, LowestSimilaritySelection)
SHORT = re.compile(r"(?P<arm>.+)/(?P<seed>\d+)/(?P<round>\d+)")


@dataclass(frozen=True)
class Round:
    """A finished selection of a plan, with what it looked at.

    Attributes:
        inputs: folders of the selection's inputs, and its round's rollouts.
        out: folder of what it wrote.
    """

    node: Node
    entry: Entry
    inputs: Mapping[str, Path]
    out: Path


def node_of(name: str | None, plan: Plan) -> str:
    """The selection that is meant: a node, or `arm/seed/round`; the plan's only one where nothing is said.

    Raises:
        UserError: the plan has no such selection, or several and none is named.
    """
    names = [item.node.name for item in plan.planned.values() if item.node.stage == "select"]
    if not names:
        raise UserError("no arm of this configuration selects pairs", where="arms", fix="give an arm a selection")
    if name is None:
        if len(names) > 1:
            raise UserError(f"there are {len(names)} selections", where="NODE", fix=f"name one, for example {names[0]}")
        return names[0]
    short = SHORT.fullmatch(name)
    node = f"{short['arm']}-s{short['seed']}-r{short['round']}{SELECT}" if short else name
    if node not in names:
        raise UserError(f"no selection '{node}' in the plan", where="NODE", fix=nearest(node, names))
    return node


def finished(node: str, plan: Plan, store: Store) -> Round:
    """A selection that is built, with the folders of what it looked at.

    Raises:
        UserError: it is not built yet, or what it looked at is not there any more.
    """
    item = plan.planned[node]
    if item.entry is None:
        raise UserError(f"'{node}' is not built yet", where="NODE", fix="run it: inverse-alignment run")
    rollout = plan.planned.get(f"{node.removesuffix(SELECT)}{ROLLOUT}")
    wanted = {name: producer_folder(artifact, plan) for name, artifact in item.node.inputs.items()}
    inputs = {name: path for name, path in wanted.items() if path is not None}
    if rollout is not None and rollout.entry is not None:
        inputs["rollouts"] = store.local(rollout.entry.artifact)
    for name in ("preferences", "rollouts"):
        if name not in inputs:
            raise UserError(f"the {name} of '{node}' are not there", where=node, fix="run it: inverse-alignment run")
    return Round(item.node, item.entry, inputs, store.local(item.entry.artifact))


def producer_folder(artifact: Any, plan: Plan) -> Path | None:
    """Where the bytes of an input lie; the plan names made ones by their node."""
    name = run_stage.producer(artifact)
    if name is None:
        return None if artifact.pending else Path(artifact.uri)
    entry = plan.planned[name].entry
    return None if entry is None else Path(entry.artifact.uri) / artifact.uri.partition("/")[2]


def explained_round(of: Round, config: PipelineConfig, store: Store) -> tuple[Explained, Facts]:
    """Everything there is to say of a finished selection."""
    assert isinstance(of.node.config, SelectStage)
    selection = of.node.config.selection
    kept = [json.loads(line) for line in (of.out / "selection.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = of.out / "scores.npy"
    measured = selection if isinstance(selection, MEASURED) else None
    picked = Picked(
        np.array([row["row"] for row in kept], dtype=np.int64),
        np.array([row["weight"] for row in kept]),
        np.load(scores, allow_pickle=False) if scores.exists() else None,
        isinstance(getattr(selection, "keep", None), TopKPerCluster),
        measured.max_pair_similarity if measured else None,
    )
    embed, used = _encoder(of, config, store)
    same_prompt = measured is None or measured.compare_with == "same_prompt"
    rollouts = read_jsonl(of.inputs["rollouts"] / "rollouts.jsonl", Rollout)
    found = explain(open_split(of.inputs["preferences"], "train"), picked, rollouts, embed, same_prompt)
    audit = json.loads((of.out / "audit.json").read_text(encoding="utf-8"))
    settings = selection.model_dump(mode="json")
    return found, Facts(of.node.name, settings, embed.name, used, audit)


def _encoder(of: Round, config: PipelineConfig, store: Store) -> tuple[Embed, bool]:
    """The selector's own encoder, if it has one and it is there; the offline one otherwise."""
    assert isinstance(of.node.config, SelectStage)
    selection = of.node.config.selection
    own = isinstance(selection, MEASURED)
    chosen = selection.encoder if isinstance(selection, MEASURED) else LexicalEncoder()
    with tempfile.TemporaryDirectory() as nowhere:
        folder = Path(nowhere)
        plain = StageContext(folder, folder, FileReport(folder / METRICS), config.runtime)
        context = run_stage.helped(plain, of.node.inputs, store)
        return encoder(chosen, of.inputs, context), own


def show(name: str | None, flow: Flow, config: PipelineConfig, out: Path, explaining: bool, console: Console) -> None:
    """Say what a round has chosen; with `explaining`, why, in a table, a page and a picture.

    Raises:
        UserError: see `node_of` and `finished`.
    """
    store = open_store(config.store)
    plan = run_stage.plan(flow, store)
    node = node_of(name, plan)
    of = finished(node, plan, store)
    audit = json.loads((of.out / "audit.json").read_text(encoding="utf-8"))
    console.print(f"{node}: {audit['selected']:,} of {audit['pool']:,} pairs", highlight=False, markup=False)
    for kind in ("source", "annotator"):
        for each, count in sorted(audit[f"pool_by_{kind}"].items()):
            share = audit[f"selected_by_{kind}"].get(each, 0) / count
            console.print(f"  {kind} {each}: {share:.0%} of {count:,}", highlight=False, markup=False)
    if not explaining:
        return
    found, facts = explained_round(of, config, store)
    folder = out / node
    explained_page.write(found, facts, folder)
    console.print(explained_page.table(found))
    for file in (explained_page.PAGE, explained_page.PICTURE, explained_page.DATA):
        console.print(folder / file, markup=False, highlight=False, soft_wrap=True)
