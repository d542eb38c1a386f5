"""A small project whose stages are real, run by processes of their own that can be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from benchmarks.resume.points import Point
from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.artifact import RUNTIME, list_files
from inverse_alignment.core.store import STAMP, Entry, Store
from inverse_alignment.world.text import WorldConfig, write_dataset
from tasks.run_stage import Execute, Node, ancestors, draw, run_up_to

MOST_SECONDS = 120
OFTEN = 1e-9  # seconds between checkpoints: one whenever there may be one
MODEL = {"type": "initialise", "vocab_size": 320, "hidden_size": 16, "layers": 1, "heads": 2, "context": 96}
ARMS: dict[str, dict[str, Any]] = {
    "main": {"selection": {"type": "random", "k": 40}},
    "hard": {
        "selection": {"type": "none"},
        "ppo": {"reference": {"type": "hard", "every": 2}, "kl": {"type": "adaptive", "target": 0.5, "horizon": 50}},
    },
    "soft": {"selection": {"type": "none"}, "ppo": {"reference": {"type": "soft", "alpha": 0.2}}},
    "lora-hard": {
        "selection": {"type": "none"},
        "ppo": {"lora": {"rank": 2, "alpha": 4.0}, "reference": {"type": "hard", "every": 2}},
    },
    "lora-soft": {
        "selection": {"type": "none"},
        "ppo": {"lora": {"rank": 2, "alpha": 4.0}, "reference": {"type": "soft", "alpha": 0.2}},
    },
    "adapted": {
        "selection": {"type": "random", "k": 40},
        "refresh": {"rule": {"type": "lora", "rank": 2, "alpha": 4.0}},
    },
    "meta": {
        "selection": {"type": "random", "k": 40},
        "refresh": {"rule": {"type": "meta", "prompts": 3, "rate": 0.1}},
    },
    "between": {
        "selection": {"type": "none"},
        "ppo": {"start": {"type": "interpolate", "share": 0.5}, "reference": {"type": "last_round"}},
    },
    "lora-between": {
        "selection": {"type": "none"},
        "ppo": {
            "lora": {"rank": 2, "alpha": 4.0},
            "start": {"type": "interpolate", "share": 0.5},
            "reference": {"type": "last_round"},
        },
    },
    "token": {"selection": {"type": "none"}, "ppo": {"credit": {"type": "token"}}},
    "shared": {
        "selection": {"type": "none"},
        "ppo": {"critic": {"type": "shared"}, "kl": {"type": "adaptive", "target": 0.5, "horizon": 50}},
    },
    "direct-hard": {
        "selection": {"type": "none"},
        "optimise": {"type": "tr_dpo", "epochs": 2, "batch_size": 5, "reference": {"type": "hard", "every": 8}},
    },
    "direct-soft": {
        "selection": {"type": "none"},
        "optimise": {"type": "tr_kto", "epochs": 2, "batch_size": 10, "reference": {"type": "soft", "alpha": 0.2}},
    },
    "direct-lora": {
        "selection": {"type": "none"},
        "optimise": {
            "type": "tr_ipo",
            "epochs": 2,
            "batch_size": 5,
            "lora": {"rank": 2, "alpha": 4.0},
            "reference": {"type": "soft", "alpha": 0.2},
        },
    },
    "direct-ava": {"selection": {"type": "none"}, "optimise": {"type": "ava_p", "epochs": 2, "batch_size": 5}},
}
SMALL: dict[str, Any] = {  # differences from params.yaml
    "data": {"aggregate": {"shares": {"train": 0.55, "validation": 0.15, "gate": 0.15, "test": 0.15}}},
    "models": {"policy": MODEL, "reward": MODEL},
    "sft": {"type": "train", "epochs": 2, "batch_size": 5},
    "reward": {"type": "train", "epochs": 2, "batch_size": 5},
    "reference_sample": {"prompts": 8, "samples": 2, "max_new_tokens": 8},
    "rounds": 2,
    "rollout": {"prompts": 8, "samples": 2, "max_new_tokens": 8},
    "refresh": {"pairs_seen": 140, "batch_size": 4, "gate": {"type": "off"}},
    "token_reward": {"most_edited": 1.0, "epochs": 1, "batch_size": 5},
    "ppo": {
        "steps": 4,
        "batch_size": 8,
        "epochs": 2,
        "minibatches": 2,
        "max_new_tokens": 8,
        "value_warmup_steps": 1,
        "samples_every": 2,
    },
    "arms": ARMS,
    "runtime": {"device": "cpu", "threads": 1, "checkpoint_seconds": OFTEN},
}
WORLD = WorldConfig(prompts=48, pairs=160)


@dataclass(frozen=True)
class Order:
    """What a process is to do: run one node and what it needs.

    Attributes:
        config: of the pipeline.
        said: where it says, as JSON, at which unit of work each node began.
        printed: where its output goes.
        points: what is wrong with it.
    """

    store: Path
    config: dict[str, Any]
    target: str
    said: Path
    printed: Path
    points: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Ran:
    """How a process ended.

    Attributes:
        code: exit code, negative for a signal.
        began: the units of work that each node had behind it when it first reported.
        made: the folder in the store of each finished node's artifact.
        printed: standard output and error.
    """

    code: int | None
    began: dict[str, int]
    made: dict[str, str]
    printed: str


@dataclass(frozen=True)
class Project:
    """A store in a folder, and the configuration that fills it."""

    folder: Path
    data: Path

    @property
    def store(self) -> Store:
        """The artifacts."""
        return Store(self.folder / "artifacts")

    def config(self, **runtime: Any) -> dict[str, Any]:
        """The pipeline's configuration; keys of `runtime` may differ."""
        sources = [{"format": "jsonl", "name": "advice", "path": str(self.data)}]
        return {
            **SMALL,
            "data": {**SMALL["data"], "sources": sources},
            "runtime": {**SMALL["runtime"], **runtime},
            "store": str(self.folder / "artifacts"),
        }

    def run(self, target: str, points: tuple[Point, ...] = (), **runtime: Any) -> Ran:
        """Run a node and what it needs in a process, and wait for its end."""
        said, printed = self.folder / "said.json", self.folder / "printed.txt"
        said.unlink(missing_ok=True)
        order = Order(self.folder / "artifacts", self.config(**runtime), target, said, printed, points)
        process = _context().Process(target=obey, args=(order,))
        process.start()
        process.join(MOST_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        heard = json.loads(said.read_text()) if said.exists() else {"began": {}, "made": {}}
        return Ran(
            process.exitcode,
            heard["began"],
            heard["made"],
            printed.read_text(errors="replace") if printed.exists() else "",
        )

    def clone(self, folder: Path, made: Mapping[str, str], kept: Iterable[str]) -> Project:
        """A project that has the artifacts of some nodes only.

        Args:
            made: the folder in the store of each node's artifact.
        """
        for place in {made[name] for name in kept}:
            shutil.copytree(self.store.root / place, folder / "artifacts" / place)
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
        return Project(folder, self.data)

    def partial(self, stage: str) -> Path:
        """Where the one unfinished artifact of a stage keeps its checkpoints."""
        (found,) = (self.store.root / ".partial" / stage).iterdir()
        return found


def create(folder: Path) -> Project:
    """A project with data and nothing made of them."""
    data = folder / "data"
    write_dataset(data, WORLD)
    return Project(folder, data / "pairs.jsonl")


def differing(expected: Path, found: Path) -> list[str]:
    """The files in which two artifacts differ, byte by byte; where and how long it ran is no part of one."""
    names = [{name for name in list_files(folder) if name not in (RUNTIME, STAMP)} for folder in (expected, found)]
    return sorted(
        name
        for name in names[0] | names[1]
        if name not in names[0] & names[1] or (expected / name).read_bytes() != (found / name).read_bytes()
    )


def graph(project: Project) -> list[Node]:
    """Every node that the project's configuration asks for."""
    return draw(_flow(PipelineConfig.model_validate(project.config())))


def needed(nodes: Sequence[Node], targets: Iterable[str]) -> set[str]:
    """The targets and all that they need."""
    wanted = set(targets)
    return wanted.union(*(ancestors(nodes, target) for target in wanted))


def _flow(config: PipelineConfig) -> Any:
    from flows.compare import compare

    return lambda: compare(config)


# --- inside the process -----------------------------------------------------------------------------------------------


@dataclass
class Heard:
    """An observer that writes down at once what it hears: its process may be killed."""

    path: Path
    store: Path
    began: dict[str, int] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)

    def started(self, node: Node, why: str) -> None:
        """See `Observer.started`."""

    def progress(self, node: Node, done: int, total: int, unit: str, values: Mapping[str, float]) -> None:
        """See `Observer.progress`."""
        if node.name not in self.began:
            self.began[node.name] = done - 1
            self._write()

    def finished(self, node: Node, entry: Entry, seconds: float) -> None:
        """See `Observer.finished`."""
        self.made[node.name] = str(Path(entry.artifact.uri).relative_to(self.store))
        self._write()

    def failed(self, node: Node, error: BaseException) -> None:
        """See `Observer.failed`."""

    def _write(self) -> None:
        self.path.write_text(json.dumps({"began": self.began, "made": self.made}))


def obey(order: Order) -> None:
    """Run a node in this process, which leads a group of its own."""
    import numpy as np
    import torch

    os.setsid()
    with order.printed.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    chaos = int.from_bytes(os.urandom(4), "little")  # whoever needs a seed must bring it along
    random.seed(chaos)
    np.random.seed(chaos)
    torch.manual_seed(chaos)
    torch.set_num_threads(1)
    for point in order.points:
        point.install()
    config = PipelineConfig.model_validate(order.config)
    heard = Heard(order.said, order.store)
    run_up_to(_flow(config), order.target, Execute(Store(order.store), config.runtime, (heard,)))
    sys.stdout.flush()


def _context() -> ForkServerContext:
    """Processes forked off one that has imported everything: seconds of imports are paid once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.resume.preloaded"])
    return context
