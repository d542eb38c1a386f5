"""What the bake-off on real preferences compares: units, selectors, and the configuration of each.

Light: nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bakeoff.plan import ROOT
from benchmarks.bakeoff.real.collection import Sizes
from benchmarks.bakeoff.real.nearness import encoder_folder
from inverse_alignment.config import PipelineConfig, merge, read_yaml, validate
from inverse_alignment.core.artifact import canonical_json, sha256_text
from inverse_alignment.core.configuration import identity_of
from inverse_alignment.core.fingerprint import code_digest, versions
from inverse_alignment.stages.registry import STAGES
from inverse_alignment.stages.sft import TrainSft

SETTINGS = Path(__file__).parent / "real.yaml"
CHECKPOINT = ROOT / "benchmarks/real_input/checkpoint.yaml"
RUN_STAGES = ("tokenizers", "aggregate", "sft", "rollout", "reward_model", "select", "refresh")
MEASURED = 1
"""What a row says; raised when its measurements change, and no older row is reused."""
ORACLE = "of_target"
"""Pairs that the target wrote an answer of: what a selector that knew the truth would pick. No selector of `src`."""
NEW = "new"
"""Models made from the configuration, rather than from a checkpoint."""


@dataclass(frozen=True)
class Unit:
    """One seed and one target: a policy that was made to resemble it.

    Attributes:
        model: folder of the checkpoint that both models start from, or `new`.
        out: the target's nearest writer that is kept out of the pool.
        nearest: the target's nearest writers in the pool.
    """

    seed: int
    target: str
    model: str
    out: str
    nearest: tuple[str, ...]

    def key(self, selector: str) -> tuple[str, int, str, str]:
        """Which row a selector of this unit has."""
        return Path(self.model).name, self.seed, self.target, selector

    @property
    def start(self) -> str:
        """For folders: `new-s3`, what all targets of a seed share."""
        return f"{Path(self.model).name}-s{self.seed}"


def read_settings() -> dict[str, Any]:
    """The bake-off's file: `collection`, `config`, `imitation`, `selectors` and `refreshed`."""
    return read_yaml(SETTINGS)


def sizes() -> Sizes:
    """How much of the collection is used."""
    found: Sizes = validate(Sizes, read_settings()["collection"], "collection", str(SETTINGS))
    return found


def imitation(target: str) -> TrainSft:
    """How a policy is made to resemble a target."""
    values = {**read_settings()["imitation"], "sources": [target]}
    found: TrainSft = validate(TrainSft, values, "imitation", str(SETTINGS))
    return found


def config_of(unit: Unit, data: Path, store: Path) -> PipelineConfig:
    """The configuration of a seed.

    Args:
        data: folder with `pairs.jsonl` and `shown.jsonl`.
        store: where artifacts lie.

    Raises:
        UserError: a setting means nothing.
    """
    settings = read_settings()
    values = merge(read_yaml(ROOT / "params.yaml"), settings["config"])
    if unit.model != NEW:
        checkpoint = read_yaml(CHECKPOINT)
        checkpoint.pop("data")
        values = merge(values, checkpoint)
        for role in ("policy", "reward"):
            values["models"][role]["path"] = unit.model
    shared = {"format": "jsonl", "licence": "CC BY-NC 4.0", "on_bad_row": "drop"}
    values["data"]["sources"] = [
        {**shared, "name": "pairs", "path": str(data / "pairs.jsonl")},
        {**shared, "name": "shown", "path": str(data / "shown.jsonl"), "kind": "demonstration"},
    ]
    values["data"]["aggregate"]["seed"] = unit.seed
    values["arms"] = {node_name(name): _with_encoder(sets) for name, sets in settings["selectors"].items()}
    values["seeds"] = [unit.seed]
    values["store"] = str(store)
    values["tracking"] = {"mlflow_uri": ""}
    config: PipelineConfig = validate(PipelineConfig, values, "", str(SETTINGS))
    return config


def _with_encoder(sets: dict[str, Any]) -> dict[str, Any]:
    """What an arm sets, with the folder of the sentence encoder where it names one; the folder bears no identity."""
    selection = sets["selection"]
    if selection.get("encoder", {}).get("type") != "sentence_transformers":
        return sets
    encoder = {**selection["encoder"], "path": str(encoder_folder())}
    return {**sets, "selection": {**selection, "encoder": encoder}}


def node_name(selector: str) -> str:
    """A selector's name where it names nodes and arms."""
    return selector.replace("_", "-")


def digest_of_code() -> str:
    """Of everything that decides a row: the code of its stages, the versions, and what a row measures."""
    stages = {stage: [code_digest(STAGES[stage].module), versions(STAGES[stage].packages)] for stage in RUN_STAGES}
    return sha256_text(canonical_json({"stages": stages, "measured": MEASURED}))[:16]


def digest_of_data(seed: int, out: Mapping[str, str]) -> str:
    """Of what decides which rows of the collection a seed has."""
    return sha256_text(canonical_json({"seed": seed, "sizes": identity_of(sizes()), "out": dict(out)}))[:16]


def digest_of(unit: Unit, selector: str, config: PipelineConfig) -> str:
    """Of all settings that one selector of a unit sees."""
    settings = identity_of(config if selector == ORACLE else config.for_arm(node_name(selector)))
    for of_others in ("arms", "seeds"):
        settings.pop(of_others)
    known = {
        "settings": settings,
        "imitation": identity_of(imitation(unit.target)),
        "collection": identity_of(sizes()),
        "truth": [unit.out, list(unit.nearest)],
    }
    return sha256_text(canonical_json(known))[:16]


def refreshed() -> list[str]:
    """The selectors on whose pairs a reward model is refreshed; of the others only the picks are looked at."""
    return [*read_settings()["refreshed"], ORACLE]


def selectors(names: Sequence[str] = ()) -> list[str]:
    """The selectors of the file, or some of them, and the oracle."""
    return [*(names or read_settings()["selectors"]), ORACLE]
