"""Run by a test under `accelerate launch --config_file launch/fsdp2.yaml`: training sharded over processes on the CPU.

accelerate shards on accelerators alone. Here it is told that these processes have some, which talk over gloo and are
CPUs; all else is as on GPUs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch import distributed

from inverse_alignment.core.metrics import FileReport, Stopped
from inverse_alignment.core.parallel import group
from inverse_alignment.models.trl_training import arguments
from inverse_alignment.optimise.supervised import demonstrations, fine_tune
from inverse_alignment.reward.bradley_terry import PairLoss, fit, pair_rows
from tests.unit.models import tiny

ANSWERS = ["the cat", "a cat sat", "cat on the mat", "the cat. the end"]
PAIRS = [tiny.pair(f"q{i}", ANSWERS[i % 4], "a dog" + "s" * (i % 5), i, weight=1.0 + i % 3) for i in range(49)]
LOSS = PairLoss(smoothing=0.0, centring=0.01, use_margins=False)


class Asked(FileReport):
    """Asks to stop after ten steps, if it is told to."""

    asks = False

    def stopping(self) -> bool:
        return self.asks


def trained(kind: str, partial: Path, stop: bool, device: str) -> torch.nn.Module:
    """A policy fine-tuned or a reward model fitted; the batches of four do not come out even."""
    report = Asked(partial / f"metrics{'' if group().rank == 0 else group().rank}.jsonl")
    report.asks = stop
    given = arguments(
        partial=partial, device=device, seed=0, epochs=2, learning_rate=5e-3, batch_size=4, warmup_share=0.1
    )
    given["dataloader_pin_memory"] = False  # these are no GPUs
    if kind == "sft":
        model = tiny.policy()
        rows = demonstrations(tiny.tokenizer(), [(pair.prompt, pair.chosen) for pair in PAIRS], 48)
        fine_tune(model, tiny.tokenizer(), rows, given, partial, report, 3600)
    else:
        model = tiny.reward_model()
        fit(
            model,
            tiny.tokenizer(),
            pair_rows(tiny.tokenizer(), PAIRS, [1.0] * 49, 48),
            given,
            LOSS,
            partial,
            report,
            3600,
        )
    return model


def main(folder: Path) -> None:
    """Both kinds, each straight through and stopped once; what rank 0 has in the end."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda self, *given, **more: ("gloo", DistributedType.MULTI_GPU)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    for kind in ("sft", "reward"):
        for how in ("straight", "stopped"):
            partial = folder / kind / how
            partial.mkdir(parents=True, exist_ok=True)
            group().wait()
            if how == "stopped":
                try:
                    trained(kind, partial, True, "cuda")
                except Stopped as stopped:
                    (partial / "stopped.txt").write_text(str(stopped))
            model = trained(kind, partial, False, "cuda")
            if group().rank == 0:
                save_file(
                    {name: w.contiguous().clone() for name, w in model.state_dict().items()}, partial / "w.safetensors"
                )
                assert all(type(weight) is torch.nn.Parameter for weight in model.parameters())
    (folder / f"{group().rank}.json").write_text(json.dumps(os.environ["ACCELERATE_USE_FSDP"]))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
