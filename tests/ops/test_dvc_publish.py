"""A pooled set and a subset become versions that another clone can pull, and that can be read as data again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prefect import get_client
from prefect.testing.utilities import prefect_test_harness

from flows.compare import compare
from flows.publish import lines, node_of
from flows.publish import publish as publish_node
from flows.scheduled import publish_flow
from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.artifact import Artifact, external
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import SPLITS, Comparison, iter_jsonl
from inverse_alignment.core.store import Entry, Store
from inverse_alignment.data.read import read
from inverse_alignment.data.sources import JsonlSource
from inverse_alignment.selection.settings import RandomSelection
from inverse_alignment.stages.select import SelectStage
from inverse_alignment.world.text import WorldConfig, write_dataset
from tasks import dvc_file, run_stage
from tasks.publish import Published, card, publish_set, publish_subset
from tasks.run_stage import Execute, Node

ENVIRONMENT = {**os.environ, "DVC_NO_ANALYTICS": "1"}


def call(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def dvc(*arguments: str, cwd: Path) -> str:
    return call(sys.executable, "-m", "dvc", *arguments, cwd=cwd)


def commit(root: Path, message: str) -> None:
    call("git", "add", "-A", cwd=root)
    call("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", message, cwd=root)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Entry]]:
    """A real pool of a small world, in a git and DVC repository with a remote."""
    root = tmp_path_factory.mktemp("project")
    write_dataset(root / "world", WorldConfig(pairs=400, prompts=80, topics=4))
    values = {
        "rounds": 1,
        "store": "artifacts",
        "data": {"sources": [{"format": "jsonl", "name": "advice", "path": "world/pairs.jsonl"}]},
        "arms": {"random": {"selection": {"type": "random", "k": 50}}},
    }
    (root / "params.yaml").write_text(yaml.safe_dump(values))
    (root / ".gitignore").write_text("artifacts\n")
    call("git", "init", "-q", cwd=root)
    dvc("init", "-q", cwd=root)
    dvc("remote", "add", "-d", "local", str(tmp_path_factory.mktemp("remote")), cwd=root)
    commit(root, "Begin")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        config = PipelineConfig.model_validate(values)
        driver = Execute(Store(root / "artifacts"), RuntimeConfig())
        _, entry = run_stage.run_up_to(lambda: compare(config), "aggregate", driver)
        yield root, entry


def select(root: Path, pool: Entry, seed: int) -> Entry:
    """The real stage that selects at random, near answers that nobody looks at."""
    (root / "answers").mkdir(exist_ok=True)
    (root / "answers" / "rollouts.jsonl").write_text("")
    inputs = {"preferences": pool.artifact, "rollouts": external("rollouts", root / "answers")}
    node = Node("random-s0-r1-select", "select", inputs, SelectStage(selection=RandomSelection(k=50)), seed)
    return Execute(Store(root / "artifacts"), RuntimeConfig()).entry(node)


def rows(published: Published) -> list[dict[str, object]]:
    return [json.loads(line) for line in (published.folder / "pairs.jsonl").read_text().splitlines()]


def test_a_pooled_set_is_a_version_and_the_same_set_is_the_same_version(built: tuple[Path, Entry]) -> None:
    root, pool = built
    made = publish_set("pooled", "aggregate", pool, root)
    assert made.new and made.folder == root / "published" / "pooled"
    tracked = yaml.safe_load((root / "published" / "pooled.dvc").read_text())["outs"][0]
    assert (tracked["md5"], tracked["path"], tracked["nfiles"]) == (made.md5, "pooled", 4)
    again = publish_set("pooled", "aggregate", pool, root)
    assert (again.new, again.md5) == (False, made.md5)
    assert "pooled/" not in call("git", "status", "--short", "--untracked-files=all", cwd=root)  # git keeps no rows

    pairs = {
        pair.id: pair for split in SPLITS for pair in iter_jsonl(Path(pool.artifact.uri) / f"{split}.jsonl", Comparison)
    }
    assert len(rows(made)) == made.pairs == len(pairs) == pool.metrics["pairs"]
    for found in read(JsonlSource(name="again", path=str(made.folder / "pairs.jsonl"))):
        assert isinstance(found, Comparison)
        kept = pairs[found.provenance.original_id]
        for field in ("prompt", "chosen", "rejected", "margin", "soft_label", "weight"):
            assert getattr(found, field) == getattr(kept, field)
        for field in ("split", "licence", "source_chosen", "source_rejected", "annotator"):
            assert getattr(found.provenance, field) == getattr(kept.provenance, field)
    statistics = json.loads((made.folder / "statistics.json").read_text())
    assert statistics["pairs"] == sum(statistics["by_split"].values()) == statistics["of_the_pool"]["pairs"]
    assert json.loads((made.folder / "origin.json").read_text())["digest"] == pool.artifact.digest


@pytest.mark.ops
def test_the_subset_of_a_round_is_pulled_in_a_second_clone(built: tuple[Path, Entry], tmp_path: Path) -> None:
    root, pool = built
    first = select(root, pool, seed=0)
    made = publish_subset("subset", "random-s0-r1-select", first, pool, root)
    kept = [json.loads(line) for line in (Path(first.artifact.uri) / "selection.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows(made)] == [row["id"] for row in kept] and made.pairs == 50
    assert {row["score"] for row in rows(made)} == {None} and {row["weight"] for row in rows(made)} == {1.0}
    statistics = json.loads((made.folder / "statistics.json").read_text())
    assert statistics["of_the_selection"]["selected_by_source"]
    assert "| pairs by dataset | advice: 50 |" in (made.folder / "README.md").read_text()
    commit(root, "Publish subset")
    dvc("push", "-q", cwd=root)
    old = (made.folder / "pairs.jsonl").read_bytes()

    newer = publish_subset("subset", "random-s0-r1-select", select(root, pool, seed=1), pool, root)
    assert newer.new and newer.md5 != made.md5
    commit(root, "Publish subset of another seed")
    dvc("push", "-q", cwd=root)

    clone = tmp_path / "clone"
    call("git", "clone", "-q", str(root), str(clone), cwd=tmp_path)
    place = clone / "published" / "subset"
    assert not place.exists()
    assert "not in cache" in dvc("status", "published/subset.dvc", cwd=clone)
    dvc("pull", "-q", "published/subset.dvc", cwd=clone)
    assert (place / "pairs.jsonl").read_bytes() == (newer.folder / "pairs.jsonl").read_bytes()
    assert "up to date" in dvc("status", "published/subset.dvc", cwd=clone)
    call("git", "checkout", "-q", "HEAD~1", cwd=clone)
    dvc("pull", "-q", "published/subset.dvc", cwd=clone)
    assert (place / "pairs.jsonl").read_bytes() == old  # the older version is still to be had


def test_a_published_set_names_its_version_in_every_record_of_a_run(built: tuple[Path, Entry]) -> None:
    from tasks.dataset import tracked

    root, pool = built
    made = publish_set("named", "aggregate", pool, root)
    found = tracked(made.folder / "pairs.jsonl")
    assert found is not None and (found.md5, found.path) == (made.md5, "published/named")


def test_the_verb_publishes_what_is_built_and_refuses_the_rest(
    built: tuple[Path, Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = built
    monkeypatch.chdir(root)
    config = PipelineConfig.model_validate(yaml.safe_load((root / "params.yaml").read_text()))

    def flow() -> Artifact:
        return compare(config)

    text = "\n".join(lines("by-verb", publish_node("by-verb", "aggregate", flow, config)))
    assert "a new version" in text and "git add published/by-verb.dvc" in text and "dvc push" in text
    for name, node, what in (
        ("Bad Name", "aggregate", "cannot name a dataset"),
        ("x", "random-s0-r1-select", "is not built yet"),
        ("x", "random-s0-r9-select", "no node"),
        ("x", "tokenizers", "makes no dataset"),
    ):
        with pytest.raises(UserError, match=what):
            publish_node(name, node, flow, config)
    assert not (root / "published" / "x").exists()


@pytest.mark.ops
def test_the_deployed_flow_publishes_too_and_says_so_in_prefect(
    built: tuple[Path, Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, pool = built
    monkeypatch.chdir(root)
    monkeypatch.setenv("HOME", str(root))
    config = PipelineConfig.model_validate(yaml.safe_load((root / "params.yaml").read_text()))
    with prefect_test_harness():
        made = publish_flow("scheduled", config=config)
        with pytest.raises(UserError, match="cannot name a dataset"):
            publish_flow("Bad Name", config=config)
        with get_client(sync_client=True) as client:
            (text,) = [each.data for each in client.read_artifacts() if each.key == "inverse-alignment-published"]
            states = {run.name: run.state_type for run in client.read_flow_runs() if run.state_type}
    assert made["new"] and made["pairs"] == pool.metrics["pairs"]
    assert yaml.safe_load((root / "published" / "scheduled.dvc").read_text())["outs"][0]["md5"] == made["md5"]
    assert f"DVC's md5 {made['md5']}" in str(text)
    assert states == {"publish-scheduled": "COMPLETED", "publish-Bad Name": "FAILED"}


def test_the_record_of_a_selection_has_its_ids_beside_it(built: tuple[Path, Entry], tmp_path: Path) -> None:
    root, pool = built
    entry = select(root, pool, seed=0)
    inputs = {"preferences": pool.artifact}
    node = Node("random-s0-r1-select", "select", inputs, SelectStage(selection=RandomSelection(k=50)), 0)
    path = dvc_file.write_record(node, entry, tmp_path)
    kept = [json.loads(line)["id"] for line in (Path(entry.artifact.uri) / "selection.jsonl").read_text().splitlines()]
    assert path.with_suffix(".ids").read_text().splitlines() == kept and len(set(kept)) == 50


def test_a_run_and_a_round_name_a_selection() -> None:
    assert node_of(None, None, None) == "aggregate"
    assert node_of(None, "similarity-s2", 3) == "similarity-s2-r3-select"
    assert node_of("aggregate", None, None) == "aggregate"
    for given in (("aggregate", "none-s0", 1), (None, "none-s0", None), (None, None, 1)):
        with pytest.raises(UserError):
            node_of(*given)


def test_without_dvc_nothing_is_written(built: tuple[Path, Entry], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no DVC repository"):
        publish_set("x", "aggregate", built[1], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_dvc_refuses_is_said(built: tuple[Path, Entry], tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()  # no repository: nothing in it
    shutil.rmtree(tmp_path / "published", ignore_errors=True)
    with pytest.raises(UserError, match="DVC did not take the dataset"):
        publish_set("x", "aggregate", built[1], tmp_path)


def test_an_empty_set_has_a_card() -> None:
    from tasks.publish import describe

    text = card(
        "empty", describe([]), {"stage": "select", "node": "n", "fingerprint": "f", "digest": "d", "inputs": {}}
    )
    assert "0 preferences on 0 prompts. Made by" in text
