"""From a policy back to the bytes of the data, by the records of the store alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

import flows.cli
from flows.compare import compare
from flows.lineage import _boxes, draw, mermaid, page
from inverse_alignment.core.artifact import sha256_file
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.store import Store
from inverse_alignment.stages.registry import STAGES
from tasks import run_stage
from tasks.ancestry import Records
from tasks.dataset import dvc_digest
from tests.flows.toy_run import config_for
from tests.flows.toy_stages import TOYS
from tests.ops.mlflow_view import config_for as tracked_config
from tests.ops.mlflow_view import go, lineage_of


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of toys that has run, its data published."""
    root = tmp_path_factory.mktemp("project")
    (root / "data").mkdir()
    (root / "data" / "pairs.jsonl").write_text('{"prompt": "a"}\n')
    (root / "data.dvc").write_text(f"outs:\n- md5: {dvc_digest(root / 'data')}\n  path: data\n")
    (root / "params.yaml").write_text(
        "rounds: 2\nstore: store\ndata: {sources: [{format: jsonl, name: toy, path: data/pairs.jsonl}]}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        driver = run_stage.Execute(Store(root / "store"), RuntimeConfig(), (), TOYS)
        with run_stage.driving(driver):
            compare(config_for(root / "store", Path("data/pairs.jsonl")))
    return root


def policy_of(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(root)
    config = config_for(root / "store", Path("data/pairs.jsonl"))
    planned = run_stage.plan(lambda: compare(config), Store(root / "store"), TOYS).planned
    entry = planned["random-s0-r2-ppo"].entry
    assert entry is not None
    return str(entry.record["fingerprint"])


def test_the_walk_reaches_reward_model_subset_answers_and_data(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(project / "store")
    start = records.named(policy_of(project, monkeypatch))
    walk = {made.fingerprint: (made, origins) for made, origins in records.walk(start)}
    at = start
    for name, stage in (
        ("reward", "refresh"),
        ("selection", "select"),
        ("rollouts", "rollout"),
        ("preferences", "aggregate"),
    ):
        (origin,) = [origin for origin in walk[at.fingerprint][1] if origin.name == name]
        assert origin.made is not None and origin.made.stage == stage
        at = origin.made
    data = [origin for _, origins in walk.values() for origin in origins if origin.is_data]
    assert {origin.digest for origin in data} == {sha256_file(project / "data" / "pairs.jsonl")}
    assert sum(made.stage == "refresh" for made, _ in walk.values()) == 2  # of this arm alone
    assert sum(made.stage == "ppo" for made, _ in walk.values()) == 2


def test_weights_that_a_gate_left_in_office_come_from_where_they_were_trained(tmp_path: Path) -> None:
    config = tracked_config(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "store")
    with lineage_of(config) as lineage:
        go(config, lineage, (True, False))
    records = Records(tmp_path / "store")
    last = [made for made in records.by_fingerprint.values() if "r2" in str(made.record["identity"]["config"])]
    (policy,) = [made for made in last if made.stage == "ppo"]
    (reward,) = [origin for origin in records.origins(policy) if origin.name == "reward"]
    assert reward.made is not None and reward.made.record["metrics"]["accepted"] is True
    assert (reward.part, reward.kept_by) == ("model", 1)


def test_the_drawings_show_every_artifact_once_and_what_is_used_below_what_uses_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(project / "store")
    walk = list(records.walk(records.named(policy_of(project, monkeypatch))))
    boxes, edges = _boxes(walk)
    assert {made.fingerprint for made, _ in walk} < set(boxes) and len(boxes) == len(walk) + 1
    assert all(boxes[source].row > boxes[target].row for source, target, _ in edges)
    assert len({(box.row, box.column) for box in boxes.values()}) == len(boxes)
    svg = ElementTree.fromstring(draw(walk))
    assert len(svg.findall(".//{*}rect")) == len(boxes)
    assert len(svg.findall("{*}path")) == len(edges) == sum(len(origins) for _, origins in walk)
    assert draw(walk) in page(walk) and "http" not in page(walk).replace("http://www.w3.org/2000/svg", "")
    assert mermaid(walk).count(" --> ") == len(edges)


def test_the_verb_prints_and_draws(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = policy_of(project, monkeypatch)
    for name, spec in TOYS.items():
        monkeypatch.setitem(STAGES, name, spec)
    shown = {}
    for name in ("random-s0-r2-ppo", fingerprint[:8], f"store/ppo/{fingerprint}", f"store/ppo/{fingerprint}/policy"):
        result = CliRunner().invoke(flows.cli.app, ["lineage", name, "--out", "out/walk.html"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        shown[name] = result.output
    assert len(set(shown.values())) == 1
    text = shown["random-s0-r2-ppo"]
    order = [text.index(each) for each in ("ppo", "reward: refresh", "selection: select", "rollouts: rollout")]
    assert order == sorted(order)
    assert f"data bytes: toy, sha256 {sha256_file(project / 'data' / 'pairs.jsonl')}" in text
    assert f"data/pairs.jsonl, in data/ with DVC's md5 {dvc_digest(project / 'data')}" in text
    assert Path("out/walk.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("name", "what"), [("abcdefabcdef", "no artifact"), ("ab", "no artifact"), ("random-s0-r9-ppo", "no artifact")]
)
def test_what_is_not_there_is_said(project: Path, name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(UserError, match=what):
        Records(project / "store").named(name)


def test_half_a_record_and_other_bytes_of_data_are_no_answer(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint = policy_of(project, monkeypatch)
    for name, spec in TOYS.items():
        monkeypatch.setitem(STAGES, name, spec)
    shutil.copytree(project, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    Path("data/pairs.jsonl").write_text('{"prompt": "another"}\n')
    text = CliRunner().invoke(flows.cli.app, ["lineage", fingerprint]).output
    assert "not on this machine, or with other bytes now" in text
    for path in Path("store/select").glob("*/artifact.json"):
        path.write_text("{")
    assert "no record of this store has made it" in CliRunner().invoke(flows.cli.app, ["lineage", fingerprint]).output
    refused = CliRunner().invoke(flows.cli.app, ["lineage", fingerprint, "--out", "walk.png"])
    assert refused.exit_code == 2
