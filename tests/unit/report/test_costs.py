"""What arms cost: read from the store that they are in, and held against gold where all have gone equally far."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from inverse_alignment.report import costs
from inverse_alignment.report.collect import collect
from inverse_alignment.report.comparison import Comparison
from inverse_alignment.report.costs import Spent, equal_kl, gold_at, spent
from inverse_alignment.report.page import render
from tests.unit.report import synthetic

SHAPE: dict[str, Any] = {"arms": ("none", "similarity"), "rounds": 2, "seeds": (0, 1)}


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    folders = synthetic.make(tmp_path / "artifacts", **SHAPE, gold=True)
    return collect(folders, title="Costs", config_digest="c" * 64, **SHAPE)


def moved(comparison: Comparison, arm: str, seed: int, *ends: tuple[float, float]) -> Comparison:
    """The same with these (KL, gold) at the ends of one run's rounds, and gold 0 at every start."""

    def at(kl: float, gold: float | None, one: Any) -> Any:
        update = {"kl_to_sft": kl, "gold_reward": gold}
        return one.model_copy(update={"evaluation": one.evaluation.model_copy(update=update)})

    runs = [
        run.model_copy(update={"rounds": tuple(at(*end, one) for end, one in zip(ends, run.rounds, strict=True))})
        if (run.arm, run.seed) == (arm, seed)
        else run
        for run in comparison.runs
    ]
    starts = tuple(at(0.0, 0.0, start) for start in comparison.starts)
    return comparison.model_copy(update={"runs": tuple(runs), "starts": starts})


def test_gold_at_the_kl_that_all_reach_is_linear_between_the_ends_of_rounds(comparison: Comparison) -> None:
    found = comparison
    for arm, seed, ends in (
        ("none", 0, ((4.0, 1.0), (8.0, 2.0))),
        ("none", 1, ((2.0, 0.5), (3.0, 0.9))),
        ("similarity", 0, ((12.0, 3.0), (16.0, 0.0))),
        ("similarity", 1, ((6.0, 1.2), (5.0, 2.0))),  # it comes back: the farthest counts
    ):
        found = moved(found, arm, seed, *ends)
    assert equal_kl(found) == 3.0
    golds = [gold_at(found, run, 3.0) for run in found.runs]
    assert golds == pytest.approx([0.75, 0.9, 0.75, 0.6])
    assert gold_at(found, found.runs[1], 3.1) is None
    blind = moved(found, "none", 0, (4.0, 1.0), (8.0, None))  # type: ignore[arg-type]
    assert gold_at(blind, blind.runs[0], 3.0) is None


def written(comparison: Comparison, store: Path, stage: str, name: str, seconds: float, peak: float) -> Path:
    folder = store / stage / comparison.lineage[f"{stage}.{name}"].fingerprint
    folder.mkdir(parents=True)
    (folder / "runtime.json").write_text(json.dumps({"seconds": seconds, "peak_gib": peak, "gpu_peak_gib": None}))
    return folder


def test_a_run_costs_what_its_stages_took(comparison: Comparison, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for number in (1, 2):
        for stage, seconds in (("select", 1.0), ("refresh", 2.5), ("ppo", 10.0 * number)):
            folder = written(comparison, store, stage, f"similarity.s0.r{number}", seconds, 0.5 * number)
            if stage == "ppo":
                record = {"identity": {"config": {"ppo": {"batch_size": 48}}}, "metrics": {"tokens": 24.0}}
                (folder / "artifact.json").write_text(json.dumps(record))
                rows = [{"step": 1, "tokens": 20.0}, {"step": 2, "tokens": 24.0}]
                (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    taken = spent(comparison, store)
    assert taken["similarity", 0] == Spent(37.0, 2 * 48 * 44, 1.0)
    assert taken["none", 0] == Spent(None, None, None)  # an artifact that is elsewhere
    (cells,) = [row for arm, row in zip(comparison.arms, costs.rows(comparison, taken), strict=True) if arm != "none"]
    assert cells[2:4] == ("37", "4,224") and cells[4] == "–"  # of two seeds one is not known
    out = io.StringIO()
    Console(file=out, width=160).print(costs.table(comparison, taken))
    assert "What it cost" in out.getvalue() and "4,224" in out.getvalue()
    assert "4,224" in render(comparison, taken) and "4,224" not in render(comparison)


def test_a_direct_method_says_itself_how_many_tokens_it_was_shown(comparison: Comparison, tmp_path: Path) -> None:
    direct = {
        name.replace("ppo.none", "direct.none"): node
        for name, node in comparison.lineage.items()
        if not name.startswith("ppo.similarity")
    }
    found, store = comparison.model_copy(update={"lineage": direct}), tmp_path / "store"
    for number in (1, 2):
        folder = written(found, store, "direct", f"none.s1.r{number}", 3.0, 2.0)
        (folder / "artifact.json").write_text(json.dumps({"metrics": {"tokens": 1000 * number}}))
    assert spent(found, store)["none", 1] == Spent(6.0, 3000, 2.0)
