"""Versions that `pip check` does not watch."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [Requirement(text) for text in PROJECT["dependencies"]]
CONSTRAINTS = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_fastapi_is_one_that_prefect_can_serve_with():
    """docs/decisions/004: newer ones break the server or `prefect deploy`."""
    assert Version("0.139") <= Version(importlib.metadata.version("fastapi")) < Version("0.151")
    bound = next(each for each in REQUIREMENTS if each.name == "fastapi").specifier
    assert "0.150" in bound
    assert "0.151" not in bound


@pytest.mark.ops
def test_prefects_server_imports():
    code = "from prefect.server.api.server import create_app; print(create_app().title)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Prefect" in done.stdout


def test_every_dependency_is_installed_within_its_bounds_and_locked():
    locked = {canonical(name): version for name, version in CONSTRAINTS.items()}
    for requirement in REQUIREMENTS:
        installed = importlib.metadata.version(requirement.name)
        assert installed in requirement.specifier, requirement
        pinned = locked[canonical(requirement.name)]
        assert pinned in requirement.specifier, f"{requirement} in constraints.txt"
        assert Version(installed).public == Version(pinned).public, requirement.name
