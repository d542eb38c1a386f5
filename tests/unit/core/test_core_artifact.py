"""Content digests and the one spelling of a value."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inverse_alignment.core.artifact import Artifact, canonical_json, digest_of, external, pending, sha256_text, subtree

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("aé\n")
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner), max_leaves=12)


@pytest.mark.parametrize(
    "value",
    [
        Path("x"),
        {1, 2},
        float("nan"),
        float("-inf"),
        len,
        {1: "a"},
        {None: 1},
        b"x",
        pytest.param(object(), id="object"),
        MappingProxyType({}),
    ],
    ids=repr,
)
def test_a_value_without_a_stable_form_is_refused_at_any_depth(value):
    for nested in (value, [value], {"a": {"b": [value]}}):
        with pytest.raises(TypeError):
            canonical_json(nested)


def test_the_refusal_names_the_place():
    with pytest.raises(TypeError, match=r"value\.a\[1\]\.b is a PosixPath"):
        canonical_json({"a": [0, {"b": Path("x")}]})


def test_golden_spelling():
    assert canonical_json({"b": [1, 1.5, True, None], "a": "é"}) == '{"a":"é","b":[1,1.5,true,null]}'


@given(values)
def test_it_is_json_of_the_same_value(value):
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text("abcd"), leaves, min_size=2))
def test_order_does_not_matter(mapping):
    assert canonical_json(dict(reversed(mapping.items()))) == canonical_json(mapping)


def test_different_values_differ():
    spelt = [canonical_json(value) for value in (1, 1.0, True, "1", None, "null", [1], {"a": 1}, {"a": [1]})]
    assert len(set(spelt)) == len(spelt)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_folder_is_its_names_and_contents_wherever_it_lies(tmp_path):
    files = {"a.txt": "1", "deep/b.txt": "2"}
    digest = external("data", write(tmp_path / "one", files)).digest
    assert external("data", write(tmp_path / "elsewhere" / "two", files)).digest == digest
    assert digest == sha256_text(f"a.txt\0{sha256_text('1')}\ndeep/b.txt\0{sha256_text('2')}\n")
    for changed in ({"a.txt": "2", "deep/b.txt": "1"}, {"a.txt": "1", "b.txt": "2"}, {"a.txt": "1"}):
        other = write(tmp_path / f"changed-{len(list(tmp_path.iterdir()))}", changed)
        assert external("data", other).digest != digest


def test_a_part_is_the_folder_alone():
    files = {"policy/a": "1", "policy/b/c": "2", "policy.txt": "3", "state/a": "4"}
    assert subtree(files, "policy") == {"a": "1", "b/c": "2"}
    whole = Artifact(kind="ppo", uri="somewhere", digest="d", parts={"policy": digest_of({"a": "1", "b/c": "2"})})
    part = whole.part("policy")
    assert (part.kind, part.uri, part.digest) == ("ppo.policy", "somewhere/policy", digest_of({"a": "1", "b/c": "2"}))
    with pytest.raises(KeyError):
        whole.part("state")


def test_what_is_planned_has_no_digest_yet():
    planned = pending("sft", "sft-s0", ("policy",))
    assert planned.pending
    assert planned.part("policy").pending
    assert not Artifact(kind="sft", uri="x", digest="d").pending


def test_nothing_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        external("data", tmp_path / "nothing")
