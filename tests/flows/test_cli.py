"""The command line as a person meets it: help, mistakes, records."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from flows.cli import INTERRUPTED, Verbs, app

ROOT = Path(__file__).parents[2]
VERBS = (
    *("run", "plan", "stage", "dvc", "config", "open", "tokens", "data", "data make", "data inspect", "data card"),
    *("evaluate-rm", "report", "watch", "server", "server start", "server stop", "server status"),
)
PROMPTS = [f'{{"prompt": "question {i}", "chosen": "yes {i}", "rejected": "no {i}"}}\n' for i in range(8)]


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration and a little data."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.jsonl").write_text("".join(PROMPTS))
    source = {"format": "jsonl", "name": "little", "path": "data/pairs.jsonl"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"rounds": 1, "data": {"sources": [source]}}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    result = CliRunner().invoke(app, [*verb.split(), "--help"])
    assert result.exit_code == 0
    assert f"Example: inverse-alignment {verb.split()[0]}" in result.stdout


def test_examples_parse() -> None:
    """The options that examples name exist."""
    for verb in VERBS:
        text = CliRunner().invoke(app, [*verb.split(), "--help"]).stdout
        example = next(line for line in text.splitlines() if "Example:" in line).split()[1:]
        assert all(word in text for word in example if word.startswith("--"))


def test_help_is_quick() -> None:
    call("--help", cwd=ROOT)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert call("--help", cwd=ROOT).returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5, times


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("plan", "--params", "nowhere.yaml"), "configuration file not found"),
        (("plan", "--set", "ppo.kl_coeff=0.1"), "unknown key"),
        (("plan", "--set", "rounds=0"), "rounds"),
        (("plan", "--set", "rounds"), "not of the form"),
        (("plan", "--preset", "nonsense"), "no preset"),
        (("run", "--set", "arms.none.selection.type=nonsense"), "arms.none"),
        (("stage", "sft-s00"), "did you mean 'sft-s0'"),
        (("dvc", "--check"), "dvc.yaml is missing"),
        (("data", "make", "--pairs", "5"), "holds the published dataset only"),
        (("data", "make", "--out", "x", "--heterogeneity", "2"), "--heterogeneity"),
    ],
)
def test_a_mistake_is_three_lines_and_code_2(project: Path, arguments: tuple[str, ...], says: str) -> None:
    result = call(*arguments, cwd=project)
    assert result.returncode == 2, result.stderr
    assert says in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 3
    assert not (project / "artifacts").exists() and not (project / ".prefect").exists()


def test_missing_and_empty_data_are_refused_before_anything_runs(project: Path) -> None:
    for verb in ("run", "plan"):
        (project / "data" / "pairs.jsonl").write_text("")
        assert "is empty" in call(verb, cwd=project).stderr
        missing = call(verb, "--set", "data.sources=[{format: jsonl, name: a, path: gone.jsonl}]", cwd=project)
        assert (missing.returncode, "no file or folder at gone.jsonl" in missing.stderr) == (2, True)
    world = "data.sources=[{format: jsonl, name: advice, path: data/advice/pairs.jsonl}]"
    assert "make data" in call("run", "--set", world, cwd=project).stderr


def test_an_unknown_option_is_code_2(project: Path) -> None:
    result = call("plan", "--presets", "x", cwd=project)
    assert result.returncode == 2 and "--preset" in result.stderr


def test_an_interruption_says_how_to_continue() -> None:
    interrupted = typer.Typer(cls=Verbs)

    @interrupted.command()
    def first() -> None:
        raise KeyboardInterrupt

    @interrupted.command()
    def second() -> None:
        """Two commands make a group."""

    result = CliRunner().invoke(interrupted, ["first"])
    assert result.exit_code == INTERRUPTED and "continue with the same command" in result.output


def test_plan_shows_every_node_and_counts(project: Path) -> None:
    result = call("plan", cwd=project)
    assert result.returncode == 0, result.stderr
    assert "similarity-s0-r1-evaluate" in result.stdout and "never built" in result.stdout
    assert "20 stages: 2 reuse, 1 run, 17 after them" in result.stdout
    assert not (project / "artifacts").exists() or not list((project / "artifacts").glob("*/*"))


def test_config_shows_the_resolved_values_and_every_key(project: Path) -> None:
    shown = yaml.safe_load(call("config", "--set", "refresh.replay_share=0.5", cwd=project).stdout)
    assert (shown["rounds"], shown["refresh"]["replay_share"]) == (1, 0.5)
    keys = call("config", "--keys", cwd=project).stdout.splitlines()
    assert any(line.startswith("selection(similarity).keep(top_k).k: pairs to keep [600]") for line in keys)
    assert all(": " in line and not line.split(": ", 1)[1].startswith("[") for line in keys)  # each is described


def test_open_names_both_viewers(project: Path) -> None:
    text = call("open", cwd=project).stdout
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in text and "inverse-alignment server start" in text


@pytest.mark.slow
def test_stage_is_refused_where_dvc_yaml_shows_another_graph(project: Path) -> None:
    assert call("dvc", cwd=project).returncode == 0
    assert call("dvc", "--check", cwd=project).returncode == 0
    params = yaml.safe_load((project / "params.yaml").read_text())
    (project / "params.yaml").write_text(yaml.safe_dump({**params, "rounds": 2}))
    result = call("stage", "tokenizers", cwd=project)
    assert result.returncode == 2 and "inverse-alignment dvc" in result.stderr
    assert call("dvc", "--check", cwd=project).returncode == 2


def test_stage_writes_the_same_record_twice(project: Path) -> None:
    first = call("stage", "tokenizers", cwd=project)
    assert first.returncode == 0, first.stderr
    record = (project / "pipeline" / "tokenizers.json").read_bytes()
    second = call("stage", "tokenizers", cwd=project)
    assert "tokenizers: reused" in second.stdout
    assert (project / "pipeline" / "tokenizers.json").read_bytes() == record


def test_stage_passes_on_what_a_stage_refuses(project: Path) -> None:
    (project / "data" / "pairs.jsonl").write_text("not json\n")
    result = call("stage", "aggregate", cwd=project)
    assert result.returncode == 2, result.stderr
    assert "pairs.jsonl" in result.stderr and "Traceback" not in result.stderr


def test_the_committed_dvc_yaml_is_what_params_yaml_asks_for() -> None:
    result = call("dvc", "--check", cwd=ROOT)
    assert result.returncode == 0, result.stderr
