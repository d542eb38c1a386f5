"""docs/data-format.md is true: its examples are read, its messages are real, its reasons are all there are."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from data_files import GOOD, lines, pairs_of, refused, write, write_bytes, write_json

from inverse_alignment.core.records import Comparison
from inverse_alignment.data.read import DEGENERATE, RowReason
from inverse_alignment.data.rows import BadReason
from inverse_alignment.data.sources import COLUMNS_OF, SourceConfig

PAGE = (Path(__file__).parents[3] / "docs" / "data-format.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
MESSAGES = re.findall(r"^```text\nerror: (.*?)\n```", PAGE, re.MULTILINE | re.DOTALL)
EGG = {"prompt": "How do I boil an egg?", "chosen": "Eight minutes in boiling water.", "rejected": "No idea."}
ANSWERS = ("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: b\n\nAssistant: y")


@pytest.mark.parametrize(
    ("format", "prompt", "chosen", "margin"),
    [
        ("jsonl", "How do I boil an egg?", "Eight minutes in boiling water.", 0.5),
        ("hh", "Hi", "Hello.", None),
        ("sharegpt", "Hi", "Hello.", None),
        ("alpaca_eval", "Hi", "Hello.", 0.8),
    ],
)
def test_examples_are_read(tmp_path, format, prompt, chosen, margin):
    (example,) = [text for text in EXAMPLES if format == _format_of(json.loads(text))]
    (pair,) = pairs_of(write_bytes(tmp_path / "a.data", example.encode()), format)
    assert isinstance(pair, Comparison)
    assert (pair.prompt.text(), pair.chosen) == (prompt, chosen) and pair.margin == pytest.approx(margin)


def _format_of(value: Any) -> str:
    if isinstance(value, list):
        return "alpaca_eval"
    if "conversations" in value:
        return "sharegpt"
    return "jsonl" if "prompt" in value else "hh"


def _cut_gzip(path: Path) -> Path:
    rows = lines(*({**EGG, "id": i, "n": i * 7919 % 10007} for i in range(300)))
    path.write_bytes(gzip.compress(rows, mtime=0)[:-300])
    return path


SHOWN: list[tuple[str, Any, dict[str, Any]]] = [
    ("cut.jsonl", lambda path: write(path, EGG, b'{"prompt": "cut\n'), {}),
    ("array.jsonl", lambda path: write_json(path, [EGG]), {}),
    ("set.json", lambda path: write_json(path, {"version": 1, "data": [EGG]}), {"format": "json"}),
    (
        "named.jsonl",
        lambda path: write(path, {"question": "x", "chosen": "a", "rejected": "b"}),
        {"columns": {"prompt": "qestion"}},
    ),
    ("implicit.jsonl", lambda path: write(path, {"chosen": "The sky is blue.", "rejected": "The sky is green."}), {}),
    ("num.jsonl", lambda path: write(path, GOOD, {**GOOD, "chosen": 8}), {}),
    (
        "talk.jsonl",
        lambda path: write(path, {**GOOD, "prompt": [{"role": "human", "content": "x"}]}),
        {},
    ),
    ("equal.jsonl", lambda path: write(path, GOOD, {**GOOD, "rejected": GOOD["chosen"]}), {}),
    ("hh.jsonl", lambda path: write(path, dict(zip(("chosen", "rejected"), ANSWERS, strict=True))), {"format": "hh"}),
    ("margin.jsonl", lambda path: write(path, GOOD, {**GOOD, "margin": 3}), {}),
    ("lfs.jsonl", lambda path: write_bytes(path, b"version https://git-lfs.github.com/spec/v1\noid x\n"), {}),
    (
        "set",
        lambda path: write(path / "train.jsonl", GOOD).parent,
        {"format": "dataset", "dataset": {"split": "trian"}},
    ),
    ("all.jsonl", lambda path: write(path, *[{**GOOD, "rejected": GOOD["chosen"]}] * 12), {"on_bad_row": "drop"}),
]


@pytest.mark.parametrize(("name", "make", "given"), SHOWN, ids=[name for name, *_ in SHOWN])
def test_messages_are_what_a_person_sees(tmp_path, name, make, given):
    error = str(refused(make(tmp_path / name), **given)).replace(str(tmp_path), "my")
    assert error in MESSAGES


def test_the_message_about_torn_gzip(tmp_path):
    """But for the row, which depends on the library that packed the file."""
    error = refused(_cut_gzip(tmp_path / "cut.jsonl.gz"))
    text = re.sub(r"row \d+", "row N", str(error).replace(str(tmp_path), "my"))
    assert text in [re.sub(r"row \d+", "row N", message) for message in MESSAGES]


def test_every_reason_is_explained():
    named = set(re.findall(r"`([a-z ]+)`", "\n".join(re.findall(r"^\| (`[^|]*)\|", PAGE, re.MULTILINE))))
    assert {*get_args(BadReason), *get_args(RowReason), *DEGENERATE, "tie", "not judged"} <= named


def test_every_format_and_kind_is_named():
    formats = {each.model_fields["format"].default for each in get_args(get_args(SourceConfig)[0])}
    rows = re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)
    assert formats | set(COLUMNS_OF) <= set(rows)
