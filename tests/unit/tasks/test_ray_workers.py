"""A pool that a real Ray cluster shares out: the same indices, to the bit; and what is wrong is said in three lines."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from inverse_alignment.core.cache import DiskCache
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.workers import RayWorkers
from inverse_alignment.embedding.cached import CachedEmbed
from inverse_alignment.embedding.lexical import LexicalEncoder
from inverse_alignment.models.answer_log_probs import PolicyScorer, Reading, log_probs_by
from inverse_alignment.selection.keep import keep_top
from inverse_alignment.selection.similarity import pair_similarity, similarity_scores
from tasks.ray_workers import OnRay
from tasks.run_stage import spread_of
from tasks.threads import limit_threads
from tests.unit.models import tiny

WORDS = ["basil", "water", "sun", "pot", "leaf", "cut", "feed", "move", "wait", "turn"]


def texts(seed, count):
    generator = np.random.default_rng(seed)
    return [f"{' '.join(generator.choice(WORDS, 6))} {i}" for i in range(count)]


def test_without_ray_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    spread = spread_of(RuntimeConfig(selection_workers=RayWorkers()))
    with pytest.raises(UserError, match=r"Ray is not installed[\s\S]*'\.\[ray\]'"):
        list(spread(str, [1]))


@pytest.fixture(scope="module")
def ray():
    found = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def spread(ray):
    limit_threads(1)
    return OnRay(RayWorkers(workers=2), threads=1)


def test_the_selection_is_the_same_to_the_bit(spread, tmp_path):
    pool, rollouts = texts(0, 3000), texts(1, 300)
    keys, asked = [f"p{i % 40}" for i in range(3000)], [f"p{i % 50}" for i in range(300)]

    def embed(name):
        return CachedEmbed(lambda: LexicalEncoder(64), DiskCache(tmp_path / name, 10**9), "s" * 64)

    for same_prompt in (True, False):
        arguments = (pool, pool[::-1], keys, rollouts, asked)
        here = pair_similarity(*arguments, embed("here"), same_prompt)
        there = pair_similarity(*arguments, embed("there"), same_prompt, spread=spread)
        for name in ("chosen", "rejected", "between"):
            assert getattr(here, name).tobytes() == getattr(there, name).tobytes()
        kept = [keep_top(similarity_scores(found, "pair_min", 1.0), 500, "k") for found in (here, there)]
        assert kept[0].indices.tolist() == kept[1].indices.tolist()
    kept_there = sorted(path.name for path in (tmp_path / "there").rglob("*.safetensors"))
    assert kept_there == sorted(path.name for path in (tmp_path / "here").rglob("*.safetensors"))


def test_log_probabilities_are_the_same_to_the_bit(spread, tmp_path):
    folder = tiny.saved(tiny.policy(scale=3.0), tmp_path / "policy")
    asked = [(tiny.PROMPTS[i % 4], text) for i, text in enumerate(texts(0, 1500))]
    arguments = (PolicyScorer(folder, "cpu"), tiny.tokenizer(), asked, len(asked), Reading(64, 4096))
    found = [log_probs_by(*arguments, **each) for each in ({}, {"spread": spread})]
    assert found[0].sums.tobytes() == found[1].sums.tobytes()


def test_items_come_in_order_and_few_are_under_way(spread):
    given = []

    def items():
        for i in range(30):
            given.append(i)
            yield i

    most = 0
    for done, found in enumerate(spread(lambda i: i * i, items())):
        assert found == done * done
        most = max(most, len(given) - done)
    assert most <= 2 * 2 + 1


def test_what_the_work_refuses_is_said_as_it_would_be_here(spread):
    def refuse(item):
        raise UserError("this pair is no pair", where="row 3", fix="leave it out")

    with pytest.raises(UserError, match="this pair is no pair"):
        list(spread(refuse, [1, 2]))


@pytest.mark.parametrize(("more", "said"), [({"workers": 999}, "999 CPUs"), ({"gpus": 0.5}, "GPUs, but the cluster")])
def test_a_cluster_that_is_too_small_is_refused(spread, more, said):
    with pytest.raises(UserError, match=said):
        list(OnRay(RayWorkers(**more), threads=1)(str, [1]))


def test_a_cluster_that_is_not_there_is_refused(ray):
    ray.shutdown()  # the last test here
    with pytest.raises(UserError, match="no Ray cluster answers"):
        list(OnRay(RayWorkers(address="127.0.0.1:1"), threads=1)(str, [1]))
