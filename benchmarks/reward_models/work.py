"""One unit's work: a backbone, every missing method on it, and what each is worth."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial as bound
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from benchmarks.bakeoff.rows import Row
from benchmarks.reward_models.collection import Pairs, pairs_of
from benchmarks.reward_models.plan import (
    BASELINE,
    CAUTIONS,
    METHODS,
    POLICIES,
    WORLD,
    Family,
    Sizes,
    Unit,
    digest_of,
    digest_of_code,
)
from benchmarks.reward_models.policy import optimised
from inverse_alignment.core.context import RuntimeConfig, StageContext
from inverse_alignment.core.metrics import FileReport
from inverse_alignment.core.records import Comparison, Prompt
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.evaluation.reward_accuracy import longer_wins, score_pairs
from inverse_alignment.generation.answers import Sampling, answer
from inverse_alignment.maths.best_of_n import best_of_n
from inverse_alignment.maths.grouping import group_means
from inverse_alignment.models.caution_settings import WorstCase
from inverse_alignment.models.loading import load_policy, new_policy, reward_model_from_trunk, save_model
from inverse_alignment.models.reward_scores import CalibratedReward, Calibration, RewardScorer, Scorer, conservative
from inverse_alignment.models.trl_training import arguments
from inverse_alignment.optimise.supervised import demonstrations, fine_tune
from inverse_alignment.reward.bradley_terry import PairLoss, fit, pair_rows
from inverse_alignment.reward.family_settings import EnsembleReward, InformReward, LaplaceReward, OdinReward, WarmReward
from inverse_alignment.reward.training_settings import TrainReward
from inverse_alignment.stages.reward_families import Made, Recipe, ensemble, inform, laplace, odin, warm
from inverse_alignment.stages.tqr_reward import tqr
from inverse_alignment.text.tokenizers import load_tokenizer, train_tokenizer
from inverse_alignment.world.gold import gold_reward

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BEST_OF = (1, 4, 16)
SFT_RATE, SFT_BATCH = 8e-3, 16  # the project's own
ROWS = 64  # scored or sampled at once
RUNTIME = RuntimeConfig(device="cpu", threads=1, scoring_rows=ROWS, checkpoint_seconds=1e9)
DIGITS = 4


@dataclass(frozen=True)
class Backbone:
    """A policy that imitates both answers of the train pairs, where every method starts.

    Attributes:
        folder: of its weights and tokenizer.
        answers: its answers to the held-out prompts of the world, with their gold rewards, (prompt, text, gold);
            elsewhere none.
    """

    folder: Path
    answers: list[tuple[Prompt, str, float]]


def run(unit: Unit, methods: Sequence[str], sizes: Sizes, data: Path | None, scratch: Path) -> Iterator[Row]:
    """A row for each method or policy, as it is known."""
    torch.set_num_threads(1)
    pairs = pairs_of(unit, sizes, data)
    backbone = None
    for name in methods:
        began = time.process_time()
        if name == BASELINE:
            measured = _accuracy(longer_wins(pairs.test), pairs.test)
        else:
            backbone = backbone or prepare(unit, pairs, sizes, scratch)
            policy = POLICIES.get(name)
            method = policy.method if policy else name
            with TemporaryDirectory(dir=scratch) as partial:
                score, trained = train(method, unit, pairs, backbone.folder, sizes, Path(partial))
            if policy:
                measured = optimised(policy, score, pairs, backbone.folder, sizes, unit.seed)
            else:
                measured = {**judge(score, pairs.test, backbone, sizes), "training": trained}
        yield {
            **{"data": unit.data, "seed": unit.seed, "method": name, "train_pairs": len(pairs.train)},
            **{"code": digest_of_code(), "config": digest_of(sizes, name)},
            **measured,
            "seconds": round(time.process_time() - began, 1),
        }


def prepare(unit: Unit, pairs: Pairs, sizes: Sizes, scratch: Path) -> Backbone:
    """The backbone of a unit; made once."""
    folder = scratch / f"{unit.data}-{unit.seed}-{digest_of(sizes)}-{digest_of_code()}"
    if not (folder / "answers.json").is_file():
        context = sizes.model.context
        written = [(pair.prompt, text) for pair in pairs.train for text in pair.answers]
        tokenizer = train_tokenizer(
            [text for prompt, response in written for text in (prompt.text(), response)], sizes.model.vocab_size
        )
        policy = new_policy(sizes.model, tokenizer, unit.seed)
        with TemporaryDirectory(dir=scratch) as partial:
            fine_tune(
                policy,
                tokenizer,
                demonstrations(tokenizer, written, context),
                _arguments(Path(partial), unit.seed, sizes.sft_epochs, SFT_RATE, SFT_BATCH),
                Path(partial),
                FileReport(Path(partial) / "metrics.jsonl"),
                1e9,
            )
        save_model(policy, tokenizer, folder)
        answers = _answers(folder, pairs.test, sizes, unit.seed) if unit.data == WORLD else []
        (folder / "answers.json").write_text(json.dumps(answers))  # last: without it the folder is made again
    known = json.loads((folder / "answers.json").read_text())
    return Backbone(folder, [(Prompt.model_validate(prompt), text, gold) for prompt, text, gold in known])


def _answers(folder: Path, pairs: Sequence[Comparison], sizes: Sizes, seed: int) -> list[tuple[Any, str, float]]:
    tokenizer, policy = load_tokenizer(folder).tokenizer, load_policy(folder).eval()
    prompts = list({pair.prompt.key: pair.prompt for pair in pairs}.values())
    asked = [prompt for prompt in prompts for _ in range(sizes.bon_samples)]
    seeds = [derive_seed("best of n", seed, prompt.key, i) for prompt in prompts for i in range(sizes.bon_samples)]
    sampling = Sampling(sizes.bon_tokens, 1.0, sizes.model.context, ROWS)
    given = answer(policy, tokenizer, asked, seeds, sampling)
    return [
        (prompt.model_dump(), one.text, gold_reward(prompt, one.text)) for prompt, one in zip(asked, given, strict=True)
    ]


def train(
    name: str, unit: Unit, pairs: Pairs, folder: Path, sizes: Sizes, partial: Path
) -> tuple[Scorer, dict[str, Any]]:
    """A reward model of a method, and what its training gave."""
    config, tokenizer = METHODS[name], load_tokenizer(folder).tokenizer
    report = FileReport(partial / "metrics.jsonl")
    context = StageContext(partial / "out", partial, report, RUNTIME, unit.seed)
    if isinstance(config, TrainReward):
        model = _start(folder, unit.seed)
        trained = _fit(model, tokenizer, pairs.train, config, sizes, context)
        return RewardScorer(model, tokenizer, sizes.model.context, ROWS), trained
    if isinstance(config, Family):
        made = _family(config, pairs, folder, sizes, context)
        return made.scorer, made.metrics
    made = tqr(config, sizes.model, {"trunk": folder}, tokenizer, pairs.train, pairs.test, context)
    return made.scorer, made.metrics


def _start(folder: Path, seed: int, outputs: int = 1) -> PreTrainedModel:
    model = reward_model_from_trunk(folder, seed, outputs=outputs)
    model.config.pad_token_id = load_tokenizer(folder).tokenizer.pad_token_id
    return model


def _fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    shown: Sequence[Comparison],
    config: TrainReward,
    sizes: Sizes,
    context: StageContext,
) -> dict[str, Any]:
    return fit(
        model,
        tokenizer,
        pair_rows(tokenizer, shown, [1.0] * len(shown), sizes.model.context),
        _arguments(context.partial, context.seed, config.epochs, config.learning_rate, config.batch_size),
        PairLoss(config.label_smoothing, config.centring, config.use_margins),
        context.partial,
        context.report,
        1e9,
    )


class _Answered(NamedTuple):
    """What a family wants to know of a reference sample."""

    prompt: Prompt
    response: str


def _family(config: Family, pairs: Pairs, folder: Path, sizes: Sizes, context: StageContext) -> Made:
    """One of the families of the stage reward_model; both answers of the train pairs stand for a reference sample."""
    sample: list[Any] = [_Answered(pair.prompt, answer) for pair in pairs.train for answer in pair.answers]
    tokenizer = load_tokenizer(folder).tokenizer
    recipe = Recipe(
        tokenizer,
        pairs.train,
        sample,
        sizes.model.context,
        ROWS,
        context,
        bound(_start, folder),
        lambda model, shown, within: _fit(model, tokenizer, shown, config.training, sizes, within),
    )
    match config:
        case EnsembleReward():
            return ensemble(config, recipe)
        case LaplaceReward():
            return laplace(config, recipe)
        case WarmReward():
            return warm(config, recipe)
        case OdinReward():
            return odin(config, recipe)
        case InformReward():
            return inform(config, recipe)


def _arguments(partial: Path, seed: int, epochs: float, learning_rate: float, batch_size: int) -> dict[str, Any]:
    return arguments(
        partial=partial,
        device="cpu",
        seed=seed,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        warmup_share=0.05,
    )


def judge(scorer: Scorer, test: Sequence[Comparison], backbone: Backbone, sizes: Sizes) -> dict[str, Any]:
    """Accuracy on held-out pairs; in the world, also how it ranks them as gold does, and gold of the best of n."""
    found = score_pairs(scorer, test)
    measured = _accuracy(found.correct(), test)
    if not backbone.answers:
        return measured
    gaps = np.array([gold_reward(p.prompt, p.chosen) - gold_reward(p.prompt, p.rejected) for p in test])
    right = (1 + np.sign(found.chosen - found.rejected) * np.sign(gaps)) / 2
    prompts, texts, gold = zip(*backbone.answers, strict=True)
    values = np.array(gold).reshape(-1, sizes.bon_samples)
    estimate = CalibratedReward(scorer, Calibration.of(scorer(prompts, texts))).estimate(prompts, texts)
    picks = {
        name: conservative(estimate, caution)
        for name, caution in CAUTIONS.items()
        if (estimate.members if isinstance(caution, WorstCase) else estimate.std) is not None
    }
    return {
        **measured,
        "gold_accuracy": float(right[gaps != 0].mean()),
        "best_of": _best_of(estimate.mean, values),
        "cautious_best_of": {name: _best_of(scores, values) for name, scores in picks.items()},
        "oracle_best_of": _best_of(values, values),
    }


def _best_of(scores: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """Gold of the best of n by the scores; gold (g, k) of k answers to each of g prompts."""
    return {str(n): round(best_of_n(scores.reshape(values.shape), values, n), DIGITS) for n in BEST_OF}


def _accuracy(correct: np.ndarray, test: Sequence[Comparison]) -> dict[str, Any]:
    """The mean over prompts, and each prompt's own: whoever compares methods needs to know which are the same."""
    by_prompt = group_means(correct, [pair.prompt.key for pair in test])
    return {
        "accuracy": float(by_prompt.mean()),
        "by_prompt": [round(float(value), DIGITS) for value in by_prompt],
        "test_pairs": len(test),
    }
