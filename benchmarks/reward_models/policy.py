"""PPO from the backbone against a reward model, judged by the world's gold at prompts that nobody trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.reward_models.collection import Pairs
from benchmarks.reward_models.plan import PPO, Policy, Sizes
from inverse_alignment.core.records import Prompt
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.generation.answers import Answer, Sampling, answer, batch_of
from inverse_alignment.maths.grouping import group_means
from inverse_alignment.maths.masked import masked_sum
from inverse_alignment.models.loading import load_policy
from inverse_alignment.models.log_probs import compare_with_reference
from inverse_alignment.models.reward_scores import CalibratedReward, Calibration, Scorer
from inverse_alignment.optimise.credit import KnownTokens
from inverse_alignment.optimise.ppo import iteration, new_learner, prompts_of_step
from inverse_alignment.text.tokenizers import load_tokenizer
from inverse_alignment.world.gold import gold_reward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLES = 4  # answers to a prompt, of the reference sample and of the judgement


def optimised(arm: Policy, scorer: Scorer, pairs: Pairs, folder: Path, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Gold reward of the policy's answers, by prompt, and how far it went.

    Args:
        scorer: the reward model, raw; it is standardised on answers of the backbone to train prompts.
        folder: of the backbone.
    """
    config = PPO.model_copy(update={"credit": arm.credit})
    tokenizer = load_tokenizer(folder).tokenizer
    sampling = Sampling(config.max_new_tokens, 1.0, sizes.model.context, config.batch_size)
    prompts, held_out = (
        list({pair.prompt.key: pair.prompt for pair in each}.values()) for each in (pairs.train, pairs.test)
    )
    asked, sample = _answers(load_policy(folder).eval(), folder, prompts, sampling, seed, "reference")
    calibration = Calibration.of(scorer(asked, [one.text for one in sample]))
    known = KnownTokens.of(config.credit, CalibratedReward(scorer, calibration).cautious(arm.caution), tokenizer)
    sft = load_policy(folder)
    learner = new_learner(load_policy(folder), sft, config, seed=seed)
    score = float("nan")
    while learner.step < config.steps:
        now = prompts_of_step(prompts, learner.step, config.batch_size, seed)
        score = iteration(learner, tokenizer, now, known, config, sampling, seed, known).metrics["rm_score"]
    asked, written = _answers(learner.policy, folder, held_out, sampling, seed, "judged")
    gold = np.array([gold_reward(prompt, one.text) for prompt, one in zip(asked, written, strict=True)])
    batch = batch_of(written, tokenizer.pad_token_id, learner.policy.device)
    view = compare_with_reference(learner.policy, sft, batch, 1.0)
    return {
        "gold": float(gold.mean()),
        "by_prompt": group_means(gold, [prompt.key for prompt in asked]).tolist(),
        "kl": float(masked_sum(view.kl, batch.response_mask, -1).mean()),
        "rm_score": score,
        "tokens": float(np.mean([len(one.response_ids) for one in written])),
    }


def _answers(
    policy: PreTrainedModel, folder: Path, prompts: list[Prompt], sampling: Sampling, seed: int, purpose: str
) -> tuple[list[Prompt], list[Answer]]:
    asked = [prompt for prompt in prompts for _ in range(SAMPLES)]
    seeds = [derive_seed("policy", purpose, seed, prompt.key, i) for prompt in prompts for i in range(SAMPLES)]
    return asked, answer(policy, load_tokenizer(folder).tokenizer, asked, seeds, sampling)
