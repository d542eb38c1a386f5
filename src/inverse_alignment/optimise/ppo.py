"""Proximal policy optimisation against a reward model, with a value model and a frozen reference.

`iteration` reads top to bottom: answer, score, look, credit, update, steer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from inverse_alignment.core.batches import TokenBatch
from inverse_alignment.core.records import Prompt
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.generation.answers import Answer, Sampling, answer, batch_of
from inverse_alignment.maths.advantages import Advantages, generalised_advantages
from inverse_alignment.maths.credit import terminal_rewards
from inverse_alignment.maths.kl import k3, next_kl_coefficient
from inverse_alignment.maths.masked import masked_mean, masked_sum, masked_var, masked_whiten
from inverse_alignment.maths.surrogate import policy_loss, token_entropy, value_loss
from inverse_alignment.models.heads import ValueModel, load_optimizer, save_optimizer
from inverse_alignment.models.log_probs import (
    ReferenceView,
    chosen_log_probs,
    compare_with_reference,
    response_logits,
)
from inverse_alignment.optimise.settings import AdaptiveKl, PpoConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ScoreFn = Callable[[Sequence[Prompt], Sequence[str]], np.ndarray]


@dataclass
class Learner:
    """Everything that PPO changes, or needs to go on.

    Attributes:
        step: iterations done since the SFT policy, over all rounds.
        warmup: iterations left in which only the value model learns.
    """

    policy: PreTrainedModel
    reference: PreTrainedModel
    value: ValueModel
    policy_optimizer: torch.optim.Optimizer
    value_optimizer: torch.optim.Optimizer
    kl_coefficient: float
    step: int = 0
    warmup: int = 0


class Iteration(NamedTuple):
    """What one iteration measured, and the answers it learned from."""

    metrics: dict[str, float]
    answers: list[Answer]
    scores: np.ndarray
    kl: np.ndarray


class Experience(NamedTuple):
    """A batch of rollouts with what the old policy and value model said; (b, t) tensors."""

    batch: TokenBatch
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


def new_learner(policy: PreTrainedModel, reference: PreTrainedModel, config: PpoConfig) -> Learner:
    """A learner at step 0: value model from the policy's trunk, fresh optimisers."""
    value = ValueModel.from_policy(policy)
    return Learner(
        policy=policy.eval(),
        reference=reference.eval().requires_grad_(False),
        value=value.eval(),
        policy_optimizer=torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, weight_decay=0.0),
        value_optimizer=torch.optim.AdamW(value.parameters(), lr=config.value_learning_rate, weight_decay=0.0),
        kl_coefficient=config.kl.coefficient,
        warmup=config.value_warmup_steps,
    )


def iteration(
    learner: Learner,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    score: ScoreFn,
    config: PpoConfig,
    sampling: Sampling,
    seed: int,
) -> Iteration:
    """Sample one batch of answers and learn from it, in place.

    Args:
        prompts: one per rollout; repeats are answered with different noise.
        score: standardised reward of texts.
        seed: of the run; the noise is keyed by (seed, prompt, step, row).

    Raises:
        FloatingPointError: a reward, loss or gradient is not finite; no optimiser has stepped on it.
    """
    # answer
    seeds = [derive_seed("ppo", seed, prompt.key, learner.step, row) for row, prompt in enumerate(prompts)]
    answers = answer(learner.policy, tokenizer, prompts, seeds, sampling)
    batch = batch_of(answers, tokenizer.pad_token_id, learner.policy.device)
    mask = batch.response_mask

    # score
    scores = score(prompts, [given.text for given in answers])
    require_finite(torch.from_numpy(scores), "score", learner.step)  # clipping would make an infinite one look sane
    ended = np.array([given.ended for given in answers])
    shaped = np.clip(scores, -config.score_clip, config.score_clip) - config.missing_eos_penalty * ~ended

    # look: old policy, reference and value model on the same answers
    view = compare_with_reference(learner.policy, learner.reference, batch, config.temperature)
    with torch.no_grad():
        values = learner.value(batch)

    # credit
    rewards = terminal_rewards(
        torch.as_tensor(shaped, dtype=torch.float32, device=mask.device),
        view.log_probs - view.ref_log_probs,
        mask,
        learner.kl_coefficient,
    )
    estimate = generalised_advantages(rewards, values, mask, config.gamma, config.lam)
    require_finite(estimate.advantages[mask], "advantage", learner.step)
    experience = Experience(batch, view.log_probs, values, masked_whiten(estimate.advantages, mask), estimate.returns)

    # update
    updates = update(learner, experience, config, seed)

    # steer
    kl = masked_sum(view.kl, mask, -1)
    metrics = {
        **_describe(scores, ended, kl, view, values, estimate, mask),
        **updates,
        "kl_coefficient": learner.kl_coefficient,
    }
    if isinstance(config.kl, AdaptiveKl):
        learner.kl_coefficient = next_kl_coefficient(
            learner.kl_coefficient, float(kl.mean()), config.kl.target, config.kl.horizon, len(batch)
        )
    learner.step += 1
    learner.warmup = max(learner.warmup - 1, 0)
    return Iteration(metrics, answers, scores, kl.cpu().double().numpy())


def update(learner: Learner, experience: Experience, config: PpoConfig, seed: int) -> dict[str, float]:
    """Several passes over the experience in random minibatches; the value model alone while it warms up."""
    totals: dict[str, list[float]] = {}
    rows = len(experience.batch)
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(derive_seed("minibatches", seed, learner.step, epoch))
        for index in torch.randperm(rows, generator=generator).chunk(config.minibatches):
            part = _rows(experience, index.to(experience.log_probs.device))
            measured = _update_value(learner, part, config)
            if not learner.warmup:
                measured |= _update_policy(learner, part, config)
            for name, number in measured.items():
                totals.setdefault(name, []).append(number)
    return {name: float(np.mean(numbers)) for name, numbers in totals.items()}


def prompts_of_step(prompts: Sequence[Prompt], step: int, batch_size: int, seed: int) -> list[Prompt]:
    """The prompts of an iteration: a new shuffle per pass over them, hence the step is the whole cursor."""
    chosen: list[Prompt] = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, len(prompts))
        chosen.append(prompts[int(_shuffle(len(prompts), seed, epoch)[place])])
    return chosen


def save_learner(learner: Learner, folder: Path, reward_digest: str) -> None:
    """Write all of a learner's state but the policy's weights and the reference."""
    folder.mkdir(parents=True, exist_ok=True)
    learner.value.save(folder / "value.safetensors")
    save_optimizer(learner.policy_optimizer, folder / "policy_optimizer.safetensors")
    save_optimizer(learner.value_optimizer, folder / "value_optimizer.safetensors")
    state = {
        "step": learner.step,
        "warmup": learner.warmup,
        "kl_coefficient": learner.kl_coefficient,
        "reward_digest": reward_digest,
    }
    (folder / "state.json").write_text(json.dumps(state, sort_keys=True))


def load_learner(learner: Learner, folder: Path) -> str:
    """Restore what `save_learner` wrote, in place; returns the digest of the reward model it was trained on."""
    state = json.loads((folder / "state.json").read_text())
    learner.value.load(folder / "value.safetensors")
    load_optimizer(learner.policy_optimizer, folder / "policy_optimizer.safetensors")
    load_optimizer(learner.value_optimizer, folder / "value_optimizer.safetensors")
    learner.step, learner.warmup = int(state["step"]), int(state["warmup"])
    learner.kl_coefficient = float(state["kl_coefficient"])
    return str(state["reward_digest"])


def require_finite(values: Tensor, what: str, step: int) -> None:
    """Stop before an optimiser learns from a number that is none.

    Raises:
        FloatingPointError: a value is NaN or infinite.
    """
    if not bool(torch.isfinite(values).all()):
        raise FloatingPointError(f"a {what} is not finite in iteration {step}; nothing was updated with it")


def _update_policy(learner: Learner, part: Experience, config: PpoConfig) -> dict[str, float]:
    logits = response_logits(learner.policy, part.batch, config.temperature)
    log_probs, mask = chosen_log_probs(logits, part.batch.response_ids), part.batch.response_mask
    result = policy_loss(log_probs, part.log_probs, part.advantages, mask, config.clip)
    norm = _step(learner.policy, learner.policy_optimizer, result.loss, config.max_grad_norm, learner.step)
    with torch.no_grad():
        entropy = masked_mean(token_entropy(logits), mask)
        moved = masked_mean(k3(part.log_probs, log_probs), mask)
    return {
        "policy_loss": float(result.loss.detach()),
        "clipped_share": float(result.clipped.detach()),
        "entropy": float(entropy),
        "update_kl": float(moved),
        "policy_grad_norm": norm,
    }


def _update_value(learner: Learner, part: Experience, config: PpoConfig) -> dict[str, float]:
    values = learner.value(part.batch)
    result = value_loss(values, part.values, part.returns, part.batch.response_mask, config.value_clip)
    norm = _step(learner.value, learner.value_optimizer, result.loss, config.max_grad_norm, learner.step)
    return {
        "value_loss": float(result.loss.detach()),
        "value_clipped_share": float(result.clipped.detach()),
        "value_grad_norm": norm,
    }


def _step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, max_grad_norm: float, step: int
) -> float:
    require_finite(loss, "loss", step)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    require_finite(norm, "gradient", step)
    optimizer.step()
    return float(norm)


def _rows(experience: Experience, index: Tensor) -> Experience:
    batch = experience.batch.rows(index)
    width = batch.response_ids.shape[-1]
    old, values, advantages, returns = (tensor[index][:, :width] for tensor in experience[1:])
    return Experience(batch, old, values, advantages, returns)


def _describe(
    scores: np.ndarray,
    ended: np.ndarray,
    kl: Tensor,
    view: ReferenceView,
    values: Tensor,
    estimate: Advantages,
    mask: Tensor,
) -> dict[str, float]:
    residual = masked_var(estimate.returns - values, mask)
    return {
        "rm_score": float(scores.mean()),
        "rm_score_std": float(scores.std()),
        "kl": float(kl.mean()),
        "kl_k1": float(masked_sum(view.log_probs - view.ref_log_probs, mask, -1).mean()),
        "kl_k3": float(masked_sum(k3(view.log_probs, view.ref_log_probs), mask, -1).mean()),
        "tokens": float(mask.sum(-1).float().mean()),
        "ended_share": float(ended.mean()),
        "explained_variance": float(1 - residual / masked_var(estimate.returns, mask).clamp(min=1e-8)),
    }


def _shuffle(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=derive_seed("prompt order", seed, epoch))).permutation(count)
