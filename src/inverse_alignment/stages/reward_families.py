"""How the families of reward models are made by the stage reward_model; imported when it builds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inverse_alignment.core.context import StageContext
from inverse_alignment.core.records import Comparison, Rollout
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.maths.disentangle import pearson_correlation
from inverse_alignment.models.adapters import adapt_trunk
from inverse_alignment.models.bottleneck import Bottleneck
from inverse_alignment.models.ensembles import (
    EnsembleScorer,
    adapted_members,
    headed_members,
    learned_weights,
    load_member,
    save_ensemble,
    save_member,
    separate_members,
)
from inverse_alignment.models.folding import STARTED, averaged, folded, new_decoder, weights_digest
from inverse_alignment.models.laplace_scores import LaplaceScorer, last_layer_slopes, learned_slopes, save_laplace
from inverse_alignment.models.loading import draw_head, load_reward_model, pick_device, place, save_model
from inverse_alignment.models.reward_scores import RewardScorer, Scorer, read_outputs
from inverse_alignment.models.score_features import score_features, score_layer
from inverse_alignment.models.trl_training import scheduled
from inverse_alignment.reward.bradley_terry import PairLoss
from inverse_alignment.reward.family_settings import (
    EnsembleReward,
    InformReward,
    LaplaceReward,
    LoraTrunks,
    OdinReward,
    SharedTrunk,
    WarmReward,
)
from inverse_alignment.reward.laplace import fit_posterior, require_laplace
from inverse_alignment.reward.members import Member, Trained, drawn, train_members
from inverse_alignment.reward.outputs import (
    OutputsLoss,
    PairBatch,
    bottleneck_loss,
    fit_outputs,
    heads_loss,
    odin_loss,
    output_rows,
)
from inverse_alignment.reward.training_settings import TrainReward
from inverse_alignment.text.render import encode_response

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Made:
    """A reward model that lacks nothing but its calibration.

    Attributes:
        save: writes it into a folder.
    """

    scorer: Scorer
    save: Callable[[Path], None]
    parameters: int
    metrics: dict[str, Any]

    @staticmethod
    def of_classifier(model: PreTrainedModel, tokenizer: Any, limit: int, rows: int, metrics: dict[str, Any]) -> Made:
        """A sequence classifier with one label."""
        scorer = RewardScorer(model, tokenizer, limit, rows)
        return Made(
            scorer, lambda folder: save_model(place(model, "cpu"), tokenizer, folder), model.num_parameters(), metrics
        )


@dataclass(frozen=True)
class Recipe:
    """What a family is made from.

    Attributes:
        pairs: to learn from.
        sample: the reference sample.
        limit: most tokens of prompt and answer together.
        rows: scored at once.
        new: a model to train, by the seed of what is fresh in it and the number of its outputs.
        fit: trains a classifier with one label on pairs, in place, as type train does.
    """

    tokenizer: PreTrainedTokenizerBase
    pairs: list[Comparison]
    sample: list[Rollout]
    limit: int
    rows: int
    context: StageContext
    new: Callable[..., Any]
    fit: Callable[[Any, Sequence[Comparison], StageContext], dict[str, Any]]

    def centred(self, read: Any) -> EnsembleScorer:
        """An ensemble whose members' scores count from their means on the reference sample."""
        return EnsembleScorer.centred(read, [r.prompt for r in self.sample], [r.response for r in self.sample])

    def within(self, member: Member) -> StageContext:
        """The stage's context as one member sees it."""
        return replace(self.context, partial=member.partial, report=member.report, seed=member.seed)


def ensemble(config: EnsembleReward, recipe: Recipe) -> Made:
    """Models that differ in what chance decides."""
    match config.trunk:
        case SharedTrunk():
            return _shared(config, recipe)
        case LoraTrunks() as trunk:
            return _adapted(config, trunk, recipe)
        case _:
            return _separate(config, recipe)


def _separate(config: EnsembleReward, recipe: Recipe) -> Made:
    def train(member: Member) -> tuple[Any, dict[str, Any]]:
        model = recipe.new(member.seed)
        return model, recipe.fit(model, _shown(config, recipe, member), recipe.within(member))

    def save(model: Any, folder: Path) -> None:
        save_model(place(model, "cpu"), recipe.tokenizer, folder)

    trained = _members(config, recipe, train, save)
    device = pick_device(recipe.context.runtime.device)
    models = [place(load_reward_model(folder), device) for folder in trained.folders]
    scorer = recipe.centred(separate_members(models, recipe.tokenizer, recipe.limit, recipe.rows))
    return Made(
        scorer,
        lambda out: save_ensemble(scorer, models[0], recipe.tokenizer, trained.folders, {"type": "separate"}, out),
        sum(model.num_parameters() for model in models),
        trained.metrics,
    )


def _adapted(config: EnsembleReward, trunk: LoraTrunks, recipe: Recipe) -> Made:
    def adapted(seed: int) -> Any:
        model = recipe.new(recipe.context.seed)  # one trunk for all
        draw_head(model, seed)
        adapt_trunk(model, trunk.rank, trunk.alpha, trunk.targets, seed, "reward.trunk.targets")
        return model

    def train(member: Member) -> tuple[Any, dict[str, Any]]:
        model = adapted(member.seed)
        return model, recipe.fit(model, _shown(config, recipe, member), recipe.within(member))

    trained = _members(config, recipe, train, lambda model, folder: save_member(learned_weights(model), folder))
    model, learned = adapted(0), [load_member(folder) for folder in trained.folders]
    scorer = recipe.centred(adapted_members(model, learned, recipe.tokenizer, recipe.limit, recipe.rows))
    base, kept = recipe.new(recipe.context.seed), trunk.model_dump(mode="json")
    own = sum(weight.numel() for weights in learned for weight in weights.values())
    return Made(
        scorer,
        lambda out: save_ensemble(scorer, base, recipe.tokenizer, trained.folders, kept, out),
        base.num_parameters() + own,
        trained.metrics,
    )


def _shared(config: EnsembleReward, recipe: Recipe) -> Made:
    heads, context = config.members, recipe.context
    model = recipe.new(context.seed, heads)
    shown = np.ones((heads, len(recipe.pairs)), dtype=np.int64)
    if config.bootstrap:
        seeds = [derive_seed("member", context.seed, head) for head in range(heads)]
        shown = np.array([np.bincount(drawn(len(recipe.pairs), seed), minlength=shown.shape[1]) for seed in seeds])
    settings = _pair_loss(config.training)
    trained = _fit_outputs(model, config.training, recipe, lambda batch, _: heads_loss(settings, batch), shown.T)
    scorer = recipe.centred(headed_members(model, recipe.tokenizer, recipe.limit, recipe.rows))
    return Made(
        scorer,
        lambda out: save_ensemble(scorer, model, recipe.tokenizer, [], {"type": "shared"}, out),
        model.num_parameters(),
        trained,
    )


def laplace(config: LaplaceReward, recipe: Recipe) -> Made:
    """One model with a posterior over some of its weights."""
    require_laplace()  # before anything is trained
    context, trunk = recipe.context, config.weights
    model = recipe.new(context.seed)
    if isinstance(trunk, LoraTrunks):
        adapt_trunk(model, trunk.rank, trunk.alpha, trunk.targets, context.seed, "reward.weights.targets")
    metrics = recipe.fit(model, recipe.pairs, context)
    plain = RewardScorer(model, recipe.tokenizer, recipe.limit, recipe.rows)
    if isinstance(trunk, LoraTrunks):
        read, learned = learned_slopes(plain), list(learned_weights(model).values())
    else:
        read, learned = last_layer_slopes(plain), [score_layer(model).weight.detach()]
    weights = torch.cat([weight.reshape(-1) for weight in learned]).double().cpu().numpy()
    posterior = fit_posterior(read, recipe.pairs, weights, config.prior)
    sample = read([r.prompt for r in recipe.sample], [r.response for r in recipe.sample])
    scorer = LaplaceScorer(read, posterior.precision, sample.jacobian.mean(0))

    def save(out: Path) -> None:
        below, adapted = model, None
        if isinstance(trunk, LoraTrunks):
            below, adapted = recipe.new(context.seed), context.partial / "adapted"
            save_member(learned_weights(model), adapted)
        kind = trunk.model_dump(mode="json")
        save_laplace(scorer, below, recipe.tokenizer, kind, posterior.prior, adapted, out)

    return Made(scorer, save, model.num_parameters(), {**metrics, "prior": posterior.prior})


def warm(config: WarmReward, recipe: Recipe) -> Made:
    """The mean of the weights of fine-tunings that share their start, head included."""
    context = recipe.context

    def start() -> Any:
        return recipe.new(context.seed)

    def train(member: Member) -> tuple[tuple[Any, str], dict[str, Any]]:
        model = start()
        begun = weights_digest(model)
        return (model, begun), recipe.fit(model, recipe.pairs, recipe.within(member))

    def save(made: tuple[Any, str], folder: Path) -> None:
        model, begun = made
        save_model(place(model, "cpu"), recipe.tokenizer, folder)
        (folder / STARTED).write_text(begun)

    trained = train_members(config.members, context.seed, context.partial, context.report, train, save)
    model = start()
    model.load_state_dict(averaged(trained.folders))
    metrics = {**trained.metrics, "pairs": len(recipe.pairs)}
    return Made.of_classifier(model, recipe.tokenizer, recipe.limit, recipe.rows, metrics)


def odin(config: OdinReward, recipe: Recipe) -> Made:
    """A classifier with the head that does not follow length; the other one is dropped."""
    model, settings = recipe.new(recipe.context.seed, 2), _pair_loss(config.training)
    heads = score_layer(model, 2)

    def loss(batch: PairBatch, _: Any) -> Tensor:
        return odin_loss(settings, batch, heads.weight, config.length, config.orthogonality)

    metrics = _fit_outputs(model, config.training, recipe, loss, np.ones((len(recipe.pairs), 1)))
    prompts, answers = [r.prompt for r in recipe.sample], [r.response for r in recipe.sample]
    scores = torch.from_numpy(read_outputs(model, recipe.tokenizer, prompts, answers, recipe.limit, recipe.rows))
    tokens = torch.tensor([float(len(encode_response(recipe.tokenizer, answer))) for answer in answers]).double()
    metrics |= {
        name: float(pearson_correlation(scores[:, head], tokens))
        for head, name in enumerate(("quality_length_correlation", "dropped_length_correlation"))
    }
    weight, bias = heads.weight[:1], None if heads.bias is None else heads.bias[:1]
    plain = folded(model, recipe.new(recipe.context.seed), weight, bias)
    return Made.of_classifier(plain, recipe.tokenizer, recipe.limit, recipe.rows, metrics)


def inform(config: InformReward, recipe: Recipe) -> Made:
    """A classifier that reads the mean code of an information bottleneck, and the spread of those codes beside it."""
    size, seed = config.latent, recipe.context.seed
    model, settings = recipe.new(seed, 2 * size), _pair_loss(config.training)
    model.decoder = new_decoder(size, seed, model.device)

    def loss(batch: PairBatch, trained: Any) -> Tensor:
        return bottleneck_loss(settings, batch, lambda codes: trained.decoder(codes)[:, 0], config.divergence, seed)

    metrics = _fit_outputs(model, config.training, recipe, loss, np.ones((len(recipe.pairs), 1)))
    encoder, decoder = score_layer(model, 2 * size), model.decoder.weight
    bias = None if encoder.bias is None else decoder @ encoder.bias[:size]
    plain = folded(model, recipe.new(seed), decoder @ encoder.weight[:size], bias)
    made = Made.of_classifier(plain, recipe.tokenizer, recipe.limit, recipe.rows, metrics)
    assert isinstance(made.scorer, RewardScorer)
    read = score_features(made.scorer, [r.prompt for r in recipe.sample], [r.response for r in recipe.sample])
    latent = Bottleneck.of(encoder.weight[:size].detach().double().cpu().numpy(), read.features)

    def save(out: Path) -> None:
        made.save(out)
        latent.save(out)

    return replace(made, save=save)


def _members(config: EnsembleReward, recipe: Recipe, train: Any, save: Any) -> Trained:
    context = recipe.context
    trained = train_members(config.members, context.seed, context.partial, context.report, train, save)
    return Trained(trained.folders, {**trained.metrics, "pairs": len(recipe.pairs)})


def _shown(config: EnsembleReward, recipe: Recipe, member: Member) -> list[Comparison]:
    if not config.bootstrap:
        return recipe.pairs
    return [recipe.pairs[row] for row in drawn(len(recipe.pairs), member.seed)]


def _pair_loss(training: TrainReward) -> PairLoss:
    return PairLoss(training.label_smoothing, training.centring, training.use_margins)


def _fit_outputs(
    model: Any, training: TrainReward, recipe: Recipe, loss: OutputsLoss, counts: np.ndarray
) -> dict[str, Any]:
    """Train a classifier with several outputs on all pairs, in place.

    Args:
        counts: (n, h), see `reward.outputs.PairBatch`.
    """
    context, tokenizer = recipe.context, recipe.tokenizer
    rows = output_rows(tokenizer, recipe.pairs, counts.tolist(), recipe.limit)
    trained = fit_outputs(
        model,
        tokenizer,
        rows,
        scheduled(training, model.device, context),
        loss,
        context.partial,
        context.report,
        context.runtime.checkpoint_seconds,
    )
    return {**trained, "pairs": len(recipe.pairs), "identical_pairs": len(recipe.pairs) - len(rows)}
