"""pool + what is known of the frozen policy -> the part of the offline set that a refresh will use, with weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.selection.settings import (
    AllSelection,
    DensityRatioSelection,
    InfluenceSelection,
    IntersectionSelection,
    LaplaceEstimate,
    LengthMatchedSelection,
    LikelihoodSelection,
    LikelihoodWeights,
    LowestSimilaritySelection,
    MarginSelection,
    NoSelection,
    RandomSelection,
    RatioWeights,
    ScoreThreshold,
    SelectionConfig,
    SimilaritySelection,
    SoftWeights,
    Threshold,
    TopK,
    TopKPerCluster,
    UncertaintySelection,
    pairs_asked_for,
)

if TYPE_CHECKING:
    from inverse_alignment.selection.keep import PairScores
    from inverse_alignment.selection.selection import Selection
    from inverse_alignment.selection.similarity import PairSimilarity
    from inverse_alignment.stages.policy_view import PolicyView


class SelectStage(Section):
    """Identity of the stage."""

    selection: SelectionConfig
    context: int | None = Field(
        None, description="most tokens of prompt and answer together that the policy reads, where it is asked"
    )
    reward_context: int | None = Field(None, description="the same of the reward model, in its own tokens")


def build(inputs: Mapping[str, Path], config: SelectStage, context: StageContext) -> dict[str, Any]:
    """Write what was picked: `selection.jsonl` (row, id, weight, score of each kept pair), `audit.json` (who wrote it,
    what the weights are worth), and `scores.npy` (of every pair of the pool) where the selector gives scores.
    """
    import json

    import numpy as np

    from inverse_alignment.stages.policy_view import PolicyView

    view = PolicyView(inputs, context, config.context, config.reward_context)
    _refuse_impossible(config.selection, len(view.pool), "selection")
    choice = _choose(config.selection, view, "selection")
    selection = choice.selection
    with (context.out / "selection.jsonl").open("w", encoding="utf-8") as file:
        for row, weight, score in zip(selection.indices, selection.weights, selection.scores, strict=True):
            kept = {"row": int(row), "id": view.pool[row].id, "weight": float(weight)}
            file.write(json.dumps({**kept, "score": None if np.isnan(score) else float(score)}) + "\n")
    if choice.scores is not None:
        values = np.where(choice.scores.allowed, choice.scores.values, np.nan)
        np.save(context.out / "scores.npy", values, allow_pickle=False)
    audit = _audit(choice, view)
    (context.out / "audit.json").write_text(json.dumps(audit, indent=1, sort_keys=True))
    return {name: audit[name] for name in ("selected", "pool", "mean_score", "effective_pairs")}


@dataclass(frozen=True)
class _Choice:
    """A selection, and what it was made from where there is such a thing."""

    selection: Selection
    scores: PairScores | None = None
    similarity: PairSimilarity | None = None
    weighs: bool = False  # the scores are logarithms of weights


def _audit(choice: _Choice, view: PolicyView) -> dict[str, Any]:
    import numpy as np

    from inverse_alignment.maths.density_ratio import effective_sample_size
    from inverse_alignment.selection.selection import shares

    selection, scores = choice.selection, choice.scores
    of_pool, of_selection = shares(view.pool), shares(view.pool, selection)
    allowed = None if scores is None else scores.values[scores.allowed]
    return {
        "pool": len(view.pool),
        "candidates": len(view.pool) if allowed is None else len(allowed),
        "selected": len(selection),
        "effective_pairs": effective_sample_size(np.log(selection.weights)),
        "pool_effective_pairs": effective_sample_size(allowed) if choice.weighs and allowed is not None else None,
        "selected_by_source": of_selection["source"],
        "pool_by_source": of_pool["source"],
        "selected_by_annotator": of_selection["annotator"],
        "pool_by_annotator": of_pool["annotator"],
        "mean_score": None if allowed is None else float(selection.scores.mean()),
        "pool_mean_score": None if allowed is None else float(allowed.mean()),
        "mean_pair_similarity": (
            None if choice.similarity is None else float(choice.similarity.between[selection.indices].mean())
        ),
    }


def _refuse_impossible(config: SelectionConfig, pool: int, key: str) -> None:
    """No selector asks for more pairs than there are; before anything is computed."""
    from inverse_alignment.selection.selection import require_at_most

    match config:
        case IntersectionSelection(of=members):
            for place, member in enumerate(members):
                _refuse_impossible(member, pool, f"{key}.of.{place}")
        case LengthMatchedSelection(like=like):
            _refuse_impossible(like, pool, f"{key}.like")
        case _:
            place_of_k = f"{key}.k" if isinstance(config, RandomSelection) else f"{key}.keep.k"
            require_at_most(pairs_asked_for(config), pool, "are in the train split", place_of_k)


def _choose(config: SelectionConfig, view: PolicyView, key: str) -> _Choice:
    from inverse_alignment.selection.controls import select_all, select_length_matched, select_random
    from inverse_alignment.selection.intersection import intersect

    match config:
        case RandomSelection(k=k):
            return _Choice(select_random(len(view.pool), k, view.seed(_purpose(key)), key))
        case AllSelection():
            return _Choice(select_all(len(view.pool)))
        case LengthMatchedSelection(like=like, strata=strata):
            picked = _choose(like, view, f"{key}.like").selection.indices
            return _Choice(select_length_matched(picked, *view.lengths, strata, view.seed(_purpose(key))))
        case IntersectionSelection(of=members):
            kept = [_choose(member, view, f"{key}.of.{place}").selection for place, member in enumerate(members)]
            return _Choice(intersect(kept, key))
        case NoSelection():
            raise AssertionError("an arm without refresh has no selection to build")
        case SimilaritySelection() | LowestSimilaritySelection():
            return _by_similarity(config, view, key)
        case _:
            scores = _scores(config, view)
            weighs = isinstance(config, (LikelihoodSelection, DensityRatioSelection))
            return _Choice(_keep(config.keep, scores, view, f"{key}.keep"), scores, weighs=weighs)


def _purpose(key: str) -> str:
    """What a draw is for: two selectors of an intersection draw differently."""
    return f"select{key.removeprefix('selection')}"


def _by_similarity(config: SimilaritySelection | LowestSimilaritySelection, view: PolicyView, key: str) -> _Choice:
    from inverse_alignment.selection.similarity import dissimilarity_scores, pair_similarity, similarity_scores

    pool, rollouts, context = view.pool, view.rollouts, view.context
    similarity = pair_similarity(
        pool.column(lambda pair: pair.chosen),
        pool.column(lambda pair: pair.rejected),
        pool.column(lambda pair: pair.prompt.key),
        [rollout.response for rollout in rollouts],
        [rollout.prompt.key for rollout in rollouts],
        view.encoder(config.encoder, f"{key}.encoder"),
        config.compare_with == "same_prompt",
        context.report.progress,
        context.spread,
        context.runtime.selection_mib * 2**20,
        context.partial,
    )
    of = dissimilarity_scores if isinstance(config, LowestSimilaritySelection) else similarity_scores
    scores = of(similarity, config.score, config.max_pair_similarity)
    return _Choice(_keep(config.keep, scores, view, f"{key}.keep"), scores, similarity)


_Scored = LikelihoodSelection | DensityRatioSelection | MarginSelection | UncertaintySelection | InfluenceSelection


def _scores(config: _Scored, view: PolicyView) -> PairScores:
    from inverse_alignment.selection.influence import influence_scores
    from inverse_alignment.selection.likelihood import density_ratio_scores, likelihood_scores, margin_scores
    from inverse_alignment.selection.uncertainty import ensemble_scores, laplace_scores

    match config:
        case LikelihoodSelection():
            return likelihood_scores(view.log_probs("policy", 0), view.ties)
        case DensityRatioSelection(first_tokens=first):
            policy, reference = view.log_probs("policy", first), view.log_probs("reference", first)
            return density_ratio_scores(policy, reference, config.relative, config.temper, view.ties)
        case MarginSelection():
            policy, reference = view.log_probs("policy", 0), view.log_probs("reference", 0)
            return margin_scores(policy, reference, config.beta, config.prefer, view.ties)
        case UncertaintySelection(estimate=estimate):
            prior = estimate.prior_precision
            if isinstance(estimate, LaplaceEstimate):
                return laplace_scores(view.pair_features, prior, view.ties)
            return ensemble_scores(view.pair_features, prior, estimate.members, view.context.seed, view.ties)
        case InfluenceSelection(compare_with=compare):
            keys = ([pair.prompt.key for pair in view.pool], [rollout.prompt.key for rollout in view.rollouts])
            pairs, rollouts = view.pair_features, view.rollout_features
            return influence_scores(pairs, keys[0], rollouts, keys[1], compare == "same_prompt", view.ties)


def _keep(keep: Section, scores: PairScores, view: PolicyView, key: str) -> Selection:
    from inverse_alignment.core.seeding import derive_seed
    from inverse_alignment.selection.keep import (
        keep_above,
        keep_top,
        keep_top_per_cluster,
        keep_weighted,
        prompt_clusters,
    )

    match keep:
        case TopK(k=k):
            return keep_top(scores, k, key)
        case Threshold(score=least) | ScoreThreshold(score=least):
            return keep_above(scores, least, key)
        case TopKPerCluster(k=k, clusters=count):
            embed = view.encoder(keep.encoder, f"{key}.encoder")
            seed = derive_seed("clusters", view.context.seed)
            clusters = prompt_clusters([pair.prompt for pair in view.pool], embed, count, seed)
            return keep_top_per_cluster(scores, clusters, k, key)
        case SoftWeights(temperature=heat) | LikelihoodWeights(temperature=heat):
            return keep_weighted(scores, scores.values / heat, key)
        case RatioWeights():
            return keep_weighted(scores, scores.values, key)
        case _:
            raise AssertionError(f"no way to keep: {keep!r}")
