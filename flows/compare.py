"""Arms × seeds side by side: every arm of a seed starts from the same data, SFT policy and reward model."""

from __future__ import annotations

import re

from flows.direct import arm as one_arm
from flows.inverse_alignment import Round, RunArm, Start, shared_data, shared_start
from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.artifact import Artifact
from inverse_alignment.core.errors import UserError
from inverse_alignment.reward.family_settings import training_of
from tasks import stages

ARM_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def compare(config: PipelineConfig, run_arm: RunArm = one_arm) -> Artifact:
    """Run every arm for every seed and set them side by side; the comparison, with its report.

    Raises:
        UserError: an arm's name cannot name nodes, or an audit model is asked for and impossible.
    """
    require_names(config)
    require_audit(config)
    data = shared_data(config)
    starts = {seed: shared_start(config, seed, data) for seed in config.seeds}
    results: dict[str, Artifact] = {}
    for seed, start in starts.items():
        results |= _start_results(seed, start)
    for seed, start in starts.items():
        for arm in config.arms:
            for number, round_ in enumerate(run_arm(config, arm, seed, start), start=1):
                results |= _round_results(f"{arm}.s{seed}.r{number}", round_)
    return stages.compare(config, data.preferences, results)


def require_names(config: PipelineConfig) -> None:
    """Refuse what cannot be a node's name in DVC and Prefect, and seeds and sources given twice.

    Raises:
        UserError: an arm's name has other characters than a-z, 0-9 and dashes, a seed is there twice or negative, or
            two sources have one name.
    """
    for arm in config.arms:
        if not ARM_NAME.fullmatch(arm):
            raise UserError(
                f"'{arm}' cannot name an arm", where=f"arms.{arm}", fix="use lower-case letters, digits and dashes"
            )
    if len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        raise UserError(
            f"seeds {list(config.seeds)} must be different and not negative", where="seeds", fix="name each seed once"
        )
    names = [source.name for source in config.data.sources]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two sources are called '{twice[0]}'", where="data.sources", fix="give each its own name")


def require_audit(config: PipelineConfig) -> None:
    """Refuse an audit model that cannot be trained, and other uses of the split that it is trained on.

    Raises:
        UserError: prompts are set aside for an audit model, but reward models are not trained here; or a rollout takes
            its prompts from the audit split.
    """
    share = config.data.aggregate.shares.audit
    if share > 0 and training_of(config.reward) is None:
        raise UserError(
            f"data.aggregate.shares.audit is {share:g}, but the reward model is a checkpoint: "
            "nothing says how to train the second one that audits it",
            where="reward.type",
            fix="set reward to {type: train, ...}, or data.aggregate.shares.audit to 0 and the share to train",
        )
    for arm in config.arms:
        if share == 0 and "audit" in config.for_arm(arm).ppo.watch.stop_at:
            raise UserError(
                "a round is to end where the audit model says so, but there is none",
                where=f"ppo.watch.stop_at of the arm '{arm}'",
                fix="set data.aggregate.shares.audit above 0, or take audit out of the list",
            )
    prompts = {"reference_sample.split": config.reference_sample.split, "rollout.split": config.rollout.split}
    prompts |= {f"arms.{arm}.rollout.split": config.for_arm(arm).rollout.split for arm in config.arms}
    for key, split in prompts.items():
        if split == "audit":
            raise UserError(
                "answers are asked for on the audit split, which is for the audit model alone",
                where=key,
                fix="set it to train",
            )


def _start_results(seed: int, start: Start) -> dict[str, Artifact]:
    made = {"sft": start.sft, "reward": start.reward, "audit": start.audit, "start": start.evaluation}
    return {f"{stage}.s{seed}": artifact for stage, artifact in made.items() if artifact is not None}


def _round_results(at: str, round_: Round) -> dict[str, Artifact]:
    made = {
        "select": round_.selection,
        "refresh": round_.refresh,
        round_.optimised.kind: round_.optimised,
        "evaluate": round_.evaluation,
    }
    return {f"{stage}.{at}": artifact for stage, artifact in made.items() if artifact is not None}
