"""The same two answers labelled both ways: the votes, the report and every policy's outcome, typed by hand."""

from __future__ import annotations

import pytest

from inverse_alignment.core.records import Comparison
from tests.unit.data.pooled import TRAIN_ONLY, pair, pooled

POLICIES = ("keep", "drop", "majority", "soft_label")


def settled(rows, policy, duplicates="pair", datasets=()):
    settings = TRAIN_ONLY.model_copy(update={"contradictions": policy, "duplicates": duplicates})
    return pooled(rows, settings, datasets=datasets)


def said(result) -> list[tuple[str, str, float | None]]:
    """Chosen, rejected and soft label of what was kept."""
    return sorted((c.chosen, c.rejected, c.soft_label) for c in result.comparisons)


def vote(chosen: str, annotator: str, number: int, dataset: str = "a", **more) -> Comparison:
    """Somebody's vote for one of `x` and `y`."""
    return pair("q", chosen, "y" if chosen == "x" else "x", dataset, number, annotator=annotator, **more)


TWO_TO_ONE = [vote("x", "ann", 1), vote("x", "bob", 2), vote("y", "cy", 3)]
ONE_TO_ONE = [vote("x", "ann", 1), vote("y", "bob", 2)]
THREE_TO_NONE = [vote("x", "ann", 1), vote("x", "bob", 2), vote("x", "cy", 3)]
FOR_X, FOR_Y = ("x", "y", None), ("y", "x", None)


@pytest.mark.parametrize(
    ("rows", "policy", "expected"),
    [
        (TWO_TO_ONE, "keep", [FOR_X, FOR_Y]),
        (TWO_TO_ONE, "drop", []),
        (TWO_TO_ONE, "majority", [FOR_X]),
        (TWO_TO_ONE, "soft_label", [("x", "y", 2 / 3)]),
        (ONE_TO_ONE, "keep", [FOR_X, FOR_Y]),
        (ONE_TO_ONE, "drop", []),
        (ONE_TO_ONE, "majority", []),
        (ONE_TO_ONE, "soft_label", [("x", "y", 0.5)]),
        *((THREE_TO_NONE, policy, [FOR_X]) for policy in POLICIES),
    ],
)
def test_what_each_policy_makes_of_the_votes(rows, policy, expected):
    other = pair("another", "m", "n", number=9)
    result = settled([*rows, other], policy)
    assert said(result) == sorted([*expected, ("m", "n", None)])
    torn = {row.provenance.annotator for row in rows} if rows is not THREE_TO_NONE else set()
    assert result.statistics["contradictions"]["questions"] == bool(torn)


@pytest.mark.parametrize(
    ("policy", "dropped"),
    [
        ("keep", {"duplicate": 1}),
        ("drop", {"contradicted": 3}),
        ("majority", {"contradicted": 1, "duplicate": 1}),
        ("soft_label", {"contradicted": 1, "duplicate": 1}),
    ],
)
def test_every_row_that_goes_is_counted(policy, dropped):
    rows = [*TWO_TO_ONE, pair("another", number=9)]
    assert settled(rows, policy).statistics["dropped"] == dropped


def test_labels_of_the_majority_stay_apart_where_each_label_counts():
    result = settled(TWO_TO_ONE, "majority", duplicates="label")
    assert [c.provenance.annotator for c in sorted(result.comparisons, key=lambda c: c.id)] == ["ann", "bob"]
    soft = settled(TWO_TO_ONE, "soft_label", duplicates="label")
    assert said(soft) == [("x", "y", 2 / 3)]  # its label is everybody's, so one row says it all


def test_the_majority_may_be_for_either_answer():
    mirrored = [
        vote("y" if row.chosen == "x" else "x", row.provenance.annotator, i) for i, row in enumerate(TWO_TO_ONE)
    ]
    assert said(settled(mirrored, "majority")) == [FOR_Y]
    assert said(settled(mirrored, "soft_label")) == [("y", "x", 2 / 3)]


def test_the_row_that_carries_the_soft_label_is_of_the_first_dataset():
    rows = [vote("x", "ann", 1, "late"), vote("x", "bob", 2, "early"), vote("y", "cy", 3, "early")]
    assert settled(rows, "soft_label", datasets=("early", "late")).ids == ["early/2"]
    assert settled(rows, "soft_label", datasets=("late", "early")).ids == ["late/1"]


def test_a_soft_label_of_the_votes_replaces_that_of_the_row():
    rows = [vote("x", "ann", 1, soft_label=0.9), vote("x", "bob", 2, soft_label=0.8), vote("y", "cy", 3)]
    assert said(settled(rows, "soft_label")) == [("x", "y", 2 / 3)]
    assert said(settled(rows[:1], "soft_label")) == [("x", "y", 0.9)]


def test_a_row_that_was_read_twice_votes_once():
    rows = [TWO_TO_ONE[0], TWO_TO_ONE[0], TWO_TO_ONE[0], TWO_TO_ONE[2]]
    assert said(settled(rows, "soft_label")) == [("x", "y", 0.5)]
    result = settled([*rows, pair("other", number=9)], "drop")
    assert result.statistics["dropped"] == {"contradicted": 2, "duplicate": 2}


def test_a_vote_that_two_datasets_carry_under_one_name_counts_once():
    """A mirror of a dataset adds no votes; another annotator's row, or another row of his, does."""
    against = vote("y", "cy", 3, "b")
    mirrored = [vote("x", "ann", 1, "a"), vote("x", "ann", 1, "b"), against]
    assert said(settled(mirrored, "soft_label")) == [("x", "y", 0.5)]
    for more in (vote("x", "bob", 1, "b"), vote("x", "ann", 2, "b")):
        assert said(settled([mirrored[0], more, against], "soft_label")) == [("x", "y", 2 / 3)]


def test_the_report_by_hand():
    """One question torn between annotators and datasets, one by a single annotator, one torn in two datasets."""
    rows = [
        vote("x", "ann", 1, "a"),
        vote("x", "bob", 2, "b"),
        vote("y", "cy", 3, "c"),
        pair("inside", "m", "n", "a", 4, annotator="ann"),
        pair("inside", "n", "m", "a", 5, annotator="ann"),
        pair("inside", "n", "m", "b", 6, annotator="bob"),
        pair("agreed", "m", "n", "a", 7, annotator="ann"),
        pair("agreed", "m", "n", "b", 8, annotator="bob"),
        pair("alone", "m", "n", "a", 9, annotator="dee"),
    ]
    expected = {
        "questions": 2,
        "within_annotator": 1,  # ann about "inside"
        "across_datasets": 1,  # no one dataset holds both labels of "q"; "a" does of "inside"
        "agreement": [
            # both: q +; inside: ann said m and n, bob n: once + and once -; agreed +
            {"one": "ann", "other": "bob", "agree": 3, "disagree": 1},
            {"one": "ann", "other": "cy", "agree": 0, "disagree": 1},
            {"one": "bob", "other": "cy", "agree": 0, "disagree": 1},
        ],
    }
    for policy in POLICIES:  # the report is of what was read, whatever becomes of it
        assert settled(rows, policy).statistics["contradictions"] == expected
        assert settled(rows[::-1], policy).statistics["contradictions"] == expected


def test_one_annotator_who_said_both_makes_a_tie():
    rows = [vote("x", "ann", 1), vote("y", "ann", 2), pair("other", number=3)]
    assert said(settled(rows, "majority")) == [("yes", "no", None)]
    assert said(settled(rows, "soft_label")) == [("x", "y", 0.5), ("yes", "no", None)]
    report = settled(rows, "keep").statistics["contradictions"]
    assert report == {"questions": 1, "within_annotator": 1, "across_datasets": 0, "agreement": []}


def test_other_answers_or_another_conversation_are_no_contradiction():
    rows = [
        vote("x", "ann", 1),
        pair("q", "y", "z", number=2, annotator="bob"),  # y lost to x and beat z
        pair("Q", "y", "x", number=3, annotator="cy"),  # to the letter another conversation, though one prompt id
    ]
    for policy in POLICIES:
        result = settled(rows, policy)
        assert len(result.comparisons) == 3 and result.statistics["contradictions"]["questions"] == 0


def test_only_the_torn_question_is_touched():
    others = [pair(f"other {i}", number=10 + i, annotator="ann") for i in range(20)]
    for policy in POLICIES:
        kept = settled([*TWO_TO_ONE, *others], policy).ids
        assert set(kept) >= {row.id for row in others}
