"""A stage that is asked to stop writes a checkpoint, ends, and goes on to the same bytes as one that nobody asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from inverse_alignment.core import checkpoint
from inverse_alignment.core.artifact import METRICS, list_files
from inverse_alignment.core.metrics import FileReport, Stopped
from inverse_alignment.stages.reward_model import RewardStage, TrainReward
from inverse_alignment.stages.sft import SftStage, TrainSft
from tests.stages import chain


class Asked(FileReport):
    """Asks to stop once the stage has said that it did something."""

    done = 0

    def progress(self, done: int, total: int, unit: str) -> None:
        self.done = done

    def stopping(self) -> bool:
        return self.done >= 2


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> chain.Chain:
    made = chain.shared_start(chain.Chain(tmp_path_factory.mktemp("stopping")))
    chain.select(made, "selection", chain.SimilaritySelection(keep=chain.TopK(k=40)))
    chain.refresh(made, "refreshed", chain.REFRESH)
    return made


def jobs(start: chain.Chain) -> dict[str, tuple[str, dict[str, Path], object]]:
    data = {"preferences": start.made["preferences"], "tokenizers": start.made["tokenizers"]}
    sft = SftStage(sft=TrainSft(sources=("coach", "novice"), answers="both", epochs=2), model=chain.MODEL)
    reward = RewardStage(reward=TrainReward(epochs=2, batch_size=8), model=chain.MODEL)
    rollouts = {"reference_rollouts": start.made["reference_rollouts"], "trunk": start.made["sft"] / "policy"}
    return {
        "sft": ("sft", data, sft),
        "reward": ("reward_model", {**data, **rollouts}, reward),
        "ppo": ("ppo", chain.ppo_inputs(start, "refreshed"), chain.ppo_stage()),
    }


@pytest.mark.slow
@pytest.mark.parametrize("job", [*(pytest.param(job, marks=pytest.mark.slow) for job in ("sft", "reward")), "ppo"])
def test_asked_to_stop_and_run_again_it_ends_with_the_same_bytes(start, job):
    stage, inputs, config = jobs(start)[job]
    expected = start.run(f"{job}-straight", stage, inputs, config)
    with pytest.raises(Stopped, match="stopped after"):
        start.run(f"{job}-stopped", stage, inputs, config, report=Asked)
    shutil.rmtree(start.root / f"{job}-stopped")  # scratch; what survives is the partial state
    partial = start.partial(f"{job}-stopped")
    assert checkpoint.newest(partial) is not None
    found = start.run(f"{job}-stopped", stage, inputs, config)
    assert list_files(found) == list_files(expected)
    for file in list_files(expected):
        assert (found / file).read_bytes() == (expected / file).read_bytes(), file
    assert (partial / METRICS).read_bytes() == (start.partial(f"{job}-straight") / METRICS).read_bytes()
