"""Checkpoints of TRL trainers: sealed by us, and no pickle in them is ever run."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from transformers.trainer_pt_utils import safe_globals

from inverse_alignment.core import checkpoint
from inverse_alignment.core.artifact import list_files
from inverse_alignment.core.metrics import FileReport
from inverse_alignment.models.trl_training import arguments
from inverse_alignment.optimise.supervised import demonstrations, fine_tune
from tests.unit.models import tiny

TEXTS = ["the cat", "a cat sat", "cat on the mat", "the cat."]
PICKLED = {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
PLAIN = {".json", ".jinja", ".txt"}


class Killed(BaseException):
    """Stands in for a kill."""


class Report(FileReport):
    """Dies once 15 steps are done."""

    deadly = True

    def progress(self, done: int, total: int, unit: str) -> None:
        if self.deadly and done == 15:
            raise Killed


class Evil:
    """Unpickled in full, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def train(partial: Path, deadly: bool) -> None:
    report = Report(partial / "metrics.jsonl")
    report.deadly = deadly
    rows = demonstrations(tiny.tokenizer(), [(tiny.PROMPTS[1], TEXTS[i % 4]) for i in range(48)], 48)
    given = arguments(
        partial=partial, device="cpu", seed=0, epochs=2, learning_rate=5e-3, batch_size=4, warmup_share=0.1
    )
    fine_tune(tiny.policy(), tiny.tokenizer(), rows, given, partial, report, 1e-9)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    partial = tmp_path_factory.mktemp("killed")
    with pytest.raises(Killed):
        train(partial, deadly=True)
    return partial


def test_a_checkpoint_holds_what_loads_without_running_anything(killed):
    folder = killed / "checkpoint-10"
    names = {name for name in list_files(folder) if Path(name).suffix not in PLAIN}
    assert names == {"model.safetensors", *PICKLED}  # no training_args.bin, which only a full unpickling reads
    for name in PICKLED:
        with safe_globals():
            torch.load(folder / name, weights_only=True)
    manifest = json.loads((folder / checkpoint.SEAL).read_text())
    assert set(manifest["files"]) == set(list_files(folder)) - {checkpoint.SEAL}
    assert manifest["step"] == 10 and list(manifest["rows"]) == ["metrics.jsonl"]


@pytest.mark.parametrize("name", sorted(PICKLED))
@pytest.mark.parametrize("form", ["zip", pytest.param("plain", marks=pytest.mark.slow)])
def test_a_pickle_in_it_is_not_run_even_if_it_is_sealed(killed, tmp_path, name, form):
    partial, proof = tmp_path / "partial", tmp_path / "it-ran"
    shutil.copytree(killed, partial)
    path = partial / "checkpoint-10" / name
    if form == "zip":
        torch.save(Evil(proof), path)
    else:
        path.write_bytes(pickle.dumps(Evil(proof)))
    checkpoint.adopt(partial, 10)
    assert checkpoint.newest(partial) == partial / "checkpoint-10"
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        train(partial, deadly=False)
    assert not proof.exists()


def test_the_pickle_would_run_if_it_were_loaded_in_full(tmp_path):
    """Negative control."""
    torch.save(Evil(tmp_path / "it-ran"), tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert (tmp_path / "it-ran").exists()
