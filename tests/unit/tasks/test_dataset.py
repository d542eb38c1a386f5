"""The published folder is recognised by DVC's own name for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inverse_alignment.core.errors import UserError
from tasks.dataset import dvc_digest, require_published, take_into_cache


def test_digest_is_dvcs(tmp_path: Path) -> None:
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    tree = Tree()
    for name, text in (("advice/pairs.jsonl", "{}\n"), ("advice/B.md", "é"), ("a.txt", "")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
        import hashlib

        tree.add(tuple(name.split("/")), None, HashInfo("md5", hashlib.md5(text.encode()).hexdigest()))
    tree.digest()
    assert dvc_digest(tmp_path) == tree.hash_info.value


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_text("1")
    record = tmp_path / "data.dvc"
    assert require_published(record) is False
    record.write_text(f"outs:\n- md5: {dvc_digest(tmp_path / 'data')}\n  hash: md5\n  path: data\n")
    assert require_published(record) is True
    (tmp_path / "data" / "mine").write_text("2")
    with pytest.raises(UserError, match="published bytes"):
        require_published(record)


def test_a_fresh_clone_needs_no_remote_for_a_clean_status(tmp_path: Path) -> None:
    def dvc(*arguments: str) -> str:
        call = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    dvc("init", "--no-scm", "--quiet")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "pairs.jsonl").write_text("{}")
    dvc("add", "--quiet", "data")
    record = (tmp_path / "data.dvc").read_bytes()
    shutil.rmtree(tmp_path / ".dvc" / "cache")
    assert "not in cache" in dvc("status")
    assert require_published(tmp_path / "data.dvc")
    take_into_cache(tmp_path / "data.dvc")
    assert "up to date" in dvc("status")
    assert (tmp_path / "data.dvc").read_bytes() == record
