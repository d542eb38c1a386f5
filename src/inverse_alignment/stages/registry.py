"""The table of stages. Light: a stage's module is imported only when it has to run."""

from __future__ import annotations

from dataclasses import dataclass

TRAINING = ("torch", "transformers", "tokenizers")
WITH_TRL = (*TRAINING, "trl", "datasets", "accelerate")


@dataclass(frozen=True)
class StageSpec:
    """What a driver must know of a stage without importing it.

    Attributes:
        module: has `build(inputs, config, context) -> headline metrics`.
        kind: kind of the artifact it makes.
        parts: subfolders of the artifact that other stages take alone.
        packages: whose versions are part of the result's identity.
        gpu: whether it wants an accelerator slot.
        resumes: whether it writes checkpoints, and one more when it is asked to stop.
    """

    module: str
    kind: str
    parts: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    gpu: bool = False
    resumes: bool = False


STAGES: dict[str, StageSpec] = {
    "tokenizers": StageSpec(
        "inverse_alignment.stages.tokenizers", "tokenizers", ("policy", "reward"), ("transformers", "tokenizers")
    ),
    "aggregate": StageSpec(
        "inverse_alignment.stages.aggregate",
        "preferences",
        (),
        ("transformers", "tokenizers", "pyarrow", "ijson", "datasets", "datasketch", "numpy"),
    ),
    "sft": StageSpec("inverse_alignment.stages.sft", "sft", ("policy",), WITH_TRL, gpu=True, resumes=True),
    "rollout": StageSpec("inverse_alignment.stages.rollout", "rollouts", (), TRAINING, gpu=True),
    "reward_model": StageSpec(
        "inverse_alignment.stages.reward_model", "reward", ("model",), WITH_TRL, gpu=True, resumes=True
    ),
    "token_reward": StageSpec(
        "inverse_alignment.stages.token_reward", "token_reward", ("model",), WITH_TRL, gpu=True, resumes=True
    ),
    "select": StageSpec(
        "inverse_alignment.stages.select",
        "selection",
        (),
        (*TRAINING, "numpy", "scikit-learn", "sentence-transformers"),
        gpu=True,
    ),
    "refresh": StageSpec(
        "inverse_alignment.stages.refresh",
        "reward",
        ("model", "seen"),
        (*WITH_TRL, "scikit-learn", "numpy"),
        gpu=True,
        resumes=True,
    ),
    "ppo": StageSpec("inverse_alignment.stages.ppo", "ppo", ("policy", "state"), TRAINING, gpu=True, resumes=True),
    "direct": StageSpec(
        "inverse_alignment.stages.direct", "direct", ("policy", "state"), WITH_TRL, gpu=True, resumes=True
    ),
    "evaluate": StageSpec("inverse_alignment.stages.evaluate", "evaluation", (), TRAINING, gpu=True),
    "compare": StageSpec("inverse_alignment.stages.compare", "comparison", (), ("matplotlib", "jinja2")),
}
