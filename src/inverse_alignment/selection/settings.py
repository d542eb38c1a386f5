"""Which pairs a refresh uses: the variants of `selection`, and what each asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from inverse_alignment.core.configuration import Section
from inverse_alignment.embedding.settings import EncoderConfig, LexicalEncoder, SentenceEncoder


class TopK(Section):
    """Keep the k best scores."""

    type: Literal["top_k"] = "top_k"
    k: int = Field(600, ge=1, description="pairs to keep")


class TopKPerCluster(Section):
    """Keep k pairs in all, from each cluster of prompts in proportion to its size: no kind of prompt is lost."""

    type: Literal["top_k_per_cluster"] = "top_k_per_cluster"
    k: int = Field(600, ge=1, description="pairs to keep in all")
    clusters: int = Field(16, ge=2, description="clusters of the prompts' embeddings (k-means)")
    encoder: EncoderConfig = Field(LexicalEncoder(), description="what turns a prompt into a vector")


class Threshold(Section):
    """Keep every pair whose score reaches a bound."""

    type: Literal["threshold"] = "threshold"
    score: float = Field(0.6, ge=-1, le=1, description="least score of a kept pair")


class ScoreThreshold(Section):
    """Keep every pair whose score reaches a bound, in the units of the selector's score."""

    type: Literal["threshold"] = "threshold"
    score: float = Field(description="least score of a kept pair")


class SoftWeights(Section):
    """Keep every candidate, with weights softmax(score / temperature) of mean 1."""

    type: Literal["weights"] = "weights"
    temperature: float = Field(0.1, gt=0, description="in units of the score; the smaller, the nearer to the best pair")


class LikelihoodWeights(Section):
    """Keep every pair, with WPO's weight (arXiv 2406.11827) to the power of 1 / temperature, of mean 1."""

    type: Literal["weights"] = "weights"
    temperature: float = Field(1.0, gt=0, description="1 is WPO's weight itself; larger values make weights more equal")


class RatioWeights(Section):
    """Keep every pair, with the tempered density ratio as weight, of mean 1."""

    type: Literal["weights"] = "weights"


Keep = Annotated[TopK | ScoreThreshold | TopKPerCluster, Field(discriminator="type")]


class NoSelection(Section):
    """No refresh: vanilla PPO against the first reward model."""

    type: Literal["none"] = "none"


class RandomSelection(Section):
    """k pairs drawn uniformly without replacement: the control of equal size."""

    type: Literal["random"] = "random"
    k: int = Field(600, ge=1, description="pairs to keep")


class AllSelection(Section):
    """Every pair of the train split. The refresh still sees `refresh.pairs_seen` pairs, like every other arm."""

    type: Literal["all"] = "all"


class _MeasuredSimilarity(Section):
    """How the similarity of a pair with what the policy writes is measured."""

    score: Literal["pair_max", "pair_min", "mean", "chosen", "rejected", "gap"] = Field(
        "pair_min", description="how the similarities of chosen and rejected become one score"
    )
    compare_with: Literal["same_prompt", "all_rollouts"] = Field(
        "same_prompt", description="policy answers a pair is compared with: those to its own prompt, or all of them"
    )
    max_pair_similarity: float = Field(
        0.95,
        ge=-1,
        le=1,
        description="pairs whose two answers are more alike than this carry no signal and are left out",
    )
    encoder: EncoderConfig = Field(LexicalEncoder(), description="what turns an answer into a vector")


class SimilaritySelection(_MeasuredSimilarity):
    """FRFT (arXiv 2412.10529): pairs whose answers resemble what the policy writes now."""

    type: Literal["similarity"] = "similarity"
    keep: Annotated[TopK | Threshold | TopKPerCluster | SoftWeights, Field(discriminator="type")] = Field(
        TopK(), description="how many pairs to keep"
    )


class LowestSimilaritySelection(_MeasuredSimilarity):
    """The k pairs whose answers resemble the policy's least: the control with the sign turned round."""

    type: Literal["lowest_similarity"] = "lowest_similarity"
    keep: Annotated[TopK | TopKPerCluster, Field(discriminator="type")] = Field(
        TopK(), description="how many pairs to keep"
    )


class LengthMatchedSelection(Section):
    """The control for length: for every pair that a similarity selector picks, a random pair whose answers are as long.

    What it picks has the lengths of the other's picks, and nothing else of them.
    """

    type: Literal["length_matched_random"] = "length_matched_random"
    like: SimilaritySelection = Field(SimilaritySelection(), description="the selector whose picks are matched")
    strata: int = Field(
        5, ge=2, description="classes of equal size of the chosen answers' lengths, and of the rejected ones'"
    )

    @model_validator(mode="after")
    def _picks_some(self) -> LengthMatchedSelection:
        if isinstance(self.like.keep, SoftWeights):
            raise ValueError("like.keep weights every pair, so that there are no picks whose lengths could be matched")
        return self


class LikelihoodSelection(Section):
    """Pairs whose two answers the policy finds likely, per token; weights are WPO's (arXiv 2406.11827)."""

    type: Literal["likelihood"] = "likelihood"
    keep: Annotated[TopK | ScoreThreshold | TopKPerCluster | LikelihoodWeights, Field(discriminator="type")] = Field(
        TopK(), description="how many pairs to keep, or how to weight all of them"
    )


class DensityRatioSelection(Section):
    """OCRM (arXiv 2507.15507): pairs whose two answers the policy finds likelier than its reference does."""

    type: Literal["density_ratio"] = "density_ratio"
    relative: float = Field(
        0.1, ge=0, lt=1, description="a of the relative ratio pi / (a pi + (1-a) ref); 0 is the plain ratio"
    )
    temper: float = Field(
        0.01,
        gt=0,
        le=1,
        description="m: power of the pair's ratio; 1 is the importance weight itself",
    )
    first_tokens: int = Field(0, ge=0, description="only so many tokens of each answer count; 0 for all")
    keep: Annotated[TopK | ScoreThreshold | TopKPerCluster | RatioWeights, Field(discriminator="type")] = Field(
        TopK(), description="how many pairs to keep, or all of them with the ratio as weight"
    )


class MarginSelection(Section):
    """Pairs by how strongly the policy's implicit reward (its log-ratio to the reference) tells their answers apart."""

    type: Literal["margin"] = "margin"
    prefer: Literal["large", "small"] = Field(
        "large",
        description="pairs that are told apart clearly (arXiv 2502.14560), or hardly (the hard ones, arXiv 2508.04149)",
    )
    beta: float = Field(0.1, gt=0, description="price of KL in the implicit reward: the unit of the score")
    keep: Keep = Field(TopK(), description="how many pairs to keep")


class LaplaceEstimate(Section):
    """The curvature of the pairs' likelihood in the last layer, in closed form (arXiv 2402.13210)."""

    type: Literal["laplace"] = "laplace"
    prior_precision: float = Field(1.0, gt=0, description="precision of the Gaussian prior on each weight")


class EnsembleEstimate(Section):
    """Last layers refitted on bootstrap resamples of the pool, each anchored at a draw from the prior."""

    type: Literal["ensemble"] = "ensemble"
    members: int = Field(10, ge=2, description="last layers")
    prior_precision: float = Field(1.0, gt=0, description="precision of the Gaussian prior on each weight")


class UncertaintySelection(Section):
    """Pairs of whose reward difference the reward model is least sure."""

    type: Literal["uncertainty"] = "uncertainty"
    estimate: Annotated[LaplaceEstimate | EnsembleEstimate, Field(discriminator="type")] = Field(
        LaplaceEstimate(), description="where the variance comes from"
    )
    keep: Keep = Field(TopK(), description="how many pairs to keep")


class InfluenceSelection(Section):
    """Pairs whose gradient spreads the reward model's scores of the policy's own answers (MetaRM, arXiv 2405.00438)."""

    type: Literal["influence"] = "influence"
    compare_with: Literal["same_prompt", "all_rollouts"] = Field(
        "all_rollouts", description="whose scores are to be spread: answers to the pair's own prompt, or to all prompts"
    )
    keep: Keep = Field(TopK(), description="how many pairs to keep")


Member = Annotated[
    RandomSelection
    | LengthMatchedSelection
    | LowestSimilaritySelection
    | SimilaritySelection
    | LikelihoodSelection
    | DensityRatioSelection
    | MarginSelection
    | UncertaintySelection
    | InfluenceSelection,
    Field(discriminator="type"),
]


class IntersectionSelection(Section):
    """The pairs that every one of several selectors keeps, with the product of their weights."""

    type: Literal["intersection"] = "intersection"
    of: tuple[Member, ...] = Field(min_length=2, description="the selectors")


SelectionConfig = Annotated[
    NoSelection
    | RandomSelection
    | AllSelection
    | LengthMatchedSelection
    | LowestSimilaritySelection
    | SimilaritySelection
    | LikelihoodSelection
    | DensityRatioSelection
    | MarginSelection
    | UncertaintySelection
    | InfluenceSelection
    | IntersectionSelection,
    Field(discriminator="type"),
]

Input = Literal["rollouts", "policy", "reference", "reward"]


def inputs_of(selection: SelectionConfig) -> frozenset[Input]:
    """What a selector looks at besides the pool."""
    match selection:
        case IntersectionSelection(of=members):
            return frozenset().union(*(inputs_of(member) for member in members))
        case NoSelection() | AllSelection():
            return frozenset()
        case LikelihoodSelection():
            return frozenset({"policy"})
        case DensityRatioSelection() | MarginSelection():
            return frozenset({"policy", "reference"})
        case UncertaintySelection():
            return frozenset({"reward"})
        case InfluenceSelection():
            return frozenset({"reward", "rollouts"})
        case _:  # random too: another draw in every round
            return frozenset({"rollouts"})


def compares_rollouts(selection: SelectionConfig) -> bool:
    """Whether a selector needs several answers to one prompt."""
    if isinstance(selection, IntersectionSelection):
        return any(compares_rollouts(member) for member in selection.of)
    return isinstance(selection, InfluenceSelection)


def pairs_asked_for(selection: SelectionConfig) -> int:
    """The least number of pairs that the pool must have: the largest k; 0 where there is none."""
    match selection:
        case IntersectionSelection(of=members):
            return max(pairs_asked_for(member) for member in members)
        case LengthMatchedSelection(like=like):
            return pairs_asked_for(like)
        case RandomSelection(k=k):
            return k
        case NoSelection() | AllSelection():
            return 0
        case _:
            return selection.keep.k if isinstance(selection.keep, (TopK, TopKPerCluster)) else 0


def sentence_encoders(section: Section, path: str = "") -> Iterator[tuple[str, SentenceEncoder]]:
    """Every sentence-transformers model below a section, by its key: the name of the stage's input that holds it."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        key = f"{path}.{name}" if path else name
        if isinstance(value, SentenceEncoder):
            yield key, value
        elif isinstance(value, Section):
            yield from sentence_encoders(value, key)
        elif isinstance(value, tuple):
            for place, item in enumerate(value):
                yield from sentence_encoders(item, f"{key}.{place}")
