"""Cases of the configuration and of the machine: keys, values, presets, places that cannot be written, full devices."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.bad_input.case import Case
from benchmarks.bad_input.project import CONTEXT, Project


def nothing(project: Project) -> None:
    """The mistake is on the command line."""


def set_to(*overrides: str) -> tuple[str, ...]:
    """`run` with overrides."""
    return ("run", *(word for override in overrides for word in ("--set", override)))


def setting(name: str, override: str, what: str, fix: str, key: str | None = None) -> Case:
    """A case of one wrong value on the command line."""
    wanted = key or override.partition("=")[0]
    return Case(name, nothing, (what,), (wanted, f"--set {override}"), (fix,), set_to(override))


def disagreement(name: str, override: str, what: str, fix: str, key: str) -> Case:
    """A case of values that are right each by itself, so that only the key can be named."""
    return Case(name, nothing, (what,), (key,), (fix,), set_to(override))


def _yaml(change: Callable[[str], str]) -> Callable[[Project], object]:
    return lambda project: project.write("params.yaml", change((project / "params.yaml").read_text(encoding="utf-8")))


# --- a full device ------------------------------------------------------------------------------------------------


def no_device_of_ones_own() -> str | None:
    """Why no device can be mounted for one command alone; None if it can."""
    if shutil.which("unshare") is None:
        return "no `unshare` here"
    tried = subprocess.run(
        ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=64k none /mnt"], capture_output=True, text=True
    )
    return None if tried.returncode == 0 else f"no private mount: {tried.stderr.strip()}"


FULL_DEVICE = """
folder=$1; room=$2; shift 2
cp -a "$folder" "$folder.kept" && mount -t tmpfs -o size=32m none "$folder" || exit 99
cp -a "$folder.kept/." "$folder/" || exit 99
cat /dev/zero > "$folder/.ballast" 2>/dev/null
truncate -s "-$room" "$folder/.ballast"
cd "$PWD"
"$@"
code=$?
cd /
rm -rf "$folder/.ballast" "$folder.kept" && cp -a "$folder" "$folder.kept" && umount "$folder" || exit 99
rm -rf "$folder" && mv "$folder.kept" "$folder" || exit 99
exit $code
"""
"""Moves a folder to a device of its own with little room for one command, and back, so that all can be checked."""


def full(folder: str, room: str) -> Callable[[Project], tuple[str, ...]]:
    """A device with so much room for a folder of the project; only the case's command sees it."""
    return lambda project: ("unshare", "-m", "sh", "-c", FULL_DEVICE, "sh", str((project / folder).resolve()), room)


def _unwritable(project: Project) -> None:
    project.edit_params(store="params.yaml/store")


SETTINGS = [
    setting("negative-kl-coefficient", "ppo.kl.coefficient=-0.1", "greater than or equal to 0", "coefficient"),
    setting("misspelt-key", "ppo.step=3", "unknown key", "did you mean 'steps'?"),
    setting("wrong-type", "ppo.steps=many", "should be a whole number, got 'many'", "steps"),
    setting("context-too-small", "models.policy.context=8", "greater than or equal to 16", "context"),
    setting(
        "answers-leave-no-room-for-a-prompt",
        f"ppo.max_new_tokens={CONTEXT}",
        f"leave less than 8 of the policy's {CONTEXT}",
        f"at most {CONTEXT - 8}",
    ),
    setting(
        "minibatches-that-do-not-divide", "ppo.minibatches=3", "3 minibatches do not divide a batch of 8", "divisor"
    ),
    setting("heads-that-do-not-divide", "models.policy.heads=3", "3 heads do not divide hidden_size 16", "divisor"),
    setting(
        "unknown-encoder",
        "arms.similarity.selection.encoder.type=sentence_transformer",
        "unknown type 'sentence_transformer'",
        "did you mean 'sentence_transformers'?",
        "arms.similarity.selection.encoder.type",
    ),
    setting("unknown-format", "data.sources=[{format: jsnl, name: a, path: b}]", "'jsnl'", "jsonl", "data.sources"),
    setting("shares-that-do-not-sum", "data.aggregate.shares.gate=0", "sum to 0.85", "agree", "data.aggregate.shares"),
    setting(
        "share-of-nothing",
        "data.aggregate.shares={train: 0.7, validation: 0.15, gate: 0.0, test: 0.15}",
        "data.aggregate.shares.gate is 0",
        "agree",
        "data.aggregate.shares",
    ),
    setting(
        "a-likeness-beyond-equality",
        "data.aggregate.near_duplicates={type: minhash, threshold: 1.5}",
        "less than or equal to 1",
        "threshold",
        "data.aggregate.near_duplicates.threshold",
    ),
    setting("fewer-than-no-threads", "runtime.threads=-1", "greater than or equal to 0", "threads"),
    setting(
        "checkpoint-without-one", "sft.type=checkpoint", "no checkpoint to use", "models.policy", "models.policy.type"
    ),
    setting("an-arm-sets-too-much", "arms.none.rounds=2", "an arm cannot set 'rounds'", "ppo", "arms.none.rounds"),
    disagreement("two-equal-seeds", "seeds=[0,0]", "must be different", "once", "seeds"),
    disagreement(
        "name-no-arm-can-have", "arms.My Arm.selection.type=none", "cannot name an arm", "lower-case", "arms.My Arm"
    ),
    Case(
        "no-equals-sign",
        nothing,
        ("not of the form key.path=value",),
        ("--set rounds",),
        ("ppo.steps=10",),
        ("run", "--set", "rounds"),
    ),
    Case(
        "two-presets",
        nothing,
        ("given 2 times",),
        ("--preset smoke --preset ungated",),
        ("--set",),
        ("run", "--preset", "smoke", "--preset", "ungated"),
    ),
    Case(
        "missing-preset",
        lambda project: project.write("presets/smoke.yaml", "rounds: 1\n"),
        ("no preset 'smok'",),
        ("presets/",),
        ("did you mean 'smoke'?",),
        ("run", "--preset", "smok"),
    ),
    Case(
        "missing-params",
        lambda project: (project / "params.yaml").unlink(),
        ("configuration file not found",),
        ("params.yaml",),
        ("project's folder",),
    ),
    Case(
        "broken-yaml",
        _yaml(lambda text: text + "arms: {none: [\n"),
        ("not valid YAML",),
        ("params.yaml", "line"),
        ("correct",),
    ),
    Case(
        "key-that-stands-twice",
        _yaml(lambda text: text + "rounds: 2\n"),
        ("not valid YAML",),
        ("params.yaml", "'rounds' stands twice", "line"),
        ("correct the file",),
    ),
    Case(
        "no-such-node",
        nothing,
        ("no node 'sft-s1'",),
        ("stage",),
        ("did you mean 'sft-s0'?",),
        ("stage", "sft-s1"),
    ),
]

MACHINE = [
    Case(
        "report-folder-is-a-file",
        lambda project: project.write("taken", "a file"),
        ("the report cannot go there",),
        ("--report-dir taken",),
        ("name another folder",),
        ("run", "--report-dir", "taken"),
    ),
    Case(
        "cuda-without-a-gpu",
        lambda project: project.edit_params(runtime={"device": "cuda"}, sft={"epochs": 2}),
        ("no GPU is visible to torch",),
        ("runtime.device",),
        ("auto or cpu",),
        skip=lambda: "a GPU is there" if Path("/dev/nvidia0").exists() else None,
    ),
    Case(
        "store-that-cannot-be-written",
        _unwritable,
        ("the artifact store cannot be written", "params.yaml is a file"),
        ("store=", "params.yaml/store"),
        ("--set store=",),
    ),
    Case(
        "store-of-an-unknown-kind",
        nothing,
        ("no file system for the artifact store",),
        ("store=nonsense://bucket/artifacts",),
        ("fsspec",),
        set_to("store=nonsense://bucket/artifacts"),
    ),
    Case(
        "no-room-left-before-training",
        lambda project: project.edit_params(data={"aggregate": {"seed": 1}}),
        ("no room left on the device",),
        ("store=", "MB free"),
        ("free space there", "set store to a folder with room"),
        wrap=full("artifacts", "40K"),
        skip=no_device_of_ones_own,
    ),
    Case(
        "no-room-at-all",
        lambda project: project.edit_params(data={"aggregate": {"seed": 1}}),
        ("no room left on the device",),
        ("store=", "0.0 MB free"),
        ("free space there", "set store to a folder with room"),
        wrap=full("artifacts", "0K"),
        skip=no_device_of_ones_own,
    ),
    Case(
        "no-room-in-the-whole-project",
        lambda project: project.edit_params(data={"aggregate": {"seed": 1}}),
        ("no room left on the device",),
        ("0.0 MB free",),
        ("free space there",),
        wrap=full("", "0K"),
        skip=no_device_of_ones_own,
    ),
    Case(
        "no-room-left-in-training",
        lambda project: project.edit_params(ppo={"steps": 3}, runtime={"checkpoint_seconds": 0.001}),
        ("no room left on the device, in stage ppo",),
        ("store=", "MB free"),
        ("what is finished stays",),
        ("stage", "none-s0-r1-ppo"),
        wrap=full("artifacts", "40K"),
        skip=no_device_of_ones_own,
    ),
]
