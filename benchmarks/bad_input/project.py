"""A small project that has run once, copies of it to spoil, and the real command line inside them.

`python -m benchmarks.bad_input.project` runs the whole comparison of the project it is started in, without a server.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from inverse_alignment.config import merge, read_yaml
from inverse_alignment.core.artifact import RECORD, digest_of, list_files, sha256_file
from inverse_alignment.world.text import WorldConfig, write_dataset

ROOT = Path(__file__).parents[2]
PAIRS = "data/advice/pairs.jsonl"
WORLD = WorldConfig(prompts=48, pairs=160)
CONTEXT = 256
SMALL: dict[str, Any] = {  # differences from params.yaml: every stage for real, each within seconds
    "data": {"aggregate": {"shares": {"train": 0.55, "validation": 0.15, "gate": 0.15, "test": 0.15}}},
    "models": {
        role: {"vocab_size": 400, "hidden_size": 16, "layers": 1, "heads": 2, "context": CONTEXT}
        for role in ("policy", "reward")
    },
    "sft": {"epochs": 1},
    "reference_sample": {"prompts": 8, "samples": 2, "max_new_tokens": 8},
    "rounds": 1,
    "rollout": {"prompts": 8, "samples": 2, "max_new_tokens": 8},
    "refresh": {"pairs_seen": 32, "batch_size": 16, "gate": {"resamples": 100}},
    "ppo": {"steps": 1, "batch_size": 8, "minibatches": 2, "max_new_tokens": 8, "value_warmup_steps": 1},
    "evaluation": {"prompts": 4, "samples": 2, "max_new_tokens": 8, "shown_prompts": 1},
    "arms": {
        "random": {"selection": {"k": 20}},
        "similarity": {"selection": {"keep": {"k": 20}, "compare_with": "all_rollouts"}},
    },
    "tracking": {"mlflow_uri": ""},
}
MODEL = "models/tiny"
TRAINED_REWARD = "models/reward"


@dataclass(frozen=True)
class Said:
    """What a command printed and how it ended.

    Attributes:
        out: standard output.
        err: standard error.
        code: exit code.
        seconds: from the start of the process to the line that begins with `error:`, or to its end if there is none.
        total_seconds: to its end.
    """

    out: str
    err: str
    code: int
    seconds: float
    total_seconds: float


@dataclass(frozen=True)
class Project:
    """A project's folder, as a user has it: params.yaml, data, models and the artifacts of an earlier run."""

    folder: Path
    wrapper: tuple[str, ...] = field(default=(), kw_only=True)

    # ------------------------------------------------------------------------------------------ files to spoil

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file, its folders included."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the project's own preferences."""
        return [json.loads(line) for line in (self / PAIRS).read_text(encoding="utf-8").splitlines()]

    def edit_row(self, number: int, change: Callable[[dict[str, Any]], Any]) -> None:
        """Replace one row, counted from 1, by what `change` gives for it; if it gives None, it changed the row."""
        rows = self.rows()
        changed = change(rows[number - 1])
        rows[number - 1] = rows[number - 1] if changed is None else changed
        self.write(PAIRS, lines(rows))

    def edit_line(self, number: int, change: Callable[[bytes], bytes]) -> None:
        """Replace the bytes of one line, counted from 1."""
        every = (self / PAIRS).read_bytes().splitlines()
        every[number - 1] = change(every[number - 1])
        self.write(PAIRS, b"\n".join(every) + b"\n")

    def edit_params(self, **changes: Any) -> None:
        """Merge changes into params.yaml, section by section."""
        values = merge(read_yaml(self / "params.yaml"), changes)
        self.write("params.yaml", yaml.safe_dump(values, sort_keys=False))

    def edit_json(self, name: str, **changes: Any) -> None:
        """Change keys of a JSON file; None removes one."""
        values = {**json.loads((self / name).read_text(encoding="utf-8")), **changes}
        self.write(name, json.dumps({key: value for key, value in values.items() if value is not None}))

    def checkpoint(self, role: str, path: str = MODEL, context: int = CONTEXT, **more: Any) -> None:
        """Let params.yaml start the policy or the reward model from a checkpoint."""
        self.edit_params(models={role: {"type": "checkpoint", "path": path, "context": context, **more}})

    def sources(self, *sources: dict[str, Any], **settings: Any) -> None:
        """Let params.yaml name these sources besides the project's own; nobody knows the gold of foreign data."""
        own = {"format": "jsonl", "name": "advice", "path": PAIRS}
        self.edit_params(data={"sources": [own, *sources], **settings}, evaluation={"gold": {"type": "none"}})

    # ------------------------------------------------------------------------------------------ commands

    def command(self, *arguments: str, timeout: float = 120) -> Said:
        """Run `inverse-alignment` here, in a process of its own, and watch when it says what is wrong."""
        call = [*self.wrapper, sys.executable, "-m", "flows.cli", *arguments]
        began = time.monotonic()
        with subprocess.Popen(
            call,
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            out: list[str] = []
            reading = threading.Thread(target=lambda: out.extend(process.stdout or ()))
            reading.start()
            killer = threading.Timer(timeout, lambda: os.killpg(process.pid, signal.SIGKILL))
            killer.start()
            err: list[str] = []
            said: float | None = None
            for line in process.stderr:
                if said is None and line.startswith("error:"):
                    said = time.monotonic() - began
                err.append(line)
            code = process.wait()
            killer.cancel()
            reading.join()
        total = time.monotonic() - began
        return Said("".join(out), "".join(err), code, total if said is None else said, total)

    def plan(self) -> tuple[int, int] | None:
        """How many stages there are, and how many of them a run would reuse; None if it cannot be planned."""
        said = self.command("plan")
        last = said.out.strip().splitlines()[-1].split() if said.code == 0 else []
        return (int(last[0]), int(last[2])) if len(last) > 3 and last[1] == "stages:" else None

    # ------------------------------------------------------------------------------------------ what is finished

    def finished(self) -> dict[str, str]:
        """Each finished artifact with a checksum over all its files."""
        store = self / "artifacts"
        return {
            str(record.parent.relative_to(store)): digest_of(
                {
                    name: sha256_file(record.parent / name)
                    for name in list_files(record.parent)
                    if name != ".verified.json"
                }
            )
            for record in sorted(store.glob(f"*/*/{RECORD}"))
        }

    def half_written(self) -> list[str]:
        """What lies in the store and is neither finished nor partial state."""
        store = self / "artifacts"
        visible = [path for path in store.glob("*/*") if not path.parent.name.startswith(".")]
        half = [path for path in visible if not (path / RECORD).is_file()]
        left = [store / ".scratch" / name for name in list_files(store / ".scratch")]
        return sorted(str(path.relative_to(store)) for path in (*half, *left))


def lines(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as JSONL."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def environment() -> dict[str, str]:
    """This code for the child, the network out of reach, no colours and no wide terminal."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    return {**kept, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"}


def prepare(folder: Path, say: Callable[[str], None]) -> Project:
    """Make the project and run it once, so that there is something to lose; a minute."""
    project = Project(folder)
    folder.mkdir(parents=True)
    write_dataset(folder / "data" / "advice", WORLD)
    project.write("params.yaml", yaml.safe_dump(merge(read_yaml(ROOT / "params.yaml"), SMALL), sort_keys=False))
    say("running a small project once, so that there is something to lose")
    subprocess.run([sys.executable, "-m", "benchmarks.bad_input.project"], cwd=folder, env=environment(), check=True)
    return project


def copy(project: Project, to: Path) -> Project:
    """A copy whose files may be changed: those of finished artifacts are copied too, since losing them is the point."""
    shutil.copytree(project.folder, to, symlinks=True)
    return Project(to)


def main() -> None:
    """Run everything, and write two checkpoints as users have them."""
    from flows.compare import compare
    from inverse_alignment.config import load
    from inverse_alignment.core.store import open_store
    from tasks.run_stage import Execute, driving

    config = load()
    with driving(Execute(open_store(config.store), config.runtime)):
        compare(config)
    for stage, part, name in (("sft", "policy", MODEL), ("reward_model", "model", TRAINED_REWARD)):
        made = next(_made(Path(config.store) / stage))
        shutil.copytree(made / part, Path(name), ignore=shutil.ignore_patterns("calibration.json"))


def _made(stage: Path) -> Iterator[Path]:
    yield from (record.parent for record in sorted(stage.glob(f"*/{RECORD}")))


if __name__ == "__main__":
    main()
