"""policy + reward model + prompts -> the policy after some steps of PPO, and the state to go on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.optimise.settings import PpoConfig

if TYPE_CHECKING:
    from inverse_alignment.models.reward_scores import CalibratedReward
    from inverse_alignment.optimise.alarms import Alarm
    from inverse_alignment.optimise.credit import KnownTokens
    from inverse_alignment.optimise.watch import Watch

LOOKS = "looks.jsonl"


class PpoStage(Section):
    """Identity of the stage."""

    ppo: PpoConfig
    context: int = Field(description="most tokens of prompt and answer together, in policy tokens")
    reward_context: int = Field(description="the same in the reward model's tokens")


def build(inputs: Mapping[str, Path], config: PpoStage, context: StageContext) -> dict[str, Any]:
    """Write `policy/`, `state/` (to go on from), and for the report `samples.jsonl`, `looks.jsonl` and `alarms.json`.

    The round begins where `ppo.start` says. Killed at any instant, it goes on from its newest whole checkpoint and ends
    with the same bytes.
    """
    import json
    import shutil

    from inverse_alignment.core import checkpoint
    from inverse_alignment.core.metrics import read_metrics, truncate_metrics
    from inverse_alignment.core.parallel import group
    from inverse_alignment.models.loading import load_policy, place, save_model
    from inverse_alignment.optimise.ppo import plain_policy, save_learner
    from inverse_alignment.optimise.rounds import starting_policy
    from inverse_alignment.text.tokenizers import load_tokenizer

    resume = checkpoint.newest(context.partial)
    tokenizer = load_tokenizer(inputs["policy"]).tokenizer
    if resume and config.ppo.lora is None:  # adapters are in the state
        policy = load_policy(resume / "policy")
    else:
        policy = starting_policy(inputs["policy"], inputs["reference"], config.ppo)
    learner, first, reward_digest = _learner(policy, resume, inputs, config, context)
    if group().rank == 0:
        truncate_metrics(context.partial / "metrics.jsonl", learner.step)
        truncate_metrics(context.partial / "samples.jsonl", learner.step)
        truncate_metrics(context.partial / LOOKS, learner.step)
    _run(learner, tokenizer, first, reward_digest, inputs, config, context)
    if group().rank:
        return {}  # the first process has the same learner, and kept what was measured
    adapted = config.ppo.lora is not None
    finished = plain_policy(learner, load_policy(inputs["reference"])) if adapted else learner.policy
    save_model(place(finished, "cpu"), tokenizer, context.out / "policy")
    save_learner(learner, context.out / "state", reward_digest)
    # a copy: killed before the artifact appears, the rows are still beside the checkpoint they belong to
    shutil.copyfile(context.partial / "samples.jsonl", context.out / "samples.jsonl")
    (context.partial / LOOKS).touch()
    shutil.copyfile(context.partial / LOOKS, context.out / LOOKS)
    found = _findings(context.partial)
    (context.out / "alarms.json").write_text(json.dumps({"alarms": [alarm._asdict() for alarm in found]}, indent=1))
    last = read_metrics(context.partial / "metrics.jsonl")[-1]
    names = ("rm_score", "kl", "tokens", "kl_coefficient")
    return {"step": learner.step, "alarms": len(found), **{name: last[name] for name in names}}


def _learner(
    policy: Any, resume: Path | None, inputs: Mapping[str, Path], config: PpoStage, context: StageContext
) -> tuple[Any, int, str]:
    """The learner where it left off, the step this round began at, and the digest of its reward model."""
    import json

    from inverse_alignment.core.artifact import external
    from inverse_alignment.core.parallel import group
    from inverse_alignment.models.loading import load_policy, pick_device, place
    from inverse_alignment.optimise.ppo import load_learner, new_learner
    from inverse_alignment.optimise.rounds import begin_round

    device = pick_device(context.runtime.device)
    sft = place(load_policy(inputs["reference"]), device)
    tokens = context.runtime.training_tokens
    learner = new_learner(place(policy, device), sft, config.ppo, tokens, context.seed, group())
    reward_digest = external("reward", inputs["reward"]).digest
    first = 0
    if "state" in inputs:
        first = int(json.loads((inputs["state"] / "state.json").read_text())["step"])
    if resume:
        load_learner(learner, resume / "state")
    elif "state" in inputs:
        begin_round(learner, inputs["state"], config.ppo, reward_digest)
    return learner, first, reward_digest


def _run(
    learner: Any,
    tokenizer: Any,
    first: int,
    reward_digest: str,
    inputs: Mapping[str, Path],
    config: PpoStage,
    context: StageContext,
) -> None:
    import time

    from inverse_alignment.core import checkpoint
    from inverse_alignment.core.metrics import Stopped
    from inverse_alignment.data.aggregate import read_prompts
    from inverse_alignment.generation.answers import Sampling, choose_prompts
    from inverse_alignment.models.loading import save_model
    from inverse_alignment.optimise.ppo import iteration, prompts_of_step, save_learner
    from inverse_alignment.optimise.watch import described

    ppo, runtime = config.ppo, context.runtime
    prompts = choose_prompts(read_prompts(inputs["preferences"], "train"), 0, context.seed)
    reward = _reward(inputs["reward"], config, context, learner.policy.device)
    known = _known(reward.cautious(ppo.caution), tokenizer, inputs, config, context, learner.policy.device)
    sampling = Sampling(ppo.max_new_tokens, ppo.temperature, config.context, runtime.generation_rows)
    watch = _watch(reward, learner, tokenizer, inputs, config, context)
    saved, halted = time.monotonic(), False
    while learner.step < first + ppo.steps and not halted:
        asked = prompts_of_step(prompts, learner.step, ppo.batch_size, context.seed)
        done = iteration(learner, tokenizer, asked, known, ppo, sampling, context.seed, known)
        metrics = {**done.metrics, **described(done.answers, done.scores, ppo.watch.stock_phrases)}
        looks = watch is not None and (learner.step == first + 1 or learner.step % ppo.watch.every == 0)
        if watch and looks:
            seen = watch.look(learner.step, learner.policy, tokenizer, sampling, runtime.training_tokens)
            seen.append(context.partial / LOOKS)
            metrics |= seen.metrics
        context.report.log(learner.step, metrics)
        halted = learner.group.agree(looks and any(a.name in ppo.watch.stop_at for a in _findings(context.partial)))
        ends = halted or learner.step == first + ppo.steps
        writes = learner.group.rank == 0
        if writes and (learner.step % ppo.samples_every == 0 or ends):
            keep_samples(context.partial / "samples.jsonl", learner.step, asked, done)
        context.report.progress(learner.step - first, ppo.steps, "steps")
        stopping = learner.group.agree(context.report.stopping()) and not ends
        if writes and (stopping or time.monotonic() - saved >= runtime.checkpoint_seconds):

            def write(folder: Path) -> None:
                if ppo.lora is None:
                    save_model(learner.policy, tokenizer, folder / "policy")
                save_learner(learner, folder / "state", reward_digest)

            checkpoint.save(context.partial, learner.step, write)
            saved = time.monotonic()
        if stopping:
            raise Stopped(f"stopped after {learner.step - first} of {ppo.steps} iterations")


def _findings(folder: Path) -> list[Alarm]:
    """What speaks against the round so far, from what it reported."""
    from inverse_alignment.core.metrics import read_metrics
    from inverse_alignment.optimise.alarms import findings

    return findings(read_metrics(folder / "metrics.jsonl"), read_metrics(folder / LOOKS))


def _reward(folder: Path, config: PpoStage, context: StageContext, device: Any) -> CalibratedReward:
    from inverse_alignment.models.reward_scores import load_calibrated

    return load_calibrated(folder, device, config.reward_context, context.runtime.scoring_rows)


def _watch(
    reward: CalibratedReward,
    learner: Any,
    tokenizer: Any,
    inputs: Mapping[str, Path],
    config: PpoStage,
    context: StageContext,
) -> Watch | None:
    """Who is asked at a look; None where there are none, and in all processes but the first."""
    from inverse_alignment.data.aggregate import read_split
    from inverse_alignment.models.loading import load_policy, place
    from inverse_alignment.optimise.watch import watch_of

    watched, device = config.ppo.watch, learner.policy.device
    pairs = read_split(inputs["preferences"], "validation") if watched.every and learner.group.rank == 0 else []
    if not pairs:
        return None
    audit = _reward(inputs["audit"], config, context, device) if "audit" in inputs else None
    sft = place(load_policy(inputs["reference"]), device)
    return watch_of(
        pairs,
        (watched.prompts, watched.samples),
        reward.estimate,
        audit,
        (sft, tokenizer),
        (config.context, context.runtime.training_tokens),
        context.seed,
    )


def _known(
    reward: CalibratedReward,
    tokenizer: Any,
    inputs: Mapping[str, Path],
    config: PpoStage,
    context: StageContext,
    device: Any,
) -> KnownTokens:
    """The reward model, and what the configured credit needs to know of single tokens."""
    from inverse_alignment.core.records import Demonstration
    from inverse_alignment.data.aggregate import read_others, read_split
    from inverse_alignment.models.token_scores import TokenHead
    from inverse_alignment.optimise.credit import KnownTokens, given_answers
    from inverse_alignment.optimise.credit_settings import PotentialCredit, TokenCredit

    head = references = None
    credit, most, rows = config.ppo.credit, config.reward_context, context.runtime.scoring_rows
    if isinstance(credit, TokenCredit):
        head = TokenHead.load(inputs["token_reward"], tokenizer, device, most, rows)
    if isinstance(credit, PotentialCredit):
        preferences = inputs["preferences"]
        references = given_answers(read_others(preferences, Demonstration, "train"), read_split(preferences, "train"))
    return KnownTokens.of(credit, reward, tokenizer, head, references)


def keep_samples(path: Path, step: int, prompts: Any, done: Any) -> None:
    """Append the answers of an `optimise.ppo.Iteration` to a file, one a line."""
    import json

    with path.open("a", encoding="utf-8") as file:
        for prompt, answer, score, kl in zip(prompts, done.answers, done.scores, done.kl, strict=True):
            row = {"prompt": prompt.model_dump(), "response": answer.text, "rm_score": float(score), "kl": float(kl)}
            file.write(json.dumps({"step": step, **row}, sort_keys=True) + "\n")
