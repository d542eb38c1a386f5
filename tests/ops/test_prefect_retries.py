"""What is tried again with less at once, and what is not: memory that ran out, on stages of one function."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from benchmarks.resume.project import SMALL, WORLD
from flows.compare import compare
from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.artifact import RUNTIME
from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import RuntimeConfig, StageContext
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import Report
from inverse_alignment.core.store import Entry, Store
from inverse_alignment.stages import ppo
from inverse_alignment.stages.registry import STAGES
from inverse_alignment.world.text import write_dataset
from tasks.launch import LaunchFailed
from tasks.run_stage import HALVINGS, IN_PARTS, Execute, Node, halved, out_of_memory, run_up_to

SIZES = ("training_tokens", "generation_rows", "scoring_rows")
RUNTIME_CONFIG = RuntimeConfig(device="cpu", training_tokens=1000, generation_rows=100, scoring_rows=1)
HERE = {name: replace(spec, module=__name__, packages=()) for name, spec in STAGES.items()}


class Empty(Section):
    """A stage without configuration."""


_seen: list[int] = []


def _behaviour(context: StageContext) -> None:
    """Set by the tests."""


def build(inputs: Mapping[str, Path], config: Section, context: StageContext) -> dict[str, Any]:
    """Leave something behind, and do what the test says."""
    _seen.append(context.runtime.training_tokens)
    assert not list(context.out.iterdir()), "the last attempt has left files"
    (context.out / "half").mkdir()
    (context.out / "half" / "written.txt").write_text("x")
    _behaviour(context)
    return {}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Entry]:
    _seen.clear()

    def run(behaviour: Callable[[StageContext], None], stage: str = "ppo") -> Entry:
        monkeypatch.setattr(sys.modules[__name__], "_behaviour", behaviour)
        execute = Execute(Store(tmp_path), RUNTIME_CONFIG, stages=HERE)
        return execute.entry(Node("a", stage, {}, Empty()))

    return run


def full_above(tokens: int) -> Callable[[StageContext], None]:
    def behaviour(context: StageContext) -> None:
        if context.runtime.training_tokens > tokens:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return behaviour


def test_out_of_memory_is_tried_again_with_half_as_much_until_it_fits(
    run: Callable[..., Entry], caplog: pytest.LogCaptureFixture
) -> None:
    entry = run(full_above(300))
    assert _seen == [1000, 500, 250]
    used = json.loads((Path(entry.artifact.uri) / RUNTIME).read_text())["runtime"]
    assert [used[name] for name in SIZES] == [250, 25, 1]
    assert [record.message.partition(",")[0] for record in caplog.records] == ["a ran out of memory"] * 2


def test_the_artifact_is_that_of_a_run_that_fitted_at_once(run: Callable[..., Entry]) -> None:
    entry = run(full_above(300))
    again = run(full_above(10_000))
    assert again.reused and again.artifact == entry.artifact


def test_it_gives_up_after_a_few_times(run: Callable[..., Entry]) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        run(full_above(0))
    assert _seen == [1000 // 2**n for n in range(HALVINGS + 1)]


@pytest.mark.parametrize(
    "error",
    [
        UserError("CUDA out of memory", where="x", fix="y"),
        FloatingPointError("the loss is NaN"),
        RuntimeError("shapes do not match"),
        OSError(28, "No space left on device"),
    ],
)
def test_what_less_at_once_does_not_help_is_raised_at_once(run: Callable[..., Entry], error: Exception) -> None:
    def behaviour(context: StageContext) -> None:
        raise error

    with pytest.raises((UserError, type(error))):  # of a full disk the store makes a UserError
        run(behaviour)
    assert _seen == [1000]


def test_a_stage_that_reads_none_of_the_sizes_is_not_tried_again(run: Callable[..., Entry]) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        run(full_above(300), "sft")
    assert _seen == [1000]


def test_the_stages_tried_again_are_those_that_read_a_size() -> None:
    def reads(module: str) -> bool:
        """By itself or by a module of the stages it is made of."""
        text = (Path("src") / (module.replace(".", "/") + ".py")).read_text()
        parts = re.findall(r"from (inverse_alignment\.stages\.\w+) import", text)
        return any(f"runtime.{name}" in text for name in SIZES) or any(map(reads, parts))

    assert sorted(IN_PARTS) == sorted(name for name, spec in STAGES.items() if reads(spec.module))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (LaunchFailed("process 1 of 2 of ppo failed: OutOfMemoryError: CUDA out of memory."), True),
        (LaunchFailed("process 1 of 2 of ppo failed: ValueError: x"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) is expected


@pytest.mark.ops
def test_real_ppo_with_half_as_much_at_once_learns_the_same_within_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real loop on a small policy; the first attempt fails in the second step, after rows have been written."""
    write_dataset(tmp_path / "data", WORLD)
    sources = [{"format": "jsonl", "name": "advice", "path": str(tmp_path / "data" / "pairs.jsonl")}]
    data = {**SMALL["data"], "sources": sources}
    runtime = {**SMALL["runtime"], "training_tokens": 256, "checkpoint_seconds": 3600}
    arms = {"none": {"selection": {"type": "none"}}}
    config = PipelineConfig.model_validate({**SMALL, "rounds": 1, "data": data, "arms": arms, "runtime": runtime})
    node = "none-s0-r1-ppo"
    weights = []
    for place, failures in (("straight", 0), ("halved", 1)):
        if failures:
            shutil.copytree(tmp_path / "straight", tmp_path / place, ignore=shutil.ignore_patterns("ppo"))
            _fail_once(monkeypatch)
        execute = Execute(Store(tmp_path / place), config.runtime)
        _, entry = run_up_to(lambda: compare(config), node, execute)
        used = json.loads((Path(entry.artifact.uri) / RUNTIME).read_text())["runtime"]
        assert not entry.reused and used["training_tokens"] == 256 // 2**failures
        weights.append(load_file(Path(entry.artifact.uri) / "policy" / "model.safetensors"))
    straight, halved_ = weights
    largest = max(float((straight[name] - halved_[name]).abs().max()) for name in straight)
    assert 0 < largest < 1e-5  # other sums, and no other numbers


def _fail_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, report: Report) -> None:
            self.report = report

        def __getattr__(self, name: str) -> Any:
            return getattr(self.report, name)

        def log(self, step: int, values: Mapping[str, float]) -> None:
            if step == 2:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            self.report.log(step, values)

    real = ppo.build

    def once(inputs: Mapping[str, Path], config: Section, context: StageContext) -> dict[str, Any]:
        monkeypatch.setattr(ppo, "build", real)
        return real(inputs, config, replace(context, report=Full(context.report)))

    monkeypatch.setattr(ppo, "build", once)


def test_what_cannot_be_halved_any_more_is_not() -> None:
    least = RUNTIME_CONFIG.model_copy(update=dict.fromkeys(SIZES, 1))
    assert list(halved(least)) == []
