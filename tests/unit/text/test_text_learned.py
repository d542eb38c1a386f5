"""A new tokenizer learns from every turn and every answer of every kind of example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inverse_alignment.core.context import RuntimeConfig, StageContext
from inverse_alignment.core.metrics import FileReport
from inverse_alignment.data.sources import JsonlSource
from inverse_alignment.models.specs import InitialisedModel
from inverse_alignment.stages.tokenizers import TokenizersConfig, build
from inverse_alignment.text.tokenizers import load_tokenizer

ASKED = [{"role": "user", "content": "zanzibar"}, {"role": "assistant", "content": "quagmire"}]
ROWS = {
    "preference": {"prompt": "wyvern?", "chosen": "oxbow", "rejected": "jackdaw"},
    "prompt": {"messages": [*ASKED, {"role": "user", "content": "wyvern?"}]},
    "demonstration": {"messages": [*ASKED, {"role": "user", "content": "wyvern?"}], "completion": "oxbow"},
    "judgement": {"prompt": "wyvern?", "completion": "jackdaw", "label": False},
}
LEARNS = {
    "preference": "wyvern oxbow jackdaw",
    "prompt": "zanzibar quagmire wyvern",
    "demonstration": "zanzibar quagmire wyvern oxbow",
    "judgement": "wyvern jackdaw",
}


@pytest.mark.parametrize("kind", ROWS)
def test_every_turn_and_answer_is_learned_from(kind: str, tmp_path: Path) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    file.write_text(f"{json.dumps(ROWS[kind])}\n")
    source = JsonlSource(name="rows", path=str(file), kind=kind)
    spec = InitialisedModel(vocab_size=400)
    out.mkdir()
    context = StageContext(out, tmp_path, FileReport(tmp_path / "metrics.jsonl"), RuntimeConfig())
    build({"source.rows": file}, TokenizersConfig(policy=spec, reward=spec, sources=(source,)), context)
    vocabulary = load_tokenizer(out / "policy").tokenizer.get_vocab()
    known = {word for word in ["zanzibar", "quagmire", "wyvern", "oxbow", "jackdaw"] if word in vocabulary}
    assert known == set(LEARNS[kind].split())
