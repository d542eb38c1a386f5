"""A cache and helpers save the select stage work, and change no byte of what it writes."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest

from inverse_alignment.core.artifact import METRICS, list_files
from inverse_alignment.core.cache import DiskCache
from inverse_alignment.core.context import StageContext
from inverse_alignment.core.metrics import FileReport
from inverse_alignment.embedding.lexical import LexicalEncoder
from inverse_alignment.selection.settings import DensityRatioSelection, SimilaritySelection, TopK
from inverse_alignment.stages import select as stage
from inverse_alignment.stages.registry import STAGES
from tests.stages import chain

K = TopK(k=40)
SELECTIONS = {
    "similarity": SimilaritySelection(keep=K),
    "all_rollouts": SimilaritySelection(keep=K, compare_with="all_rollouts"),
    "density_ratio": DensityRatioSelection(keep=K),
}


def built_with(built, folder, selection, **helpers):
    """What a driver does, with helpers or without."""
    made = built.made
    inputs = {
        "preferences": made["preferences"],
        "rollouts": made["reference_rollouts"],
        "policy": made["ppo"] / "policy",
        "reference": made["sft"] / "policy",
    }
    out, partial = folder / "out", folder / "partial"
    out.mkdir(parents=True)
    partial.mkdir()
    context = StageContext(out, partial, FileReport(partial / METRICS), chain.RUNTIME, seed=0)
    digests = {name: name * 9 for name in inputs}
    config = stage.SelectStage(selection=selection, context=chain.MODEL.context)
    importlib.import_module(STAGES["select"].module).build(inputs, config, replace(context, digests=digests, **helpers))
    return {name: (out / name).read_bytes() for name in list_files(out)}


def backwards(work, items):
    done = [(i, work(item)) for i, item in reversed(list(enumerate(items)))]
    return (found for _, found in reversed(done))


@pytest.mark.parametrize("name", SELECTIONS)
def test_no_helper_changes_a_byte(built, tmp_path, name):
    selection = SELECTIONS[name]
    plain = built_with(built, tmp_path / "plain", selection)
    assert {"selection.jsonl", "audit.json", "scores.npy"} <= plain.keys()
    cache = DiskCache(tmp_path / "cache", 10**9)
    assert built_with(built, tmp_path / "cold", selection, cache=cache) == plain
    assert cache.hits == 0 < cache.misses
    cold = cache.misses
    assert built_with(built, tmp_path / "warm", selection, cache=cache) == plain
    assert cache.misses == cold and cache.hits == cold
    assert built_with(built, tmp_path / "spread", selection, spread=backwards) == plain


def test_a_damaged_cache_is_computed_anew(built, tmp_path):
    cache = DiskCache(tmp_path / "cache", 10**9)
    plain = built_with(built, tmp_path / "cold", SELECTIONS["density_ratio"], cache=cache)
    for path in cache.root.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-8] + b"\0" * 8)
    assert built_with(built, tmp_path / "damaged", SELECTIONS["density_ratio"], cache=cache) == plain
    assert cache.hits == 0


def test_a_second_round_embeds_the_new_answers_only(built, tmp_path, monkeypatch):
    asked = []
    embed = LexicalEncoder.__call__
    monkeypatch.setattr(LexicalEncoder, "__call__", lambda self, texts: asked.extend(texts) or embed(self, texts))
    cache, selection = DiskCache(tmp_path / "cache", 10**9), SELECTIONS["similarity"]
    built_with(built, tmp_path / "first", selection, cache=cache)
    first = len(asked)
    asked.clear()
    after = chain.Chain(tmp_path / "chain", dict(built.made))
    chain.roll_out(after, "reference_rollouts", built.made["ppo"] / "policy")  # what the policy writes after a round
    built_with(after, tmp_path / "second", selection, cache=cache)
    new = (after.made["reference_rollouts"] / "rollouts.jsonl").read_text().splitlines()
    assert len(asked) == len(new) < first
