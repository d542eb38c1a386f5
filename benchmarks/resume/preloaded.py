"""Imported once by the server that forks the processes: what is slow to import, and digests of the code."""

import importlib
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for name in ("torch", "transformers", "trl", "peft", "datasets", "flows.compare", "tasks.external"):
        importlib.import_module(name)
    for name in (
        "optimise.ppo",
        "optimise.supervised",
        "optimise.direct",
        "optimise.direct_ava",
        "reward.bradley_terry",
        "reward.refresh",
        "models.reward_scores",
    ):
        importlib.import_module(f"inverse_alignment.{name}")
    importlib.import_module("transformers.models.llama.modeling_llama")

from inverse_alignment.core.fingerprint import code_digest
from inverse_alignment.stages.registry import STAGES

for stage in STAGES.values():
    code_digest(stage.module)  # kept for all processes: an edit of the code while they run does not part them
