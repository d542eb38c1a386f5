"""Every selector once through the stage: what it reads, what it keeps, what it writes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from inverse_alignment.core.errors import UserError
from inverse_alignment.data.aggregate import read_split
from inverse_alignment.selection.settings import (
    DensityRatioSelection,
    EnsembleEstimate,
    InfluenceSelection,
    IntersectionSelection,
    LengthMatchedSelection,
    LikelihoodSelection,
    LikelihoodWeights,
    LowestSimilaritySelection,
    MarginSelection,
    RandomSelection,
    RatioWeights,
    ScoreThreshold,
    SimilaritySelection,
    SoftWeights,
    TopK,
    TopKPerCluster,
    UncertaintySelection,
    inputs_of,
)
from tests.stages import chain
from tests.stages.chain import Chain

K = TopK(k=40)
SCORED = {
    "similarity": SimilaritySelection(keep=K),
    "lowest_similarity": LowestSimilaritySelection(keep=K),
    "likelihood": LikelihoodSelection(keep=K),
    "density_ratio": DensityRatioSelection(keep=K),
    "first_tokens": DensityRatioSelection(keep=K, first_tokens=3),
    "margin": MarginSelection(keep=K),
    "small_margin": MarginSelection(keep=K, prefer="small"),
    "laplace": UncertaintySelection(keep=K),
    "ensemble": UncertaintySelection(keep=K, estimate=EnsembleEstimate(members=3)),
    "influence": InfluenceSelection(keep=K),
    "own_influence": InfluenceSelection(keep=K, compare_with="same_prompt"),
}


@pytest.fixture
def branch(built: Chain, tmp_path) -> Chain:
    """What was built, to go on from in a folder of its own."""
    return Chain(tmp_path, dict(built.made))


def picked(branch: Chain, name: str, selection) -> list[dict]:
    """The kept pairs; the policy is the one after PPO, which differs from its reference."""
    folder = chain.select(branch, name, selection, policy=branch.made["ppo"] / "policy")
    return [json.loads(line) for line in (folder / "selection.jsonl").read_text().splitlines()]


def audit(branch: Chain, name: str) -> dict:
    return json.loads((branch.made[name] / "audit.json").read_text())


def pool(branch: Chain):
    return read_split(branch.made["preferences"], "train")


@pytest.mark.parametrize("name", SCORED)
def test_the_best_scores_are_kept_and_every_pair_of_the_pool_has_its_score(branch, name):
    kept = picked(branch, name, SCORED[name])
    scores = np.load(branch.made[name] / "scores.npy", allow_pickle=False)
    assert len(kept) == 40 and len(scores) == len(pool(branch))
    rows = [row["row"] for row in kept]
    left = np.setdiff1d(np.flatnonzero(~np.isnan(scores)), rows)
    assert scores[rows].min() >= scores[left].max()
    assert [row["score"] for row in kept] == scores[rows].tolist()
    found = audit(branch, name)
    assert found["effective_pairs"] == pytest.approx(40) and found["candidates"] == 40 + len(left)
    assert found["mean_score"] > found["pool_mean_score"]
    assert (found["pool_effective_pairs"] is None) != (name in ("likelihood", "density_ratio", "first_tokens"))


def test_the_selectors_disagree(branch):
    rows = {name: tuple(row["row"] for row in picked(branch, name, SCORED[name])) for name in SCORED}
    assert len(set(rows.values())) == len(rows)


def test_only_what_a_selector_looks_at_is_read(branch):
    assert {name: set(inputs_of(selection)) for name, selection in SCORED.items()} == {
        "similarity": {"rollouts"},
        "lowest_similarity": {"rollouts"},
        "likelihood": {"policy"},
        "density_ratio": {"policy", "reference"},
        "first_tokens": {"policy", "reference"},
        "margin": {"policy", "reference"},
        "small_margin": {"policy", "reference"},
        "laplace": {"reward"},
        "ensemble": {"reward"},
        "influence": {"reward", "rollouts"},
        "own_influence": {"reward", "rollouts"},
    }


def test_a_policy_that_is_its_reference_gets_a_random_subset_of_equal_scores(branch):
    folder = chain.select(branch, "start", DensityRatioSelection(keep=K))
    kept = [json.loads(line) for line in (folder / "selection.jsonl").read_text().splitlines()]
    (score,) = {row["score"] for row in kept}
    assert score == pytest.approx(0, abs=1e-12)
    rows = [row["row"] for row in kept]
    assert rows != list(range(40)) and max(rows) > len(pool(branch)) / 2
    assert audit(branch, "start")["pool_effective_pairs"] == pytest.approx(len(pool(branch)))


@pytest.mark.parametrize(
    "selection",
    [
        SimilaritySelection(keep=SoftWeights(temperature=0.5)),
        LikelihoodSelection(keep=LikelihoodWeights()),
        DensityRatioSelection(keep=RatioWeights(), temper=0.2),
    ],
    ids=lambda selection: selection.type,
)
def test_weights_keep_every_candidate_at_mean_one(branch, selection):
    kept = picked(branch, "weighted", selection)
    weights, scores = np.array([row["weight"] for row in kept]), np.array([row["score"] for row in kept])
    found = audit(branch, "weighted")
    assert len(kept) == found["candidates"] and weights.mean() == pytest.approx(1)
    assert weights.std() > 0 and (np.argsort(weights) == np.argsort(scores)).all()
    assert found["effective_pairs"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert found["effective_pairs"] < len(kept)


def test_clusters_keep_k_pairs_of_every_kind_of_prompt(branch):
    plain = {row["id"] for row in picked(branch, "plain", SCORED["likelihood"])}
    keep = TopKPerCluster(k=40, clusters=64)  # more than there are prompts
    spread = {row["id"] for row in picked(branch, "spread", LikelihoodSelection(keep=keep))}
    again = {row["id"] for row in picked(branch, "again", LikelihoodSelection(keep=keep))}
    assert len(spread) == 40 and spread == again != plain
    prompt = {pair.id: pair.prompt.key for pair in pool(branch)}
    assert len({prompt[name] for name in spread}) > len({prompt[name] for name in plain})


def test_the_length_matched_control_has_the_lengths_and_not_the_pairs(branch):
    like = SimilaritySelection(keep=TopK(k=20), compare_with="all_rollouts", score="pair_max")
    wanted = [row["row"] for row in picked(branch, "like", like)]
    matched = picked(branch, "matched", LengthMatchedSelection(like=like, strata=3))
    assert matched == picked(branch, "once_more", LengthMatchedSelection(like=like, strata=3))
    rows = [row["row"] for row in matched]
    assert len(rows) == 20 and rows != wanted and all(row["score"] is None for row in matched)
    lengths = np.array([len(pair.chosen) + len(pair.rejected) for pair in pool(branch)])
    of_any = abs(lengths.mean() - lengths[wanted].mean())
    assert abs(lengths[rows].mean() - lengths[wanted].mean()) < max(of_any, 0.1 * lengths.mean())
    assert audit(branch, "matched")["mean_score"] is None


def test_an_intersection_keeps_what_all_keep_and_multiplies_weights(branch):
    likely = LikelihoodSelection(keep=TopK(k=100))
    weighted = DensityRatioSelection(keep=RatioWeights(), temper=0.2)
    both = picked(branch, "both", IntersectionSelection(of=(likely, weighted)))
    alone = {row["row"] for row in picked(branch, "alone", likely)}
    ratio = {row["row"]: row["weight"] for row in picked(branch, "ratio", weighted)}
    assert {row["row"] for row in both} == alone
    expected = np.array([ratio[row["row"]] for row in both])
    np.testing.assert_allclose([row["weight"] for row in both], expected / expected.mean(), rtol=1e-9)
    assert not (branch.made["both"] / "scores.npy").exists()


def test_members_of_an_intersection_draw_differently(branch):
    two = IntersectionSelection(of=(RandomSelection(k=60), RandomSelection(k=60)))
    assert 0 < len(picked(branch, "two", two)) < 60


@pytest.mark.parametrize(
    ("selection", "message", "where"),
    [
        (LikelihoodSelection(keep=TopK(k=10**6)), "k is 1000000, but only", "selection.keep.k"),
        (UncertaintySelection(keep=TopKPerCluster(k=10**6)), "k is 1000000, but only", "selection.keep.k"),
        (LengthMatchedSelection(like=SimilaritySelection(keep=TopK(k=10**6))), "k is", "selection.like.keep.k"),
        (
            IntersectionSelection(of=(RandomSelection(k=5), MarginSelection(keep=TopK(k=10**6)))),
            "k is 1000000",
            "selection.of.1.keep.k",
        ),
        (IntersectionSelection(of=(RandomSelection(k=10**6), RandomSelection(k=5))), "k is", "selection.of.0.k"),
        (
            DensityRatioSelection(keep=ScoreThreshold(score=100.0)),
            r"no pair reaches the score 100.0; the highest is",
            "selection.keep.score",
        ),
        (
            IntersectionSelection(of=(SimilaritySelection(keep=TopK(k=1)), LowestSimilaritySelection(keep=TopK(k=1)))),
            "no pair is kept by all of the selectors, which keep 1, 1",
            "selection.of",
        ),
    ],
)
def test_an_impossible_selection_names_its_key(branch, selection, message, where):
    with pytest.raises(UserError, match=message) as error:
        picked(branch, "impossible", selection)
    assert error.value.where == where


def test_impossible_sizes_are_refused_before_any_model_is_read(branch, tmp_path):
    shutil.rmtree(tmp_path / "none", ignore_errors=True)
    branch.made["ppo"] = tmp_path / "none"  # would fail to load
    with pytest.raises(UserError, match="k is 1000000"):
        picked(branch, "impossible", MarginSelection(keep=TopK(k=10**6)))


def test_the_reward_model_reads_as_much_as_it_may(branch):
    kept = picked(branch, "uncertain", SCORED["laplace"])
    short = chain.select(branch, "short", SCORED["laplace"], reward_context=24)
    assert (short / "selection.jsonl").read_text() != "".join(json.dumps(row) + "\n" for row in kept)
