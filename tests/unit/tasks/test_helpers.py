"""Which stages a driver helps, with what; and how many threads arithmetic takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from inverse_alignment.core.artifact import METRICS, Artifact
from inverse_alignment.core.blocks import in_order
from inverse_alignment.core.cache import DiskCache
from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import Forgetful, RuntimeConfig
from inverse_alignment.core.metrics import FileReport
from inverse_alignment.core.store import Store
from inverse_alignment.core.workers import RayWorkers
from tasks.ray_workers import OnRay
from tasks.run_stage import HELPED, Execute, Node
from tasks.threads import limit_threads

INPUTS = {"policy": Artifact(kind="sft.policy", uri="somewhere", digest="d" * 64)}


def context(tmp_path, stage, **runtime):
    config = RuntimeConfig(**runtime)
    execute = Execute(Store(tmp_path), config)
    node = Node(f"{stage}-s0", stage, INPUTS, Section(), 5)
    return execute._context(node, tmp_path, tmp_path, FileReport(tmp_path / METRICS), config)


@pytest.mark.parametrize("stage", HELPED)
def test_a_stage_that_looks_at_many_texts_is_helped(tmp_path, stage):
    made = context(tmp_path, stage, cache_gib=0.5)
    assert isinstance(made.cache, DiskCache)
    assert made.cache.root == tmp_path / ".cache" and made.cache.most_bytes == 2**29
    assert made.digests == {"policy": "d" * 64} and made.seed == 5
    assert made.spread is in_order
    assert isinstance(context(tmp_path, stage, selection_workers=RayWorkers()).spread, OnRay)
    assert isinstance(context(tmp_path, stage, cache_gib=0).cache, Forgetful)


def test_other_stages_are_not(tmp_path):
    made = context(tmp_path, "ppo", selection_workers=RayWorkers())
    assert isinstance(made.cache, Forgetful) and not made.digests and made.spread is in_order


def test_a_cache_that_has_grown_too_large_is_cut_when_a_stage_begins(tmp_path):
    cache = DiskCache(tmp_path / ".cache", 10**9)
    for number in range(4):
        cache.put("s" * 64, str(number) * 64, {"x": np.zeros(1000)})
    context(tmp_path, "select", cache_gib=20_000 / 2**30)
    assert 0 < sum(path.stat().st_size for path in (tmp_path / ".cache").rglob("*.safetensors")) <= 20_000


def threads():
    return {torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")}


def test_products_of_matrices_take_as_many_threads_as_torch():
    np.ones((2, 2)) @ np.ones((2, 2))
    try:
        limit_threads(2)
        assert threads() == {2}
        limit_threads(0)  # as it is
        assert threads() == {2}
    finally:
        limit_threads(1)  # as in all tests
    assert threads() == {1}
