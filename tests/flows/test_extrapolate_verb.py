"""The verb extrapolate on a policy that a small run has made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.resume.project import WORLD
from flows.compare import compare
from flows.extrapolate import at_the_edge, show
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.store import Store
from inverse_alignment.evaluation.extrapolation import Tried
from inverse_alignment.models.loading import load_policy
from inverse_alignment.world.text import write_dataset
from tasks.run_stage import Execute, run_up_to
from tests.flows.test_direct_flow import config_in


@pytest.mark.slow
def test_it_tries_every_alpha_and_writes_the_best(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", WORLD)
    config = config_in(
        tmp_path, {"dpo": {"selection": {"type": "none"}, "optimise": {"type": "dpo", "batch_size": 16}}}
    )
    node = "dpo-s0-r1-direct"
    with pytest.raises(UserError, match="not built yet"):
        show(node, lambda: compare(config), config, [0.0], tmp_path, Console(quiet=True))
    for needed in ("reward-s0", node):
        entry = run_up_to(lambda: compare(config), needed, Execute(Store(tmp_path / "store"), config.runtime))[1]
    console = Console(record=True, width=160, quiet=False, file=(tmp_path / "said").open("w"))
    show(node, lambda: compare(config), config, [0.0, 0.5, -1.0], tmp_path, console)
    found = json.loads((tmp_path / "extrapolation.json").read_text())
    tried = {one["alpha"]: one for one in found["tried"]}
    assert list(tried) == [0.0, 0.5, -1.0] and tried[-1.0]["kl_to_sft"] < 1e-6 < tried[0.0]["kl_to_sft"]
    assert tried[0.5]["kl_to_sft"] > tried[0.0]["kl_to_sft"] and all(
        one["gold_reward"] is not None for one in tried.values()
    )
    assert found["chosen"] == max(tried, key=lambda alpha: tried[alpha]["rm_score"])
    written, trained = load_policy(tmp_path / "policy"), load_policy(Path(entry.artifact.uri) / "policy")
    same = all(torch.equal(a, b) for a, b in zip(written.parameters(), trained.parameters(), strict=True))
    assert same == (found["chosen"] == 0.0)
    assert "gold decides nothing" in console.export_text()


def test_what_is_no_policy_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", WORLD)
    config = config_in(tmp_path)
    with pytest.raises(UserError, match="no policy 'tr-dpo-s0-r1-drect'") as caught:
        show("tr-dpo-s0-r1-drect", lambda: compare(config), config, [0.0], tmp_path, Console(quiet=True))
    assert "tr-dpo-s0-r1-direct" in caught.value.fix


def test_the_largest_of_several_is_warned_of() -> None:
    tried = [Tried(alpha, 0.0, None, 10 * alpha, 20.0, 1.0) for alpha in (0.0, 0.5, 1.0)]
    assert "10.0 nats" in at_the_edge(tried, tried[2])
    assert at_the_edge(tried, tried[1]) == at_the_edge(tried, tried[0]) == at_the_edge(tried[2:], tried[2]) == ""
    below = [Tried(alpha, 0.0, None, 1.0, 20.0, 1.0) for alpha in (-0.5, 0.0)]
    assert at_the_edge(below, below[1]) == ""
