"""How strong preferences are, in the stage reward_model: models trained first, what they say, and a table of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from inverse_alignment.core.context import StageContext
from inverse_alignment.core.metrics import Report
from inverse_alignment.core.records import Comparison
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.maths.pairwise import accuracy, preference_log_likelihood
from inverse_alignment.maths.strength import PairStrength, pair_strength, strata
from inverse_alignment.reward.held_out import pair_scores
from inverse_alignment.reward.members import Member, train_members
from inverse_alignment.reward.strength import STRATA, shown_to
from inverse_alignment.reward.training_settings import EnsembleStrength

TABLE, PAIRS, SAID = "strata.json", "strengths.jsonl", "said.safetensors"
Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class _Progress:
    """A report that is told how far the members are, and nothing else: their rows are none of the reward model's."""

    stage: Report

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `core.metrics.Report.log`."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """See `core.metrics.Report.progress`."""
        self.stage.progress(done, total, unit)

    def stopping(self) -> bool:
        """See `core.metrics.Report.stopping`."""
        return self.stage.stopping()


def find_strength(
    rows: Rows,
    settings: EnsembleStrength,
    pad: int,
    train: Callable[[Rows, int, StageContext], Any],
    context: StageContext,
) -> PairStrength:
    """Train the members and ask them about every pair; one that is finished is not trained again.

    Args:
        rows: of `reward.bradley_terry.pair_rows`.
        pad: token id of padding.
        train: a model trained on rows, by the seed of what chance decides.
    """

    def member(of: Member) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        seen = shown_to(len(rows), settings.share, derive_seed("strength", of.seed))
        within = replace(context, partial=of.partial, report=of.report, seed=of.seed)
        model = train([rows[i] for i in seen], of.seed, within)
        chosen, rejected = pair_scores(model, rows, pad)
        judges = torch.ones(len(rows), dtype=torch.bool)
        judges[torch.from_numpy(seen)] = settings.share == 1
        return {"gaps": (chosen - rejected).double(), "judges": judges}, {}

    def save(said: dict[str, torch.Tensor], folder: Path) -> None:
        save_file(said, str(folder / SAID))

    partial = context.partial / "strength"
    partial.mkdir(parents=True, exist_ok=True)
    trained = train_members(settings.members, context.seed, partial, _Progress(context.report), member, save)
    said = [load_file(str(folder / SAID)) for folder in trained.folders]
    return pair_strength(*(torch.stack([each[name] for each in said]) for name in ("gaps", "judges")))


def tell_strength(
    model: Any, rows: Rows, pairs: Sequence[Comparison], found: PairStrength, flipped: int, pad: int, out: Path
) -> dict[str, float]:
    """Write what was found of every pair, and how the trained model does by strength; what the headline says of it.

    Args:
        rows: as they were labelled.
        pairs: whose numbers the rows hold.
        flipped: how many of the weakest were turned round.
    """
    chosen, rejected = pair_scores(model, rows, pad)
    losses, group = -preference_log_likelihood(chosen, rejected), strata(found.mean, STRATA)
    weakest = set(np.argsort(found.mean.numpy(), kind="stable")[:flipped].tolist())
    table = []
    for number in group.unique().tolist():
        some = group == number
        table.append(
            {
                "stratum": number,
                "pairs": int(some.sum()),
                "strength": float(found.mean[some].mean()),
                "std": float(found.std[some].mean()),
                "accuracy": float(accuracy(chosen[some], rejected[some])),
                "loss": float(losses[some].mean()),
            }
        )
    (out / TABLE).write_text(json.dumps(table, indent=1))
    lines = []
    for i, row in enumerate(rows):
        origin = pairs[row["pair"]].provenance
        kept = {"dataset": origin.dataset, "original_id": origin.original_id, "stratum": int(group[i])}
        said = {"strength": float(found.mean[i]), "std": float(found.std[i]), "flipped": i in weakest}
        lines.append(json.dumps({**kept, **said}, sort_keys=True) + "\n")
    (out / PAIRS).write_text("".join(lines))
    return {
        "strength_mean": float(found.mean.mean()),
        "strength_below_zero": float((found.mean < 0).double().mean()),
        "flipped_pairs": flipped,
    }
