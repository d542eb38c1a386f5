"""dvc.yaml and the records: what they name, and that repeating changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from flows.compare import compare
from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.store import Store
from tasks import dvc_file, run_stage
from tests.flows.toy_run import config_for
from tests.flows.toy_stages import TOYS

ROOT = Path(__file__).parents[3]


def draw(**changes: object) -> list[run_stage.Node]:
    return run_stage.draw(lambda: compare(PipelineConfig.model_validate(changes)))


@pytest.fixture(scope="module")
def stages() -> dict[str, dict]:
    return yaml.safe_load(dvc_file.render(draw(), ROOT))["stages"]


def test_every_node_is_a_stage_with_a_record(stages: dict[str, dict]) -> None:
    assert list(stages) == [node.name for node in draw()]
    for name, stage in stages.items():
        assert stage["cmd"] == f"inverse-alignment stage {name}"
        assert stage["metrics"] == [{f"pipeline/{name}.json": {"cache": False}}]
    beside = {name: [*out] for name, stage in stages.items() for out in stage.get("outs", ())}
    assert beside.pop("compare") == ["pipeline/rounds.csv"]
    assert beside == {name: [f"pipeline/{name}.ids"] for name in stages if name.endswith("-select")}


def test_dependencies_are_records_data_and_code_that_exist(stages: dict[str, dict]) -> None:
    deps = stages["random-s0-r1-refresh"]["deps"]
    assert "pipeline/random-s0-r1-select.json" in deps and "pipeline/reward-s0.json" in deps
    assert "src/inverse_alignment/stages/refresh.py" in deps
    assert "data/advice/pairs.jsonl" in stages["aggregate"]["deps"]
    assert "data/advice/pairs.jsonl" not in deps
    made = {f"pipeline/{name}.json" for name in stages}
    for stage in stages.values():
        for dep in stage["deps"]:
            assert dep in made or dep.startswith("data/") or (ROOT / dep).is_file()
            assert not dep.startswith(("/", ".."))


def test_params_are_sections_that_exist(stages: dict[str, dict]) -> None:
    known = {*PipelineConfig.model_fields, *(f"arms.{arm}" for arm in PipelineConfig().arms)}
    assert {param for stage in stages.values() for param in stage["params"]} <= known
    assert stages["reference-s0"]["params"] == ["models", "reference_sample"]
    assert stages["random-s0-r2-rollout"]["params"] == ["arms.random", "models", "rollout"]
    assert stages["random-s0-r2-evaluate"]["params"] == ["evaluation", "models"]


def test_every_identity_section_reaches_a_stage(stages: dict[str, dict]) -> None:
    """What decides results is declared somewhere, or `dvc repro` would miss a change."""
    assert set(stages["compare"]["params"]) == set(PipelineConfig().identity())


def test_arm_names_with_dashes_and_digits_are_read_whole() -> None:
    nodes = draw(arms={"k-s1-r2": {"selection": {"type": "random"}}}, rounds=1)
    assert "arms.k-s1-r2" in dvc_file.sections(next(node for node in nodes if node.name.endswith("-ppo")))


def test_check_refuses_a_stale_file(tmp_path: Path) -> None:
    path = tmp_path / "dvc.yaml"
    text = dvc_file.render(draw(), ROOT)
    with pytest.raises(UserError, match="missing"):
        dvc_file.check(text, path)
    path.write_text(text)
    dvc_file.check(text, path)
    path.write_text(dvc_file.render(draw(rounds=1), ROOT))
    with pytest.raises(UserError, match="stale") as error:
        dvc_file.check(text, path)
    assert dvc_file.RENDER in error.value.fix


@pytest.mark.parametrize(
    "changes", [{"rounds": 2}, {"seeds": [1]}, {"arms": {"none": {"selection": {"type": "none"}}}}]
)
def test_another_graph_is_refused_and_other_values_are_not(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "dvc.yaml"
    path.write_text(dvc_file.render(draw(), ROOT))
    dvc_file.require_same_graph(draw(refresh={"replay_share": 0.5}), path)
    with pytest.raises(UserError, match="another graph"):
        dvc_file.require_same_graph(draw(**changes), path)


def test_records_hold_canonical_fields_and_are_byte_identical(tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "a"}\n')
    written = []
    for place in ("one", "two"):
        config = config_for(tmp_path / place, data)
        driver = run_stage.Execute(Store(tmp_path / place), RuntimeConfig(), (), TOYS)
        node, entry = run_stage.run_up_to(lambda config=config: compare(config), "sft-s0", driver)
        path = dvc_file.write_record(node, entry, tmp_path / place)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    record = json.loads(written[0])
    assert set(record) == {"node", "stage", "fingerprint", "digest", "parts", "inputs", "metrics"}
    assert str(tmp_path) not in written[0].decode()
