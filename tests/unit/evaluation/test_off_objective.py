"""Files of a user's own: harmless prompts and things to predict, and what is said where there are none."""

import json

import pytest

from inverse_alignment.core.errors import UserError
from inverse_alignment.evaluation.off_objective import harmless_prompts, probe_texts


def file(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_what_is_to_be_refused_is_left_out(tmp_path):
    rows = [
        {"prompt": "kill a process", "type": "homonyms"},
        {"prompt": "kill a man", "type": "contrast_homonyms"},
        {"prompt": " ", "type": "homonyms"},
        {"question": "no type"},
        {"prompt": [{"role": "user", "content": "a turn"}]},
    ]
    assert [prompt.text() for prompt in harmless_prompts(file(tmp_path, *rows))] == [
        "kill a process",
        "no type",
        "a turn",
    ]


def test_questions_with_answers_and_texts(tmp_path):
    rows = [
        {"question": "2 + 2?", "answer": "4"},
        {"prompt": "3 + 3?", "chosen": "6", "rejected": "7"},
        {"text": "one two three four five"},
        {"text": "one"},
        {"answer": "without a question"},
    ]
    prompts, answers = probe_texts(file(tmp_path, *rows), 10)
    assert [prompt.text() for prompt in prompts] == ["2 + 2?", "3 + 3?", "one two"]
    assert answers == ["4", "6", "three four five"]
    assert probe_texts(file(tmp_path, *rows), 2)[1] == ["4", "6"]


def test_a_file_without_any_is_named(tmp_path):
    path = file(tmp_path, {"id": 1})
    with pytest.raises(UserError, match="holds no prompt") as no_prompt:
        harmless_prompts(path)
    with pytest.raises(UserError, match="nothing to predict") as nothing:
        probe_texts(path, 5)
    assert str(path) in str(no_prompt.value) and "question" in str(nothing.value)
