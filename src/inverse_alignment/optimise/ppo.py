"""Proximal policy optimisation against a reward model, with a critic and a reference.

`iteration` reads top to bottom: answer, score, look, credit, update, steer. Several processes each do it on their own
share of the rows, and what they found is put together again before anything depends on more than one row.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from inverse_alignment.core.batches import Sequences, TokenBatch, length_groups
from inverse_alignment.core.parallel import Alone, Group, contiguous, dealt
from inverse_alignment.core.records import Prompt
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.generation.answers import Answer, Sampling, answer, batch_of
from inverse_alignment.maths.advantages import Advantages, generalised_advantages
from inverse_alignment.maths.credit import penalised
from inverse_alignment.maths.kl import k3, next_kl_coefficient
from inverse_alignment.maths.masked import masked_mean, masked_sum, masked_var, masked_whiten
from inverse_alignment.maths.surrogate import policy_loss, value_loss
from inverse_alignment.models.adapters import REFERENCE as REFERENCE_ADAPTERS
from inverse_alignment.models.adapters import (
    add_adapters,
    add_reference,
    load_adapters,
    merged_weights,
    save_adapters,
)
from inverse_alignment.models.heads import ValueHead, ValueModel, load_optimizer, save_optimizer
from inverse_alignment.models.log_probs import LOOK_TOKENS, Anchor, Head, compared, token_log_probs
from inverse_alignment.optimise.credit import TokenScores, assign
from inverse_alignment.optimise.reference import follow, load_parameters, save_parameters
from inverse_alignment.optimise.settings import (
    AdaptiveKl,
    FrozenReference,
    HardReference,
    PpoConfig,
    SharedCritic,
    SoftReference,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADAPTERS, REFERENCE = "adapters.safetensors", "reference.safetensors"
ScoreFn = Callable[[Sequence[Prompt], Sequence[str]], np.ndarray]


@dataclass
class Learner:
    """Everything that PPO changes, or needs to go on.

    Attributes:
        sft: the frozen SFT policy, to which the KL is reported; with adapters, the policy without them.
        reference: what the KL is priced against: `sft` itself, or a copy that moves, now and then or between rounds.
        value: a model with a trunk of its own, or a head on the policy's.
        value_optimizer: of all that only the critic learns.
        step: iterations done since the SFT policy, over all rounds.
        warmup: iterations left in which only the critic learns.
        tokens: padded tokens read at once in a forward pass.
        group: the processes that share out the rows.
    """

    policy: PreTrainedModel
    sft: Anchor
    reference: Anchor
    value: ValueHead
    policy_optimizer: torch.optim.Optimizer
    value_optimizer: torch.optim.Optimizer
    kl_coefficient: float
    step: int = 0
    warmup: int = 0
    tokens: int = LOOK_TOKENS
    group: Group = field(default_factory=Alone)


class Iteration(NamedTuple):
    """What one iteration measured, and the answers it learned from."""

    metrics: dict[str, float]
    answers: list[Answer]
    scores: np.ndarray
    kl: np.ndarray


class View(NamedTuple):
    """What everybody says about the same answers before the update; (b, t), zero where nothing counts.

    Attributes:
        kl: exact KL(π || SFT) in nats.
        entropy: of the policy's next-token distribution, nats.
    """

    log_probs: Tensor
    ref_log_probs: Tensor
    sft_log_probs: Tensor
    kl: Tensor
    entropy: Tensor
    values: Tensor


class Experience(NamedTuple):
    """A batch of rollouts with what the old policy and critic said; (b, t) tensors."""

    batch: TokenBatch
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


def new_learner(
    policy: PreTrainedModel,
    sft: PreTrainedModel,
    config: PpoConfig,
    tokens: int = LOOK_TOKENS,
    seed: int = 0,
    group: Group | None = None,
) -> Learner:
    """A learner at step 0: critic from the policy's trunk, reference at the SFT policy, fresh optimisers.

    Args:
        policy: what learns; with `config.lora`, the SFT policy again, which gets adapters.
        seed: of adapters.
        group: the processes that share out the rows; each has its own copy of the same learner.
    """
    if config.lora is not None:
        add_adapters(policy, config.lora.rank, config.lora.alpha, config.lora.targets, seed)
    shared = isinstance(config.critic, SharedCritic)
    value = ValueHead.of_policy(policy).to(policy.device) if shared else ValueModel.from_policy(policy)
    start, reference = _anchors(policy, sft.eval().requires_grad_(False), config)
    return Learner(
        policy=policy.eval(),
        sft=start,
        reference=reference,
        value=value.eval(),
        policy_optimizer=_adamw(policy, config.learning_rate),
        value_optimizer=_adamw(value, config.value_learning_rate),
        kl_coefficient=config.kl.coefficient,
        warmup=config.value_warmup_steps,
        tokens=tokens,
        group=group or Alone(),
    )


def _anchors(policy: PreTrainedModel, sft: PreTrainedModel, config: PpoConfig) -> tuple[Anchor, Anchor]:
    """The SFT policy, and the reference."""
    start = Anchor(sft) if config.lora is None else Anchor(policy, None)
    if isinstance(config.reference, FrozenReference):
        return start, start
    if config.lora is None:
        return start, Anchor(copy.deepcopy(sft))
    add_reference(policy, config.lora.rank, config.lora.alpha, config.lora.targets)
    return start, Anchor(policy, REFERENCE_ADAPTERS)


def _adamw(model: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.AdamW(learned, lr=learning_rate, weight_decay=0.0)


def iteration(
    learner: Learner,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    score: ScoreFn,
    config: PpoConfig,
    sampling: Sampling,
    seed: int,
    tokens: TokenScores | None = None,
) -> Iteration:
    """Sample one batch of answers and learn from it, in place.

    Args:
        prompts: one per rollout; repeats are answered with different noise.
        score: standardised reward of texts.
        seed: of the run; the noise is keyed by (seed, prompt, step, row).
        tokens: what is known of single tokens, as far as `config.credit` asks.

    Raises:
        FloatingPointError: a reward, loss or gradient is not finite; no optimiser has stepped on it.
    """
    # answer
    group, mine = learner.group, contiguous(learner.group, len(prompts))
    seeds = [derive_seed("ppo", seed, prompt.key, learner.step, row) for row, prompt in enumerate(prompts)]
    written = answer(learner.policy, tokenizer, prompts[mine], seeds[mine], sampling)
    answers = [Answer(**row) for row in group.gather([vars(one) for one in written])]
    batch = batch_of(answers, tokenizer.pad_token_id, learner.policy.device)
    mask = batch.response_mask

    # score
    scores = np.array(group.gather(score(prompts[mine], [one.text for one in written]).tolist()))
    _require_scores(scores, answers, learner.step)  # clipping would make an infinite one look sane
    ended = np.array([given.ended for given in answers])
    shaped = np.clip(scores, -config.score_clip, config.score_clip) - config.missing_eos_penalty * ~ended

    # look: old policy, references and critic on the same answers
    view = look(learner, batch, config.temperature)

    # credit
    given = torch.as_tensor(shaped, dtype=torch.float32, device=mask.device)
    credit = torch.zeros(mask.shape, device=mask.device)
    credit[mine] = assign(config.credit, given[mine], mask[mine], prompts[mine], written, tokens, config.gamma)
    group.add(credit)
    rewards = penalised(credit, view.log_probs - view.ref_log_probs, mask, learner.kl_coefficient)
    estimate = generalised_advantages(rewards, view.values, mask, config.gamma, config.lam)
    require_finite(estimate.advantages[mask], "advantage", f"iteration {learner.step}")
    whitened = masked_whiten(estimate.advantages, mask)
    experience = Experience(batch, view.log_probs, view.values, whitened, estimate.returns)

    # update
    updates = update(learner, experience, config, seed)

    # steer
    kl = masked_sum(view.kl, mask, -1)
    metrics = {
        **_describe(scores, ended, view, estimate, mask),
        **updates,
        "kl_coefficient": learner.kl_coefficient,
    }
    if isinstance(config.kl, AdaptiveKl):
        learner.kl_coefficient = next_kl_coefficient(
            learner.kl_coefficient, float(kl.mean()), config.kl.target, config.kl.horizon, len(batch)
        )
    learner.step += 1
    learner.warmup = max(learner.warmup - 1, 0)
    move_reference(learner, config)
    return Iteration(metrics, answers, scores, kl.cpu().double().numpy())


@torch.no_grad()
def look(learner: Learner, batch: TokenBatch, temperature: float) -> View:
    """Log-probabilities, KL and values of a batch, read in groups of rows of like length."""
    policy, sft = Head(learner.policy), Head(*learner.sft)
    moving = None if learner.reference == learner.sft else Head(*learner.reference)
    found = torch.zeros((len(View._fields), *batch.response_mask.shape), device=batch.response_ids.device)
    for index in _groups(learner, batch):
        sequences = Sequences.of(batch.rows(index))
        states = policy.states(sequences)
        mine = compared((policy, sft), [states, sft.states(sequences)], sequences.targets, temperature)
        reference = mine.ref_log_probs
        if moving is not None:
            reference = token_log_probs(moving, moving.states(sequences), sequences.targets, temperature)
        values = learner.value(sequences) if isinstance(learner.value, ValueModel) else learner.value.values(states)
        width = sequences.mask.shape[-1]
        view = View(mine.log_probs, reference, mine.ref_log_probs, mine.kl, mine.entropy, values)
        for place, numbers in enumerate(view):
            found[place, index, :width] = sequences.spread(numbers)
    learner.group.add(found)
    return View(*found)


def update(learner: Learner, experience: Experience, config: PpoConfig, seed: int) -> dict[str, float]:
    """Several passes over the experience in random minibatches; the critic alone while it warms up.

    Once the policy has moved `max_update_kl` away from the one that sampled, it stays for the rest of the iteration;
    the critic goes on.
    """
    totals: dict[str, list[float]] = {}
    stopped = False
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(derive_seed("minibatches", seed, learner.step, epoch))
        order = torch.randperm(len(experience.batch), generator=generator)
        for number, index in enumerate(order.chunk(config.minibatches)):
            where = f"iteration {learner.step}, epoch {epoch}, minibatch {number}"
            part = _rows(experience, index.to(experience.log_probs.device))
            frozen = stopped or learner.warmup > 0
            measured = _update_minibatch(learner, part, config, frozen, where)
            stopped = stopped or measured.get("update_kl", 0.0) > (config.max_update_kl or float("inf"))
            for name, value in measured.items():
                totals.setdefault(name, []).append(value)
    return {
        **{name: float(np.mean(numbers)) for name, numbers in totals.items()},
        **({} if config.max_update_kl is None else {"stopped_early": float(stopped)}),
    }


def move_reference(learner: Learner, config: PpoConfig) -> None:
    """Let the reference follow the policy, if it does so after this step; hard α = 1."""
    match config.reference:
        case HardReference(every=every):
            alpha = 1.0
        case SoftReference(every=every, alpha=alpha):
            pass
        case _:
            return
    if learner.step % every == 0:
        follow(learner.reference, learner.policy, alpha)


def prompts_of_step(prompts: Sequence[Prompt], step: int, batch_size: int, seed: int) -> list[Prompt]:
    """The prompts of an iteration: a new shuffle per pass over them, hence the step is the whole cursor."""
    chosen: list[Prompt] = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, len(prompts))
        chosen.append(prompts[int(_shuffle(len(prompts), seed, epoch)[place])])
    return chosen


def save_learner(learner: Learner, folder: Path, reward_digest: str) -> None:
    """Write all of a learner's state but the weights of the policy and of the SFT policy."""
    folder.mkdir(parents=True, exist_ok=True)
    if learner.sft.borrows:
        save_adapters(learner.policy, folder / ADAPTERS)
    if learner.reference.borrows and learner.reference != learner.sft:
        save_adapters(learner.policy, folder / REFERENCE, REFERENCE_ADAPTERS)
    elif learner.reference != learner.sft:
        save_parameters(learner.reference.model, folder / REFERENCE)
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


def plain_policy(learner: Learner, sft: PreTrainedModel) -> PreTrainedModel:
    """A policy with adapters as a model without: they are added to its weights.

    Args:
        sft: a spare copy of the SFT policy, which becomes it.
    """
    sft.load_state_dict(merged_weights(learner.policy))
    return sft


def load_learner(learner: Learner, folder: Path) -> str:
    """Restore what `save_learner` wrote, in place; returns the digest of the reward model it was trained on."""
    state = json.loads((folder / "state.json").read_text())
    if learner.sft.borrows:
        load_adapters(learner.policy, folder / ADAPTERS)
    if learner.reference.borrows and learner.reference != learner.sft:
        load_adapters(learner.policy, folder / REFERENCE, REFERENCE_ADAPTERS)
    elif learner.reference != learner.sft:
        load_parameters(learner.reference.model, folder / REFERENCE)
    learner.value.load(folder / "value.safetensors")
    load_optimizer(learner.policy_optimizer, folder / "policy_optimizer.safetensors")
    load_optimizer(learner.value_optimizer, folder / "value_optimizer.safetensors")
    learner.step, learner.warmup = int(state["step"]), int(state["warmup"])
    learner.kl_coefficient = float(state["kl_coefficient"])
    return str(state["reward_digest"])


def require_finite(values: Tensor, what: str, where: str) -> None:
    """Stop before an optimiser learns from a number that is none.

    Raises:
        FloatingPointError: a value is NaN or infinite.
    """
    if not bool(torch.isfinite(values).all()):
        raise FloatingPointError(f"a {what} is not finite in {where}; nothing was updated with it")


def _require_scores(scores: np.ndarray, answers: Sequence[Answer], step: int) -> None:
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        text = answers[int(bad[0])].text
        require_finite(torch.tensor(float(scores[bad[0]])), "score", f"iteration {step}, row {bad[0]}: {text[:80]!r}")


def _update_minibatch(
    learner: Learner, part: Experience, config: PpoConfig, frozen: bool, where: str
) -> dict[str, float]:
    """One step of each optimiser, from gradients summed over groups of rows and over processes.

    A group's loss is weighted by its share of the minibatch's tokens, so that the groups' gradients add up to that of
    the whole minibatch.
    """
    learner.policy_optimizer.zero_grad(set_to_none=True)
    learner.value_optimizer.zero_grad(set_to_none=True)
    head = Head(learner.policy)
    total = part.batch.response_mask.sum()
    measured: dict[str, Tensor] = {}
    for index in _groups(learner, part.batch):
        group = _rows(part, index)
        share = group.batch.response_mask.sum() / total
        for name, value in _backward(learner, head, group, config, frozen, share, where).items():
            measured[name] = measured.get(name, 0.0) + share * value
    gradients = [*_gradients(learner.value_optimizer), *_gradients(learner.policy_optimizer)]
    learner.group.add(*measured.values(), *gradients)
    norms = _step(learner.value, learner.value_optimizer, config.max_grad_norm, "value_grad_norm", where)
    if not frozen:
        norms |= _step(learner.policy, learner.policy_optimizer, config.max_grad_norm, "policy_grad_norm", where)
    return {**{name: float(value) for name, value in measured.items()}, **norms}


def _groups(learner: Learner, batch: TokenBatch) -> list[Tensor]:
    """The rows that this process reads, in groups of like length, each at most `learner.tokens` wide and high."""
    lengths = batch.attention_mask.sum(-1).tolist()
    mine = dealt(learner.group, lengths)
    groups = length_groups([lengths[row] for row in mine], learner.tokens)
    return [torch.tensor([mine[place] for place in places], device=batch.response_ids.device) for places in groups]


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    weights = [weight for settings in optimizer.param_groups for weight in settings["params"]]
    return [weight.grad for weight in weights if weight.grad is not None]


def _backward(
    learner: Learner, head: Head, part: Experience, config: PpoConfig, frozen: bool, share: Tensor, where: str
) -> dict[str, Tensor]:
    """Add a group's gradients to those of its minibatch; losses are means over the group's tokens."""
    sequences, measured = Sequences.of(part.batch), dict[str, Tensor]()
    if isinstance(learner.value, ValueModel):
        if not frozen:  # on its own, so that what it keeps for the backward pass is gone before the critic's is there
            loss, measured = _policy_part(head, head.states(sequences), sequences, part, config)
            _add_gradient(loss, share, where)
        loss, of_critic = _critic_part(learner.value(sequences), sequences, part, config)
    else:
        with torch.set_grad_enabled(not frozen):
            states = head.states(sequences)
        loss, of_critic = _critic_part(learner.value.values(states), sequences, part, config)
        if not frozen and isinstance(config.critic, SharedCritic):
            policy, measured = _policy_part(head, states, sequences, part, config)
            loss = policy + config.critic.coefficient * loss
    _add_gradient(loss, share, where)
    return {**measured, **of_critic}


def _policy_part(
    head: Head, states: Tensor, sequences: Sequences, part: Experience, config: PpoConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    mask = part.batch.response_mask
    log_probs = sequences.spread(token_log_probs(head, states, sequences.targets, config.temperature))
    result = policy_loss(log_probs, part.log_probs, part.advantages, mask, config.clip)
    return result.loss, {
        "policy_loss": result.loss.detach(),
        "clipped_share": result.clipped.detach(),
        "update_kl": masked_mean(k3(part.log_probs, log_probs.detach()), mask),
    }


def _critic_part(
    values: Tensor, sequences: Sequences, part: Experience, config: PpoConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    mask = part.batch.response_mask
    result = value_loss(sequences.spread(values), part.values, part.returns, mask, config.value_clip)
    return result.loss, {"value_loss": result.loss.detach(), "value_clipped_share": result.clipped.detach()}


def _add_gradient(loss: Tensor, share: Tensor, where: str) -> None:
    require_finite(loss, "loss", where)
    (share * loss).backward()


def _step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float, name: str, where: str
) -> dict[str, float]:
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    require_finite(norm, "gradient", where)
    optimizer.step()
    return {name: float(norm)}


def _rows(experience: Experience, index: Tensor) -> Experience:
    batch = experience.batch.rows(index)
    width = batch.response_ids.shape[-1]
    old, values, advantages, returns = (tensor[index][:, :width] for tensor in experience[1:])
    return Experience(batch, old, values, advantages, returns)


def _describe(
    scores: np.ndarray, ended: np.ndarray, view: View, estimate: Advantages, mask: Tensor
) -> dict[str, float]:
    residual = masked_var(estimate.returns - view.values, mask)
    return {
        "rm_score": float(scores.mean()),
        "rm_score_std": float(scores.std()),
        "kl": float(masked_sum(view.kl, mask, -1).mean()),
        "kl_k1": float(masked_sum(view.log_probs - view.sft_log_probs, mask, -1).mean()),
        "kl_k3": float(masked_sum(k3(view.log_probs, view.sft_log_probs), mask, -1).mean()),
        "kl_to_reference": float(masked_sum(k3(view.log_probs, view.ref_log_probs), mask, -1).mean()),
        "entropy": float(masked_mean(view.entropy, mask)),
        "tokens": float(mask.sum(-1).float().mean()),
        "ended_share": float(ended.mean()),
        "explained_variance": float(1 - residual / masked_var(estimate.returns, mask).clamp(min=1e-8)),
    }


def _shuffle(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=derive_seed("prompt order", seed, epoch))).permutation(count)
