"""What `dvc` shows and does on a project of this kind: real git, DVC and command line, stages that take no time."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.compare import compare
from inverse_alignment.config import PipelineConfig, merge
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.store import Store
from tasks import run_stage
from tests.ops.dvc_stages import NUMBERED

pytestmark = pytest.mark.ops
ROOT = Path(__file__).parents[2]
PARAMS = {
    "rounds": 1,
    "store": "artifacts",
    "data": {"sources": [{"format": "jsonl", "name": "toy", "path": "data/pairs.jsonl"}]},
    "selection": {"type": "random", "k": 600},
    "refresh": {"replay_share": 0.25},
    "ppo": {"steps": 4},
    "arms": {"none": {"selection": {"type": "none"}}, "random": {"rollout": {"samples": 2}}},
}
AFTER_REFRESH = {*(f"random-s0-r1-{stage}" for stage in ("refresh", "ppo", "evaluate")), "compare"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`inverse-alignment` on the path, with stages that take no time."""
    programs = tmp_path_factory.mktemp("bin")
    shim = programs / "inverse-alignment"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.ops.dvc_stages "$@"\n')
    shim.chmod(0o755)
    me = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **me, "PATH": path, "PYTHONPATH": f"{ROOT}", "DVC_NO_ANALYTICS": "1", "COLUMNS": "300"}


class Project:
    """A checkout and the commands that are run in it."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root, self.environment = root, environment

    def call(self, *command: str) -> str:
        """What a command printed; it must end well."""
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def dvc(self, *arguments: str) -> str:
        """A command of DVC."""
        return self.call(sys.executable, "-m", "dvc", *arguments)

    def params(self, **changes: object) -> None:
        """Change params.yaml."""
        path = self.root / "params.yaml"
        path.write_text(yaml.safe_dump(merge(yaml.safe_load(path.read_text()), changes), sort_keys=False))

    def clone(self, where: Path) -> Project:
        """A fresh clone, its data pulled, its store empty."""
        subprocess.run(["git", "clone", "-q", str(self.root), str(where)], check=True)
        cloned = Project(where, self.environment)
        cloned.dvc("pull", "-q")
        return cloned

    def record(self, node: str) -> dict[str, object]:
        """A node's record."""
        return dict(json.loads((self.root / "pipeline" / f"{node}.json").read_text()))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Project:
    """A project whose pipeline was run by `dvc repro` and committed."""
    root = tmp_path_factory.mktemp("recorded")
    project = Project(root, environment)
    (root / "data").mkdir()
    (root / "data" / "pairs.jsonl").write_text('{"prompt": "a"}\n')
    full = PipelineConfig.model_validate(PARAMS).model_dump(mode="json")
    (root / "params.yaml").write_text(yaml.safe_dump(full, sort_keys=False))
    (root / ".gitignore").write_text("artifacts\n*.lock.tmp\nreports\n")
    project.call("git", "init", "-q")
    project.dvc("init", "-q")
    project.dvc("remote", "add", "-q", "-d", "local", str(tmp_path_factory.mktemp("remote")))
    project.dvc("add", "-q", "data")
    project.dvc("push", "-q")
    project.call("inverse-alignment", "dvc")
    project.dvc("repro", "-q")
    project.call("git", "add", "-A")
    project.call("git", "commit", "-qm", "Record")
    return project


@pytest.fixture
def project(recorded: Project, tmp_path: Path) -> Project:
    """A copy to change: the same commit, data and store."""
    shutil.copytree(recorded.root, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project", recorded.environment)


def ran(output: str) -> set[str]:
    """What DVC ran."""
    return set(re.findall(r"Running stage '([^']+)'", output))


def built(output: str) -> set[str]:
    """What the store did not have."""
    return set(re.findall(r"^(\S+): built, pipeline/", output, re.MULTILINE))


def test_a_fresh_clone_rebuilds_the_committed_bytes_and_a_second_repro_does_nothing(
    recorded: Project, tmp_path: Path
) -> None:
    clone = recorded.clone(tmp_path / "clone")
    assert "up to date" in clone.dvc("status")
    assert "up to date" in clone.dvc("repro")  # the lock agrees, and nothing is there: this proves nothing
    assert not (clone.root / "artifacts").exists()
    forced = clone.dvc("repro", "-f")
    assert len(ran(forced)) == 15
    assert ran(forced) - built(forced) == {"random-s0-r1-rollout"}  # the same answers as those of the other arm
    assert clone.call("git", "status", "--short") == ""  # records, digests and lock are those that were committed
    assert len(list((clone.root / "artifacts").glob("[!.]*/*/artifact.json"))) == 14
    assert "up to date" in clone.dvc("repro")
    again = clone.dvc("repro", "-f")
    assert len(ran(again)) == 15 and built(again) == set()


def test_control_other_bytes_are_no_reproduction(recorded: Project, tmp_path: Path) -> None:
    clone = recorded.clone(tmp_path / "clone")
    (clone.root / "data" / "pairs.jsonl").unlink()
    (clone.root / "data" / "pairs.jsonl").write_text('{"prompt": "another"}\n')
    clone.dvc("repro", "-f", "-q", "sft-s0")
    assert "pipeline/sft-s0.json" in clone.call("git", "status", "--short")


def test_a_run_of_another_driver_is_not_repeated(recorded: Project, tmp_path: Path) -> None:
    clone = recorded.clone(tmp_path / "clone")
    config = PipelineConfig.model_validate({**PARAMS, "store": str(clone.root / "artifacts")})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone.root)
        driver = run_stage.Execute(Store(Path(config.store)), RuntimeConfig(), (), NUMBERED)
        with run_stage.driving(driver):
            compare(config)
    output = clone.dvc("repro", "-f")
    assert len(ran(output)) == 15 and built(output) == set()


def test_one_parameter_runs_exactly_what_depends_on_it(project: Project) -> None:
    project.params(refresh={"replay_share": 0.5})
    output = project.dvc("repro")
    assert ran(output) == built(output) == AFTER_REFRESH
    project.params(refresh={"replay_share": 0.25})
    assert built(project.dvc("repro")) == set()  # DVC remembers some of it, the store has all of it
    assert project.call("git", "status", "--short") == " M pipeline/machines.json\n"  # what it says is of other bytes


def test_dag_draws_the_edges(project: Project) -> None:
    edges = project.dvc("dag", "--dot")
    for edge in (
        '"sft-s0" -> "random-s0-r1-rollout"',
        '"random-s0-r1-select" -> "random-s0-r1-refresh"',
        '"random-s0-r1-refresh" -> "random-s0-r1-ppo"',
        '"data.dvc" -> "aggregate"',
    ):
        assert edge in edges.splitlines() or f"{edge};" in edges, edge
    assert '"none-s0-r1-ppo" -> "random-s0-r1-ppo"' not in edges


def cells(table: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]


def test_params_diff_names_the_key_and_both_values(project: Project) -> None:
    project.params(refresh={"replay_share": 0.5})
    assert ["params.yaml", "refresh.replay_share", "0.25", "0.5"] in cells(project.dvc("params", "diff", "--md"))


def test_metrics_diff_names_the_record_and_both_values(project: Project) -> None:
    before = project.record("random-s0-r1-refresh")["metrics"]
    project.params(refresh={"replay_share": 0.5})
    project.dvc("repro", "-q")
    after = project.record("random-s0-r1-refresh")["metrics"]
    rows = {(row[0], row[1]): row[2:4] for row in cells(project.dvc("metrics", "diff", "--md", "--precision", "12"))}
    shown = rows["pipeline/random-s0-r1-refresh.json", "metrics.value"]
    assert [float(value) for value in shown] == pytest.approx([before["value"], after["value"]])  # type: ignore[index]
    assert not any(path == "pipeline/none-s0-r1-ppo.json" for path, _ in rows)


def test_plots_diff_draws_both_commits(project: Project) -> None:
    before = project.record("random-s0-r1-evaluate")["metrics"]
    project.params(ppo={"steps": 5})
    project.dvc("repro", "-q")
    after = project.record("random-s0-r1-evaluate")["metrics"]
    (chart,) = json.loads(project.dvc("plots", "diff", "--json", "HEAD"))["data"]["gold_reward"]
    values = [point for point in chart["content"]["data"]["values"] if point["field"] == "gold_reward random"]
    seen = {point["rev"]: float(point["dvc_inferred_y_value"]) for point in values}
    assert seen == {"HEAD": before["value"], "workspace": after["value"]}  # type: ignore[index]
    page = project.dvc("plots", "diff", "HEAD").strip()
    assert page.endswith("dvc_plots/index.html")
    assert "Gold reward, by round; mean over seeds" in (project.root / "dvc_plots" / "index.html").read_text()


def test_experiments_change_one_key_and_are_set_side_by_side(project: Project) -> None:
    output = project.dvc("exp", "run", "-n", "fewer", "-S", "selection.k=500")
    assert built(output) == {
        "aggregate",
        "random-s0-r1-select",
        *AFTER_REFRESH,
    }  # pooling checks that k pairs are there
    assert "k: 500" in (project.root / "params.yaml").read_text()
    table = list(csv.DictReader(io.StringIO(project.dvc("exp", "show", "--csv"))))
    (mine,) = [row for row in table if row["Experiment"] == "fewer"]
    (base,) = [row for row in table if row["rev"] in ("main", "master")]
    assert (base["selection.k"], mine["selection.k"]) == ("600", "500")
    column = "pipeline/random-s0-r1-select.json:metrics.value"
    assert float(mine[column]) == pytest.approx(project.record("random-s0-r1-select")["metrics"]["value"])  # type: ignore[index]
    assert mine[column] != base[column]
    same = "pipeline/none-s0-r1-ppo.json:metrics.value"
    assert mine[same] == base[same]
