"""What the tests of this folder share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.server import home, prefect_server


@pytest.fixture(scope="session")
def with_database(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Gives a project a Prefect database: the first start of a server takes 10 s to make one, later ones 4 s."""
    made = tmp_path_factory.mktemp("prefect")
    with prefect_server(made):
        pass

    def copy(project: Path) -> Path:
        shutil.copytree(home(made), home(project), ignore=shutil.ignore_patterns("server.*"))
        return project

    return copy
