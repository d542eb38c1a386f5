"""Judges against people: orders, margins, pairs that only one has judged, and a folder without data."""

import pytest

from benchmarks.judges.__main__ import Pair, labels, measure, read
from inverse_alignment.core.errors import UserError


def row(chosen, rejected, margin=1.0, prompt="p"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": margin}


def test_labels_stand_in_the_order_of_the_texts():
    found = labels([row("a", "b"), row("d", "c"), row("e", "f", 0.2), row("h", "g", None)], 0.25)
    assert found == {Pair("p", "a", "b"): 1, Pair("p", "c", "d"): 0, Pair("p", "e", "f"): 0.5, Pair("p", "g", "h"): 0}


def test_a_pair_that_was_judged_both_ways_is_a_tie():
    assert labels([row("a", "b", 0.4), row("b", "a", 0.3)], 0.25) == {Pair("p", "a", "b"): 0.5}


def test_agreement_on_shared_pairs_alone():
    crowd = [row("aa bb", "b"), row("d", "cc cc"), row("e", "f e", 0.2), row("alone", "x")]
    gpt4 = [row("aa bb", "b"), row("cc cc", "d"), row("e", "f e"), row("other", "y")]
    found = measure(crowd, gpt4, 0.25)
    assert found["crowd_ties"] == 1
    machine, longer = found["judges"]["GPT-4 as published"], found["judges"]["the longer answer"]
    assert (machine["pairs"], machine["share"], machine["decided_share"]) == (3, pytest.approx(1 / 3), 0.5)
    assert longer["share"] == pytest.approx(1 / 3) and longer["decided"] == 2


def test_a_folder_without_data_is_named(tmp_path):
    with pytest.raises(UserError, match="no file of judged pairs"):
        read(tmp_path / "pairs" / "none.jsonl.gz")
