"""A recorded pipeline comes out again, and what does not is named; the controls must fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import flows.cli
from flows.compare import compare
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.store import Entry, Store
from inverse_alignment.stages.registry import STAGES
from tasks import dvc_file, run_stage
from tasks.run_stage import Node
from tasks.verify import Tolerance, judge, tolerance_of
from tests.flows.toy_run import config_for
from tests.flows.toy_stages import TOYS
from tests.ops.gated_stages import GATED, Gated


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of toys with its records, without its store."""
    root = tmp_path_factory.mktemp("recorded")
    (root / "pairs.jsonl").write_text('{"prompt": "a"}\n')
    (root / "params.yaml").write_text(
        "rounds: 1\nstore: store\ndata: {sources: [{format: jsonl, name: toy, path: pairs.jsonl}]}\n"
    )
    remember = run_stage.Remember()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        driver = run_stage.Execute(Store(root / "store"), RuntimeConfig(), (remember,), TOYS)
        with run_stage.driving(driver):
            compare(config_for(root / "store", Path("pairs.jsonl"), rounds=1))
    for node, entry in remember.entries.values():
        dvc_file.write_record(node, entry, root)
    shutil.rmtree(root / "store")
    return root


@pytest.fixture
def project(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, spec in TOYS.items():
        monkeypatch.setitem(STAGES, name, spec)
    shutil.copytree(recorded, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def verify(*arguments: str) -> tuple[int, str, dict[str, Any]]:
    result = CliRunner().invoke(flows.cli.app, ["verify", *arguments, "--json", "verdicts.json"])
    text = Path("verdicts.json").read_text()
    verdicts = {verdict["node"]: verdict for verdict in json.loads(text or "[]")}
    return result.exit_code, result.output, verdicts


def change(project: Path, node: str, **values: Any) -> None:
    path = project / "pipeline" / f"{node}.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, **values}))


def machine(project: Path, node: str, **facts: Any) -> None:
    path = project / "pipeline" / "machines.json"
    machines = json.loads(path.read_text())
    path.write_text(json.dumps({**machines, node: {**machines[node], **facts}}))


def test_a_recorded_pipeline_comes_out_with_the_same_bytes(project: Path) -> None:
    code, text, verdicts = verify()
    assert code == 0, text
    assert {verdict["status"] for verdict in verdicts.values()} == {"same bytes"}
    assert set(verdicts) == {path.stem for path in Path("pipeline").glob("*.json")} - {"machines"}
    assert f"{len(verdicts)} same bytes, 0 within tolerances, 0 differs" in text
    # in a store of its own, which is gone; here there is at most the memory of what the data hash to
    assert not list(Path("store").glob("[!.]*"))


def test_some_nodes_and_what_they_need_in_a_store_that_stays(project: Path) -> None:
    code, _, verdicts = verify("reward-s0", "sft-s0", "--store", "kept")
    assert code == 0
    assert set(verdicts) == {"tokenizers", "aggregate", "sft-s0", "reference-s0", "reward-s0"}
    assert len(list(Path("kept").glob("[!.]*/*/artifact.json"))) == 5
    result = CliRunner().invoke(flows.cli.app, ["verify", "sft-s0", "--store", "kept"])
    assert result.exit_code == 2 and "the store is not empty" in result.output


def test_control_another_parameter_is_not_reproduced(project: Path) -> None:
    code, _, verdicts = verify("--set", "ppo.steps=7")
    assert code == 1
    assert verdicts["none-s0-r1-ppo"]["status"] == "differs"
    assert "its code, configuration or versions are not the recorded ones" in verdicts["none-s0-r1-ppo"]["why"]
    assert "its input policy has other bytes" in verdicts["none-s0-r1-evaluate"]["why"]
    assert verdicts["none-s0-r1-rollout"]["status"] == "same bytes"


def test_control_other_data_are_not_reproduced(project: Path) -> None:
    Path("pairs.jsonl").write_text('{"prompt": "another"}\n')
    code, _, verdicts = verify("tokenizers")
    assert (code, verdicts["tokenizers"]["status"]) == (1, "differs")


def test_control_a_digest_that_nobody_gets_again(project: Path) -> None:
    change(project, "sft-s0", digest="0" * 64)
    machine(project, "sft-s0", digest="0" * 64)
    code, text, verdicts = verify("sft-s0")
    assert (code, verdicts["sft-s0"]["status"]) == (1, "differs")
    assert "the same kind of machine must give the same bytes; its inputs are the recorded ones" in text


def test_control_a_record_whose_number_was_changed(project: Path) -> None:
    change(project, "sft-s0", metrics={"size": 3, "rate": None})
    code, _, verdicts = verify("sft-s0")
    assert (code, verdicts["sft-s0"]["status"]) == (1, "differs")
    (wrong,) = [row for row in verdicts["sft-s0"]["rows"] if not row["reproduced"]]
    assert (wrong["metric"], wrong["recorded"], wrong["rebuilt"]) == ("size", 3, 2)


def test_on_another_kind_of_machine_the_metrics_count(project: Path) -> None:
    machine(project, "sft-s0", cpu="Another 9000", digest="0" * 64)
    change(project, "sft-s0", digest="0" * 64)
    code, text, verdicts = verify("sft-s0")
    assert (code, verdicts["sft-s0"]["status"]) == (0, "within tolerances")
    assert "recorded on another kind of machine: Another 9000, 1" in text


def test_what_has_no_record_is_refused_before_anything_is_built(project: Path) -> None:
    (project / "pipeline" / "sft-s0.json").unlink()
    result = CliRunner().invoke(flows.cli.app, ["verify", "--store", "kept"])
    assert result.exit_code == 2 and "'sft-s0' has no record" in result.output
    assert not Path("kept").exists()
    result = CliRunner().invoke(flows.cli.app, ["verify", "sft-s00"])
    assert result.exit_code == 2 and "did you mean 'sft-s0'" in result.output


def gated(tmp_path: Path, text: str = "a") -> tuple[Node, Entry]:
    node = Node("random-s0-r1-refresh", "refresh", {}, Gated(text=text, accepted=True), 0)
    return node, run_stage.Execute(Store(tmp_path), RuntimeConfig(), (), GATED).entry(node)


@pytest.mark.parametrize(
    ("metrics", "status"),
    [
        ({}, "within tolerances"),
        ({"gain": 0.2699}, "within tolerances"),
        ({"gain": 0.2701}, "differs"),
        ({"gain": None}, "differs"),
        ({"accepted": False}, "differs"),
        ({"more": 1.0}, "differs"),
        ({"gold_reward": True}, "differs"),
    ],
)
def test_tolerances_hold_to_their_edge(tmp_path: Path, metrics: dict[str, Any], status: str) -> None:
    node, entry = gated(tmp_path)
    kept = {**dvc_file.record(node, entry), "digest": "0" * 64}
    kept["metrics"] = {**entry.metrics, **metrics}
    here = {**(dvc_file.machine_of(Path(entry.artifact.uri)) or {}), "digest": "0" * 64}
    assert judge(node, entry, kept, {**here, "cpu": "Another 9000"}).status == status
    assert judge(node, entry, kept, here).status == "differs"
    assert judge(node, entry, kept, {**here, "digest": "1" * 64}).status == status  # says nothing of these bytes


def test_tolerances_are_by_stage_and_metric() -> None:
    assert tolerance_of("aggregate/train_pairs") == tolerance_of("refresh/accepted") == Tolerance(0.0)
    assert tolerance_of("refresh/pairs_seen") == tolerance_of("ppo/step") == Tolerance(0.0)
    assert tolerance_of("evaluate/on_policy_accuracy_after") == Tolerance(0.05)
    assert tolerance_of("reward_model/train_loss") == Tolerance(1e-3, 0.02)
    assert tolerance_of("compare/none.gold_reward") == tolerance_of("evaluate/gold_reward") == Tolerance(0.1)
    assert str(Tolerance(0.25, 0.1)) == "0.25 + 10%" and str(Tolerance(0.0)) == "equal"


def test_where_bytes_were_made_is_kept_as_long_as_they_are_the_same(tmp_path: Path) -> None:
    node, entry = gated(tmp_path / "store")
    dvc_file.write_record(node, entry, tmp_path)
    path = tmp_path / "pipeline" / "machines.json"
    mine = dvc_file.read_machines(path)
    made_here = dvc_file.machine_of(Path(entry.artifact.uri))
    assert made_here is not None and mine[node.name] == {**made_here, "digest": entry.artifact.digest}
    path.write_text(json.dumps({node.name: {**mine[node.name], "cpu": "Another 9000"}}))
    dvc_file.write_record(node, entry, tmp_path)
    assert dvc_file.read_machines(path)[node.name]["cpu"] == "Another 9000"
    other, changed = gated(tmp_path / "store", "b")
    dvc_file.write_record(other, changed, tmp_path)
    assert dvc_file.read_machines(path)[node.name] == {**made_here, "digest": changed.artifact.digest}
    (Path(entry.artifact.uri) / "runtime.json").unlink()
    dvc_file.write_record(node, entry, tmp_path)
    assert dvc_file.read_machines(path) == {}  # nobody knows who made these


def test_an_unknown_machine_is_another_one(tmp_path: Path) -> None:
    node, entry = gated(tmp_path)
    kept = {**dvc_file.record(node, entry), "digest": "0" * 64}
    verdict = judge(node, entry, kept, None)
    assert (verdict.status, verdict.why) == (
        "within tolerances",
        "it is not recorded on which kind of machine this was made",
    )
