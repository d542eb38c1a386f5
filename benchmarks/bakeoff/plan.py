"""What the bake-off runs: units (a world of one heterogeneity and seed), arms, and the configuration of each.

Light: nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inverse_alignment.config import PipelineConfig, merge, read_yaml, validate
from inverse_alignment.core.artifact import canonical_json, sha256_text
from inverse_alignment.core.configuration import identity_of
from inverse_alignment.core.fingerprint import code_digest, versions
from inverse_alignment.stages.registry import STAGES
from inverse_alignment.world.text import WorldConfig

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
WORLD = HERE / "world.yaml"
HETEROGENEITIES = (0.0, 0.5, 1.0)
TUNING_SEEDS = (100, 101, 102, 103, 104)
"""Seeds that the world was chosen on; no result comes from them."""
RUN_STAGES = ("sft", "rollout", "reward_model", "select", "refresh", "ppo", "evaluate")
MEASURED = 1
"""What a row says; raised when its measurements change, and no older row is reused."""


@dataclass(frozen=True)
class Unit:
    """One world: its pairs, its first policy and its first reward model are what all arms start from."""

    heterogeneity: float
    seed: int

    @property
    def name(self) -> str:
        """For folders: `h0.5-s3`."""
        return f"h{self.heterogeneity:g}-s{self.seed}"


@dataclass(frozen=True)
class Arm:
    """One method: a selector under a refresh rule. Its name is `selector`, or `selector+rule` under another rule."""

    selector: str
    rule: str
    sets: Mapping[str, Any]

    @property
    def name(self) -> str:
        """As in rows and results."""
        return self.selector if self.rule == "full" else f"{self.selector}+{self.rule}"


def read_plan() -> dict[str, Any]:
    """The bake-off's file: `world`, `config`, `selectors` and `rules`."""
    return read_yaml(WORLD)


def arms(selectors: Iterable[str], rules: Iterable[str]) -> list[Arm]:
    """Every selector under every rule; `none` refreshes nothing and has one rule only."""
    plan = read_plan()
    return [
        Arm(selector, rule, merge(plan["selectors"][selector], plan["rules"][rule]))
        for selector in selectors
        for rule in (rules if selector != "none" else ("full",))
    ]


def world_of(unit: Unit) -> WorldConfig:
    """The advice desk of a unit."""
    return WorldConfig(seed=unit.seed, heterogeneity=unit.heterogeneity, **read_plan()["world"])


def config_of(unit: Unit, chosen: Sequence[Arm], folder: Path) -> PipelineConfig:
    """The configuration of a unit with these arms and all selectors, so that all share one pooled set.

    Raises:
        UserError: an arm sets what there is not.
    """
    values = merge(read_yaml(ROOT / "params.yaml"), read_plan()["config"])
    values["data"]["sources"] = [{"format": "jsonl", "name": "advice", "path": str(folder / "data" / "pairs.jsonl")}]
    every = [*arms(read_plan()["selectors"], ("full",)), *chosen]
    values["arms"] = {node_name(arm): dict(arm.sets) for arm in every}
    values["seeds"] = [unit.seed]
    values["store"] = str(folder / "artifacts")
    values["tracking"] = {"mlflow_uri": ""}
    config: PipelineConfig = validate(PipelineConfig, values, "", str(WORLD))
    return config


def node_name(arm: Arm) -> str:
    """An arm's name where it names nodes."""
    return arm.name.replace("_", "-").replace("+", "-")


def digest_of_code() -> str:
    """Of everything that decides a run's bytes: the code of its stages, the versions, and what a row measures."""
    stages = {stage: [code_digest(STAGES[stage].module), versions(STAGES[stage].packages)] for stage in RUN_STAGES}
    world = code_digest("inverse_alignment.world.text")
    return sha256_text(canonical_json({"stages": stages, "world": world, "measured": MEASURED}))[:16]


def digest_of_arm(config: PipelineConfig, arm: Arm, unit: Unit) -> str:
    """Of all settings that one arm of a unit sees, its world's included."""
    settings = identity_of(config.for_arm(node_name(arm)))
    for of_others in ("arms", "seeds"):
        settings.pop(of_others)
    return sha256_text(canonical_json({"settings": settings, "world": world_of(unit).model_dump()}))[:16]
