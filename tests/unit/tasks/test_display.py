"""What a person reads while stages run."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from flows.compare import compare
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.store import Store
from tasks import display as module
from tasks import run_stage
from tests.flows.toy_run import config_for
from tests.flows.toy_stages import TOYS


def shown(tmp_path: Path, terminal: bool) -> str:
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "a"}\n')
    config = config_for(tmp_path / "store", data, rounds=1)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=140)
    total = len(run_stage.draw(lambda: compare(config), TOYS))
    driver = run_stage.Execute(Store(tmp_path / "store"), RuntimeConfig(), (), TOYS)
    with module.Display(total, console) as display, run_stage.driving(driver), run_stage.observing(display):
        compare(config)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_without_a_terminal_one_line_per_start_and_end(tmp_path: Path) -> None:
    lines = shown(tmp_path, terminal=False).splitlines()
    assert lines[0] == "[1/20] tokenizers: tokenizers, never built"
    assert lines[1].startswith("    tokenizers: built in ")
    assert not any(" steps" in line for line in lines)  # progress at most every ten seconds
    assert shown(tmp_path, terminal=False).splitlines() == ["    20 stages reused"]


def progress_lines(
    monkeypatch: pytest.MonkeyPatch, steps: range, seconds: float, values: dict[str, float]
) -> list[str]:
    """What is said of a stage that reports these steps of 40, one every so many seconds."""
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    node = run_stage.Node("ppo-1", "ppo", {}, RuntimeConfig())  # type: ignore[arg-type]
    with module.Display(1, Console(file=out, width=140)) as display:
        display.started(node, "never built")
        for step in steps:
            clock[0] += seconds
            display.progress(node, step, 40, "steps", values)
    return out.getvalue().splitlines()[1:]


def test_progress_lines_are_rare_and_say_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"loss": 0.5, "kl": 1.25, "rm_score": 0.125, "more": 1.0}
    lines = progress_lines(monkeypatch, range(1, 41), 1.0, values)
    assert len(lines) == 4
    assert lines[0] == "    ppo-1: 10 of 40 steps, 1 a second, 30 s left, rm_score 0.125  kl 1.25  loss 0.5"


def test_the_rate_counts_no_steps_of_an_earlier_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = progress_lines(monkeypatch, range(27, 38), 2.0, {})
    assert "    ppo-1: 31 of 40 steps, 0.5 a second, 18 s left" in lines


def test_on_a_terminal_bars_and_a_line_per_built_stage(tmp_path: Path) -> None:
    text = shown(tmp_path, terminal=True)
    assert "all stages" in text and "✓ sft-s0" in text and "20/20" in text
