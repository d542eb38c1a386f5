"""What is refused before anything runs leaves nothing behind, and what is refused later loses nothing.

What is said of a hundred kinds of bad input is the matter of `benchmarks/bad_input` and `test_bad_input`.
"""

from __future__ import annotations

import os
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
        env={"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "PATH": "/usr/bin"},
    )


VLLM = "generation={type: vllm, version: 0.32.0}"


def refused(project: Path, *arguments: str) -> str:
    result = command(project, *arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 3 and lines[0].startswith("error: "), result.stderr
    assert lines[1].startswith("  where: ") and lines[2].startswith("  fix:   ")
    return result.stderr


def test_an_unknown_key_is_refused_before_anything_runs(project: Path) -> None:
    error = refused(project, "run", "--set", "ppo.step=3")
    assert "ppo.step" in error and "'steps'" in error
    assert not (project / "artifacts").exists()


def test_a_report_folder_that_cannot_be_made_is_refused_before_the_run(project: Path) -> None:
    (project / "taken").write_text("a file")
    assert "--report-dir taken" in refused(project, "run", "--report-dir", "taken")
    assert not (project / "artifacts").exists()


def test_a_store_that_cannot_be_made_is_refused_before_anything_is_read(project: Path) -> None:
    error = refused(project, "run", "--set", "store=params.yaml/artifacts")
    assert "cannot be written" in error and "params.yaml is a file" in error
    assert not (project / "artifacts").exists()


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


@pytest.mark.parametrize("section", ["reference_sample", "rollout", "evaluation"])
def test_a_vllm_that_is_not_there_is_refused_before_anything_runs(project: Path, section: str) -> None:
    text = refused(project, "run", "--set", f"{section}.{VLLM}", "--set", "runtime.vllm.executable=no-such-vllm")
    assert "there is no program 'no-such-vllm'" in text and "runtime.vllm.executable" in text
    assert not list((project / "artifacts").glob("[!.]*"))


def test_a_vllm_that_nobody_asks_for_may_be_missing(project: Path) -> None:
    result = command(project, "plan", "--set", f"rollout.{VLLM}", "--set", "runtime.vllm.executable=no-such-vllm")
    assert result.returncode == 0, result.stderr  # a plan is free of charge, on any machine
    unused = ("--set", "runtime.vllm.executable=no-such-vllm", "--set", "arms.random.selection.k=100000")
    assert "100000 pairs" in refused(project, "run", *unused)  # what comes later is reached
