"""A stored comparison -> the files a person or a script looks for in the report folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inverse_alignment.report.card import PAGE as CARD
from inverse_alignment.report.certainty import Gain, gains
from inverse_alignment.report.comparison import FILE, PAGE, Comparison, Evaluation, Round, Run, load
from inverse_alignment.report.costs import Spent, cost_of, equal_kl, gold_at, spent

SUMMARY = "summary.json"


def write_outputs(
    comparison_folder: Path, report_dir: Path, wall_seconds: float, config_digest: str, store: Path
) -> None:
    """Write page, data card, comparison and `summary.json` into the report folder, which is made if it is not there.

    The page is that of the artifact, with what arms cost on the machine where they ran.

    Args:
        store: folder of the store, which knows that.

    Raises:
        UserError: the comparison is missing or cannot be read.
    """
    from inverse_alignment.report.page import render

    comparison = load(comparison_folder)
    taken = spent(comparison, store)
    summary = summarise(comparison, wall_seconds, config_digest, taken)
    report_dir.mkdir(parents=True, exist_ok=True)
    for name in (CARD, FILE):
        shutil.copyfile(comparison_folder / name, report_dir / name)
    (report_dir / PAGE).write_text(render(comparison, taken), encoding="utf-8")
    text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
    (report_dir / SUMMARY).write_text(f"{text}\n", encoding="utf-8")


def summarise(
    comparison: Comparison, wall_seconds: float, config_digest: str, taken: Mapping[tuple[str, int], Spent]
) -> dict[str, Any]:
    """The content of `summary.json`: schema 1, arms in their configured order, lists in the order of `seeds`."""
    return {
        "schema": 1,
        "config_digest": config_digest,
        "wall_seconds": float(wall_seconds),
        "equal_kl": equal_kl(comparison),
        "gains": [_gain(gain) for gain in gains(comparison)],
        "arms": {arm: _arm(comparison, comparison.of_arm(arm), taken) for arm in comparison.arms},
    }


def _gain(one: Gain) -> dict[str, Any]:
    chance = one.improvement
    return {
        "arm": one.arm,
        "against": one.against,
        "gain": one.gain.mean,
        "gain_ci95": [one.gain.low, one.gain.high],
        "units": one.units,
        "higher": one.higher,
        "improvement": chance.mean if chance else None,
        "improvement_ci95": [chance.low, chance.high] if chance else None,
    }


def _arm(comparison: Comparison, runs: Sequence[Run], taken: Mapping[tuple[str, int], Spent]) -> dict[str, Any]:
    kl = equal_kl(comparison)
    return {
        "seeds": [run.seed for run in runs],
        "gold_reward": _finals(runs, lambda final: final.gold_reward),
        "rm_score": _finals(runs, lambda final: final.rm_score),
        "audit_score": _finals(runs, lambda final: final.audit_score),
        "kl_to_sft": _finals(runs, lambda final: final.kl_to_sft),
        "on_policy_accuracy": _finals(runs, lambda final: final.on_policy_accuracy),
        "gold_at_equal_kl": [gold_at(comparison, run, kl) for run in runs],
        "cost": cost_of(runs, taken),
        "rounds": [
            {"round": index + 1, "per_seed": [_round(run.rounds[index]) for run in runs]}
            for index in range(comparison.rounds)
        ],
    }


def _finals(runs: Sequence[Run], value: Callable[[Evaluation], float | None]) -> list[float | None]:
    return [value(run.final) for run in runs]


def _round(round_: Round) -> dict[str, Any]:
    evaluation, gate, selection = round_.evaluation, round_.gate, round_.selection
    return {
        "gold_reward": evaluation.gold_reward,
        "audit_score": evaluation.audit_score,
        "kl_to_sft": evaluation.kl_to_sft,
        "on_policy_accuracy_before": evaluation.on_policy_accuracy_before,
        "on_policy_accuracy_after": evaluation.on_policy_accuracy_after if gate else None,
        "accepted": gate.accepted if gate and gate.refreshed else None,
        "selected_by_source": dict(sorted(selection.selected_by_source.items())) if selection else None,
    }
