"""Who may import whom, and how little a light module loads."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inverse_alignment.stages.registry import STAGES

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "trl", "datasets", "sklearn", "sentence_transformers", "prefect", "mlflow", "dvc")
LOADED = "import sys; from {} import *; print([name for name in sys.argv[1:] if name in sys.modules])"


def run(*command: str, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **kwargs)


def test_the_import_contracts_hold():
    done = run(str(Path(sys.executable).parent / "lint-imports"), "--no-cache")
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize(
    "module", ["inverse_alignment.config", "inverse_alignment.stages.registry", "inverse_alignment.core.store"]
)
def test_a_light_module_loads_nothing_heavy(module):
    assert run(sys.executable, "-c", LOADED.format(module), *HEAVY).stdout == "[]\n"


def test_the_look_at_loaded_modules_can_fail():
    """Negative control: batches are tensors."""
    assert run(sys.executable, "-c", LOADED.format("inverse_alignment.core.batches"), *HEAVY).stdout == "['torch']\n"


def test_packages_re_export_nothing():
    """An `__init__` that imports would make every stage reach everything (`core.fingerprint`)."""
    for path in (ROOT / "src").rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert all(isinstance(node, ast.Expr) for node in body), f"{path} holds more than a docstring"


def test_every_folder_of_modules_is_a_package():
    for path in (ROOT / "src").rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), path


def test_no_stage_module_loads_torch_until_it_builds():
    """The drivers import stage modules for their configuration; that must stay light."""
    modules = sorted(spec.module for spec in STAGES.values())
    code = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
    done = run(sys.executable, "-c", code + "print('torch' in sys.modules)", env={**os.environ})
    assert done.stdout == "False\n", done.stderr
