"""Identity of a stage's output: what went in, and the code that will make it.

`fingerprint = sha256(canonical_json({stage, code, config, seed, inputs, versions}))`. The code digest covers the syntax
trees of every module of ours that the stage's module reaches, lazy imports and package data included, without comments
and docstrings: a docstring edit reuses, a flipped sign two imports away does not.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from inverse_alignment.core.artifact import canonical_json, sha256_file, sha256_text

ROOT = "inverse_alignment"
DATA_SUFFIXES = (".jinja", ".json", ".txt")


def identity(
    stage: str,
    code: str,
    config: Mapping[str, Any],
    seed: int | None,
    inputs: Mapping[str, str],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Everything that decides the bytes a stage makes, in one JSON-able mapping."""
    return {
        "stage": stage,
        "code": code,
        "config": dict(config),
        "seed": seed,
        "inputs": dict(inputs),
        "versions": dict(versions),
    }


def fingerprint(of: Mapping[str, Any]) -> str:
    """32 hex digits of the sha256 of an identity's canonical JSON."""
    return sha256_text(canonical_json(dict(of)))[:32]


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of the packages that make a stage's results, read without importing them."""
    return {name: importlib.metadata.version(name) for name in packages}


@cache
def code_digest(module: str) -> str:
    """Digest of the code that `module` reaches inside this package."""
    return sha256_text("".join(f"{name}\0{_module_digest(name)}\n" for name in sorted(reached_modules(module))))


@cache
def reached_modules(module: str) -> frozenset[str]:
    """`module` and every module of this package it imports, directly or not, at any depth of its functions."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo.extend(_imports(name) - seen)
    return frozenset(seen)


def source_files(module: str) -> list[Path]:
    """The files whose content `code_digest(module)` depends on."""
    return sorted({path for name in reached_modules(module) for path in [_source(name), *_package_data(name)]})


@cache
def _source(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module} is imported by a stage but does not exist", name=module)
    return Path(spec.origin)


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_source(module).read_text(encoding="utf-8"))


@cache
def _imports(module: str) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom) and _is_ours(base := _imported_from(module, node)):
            found.add(base)
            # `from package import name`: the name may be a module
            found.update(child for alias in node.names if _is_module(child := f"{base}.{alias.name}"))
    return frozenset(found)


def _imported_from(module: str, node: ast.ImportFrom) -> str:
    """The absolute name after `from`; dots in front of it count from the package of `module`."""
    package = module if _source(module).name == "__init__.py" else module.rpartition(".")[0]
    return importlib.util.resolve_name("." * node.level + (node.module or ""), package)


def _is_ours(name: str) -> bool:
    return name == ROOT or name.startswith(f"{ROOT}.")


@cache
def _is_module(name: str) -> bool:
    parent = _source(name.rpartition(".")[0])
    if parent.name != "__init__.py":
        return False
    leaf = name.rpartition(".")[2]
    return (parent.parent / f"{leaf}.py").exists() or (parent.parent / leaf / "__init__.py").exists()


def _package_data(module: str) -> list[Path]:
    folder = _source(module).parent
    return sorted(path for path in folder.rglob("*") if path.suffix in DATA_SUFFIXES and path.is_file())


@cache
def _module_digest(module: str) -> str:
    folder = _source(module).parent
    data = "".join(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n" for path in _package_data(module))
    return sha256_text(_canonical_tree(_tree(module)) + data)


def _canonical_tree(node: ast.AST) -> str:
    """The syntax tree as text, without docstrings and positions, and alike on every supported Python.

    A docstring is any string that stands alone as a statement: those below constants and attributes too. Empty fields
    are left out: newer Pythons add fields (`type_params`) that are empty in code that older ones parse.
    """
    parts = [type(node).__name__]
    for name, value in ast.iter_fields(node):
        if value is None or value == []:
            continue
        items = value if isinstance(value, list) else [value]
        texts = [
            _canonical_tree(item) if isinstance(item, ast.AST) else repr(item)
            for item in items
            if not _is_docstring(item)
        ]
        parts.append(f"{name}=[{','.join(texts)}]")
    return f"({' '.join(parts)})"


def _is_docstring(item: Any) -> bool:
    return isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)
