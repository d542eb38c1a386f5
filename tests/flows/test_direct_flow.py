"""Arms with a direct method beside arms with PPO: one graph, real stages, one report."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.resume.project import SMALL, WORLD
from flows.compare import compare
from inverse_alignment.config import PipelineConfig, merge, read_yaml, validate
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.store import Store
from inverse_alignment.report.comparison import load
from inverse_alignment.world.text import write_dataset
from tasks import dvc_file
from tasks.run_stage import Execute, draw, run_up_to

ROOT = Path(__file__).parents[2]
TR_DPO = {"type": "tr_dpo", "batch_size": 16, "reference": {"type": "soft", "alpha": 0.2}}
ARMS = {
    "none": {"selection": {"type": "none"}},
    "tr-dpo": {"selection": {"type": "random", "k": 40}, "optimise": TR_DPO},
    "spin": {"selection": {"type": "none"}, "optimise": {"type": "irft", "batch_size": 16}},
}


def config_in(folder: Path, arms: dict[str, object] = ARMS) -> PipelineConfig:  # type: ignore[assignment]
    values = merge(read_yaml(ROOT / "params.yaml"), {**SMALL, "store": str(folder / "store")})
    values = {**values, "arms": arms, "rounds": 2, "seeds": [0], "tracking": {"mlflow_uri": ""}}
    values["data"]["sources"] = [{"format": "jsonl", "name": "advice", "path": str(folder / "data" / "pairs.jsonl")}]
    return validate(PipelineConfig, values, "", "test")


def test_they_go_through_the_same_rounds_without_a_reward_model_being_refreshed(tmp_path: Path) -> None:
    nodes = {node.name: node for node in draw(lambda: compare(config_in(tmp_path)))}
    assert set(nodes["tr-dpo-s0-r1-direct"].inputs) == {"policy", "reference", "preferences", "selection"}
    assert nodes["tr-dpo-s0-r2-direct"].inputs["state"].uri == "pending:tr-dpo-s0-r1-direct/state"
    assert set(nodes["spin-s0-r2-direct"].inputs) == {"policy", "reference", "preferences", "rollouts"}
    assert not [name for name in nodes if name.startswith(("tr-dpo", "spin")) and name.endswith(("-ppo", "-refresh"))]
    assert {"direct.spin.s0.r2", "ppo.none.s0.r1", "select.tr-dpo.s0.r1"} <= set(nodes["compare"].inputs)
    rendered = dvc_file.render(list(nodes.values()), ROOT)
    assert "arms.tr-dpo.optimise" in rendered or "optimise" in rendered


@pytest.mark.slow
def test_one_report_has_both(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", WORLD)
    config = config_in(tmp_path)
    execute = Execute(Store(tmp_path / "store"), config.runtime)
    folder = Path(run_up_to(lambda: compare(config), "compare", execute)[1].artifact.uri)
    found = load(folder)
    runs = {run.arm: run for run in found.runs}
    assert [len(run.rounds) for run in runs.values()] == [2, 2, 2]
    for arm in ("tr-dpo", "spin"):
        steps = [round_.curve[-1].step for round_ in runs[arm].rounds]
        assert 0 < steps[0] < steps[1] and all(len(round_.curve) == 1 for round_ in runs[arm].rounds)
        assert runs[arm].rounds[0].gate is None and runs[arm].final.kl_to_sft > 0
    assert runs["tr-dpo"].rounds[0].selection is not None and runs["spin"].rounds[0].selection is None
    page = (folder / "report.html").read_text()
    assert "tr-dpo" in page and "spin" in page


def test_a_method_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"optimise"):
        config_in(tmp_path, {"none": {"selection": {"type": "none"}, "optimise": {"type": "dppo"}}})
