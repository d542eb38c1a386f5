"""Training sharded by accelerate's FSDP2, on CPUs that pass for accelerators; and the files of `launch/`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from inverse_alignment.core.metrics import read_metrics
from tests.unit.models import sharded_rank, tiny

CLOSE = 1e-5
FILES = sorted(Path("launch").glob("*.yaml"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """What two processes made, sharded as `launch/fsdp2.yaml` says."""
    folder = tmp_path_factory.mktemp("sharded")
    command = ["accelerate.commands.launch", "--config_file", "launch/fsdp2.yaml", "--num_processes", "2"]
    command += ["--main_process_port", "0", "--module", "tests.unit.models.sharded_rank", str(folder)]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_sharded_training_has_the_losses_and_weights_of_one_process(sharded, tmp_path, kind):
    model = sharded_rank.trained(kind, tmp_path, stop=False, device="cpu")
    rows, found = read_metrics(tmp_path / "metrics.jsonl"), read_metrics(sharded / kind / "straight" / "metrics.jsonl")
    assert len(rows) == 3 and rows[0]["loss"] > 1.1 * rows[-1]["loss"]
    for ours, theirs in zip(rows, found, strict=True):
        assert theirs == pytest.approx(ours, abs=CLOSE, rel=CLOSE)
    weights, start = load_file(sharded / kind / "straight" / "w.safetensors"), tiny.weights(model)
    assert max(float((weights[name] - start[name]).abs().max()) for name in weights) < 1e-3
    fresh = tiny.policy() if kind == "sft" else tiny.reward_model()
    assert not tiny.same(weights, tiny.weights(fresh))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_stopped_and_run_again_sharded_training_ends_with_the_same_weights(sharded, kind):
    assert (sharded / kind / "stopped" / "stopped.txt").read_text() == "stopped after 10 of 25 steps"
    straight, stopped = (load_file(sharded / kind / how / "w.safetensors") for how in ("straight", "stopped"))
    assert tiny.same(straight, stopped)
    assert read_metrics(sharded / kind / "straight" / "metrics.jsonl") == read_metrics(
        sharded / kind / "stopped" / "metrics.jsonl"
    )


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_accelerate_reads_every_file_and_knows_every_key(path):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    settings = yaml.safe_load(path.read_text())
    load_config_from_file(str(path))  # refuses keys that it does not know; one level down it does not look
    known = vars(launch_command_parser().parse_args(["script.py"]))
    inner = {**settings.get("fsdp_config", {}), **settings.get("deepspeed_config", {})}
    assert set(inner) <= set(known) and "fsdp_no_such_key" not in known
    line = ["--config_file", str(path), "--num_processes=4", "--main_process_port=0", "--module", "tasks.rank", "job"]
    parser = launch_command_parser()
    given, defaults, _ = _validate_launch_command(parser.parse_args(line))
    assert given.num_processes == 4 and given.training_script == "tasks.rank" and given.mixed_precision == "no"
    if settings["distributed_type"] == "DEEPSPEED":
        given.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        _, environment = prepare_deepspeed_cmd_env(given)
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
        assert environment["ACCELERATE_GRADIENT_CLIPPING"] == "1.0"
    else:
        environment = prepare_multi_gpu_env(given)
        assert ("FSDP_VERSION" in environment) == (settings["distributed_type"] == "FSDP")
        assert environment.get("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT") == "FULL_STATE_DICT"


def test_the_files_are_those_that_the_documentation_names():
    text = Path("docs/scaling.md").read_text()
    assert {path.name for path in FILES} == {"ddp.yaml", "deepspeed_zero2.yaml", "fsdp2.yaml"}
    assert all(f"launch/{path.name}" in text for path in FILES)
