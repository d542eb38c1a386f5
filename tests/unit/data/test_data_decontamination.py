"""Evaluation prompts are kept out of every kind of row: exact ones, and long runs of their words."""

from __future__ import annotations

import json

import numpy as np
import pytest

from inverse_alignment.core.records import Message, Prompt
from inverse_alignment.data.aggregate import aggregate
from inverse_alignment.data.decontamination import EvaluationPrompts
from inverse_alignment.data.ledger import prompt_number
from inverse_alignment.data.sources import AlpacaEvalSource, HhSource, JsonlSource, JsonSource, ParquetSource
from tests.unit.data.pooled import (
    TRAIN_ONLY,
    demonstration,
    judgement,
    opened,
    pair,
    pooled,
    prompt_only,
)

WORDS = [f"word{n}" for n in range(60)]
EVALUATED = " ".join(WORDS[:20])


def held_out(*prompts: str | Prompt, words: int = 13) -> EvaluationPrompts:
    return EvaluationPrompts([pair(prompt, number=n) for n, prompt in enumerate(prompts)], words)


def clean(*rows, evaluated=EVALUATED, words=13) -> list[str]:
    """What is left beside an innocent row."""
    result = pooled([*rows, pair("innocent", number=99)], TRAIN_ONLY, held_out=held_out(evaluated, words=words))
    assert "a/99" in result.ids
    return [name for name in result.ids if name != "a/99"]


@pytest.mark.parametrize("prompt", [EVALUATED, EVALUATED.upper() + "?!", f"  {EVALUATED.replace(' ', ', ')}."])
@pytest.mark.parametrize("words", [0, 13])
def test_an_evaluation_prompt_is_found_whatever_its_case_and_punctuation(prompt, words):
    assert clean(pair(prompt), words=words) == []


@pytest.mark.parametrize(("shared", "left"), [(13, []), (12, ["a/1"])])
def test_thirteen_words_in_a_row_are_too_many_and_twelve_are_not(shared, left):
    for begin in (0, 20 - shared):  # at the beginning and the end of the evaluation prompt
        prompt = " ".join(["before", *WORDS[begin : begin + shared], "after", *WORDS[40:50]])
        assert clean(pair(prompt)) == left
        assert clean(pair(prompt), words=0) == ["a/1"]  # equal prompts only
        assert clean(pair(prompt), words=12) == []


def test_the_words_must_stand_in_a_row():
    scattered = " ".join(word for word in WORDS[:20] for word in (word, "and"))
    backwards = " ".join(WORDS[:20][::-1])
    assert clean(pair(scattered), pair(backwards, number=2)) == ["a/1", "a/2"]
    assert clean(pair(EVALUATED.title().replace(" ", "; "))) == []


def test_a_short_evaluation_prompt_matches_as_a_whole_only():
    assert clean(pair("Why not?"), pair("why not indeed", number=2), evaluated="why, NOT") == ["a/2"]


def test_every_turn_of_the_user_is_looked_at_and_no_answer():
    def talk(*turns: str) -> Prompt:
        roles = ("user", "assistant", "user")
        return Prompt(messages=tuple(Message(role=r, content=t) for r, t in zip(roles, turns, strict=True)))

    rows = [
        pair(talk("hello", "yes?", f"well, {EVALUATED}"), number=1),
        pair(talk("hello", EVALUATED, "go on"), number=2),
    ]
    assert clean(*rows) == ["a/2"]
    assert clean(pair(f"so {EVALUATED}"), evaluated=talk("hello", "yes?", EVALUATED)) == []


def test_every_kind_of_row_is_cleaned_and_counted():
    near = " ".join(["before", *WORDS[:13]])
    rows = [
        pair("innocent", number=1),
        pair(EVALUATED, number=2),
        pair(near, number=3),
        pair(near, number=4),  # a copy of a contaminated row is a copy
        *(
            make(text, number=n)
            for make in (prompt_only, demonstration, judgement)
            for n, text in enumerate((EVALUATED, near, "ok"))
        ),
    ]
    result = pooled(rows, TRAIN_ONLY, held_out=held_out(EVALUATED))
    assert result.ids == ["a/1", "judged/2", "prompts/2", "shown/2"]
    assert result.statistics["dropped"] == {"contaminated": 2, "duplicate": 1}
    for name in ("judged", "prompts", "shown"):
        assert result.statistics["others"][name]["dropped"] == {"contaminated": 2}
        assert result.statistics["others"][name]["kept"] == 1


def test_contamination_is_no_loss_a_source_is_blamed_for():
    strict = TRAIN_ONLY.model_copy(update={"max_dropped_share": 0.0})
    assert pooled([pair("one"), pair(EVALUATED, number=2)], strict, held_out=held_out(EVALUATED)).ids == ["a/1"]


def test_without_evaluation_sets_nothing_goes():
    rows = [pair(EVALUATED), pair("", number=2)]
    assert len(pooled(rows).ids) == 2
    nobody = EvaluationPrompts([], 13)
    assert len(nobody) == 0 and len(pooled(rows, held_out=nobody).ids) == 2
    assert nobody.same(np.array([prompt_number(rows[0].prompt)], dtype=np.uint64)).tolist() == [False]


# evaluation sets of any format, through files


def in_every_format(folder):
    """One evaluation prompt each, in files of several formats."""
    prompts = [f"evaluation prompt number {name}" for name in ("jsonl", "json", "parquet", "hh", "alpaca", "asked")]
    rows = [{"prompt": prompt, "chosen": "p", "rejected": "q"} for prompt in prompts]
    (folder / "e.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (folder / "e.json").write_text(json.dumps([rows[1]]))
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([rows[2]]), folder / "e.parquet")
    talk = {side: f"\n\nHuman: {prompts[3]}\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    (folder / "hh.jsonl").write_text(json.dumps(talk) + "\n")
    judged = {
        "instruction": prompts[4],
        "output_1": "p",
        "output_2": "q",
        "generator_1": "g",
        "generator_2": "h",
        "preference": 1,
    }
    (folder / "annotations.json").write_text(json.dumps([judged]))
    (folder / "asked.jsonl").write_text(json.dumps({"prompt": prompts[5]}) + "\n")
    evaluation = [
        JsonlSource(name="e-jsonl", path=str(folder / "e.jsonl")),
        JsonSource(name="e-json", path=str(folder / "e.json")),
        ParquetSource(name="e-parquet", path=str(folder / "e.parquet")),
        HhSource(name="e-hh", path=str(folder / "hh.jsonl")),
        AlpacaEvalSource(name="e-alpaca", path=str(folder / "annotations.json")),
        JsonlSource(name="e-asked", path=str(folder / "asked.jsonl"), kind="prompt"),
    ]
    return prompts, evaluation


def test_evaluation_sets_of_any_format_are_kept_out_and_never_land_in_the_output(tmp_path):
    prompts, evaluation = in_every_format(tmp_path)
    rows = [{"prompt": prompt.upper() + "!", "chosen": "mine", "rejected": "not"} for prompt in [*prompts, "innocent"]]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = JsonlSource(name="mine", path=str(tmp_path / "mine.jsonl"))
    aggregate(tmp_path / "out", [mine], TRAIN_ONLY, evaluation=evaluation)
    result = opened(tmp_path / "out")
    assert [c.prompt.text() for c in result.comparisons] == ["INNOCENT!"]
    assert result.statistics["dropped"] == {"contaminated": 6} and set(result.statistics["datasets"]) == {"mine"}
    assert not any(b"evaluation prompt" in data.lower() for data in result.files.values())
    for kept_out in range(6):  # each set keeps out its own prompt
        some = [source for place, source in enumerate(evaluation) if place != kept_out]
        aggregate(tmp_path / f"out{kept_out}", [mine], TRAIN_ONLY, evaluation=some)
        assert len(opened(tmp_path / f"out{kept_out}").comparisons) == 2


def test_an_evaluation_file_may_lie_elsewhere(tmp_path):
    prompts, evaluation = in_every_format(tmp_path)
    (tmp_path / "mine.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "chosen": "x", "rejected": "y"}) + "\n" for p in (prompts[0], "innocent"))
    )
    mine = JsonlSource(name="mine", path=str(tmp_path / "mine.jsonl"))
    moved = evaluation[0].model_copy(update={"path": "nowhere"})
    at = {"e-jsonl": tmp_path / "e.jsonl"}
    statistics = aggregate(tmp_path / "out", [mine], TRAIN_ONLY, evaluation=[moved], paths=at)
    assert statistics["dropped"] == {"contaminated": 1}
