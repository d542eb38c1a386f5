"""Copies of the package that a test may edit, and the digests a fresh process computes from them."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import ClassVar

import inverse_alignment

PACKAGE = Path(inverse_alignment.__file__).parent
DIGESTS = """
import json, sys
from inverse_alignment.core.fingerprint import code_digest
print(json.dumps({name: code_digest(name) for name in sys.argv[1:]}))
"""


def copy_of_package(root: Path) -> Path:
    """Copy the package below `root`, which is then fit for PYTHONPATH."""
    shutil.copytree(PACKAGE, root / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def digests(root: Path, *modules: str) -> dict[str, str]:
    """Code digest of each module, computed in a new process that sees only the package below `root`."""
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS, *modules],
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def source(root: Path, module: str) -> Path:
    """The file of a module below `root`."""
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def distances(root: Path, module: str) -> dict[str, int]:
    """How many imports away each module of the package is, lazy imports included; written apart from the code."""
    found, ring = {module: 0}, [module]
    while ring:
        reached = [child for name in ring for child in _imported(root, name) if child not in found]
        found |= dict.fromkeys(reached, found[ring[0]] + 1)
        ring = list(dict.fromkeys(reached))
    return found


def _imported(root: Path, module: str) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(source(root, module).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("inverse_alignment"):
            children = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [child for child in children if source(root, child).is_file()]
            if source(root, node.module).name != "__init__.py":
                names.append(node.module)
        assert not (isinstance(node, ast.Import) and node.names[0].name.startswith("inverse_alignment"))
    return names


class Flip(ast.NodeTransformer):
    """Turns the first + into - (or < into >=, or * into /); `done` says whether there was one."""

    TURNS: ClassVar[dict[type[ast.AST], type[ast.AST]]] = {
        ast.Add: ast.Sub,
        ast.Sub: ast.Add,
        ast.Mult: ast.Div,
        ast.Lt: ast.GtE,
        ast.Gt: ast.LtE,
        ast.LtE: ast.Gt,
    }

    def __init__(self) -> None:
        self.done = False

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Turn the node if it is an operator and none was turned yet."""
        if not self.done and type(node) in self.TURNS:
            self.done = True
            return self.TURNS[type(node)]()
        return super().generic_visit(node)


class Redocument(ast.NodeTransformer):
    """Rewrites every docstring, and every other string that stands alone."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        """Replace the text."""
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return ast.Expr(ast.Constant("entirely other words"))
        return node
