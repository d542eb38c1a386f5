"""Bad input through the real command line: three clear lines, exit code 2, and nothing that was computed is lost."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from inverse_alignment.core.artifact import list_files
from inverse_alignment.world.text import WorldConfig, write_dataset

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_dataset(folder, WorldConfig(pairs=300))
    return folder


@pytest.fixture
def project(tmp_path: Path, world: Path) -> Path:
    shutil.copytree(world, tmp_path / "data" / "advice")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    values = yaml.safe_load((tmp_path / "params.yaml").read_text())
    for arm in ("random", "similarity"):
        selection = values["arms"][arm]["selection"]
        (selection if arm == "random" else selection["keep"])["k"] = 50
    values["tracking"]["mlflow_uri"] = ""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def command(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-c", "from flows.cli import main; main()", *arguments]
    return subprocess.run(
        call,
        cwd=project,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
    )


def refused(project: Path, *arguments: str) -> str:
    result = command(project, *arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 3 and lines[0].startswith("error: "), result.stderr
    assert lines[1].startswith("  where: ") and lines[2].startswith("  fix:   ")
    return result.stderr


PAIRS = "data/advice/pairs.jsonl"


def test_an_unknown_key_is_refused_before_anything_runs(project: Path) -> None:
    error = refused(project, "run", "--set", "ppo.step=3")
    assert "ppo.step" in error and "'steps'" in error
    assert not (project / "artifacts").exists()


def test_a_missing_file_names_its_neighbour(project: Path) -> None:
    (project / PAIRS).rename(project / "data/advice/pears.jsonl")
    error = refused(project, "stage", "aggregate")
    assert PAIRS in error and "inverse-alignment data make" in error


def test_an_empty_file(project: Path) -> None:
    (project / PAIRS).write_text("")
    assert PAIRS in refused(project, "stage", "aggregate")


def test_an_invalid_line_is_named(project: Path) -> None:
    lines = (project / PAIRS).read_text().splitlines()
    lines[6] = lines[6][:-20]
    (project / PAIRS).write_text("\n".join(lines))
    error = refused(project, "stage", "aggregate")
    assert "pairs.jsonl" in error and "7" in error


def test_a_truncated_gzip(project: Path) -> None:
    packed = gzip.compress((project / PAIRS).read_bytes())
    (project / f"{PAIRS}.gz").write_bytes(packed[: len(packed) // 2])
    source = json.dumps([{"format": "jsonl", "name": "advice", "path": f"{PAIRS}.gz"}])
    error = refused(project, "run", "--set", f"data.sources={source}")
    assert "pairs.jsonl.gz" in error


def test_chosen_equal_to_rejected_can_be_refused_and_always_is_when_nothing_else_is_left(project: Path) -> None:
    rows = [json.loads(line) for line in (project / PAIRS).read_text().splitlines()]
    for row in rows:
        row["rejected"] = row["chosen"]
    (project / PAIRS).write_text("\n".join(json.dumps(row) for row in rows))
    assert "chosen equals rejected" in refused(project, "stage", "aggregate")


def test_k_beyond_the_pool_is_refused_before_any_training_and_loses_nothing(project: Path) -> None:
    assert command(project, "stage", "tokenizers").returncode == 0
    before = sorted(list_files(project / "artifacts" / "tokenizers"))
    values = yaml.safe_load((project / "params.yaml").read_text())
    values["arms"]["random"]["selection"]["k"] = 100_000
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    error = refused(project, "run")
    assert "100000 pairs" in error and "in the train split" in error
    assert sorted(list_files(project / "artifacts" / "tokenizers")) == before
    assert {path.name for path in (project / "artifacts").iterdir() if not path.name.startswith(".")} == {"tokenizers"}


def test_a_report_folder_that_cannot_be_made_is_refused_before_the_run(project: Path) -> None:
    (project / "taken").write_text("a file")
    assert "--report-dir taken" in refused(project, "run", "--report-dir", "taken")
    assert not (project / "artifacts").exists()


def test_two_presets_are_refused_instead_of_one_winning_silently(project: Path) -> None:
    assert "given 2 times" in refused(project, "plan", "--preset", "smoke", "--preset", "ungated")
