"""`inverse-alignment select`: on a finished round of every kind of selector, and on what is not there."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from flows.cli import _flow
from flows.explain import node_of, show
from inverse_alignment.config import load
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.store import open_store
from inverse_alignment.world.text import WorldConfig, write_dataset
from tasks import run_stage

K = "{type: top_k, k: 40}"
ARMS = {
    "similarity": f"{{type: similarity, keep: {K}}}",
    "ratio": f"{{type: density_ratio, keep: {K}}}",
    "random": "{type: random, k: 40}",
    "weights": "{type: likelihood, keep: {type: weights}}",
    "clusters": "{type: similarity, keep: {type: top_k_per_cluster, k: 40, clusters: 4}}",
    "both": f"{{type: intersection, of: [{{type: similarity, keep: {K}}}, {{type: random, k: 200}}]}}",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A small world and models that learn nothing; every arm's first selection is built."""
    folder = tmp_path_factory.mktemp("explain")
    write_dataset(folder / "data", WorldConfig(prompts=48, pairs=400))
    arms = ", ".join(f"{name}: {{selection: {selection}}}" for name, selection in ARMS.items())
    small = "{type: initialise, vocab_size: 320, hidden_size: 16, layers: 1, heads: 2, context: 128}"
    made = load(
        overrides=[
            f"data.sources=[{{format: jsonl, name: desk, path: {folder / 'data' / 'pairs.jsonl'}}}]",
            f"models.policy={small}",
            f"models.reward={small}",
            "sft.epochs=1",
            "rounds=1",
            "rollout.samples=2",
            "rollout.max_new_tokens=12",
            f"store={folder / 'store'}",
            f"arms={{{arms}}}",
        ]
    )
    for arm in ARMS:
        execute = run_stage.Execute(open_store(made.store), made.runtime)
        run_stage.run_up_to(_flow(made), f"{arm}-s0-r1-select", execute)
    return made


def said(name, config, out, explaining):
    console = Console(width=160, record=True, file=(out.parent / "console").open("w"))
    show(name, _flow(config), config, out, explaining, console)
    return console.export_text()


@pytest.mark.parametrize("arm", ARMS)
def test_every_selector_is_explained(config, tmp_path, arm):
    told = said(f"{arm}/0/1", config, tmp_path / "out", True)
    folder = tmp_path / "out" / f"{arm}-s0-r1-select"
    data = json.loads((folder / "selection.json").read_text())
    kept = [json.loads(line)["row"] for line in selection_of(config, arm)]
    for row in data["pairs"]:
        assert row["group"].startswith("Chosen") == (row["row"] in kept)
        assert (row["weight"] is not None) == (row["row"] in kept)
    assert any(row["row"] in kept for row in data["pairs"])
    assert f"{len(kept)} of " in told and "nearest answer of the policy" in told
    assert (folder / "map.png").stat().st_size > 10_000 and (folder / "selection.html").exists()


def selection_of(config, arm):
    plan = run_stage.plan(_flow(config), open_store(config.store))
    entry = plan.planned[f"{arm}-s0-r1-select"].entry
    with open(f"{entry.artifact.uri}/selection.jsonl") as file:
        return file.read().splitlines()


def test_without_explaining_it_only_counts(config, tmp_path):
    told = said("random-s0-r1-select", config, tmp_path / "out", False)
    assert told.startswith("random-s0-r1-select: 40 of ") and "source coach: " in told
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_said(config, tmp_path):
    plan = run_stage.plan(_flow(config), open_store(config.store))
    with pytest.raises(UserError, match="there are 6 selections"):
        node_of(None, plan)
    with pytest.raises(UserError, match=r"no selection 'ratio-s0-r2-select'[\s\S]*did you mean 'ratio-s0-r1-select'"):
        node_of("ratio/0/2", plan)
    other = config.model_copy(update={"seeds": (7,)})
    with pytest.raises(UserError, match="'random-s7-r1-select' is not built yet"):
        said("random/7/1", other, tmp_path / "out", True)
    none = config.model_copy(update={"arms": {"none": {"selection": {"type": "none"}}}})
    with pytest.raises(UserError, match="no arm of this configuration selects pairs"):
        said(None, none, tmp_path / "out", True)
