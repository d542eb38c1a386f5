"""What pooling knows of a row: its hashes, its place in the order of precedence, its text, and how little memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inverse_alignment.core.records import Authorship, Comparison, Message, Origin, Prompt, Provenance
from inverse_alignment.data.ledger import KEPT, KINDS, NOBODY, PAIR, Ledger, Names, hashed, prompt_number
from inverse_alignment.data.read import Dropped
from tests.unit.data.pooled import demonstration, judgement, pair, prompt_only


@pytest.fixture
def ledger(tmp_path):
    def fill(*rows, datasets=()) -> Ledger:
        made = Ledger(tmp_path / "rows.jsonl", datasets=Names(datasets))
        for row in rows:
            made.add(row)
        made.close()
        return made

    return fill


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_only_equal_parts_hash_alike(one, other):
    assert (hashed(*one) == hashed(*other)) == (one == other)


def test_no_text_passes_for_the_end_of_one_part_and_the_next():
    """With a separator between the parts, all of these would be one."""
    for end in ("\x1f", "1:b", ":", "\x1e"):
        cases = [("a" + end, "b"), ("a", end + "b"), ("a" + end + "b",), ("a", end, "b")]
        assert len({hashed(*case) for case in cases}) == len(cases)


def column(ledger: Ledger, name: str) -> list[int]:
    return ledger.columns[name].tolist()


def test_what_rows_have_in_common(ledger):
    rows = [
        pair("q", "x", "y", number=1, annotator="ann"),
        pair("q", "y", "x", number=2, annotator="ann"),
        pair("Q?", "x", "y", number=3, annotator="bob"),
        pair("q", "x", "y", number=1, dataset="b", annotator="ann"),
        pair(
            Prompt(messages=(Message(role="system", content="s"), *Prompt.from_text("q").messages)), "x", "y", number=5
        ),
    ]
    found = ledger(*rows)
    equal = {
        name: {
            (i, j) for i, j in itertools.combinations(range(5), 2) if column(found, name)[i] == column(found, name)[j]
        }
        for name in ("prompt", "content", "question", "id", "vote", "record", "annotator", "dataset")
    }
    assert equal == {
        "prompt": set(itertools.combinations(range(5), 2)),  # one first user turn, but for case and punctuation
        "content": {(0, 3)},  # to the letter, in this order
        "question": {(0, 1), (0, 3), (1, 3)},  # in any order
        "id": set(),
        "vote": {(0, 3)},  # one annotator, one name
        "record": set(),
        "annotator": {(0, 1), (0, 3), (1, 3)},
        "dataset": {(0, 1), (0, 2), (0, 4), (1, 2), (1, 4), (2, 4)},
    }
    assert column(found, "forward") == [1, 0, 1, 1, 1]
    assert column(found, "prompt") == [prompt_number(row.prompt) for row in rows] == [int(rows[0].prompt.id, 16)] * 5


def test_rows_of_other_kinds(ledger):
    rows = [prompt_only("q"), demonstration("q", "a b"), judgement("q", "a b"), judgement("q", "a b", False, number=2)]
    found = ledger(*rows)
    assert [KINDS[kind] for kind in column(found, "kind")] == [type(row) for row in rows]
    assert len(set(column(found, "content"))) == 4  # a judgement is another one if its label is
    assert column(found, "first_words") == [0, 2, 2, 2] and column(found, "second_words") == [0] * 4
    assert column(found, "annotator")[0] == NOBODY and column(found, "first_writer")[0] == NOBODY
    assert found.writers.names[column(found, "first_writer")[1]] == "coach"


def test_rows_come_back_in_any_order(ledger):
    rows = [pair(f"zeile\n{i} é", "猫" * i, "no", number=i) for i in range(20)]
    found = ledger(*rows, prompt_only("last"))
    order = np.random.default_rng(0).permutation(20)
    assert list(found.read(order)) == [rows[i] for i in order]
    assert list(found.read(np.array([3, 3, 4]))) == [rows[3], rows[3], rows[4]]
    lines = list(found.lines(np.arange(21)))
    assert b"".join(lines) == found.path.read_bytes()
    assert [Comparison.model_validate_json(line) for line in lines[:20]] == rows


def test_the_order_of_precedence_is_that_of_datasets_then_of_names(ledger):
    rows = [pair(f"q{i}", dataset=name, number=i) for i in range(10) for name in ("late", "early", "new")]
    ranked = ledger(*rows, datasets=("early", "late")).ranked(np.arange(30))
    datasets = [rows[i].provenance.dataset for i in ranked]
    assert datasets == ["early"] * 10 + ["late"] * 10 + ["new"] * 10
    names = [rows[i].id for i in ranked]
    turned = rows[::-1]
    again = ledger(*turned, datasets=("early", "late")).ranked(np.arange(30))
    assert [turned[i].id for i in again] == names


def test_the_first_reason_stays(ledger):
    found = ledger(*(pair(f"q{i}", number=i) for i in range(4)))
    found.drop(np.array([1, 2]), "duplicate")
    found.drop(np.array([0, 1]), "contaminated")
    named = [None if each == KEPT else found.reasons.names[each] for each in found.reason]
    assert named == ["contaminated", "duplicate", "duplicate", None]
    assert found.kept.tolist() == [3]
    found.drop(np.array([], dtype=np.int64), "never")
    assert found.kept.tolist() == [3]


def test_lost_rows_are_counts(ledger):
    said = {"source_chosen": "s", "source_rejected": "w", "annotator": "h"}
    found = ledger(
        Dropped(Provenance(dataset="a", original_id="", **said), "tie", "row 1"),
        Dropped(Provenance(dataset="a", original_id="", **said), "tie", "row 2"),
        Dropped(Authorship(dataset="b", original_id="", source="s"), "empty response", "row 1"),
        Dropped(Origin(dataset="c", original_id=""), "empty prompt", "row 1"),
        pair("q", dataset="d", **said),
    )
    assert len(found) == 1 and sum(found.lost.values()) == 4
    (key, count), *_ = found.lost.most_common()
    assert count == 2 and key[0] == PAIR
    assert (found.datasets.names[key[1]], found.annotators.names[key[4]], found.reasons.names[key[5]]) == (
        "a",
        "h",
        "tie",
    )
    assert [found.writers.names[place] for place in key[2:4]] == ["s", "w"]


def test_a_row_takes_about_a_hundred_bytes_of_memory(ledger):
    """The docstring's promise; texts are in the file."""
    found = ledger(*(pair(f"q{i}", "a" * 500, "b" * 500, number=i) for i in range(200)))
    arrays = [*found.columns.values(), found.reason, found.soft_label, found.truncated]
    assert 80 < sum(each.nbytes for each in arrays) / 200 <= 105


def test_an_empty_ledger(ledger):
    found = ledger()
    assert len(found) == 0 and found.kept.tolist() == [] and list(found.read(found.kept)) == []
