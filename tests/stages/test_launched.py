"""The stages that train, started as two processes by real launchers, on the CPU.

Their losses are those of one process within 1e-5, the order of sums being all that differs. Asked to stop they leave a
checkpoint and nobody behind, and the same command goes on to the very bytes of a run that nobody asked.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from inverse_alignment.core import checkpoint
from inverse_alignment.core.artifact import METRICS, RECORD, RUNTIME, list_files
from inverse_alignment.core.context import StageContext
from inverse_alignment.core.launchers import Accelerate, Torchrun
from inverse_alignment.core.metrics import FileReport, never, read_metrics
from inverse_alignment.core.store import STAMP
from inverse_alignment.optimise.credit_settings import RedistributedCredit, TokenCredit
from inverse_alignment.stages.refresh import RefreshStage
from inverse_alignment.stages.registry import STAGES
from inverse_alignment.stages.reward_model import RewardStage, TrainReward
from inverse_alignment.stages.sft import SftStage, TrainSft
from inverse_alignment.stages.token_reward import TokenRewardConfig, TokenRewardStage
from tasks import launch
from tests.stages import chain

pytestmark = pytest.mark.slow
CLOSE = 1e-5
LAUNCHERS = {"torchrun": Torchrun(processes=2), "accelerate": Accelerate(config="launch/ddp.yaml", processes=2)}
BATCH = 14  # the last batches are not full, and so small that one process has nothing to learn from


def jobs(made: chain.Chain) -> dict[str, tuple[str, dict[str, Path], object]]:
    """Stage, inputs and configuration."""
    data = {name: made.made[name] for name in ("preferences", "tokenizers")}
    rollouts = {"reference_rollouts": made.made["reference_rollouts"]}
    reward = {"reward": made.made["reward"] / "model"}
    preferences = {"preferences": made.made["preferences"]}
    ppo, token = chain.ppo_inputs(made, "refreshed"), {"token_reward": made.made["token_reward"] / "model"}
    sft = TrainSft(sources=("coach", "novice"), answers="both", epochs=3, batch_size=BATCH)
    refresh = {**reward, **rollouts, **preferences, "selection": made.made["selection"]}
    return {
        "sft": ("sft", data, SftStage(sft=sft, model=chain.MODEL)),
        "reward": (
            "reward_model",
            {**data, **rollouts, "trunk": made.made["sft"] / "policy"},
            RewardStage(reward=TrainReward(epochs=2, batch_size=BATCH), model=chain.MODEL),
        ),
        "token": (
            "token_reward",
            {**preferences, **reward},
            TokenRewardStage(token_reward=TokenRewardConfig(most_edited=1.0, epochs=1, batch_size=BATCH), context=128),
        ),
        "refresh": (
            "refresh",
            {**refresh, "rollouts": rollouts["reference_rollouts"]},
            RefreshStage(refresh=chain.REFRESH, context=chain.MODEL.context),
        ),
        "ppo": ("ppo", ppo, chain.ppo_stage()),
        "ppo, red": ("ppo", ppo, chain.ppo_stage(chain.PPO.model_copy(update={"credit": RedistributedCredit()}))),
        "ppo, token": (
            "ppo",
            {**ppo, **token},
            chain.ppo_stage(chain.PPO.model_copy(update={"credit": TokenCredit()})),
        ),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> chain.Chain:
    """What the jobs need."""
    found = chain.shared_start(chain.Chain(tmp_path_factory.mktemp("launched")))
    chain.select(found, "selection", chain.SimilaritySelection(keep=chain.TopK(k=40)))
    chain.refresh(found, "refreshed", chain.REFRESH)
    chain.token_reward(found)
    return found


def built(folder: Path, job: tuple[str, dict[str, Path], object], launcher=None) -> tuple[Path, list, dict]:
    """The output of a job in one process, or in two; its rows and its metrics."""
    stage, inputs, config = job
    out, partial = folder / "out", folder / "partial"
    out.mkdir(parents=True)
    partial.mkdir()
    runtime = chain.RUNTIME if launcher is None else chain.RUNTIME.model_copy(update={"launcher": launcher})
    context = StageContext(out, partial, FileReport(partial / METRICS), runtime)
    module = STAGES[stage].module
    if launcher is None:
        metrics = importlib.import_module(module).build(inputs, config, context)
    else:
        metrics = launch.build(module, inputs, config, context, lambda *news: None, never)
    return out, read_metrics(partial / METRICS), metrics


@pytest.mark.parametrize(
    ("name", "launcher"),
    [
        ("sft", "accelerate"),
        ("reward", "torchrun"),
        ("token", "torchrun"),
        ("refresh", "accelerate"),
        ("ppo", "accelerate"),
        ("ppo, red", "torchrun"),
        ("ppo, token", "torchrun"),
    ],
)
def test_two_processes_have_the_losses_of_one(made, tmp_path, name, launcher):
    job = jobs(made)[name]
    one, rows, metrics = built(tmp_path / "one", job)
    two, found, measured = built(tmp_path / "two", job, LAUNCHERS[launcher])
    assert [row.keys() for row in found] == [row.keys() for row in rows] and rows
    counted = ("clipped_share", "value_clipped_share")  # rounding alone can move a token across a bound
    for theirs, ours in zip(found, rows, strict=True):
        assert {n: v for n, v in theirs.items() if n not in counted} == pytest.approx(
            {n: v for n, v in ours.items() if n not in counted}, abs=CLOSE, rel=CLOSE
        )
    for key, value in metrics.items():
        assert measured[key] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-4, rel=1e-4)), key
    assert list_files(two) == list_files(one)
    for file in list_files(one):
        if file.endswith("model.safetensors"):
            theirs, ours = load_file(two / file), load_file(one / file)
            assert all((theirs[key] - ours[key]).abs().max() < 1e-3 for key in ours), file


def started(folder: Path, job: tuple[str, dict[str, Path], object], launcher) -> subprocess.Popen[str]:
    """The job in a process of its own, which launches two."""
    stage, inputs, config = job
    runtime = chain.RUNTIME.model_copy(update={"launcher": launcher})
    context = StageContext(folder, folder, FileReport(folder / "m"), runtime)
    order = {"job": vars(launch.Job.of(STAGES[stage].module, inputs, config, context)), "store": str(folder / "store")}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.stages.launched", json.dumps(order)],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},
        text=True,
    )


def ranks(folder: Path) -> list[psutil.Process]:
    """Launchers and processes of jobs below a folder."""
    every = psutil.process_iter(["cmdline", "status"])
    living = (one for one in every if one.info["status"] != psutil.STATUS_ZOMBIE)
    return [one for one in living if f"tasks.rank {folder}" in " ".join(one.info["cmdline"] or ())]


def all_steps(artifact: Path) -> float:
    """Steps of a whole run."""
    return read_metrics(artifact / METRICS)[-1]["step"]


def finished(process: subprocess.Popen[str]) -> Path:
    """Where the artifact lies."""
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    return Path(out.splitlines()[-1].partition(" ")[2])


@pytest.mark.parametrize(("name", "launcher"), [("ppo", "torchrun"), ("ppo", "accelerate"), ("sft", "torchrun")])
def test_asked_to_stop_and_run_again_it_ends_with_the_same_bytes(made, tmp_path, name, launcher):
    stage, inputs, config = jobs(made)[name]
    if stage == "ppo":
        config = chain.ppo_stage(chain.PPO.model_copy(update={"steps": 30}))
    job, how = (stage, inputs, config), LAUNCHERS[launcher]
    (tmp_path / "straight").mkdir()
    expected = finished(started(tmp_path / "straight", job, how))
    process = started(tmp_path, job, how)
    assert process.stdout is not None
    while process.stdout.readline().strip() not in ("3", "4", "5"):
        assert process.poll() is None
    assert len(ranks(tmp_path)) >= 3  # a launcher and two processes
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM and time.monotonic() - began < 25
    assert not ranks(tmp_path)
    (partial,) = (tmp_path / "store" / ".partial" / stage).iterdir()
    (step,) = checkpoint.steps(partial)  # nobody else had one written, within so few seconds
    assert step < all_steps(expected) and checkpoint.newest(partial) is not None
    found = finished(started(tmp_path, job, how))
    about = (RECORD, RUNTIME, STAMP)
    files = [file for file in list_files(expected) if file not in about]
    assert [file for file in list_files(found) if file not in about] == files
    for file in files:
        assert (found / file).read_bytes() == (expected / file).read_bytes(), file
