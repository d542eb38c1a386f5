"""Statistics of a preference set: every number of a small set typed by hand, and what depends on what."""

from __future__ import annotations

import json

import pytest

from inverse_alignment.core.artifact import canonical_json
from inverse_alignment.core.records import Authorship, Provenance
from inverse_alignment.data.aggregate import AggregateSettings
from inverse_alignment.data.duplicates import DropNear
from inverse_alignment.data.read import Dropped
from inverse_alignment.data.splits import SplitShares
from tests.unit.data.pooled import (
    FILLER,
    TRAIN_ONLY,
    Words,
    demonstration,
    judgement,
    pair,
    pooled,
    prompt_only,
)

LOOSE = TRAIN_ONLY.model_copy(update={"max_dropped_share": 1.0})


def lost(reason: str, dataset: str = "a", **provenance: str) -> Dropped:
    return Dropped(Provenance(dataset=dataset, original_id="", **provenance), reason, "row 4")


ROWS = [
    pair("one", "a b c", "a", number=1, source_chosen="s", source_rejected="w", annotator="h", licence="MIT"),
    pair("One", "a", "b c", number=2, source_chosen="w", source_rejected="s", annotator="h", licence="MIT"),
    pair("two", "a b", "c d", number=3, source_chosen="s", source_rejected="s", annotator="l"),
    lost("empty chosen", source_chosen="w", annotator="h"),
    lost("tie", source_chosen="w", source_rejected="s", annotator="l"),
    lost("tie", source_chosen="z", source_rejected="z", annotator="nobody else"),
]


def test_the_whole_set_by_hand():
    stats = pooled(ROWS).statistics
    assert json.loads(canonical_json(stats)) == stats
    assert (stats["rows"], stats["pairs"], stats["prompts"], stats["ties"]) == (6, 3, 2, 2)
    assert stats["dropped"] == {"empty chosen": 1, "tie": 2}
    assert stats["chosen_words"] == {"mean": 2.0, "median": 2.0, "p95": 3.0}
    assert stats["rejected_words"] == {"mean": 5 / 3, "median": 2.0, "p95": 2.0}
    assert stats["longer_wins"] == 0.5  # won, lost, tied
    assert stats["licences"] == {"MIT": 2, "unknown": 1}
    assert stats["splits"]["train"] == {"pairs": 3, "prompts": 2}
    assert stats["splits"]["test"] == stats["splits"]["audit"] == {"pairs": 0, "prompts": 0}
    assert (stats["kept_after_tokenisation"], stats["truncated"], stats["others"]) == (1.0, 0, {})


def test_policies_by_hand():
    policies = pooled(ROWS).statistics["policies"]
    strong, weak = policies["s"], policies["w"]
    assert (strong["pairs"], strong["wins"], strong["losses"], strong["dropped"]) == (3, 2, 2, {"tie": 1})
    assert (weak["pairs"], weak["wins"], weak["losses"]) == (2, 1, 1)
    assert weak["dropped"] == {"empty chosen": 1, "tie": 1} and weak["rows"] == 4
    assert policies["unnamed"] == {**policies["unnamed"], "pairs": 0, "rows": 1, "longer_wins": None}
    # a tie between two answers of one policy is one row of it, and a pair of two is one pair of each
    assert policies["z"] == {**policies["z"], "rows": 1, "ties": 1, "pairs": 0, "wins": 0, "losses": 0}
    assert set(policies) == {"s", "w", "z", "unnamed"}


def test_annotators_and_datasets_by_hand():
    stats = pooled([*ROWS, pair("three", dataset="b", licence="CC0")]).statistics
    annotators = stats["annotators"]
    assert annotators["h"]["longer_wins"] == 0.5 and annotators["h"]["rows"] == 3
    assert (annotators["l"]["prompts"], annotators["l"]["ties"]) == (1, 1)
    assert annotators["nobody else"]["rows"] == 1 and annotators["nobody else"]["chosen_words"]["mean"] is None
    assert (stats["datasets"]["a"]["rows"], stats["datasets"]["b"]["rows"]) == (6, 1)
    assert stats["datasets"]["b"]["licences"] == {"CC0": 1}
    assert stats["licences"] == {"CC0": 1, "MIT": 2, "unknown": 1}


def test_the_95th_percentile_is_a_length_that_occurs():
    rows = [pair(f"q{n}", "w " * n, "z", number=n) for n in range(1, 101)]
    words = pooled(rows).statistics["chosen_words"]
    assert words == {"mean": 50.5, "median": 50.5, "p95": 96.0}


# lost to tokenisation

TOKENISED = [
    pair("one", "same x", "same y", number=1),  # identical in one token
    pair("two", "a b c", "b", number=2),  # truncated
    *(pair(f"fine {n}", "a", "b", number=n) for n in range(3, 10)),
    pair("FINE 3", "A", "b.", number=10),  # a near duplicate
]


def test_the_share_that_tokenisation_keeps_is_of_what_was_tokenised():
    stats = pooled([*TOKENISED, TOKENISED[1], lost("tie")], LOOSE, [Words(1)]).statistics
    assert stats["dropped"] == {"duplicate": 1, "identical after tokenisation": 1, "tie": 1}
    assert stats["kept_after_tokenisation"] == 9 / 10 and stats["truncated"] == 1
    too_long = pooled(TOKENISED, LOOSE, [Words(1, drop=True)]).statistics
    assert too_long["dropped"] == {"longer than the context": 2} and too_long["kept_after_tokenisation"] == 8 / 10


def test_what_goes_later_is_not_lost_to_tokenisation():
    """Neither a cap nor near duplicates say anything about a tokenizer."""
    settings = LOOSE.model_copy(update={"near_duplicates": DropNear()})
    stats = pooled(TOKENISED, settings, [Words(1)], caps={"a": 2}).statistics
    assert stats["dropped"] == {"identical after tokenisation": 1, "near duplicate": 1, "over the cap": 6}
    assert (stats["pairs"], stats["kept_after_tokenisation"]) == (2, 9 / 10)
    assert stats["datasets"]["a"]["kept_after_tokenisation"] == 9 / 10


def test_where_nothing_was_tokenised_there_is_no_share():
    settings = LOOSE.model_copy(update={"contradictions": "drop"})
    rows = [pair("q", "x", "y", number=1), pair("q", "y", "x", number=2), pair("other", dataset="b")]
    stats = pooled(rows, settings, [Words()]).statistics
    assert stats["datasets"]["a"]["kept_after_tokenisation"] is None
    assert stats["datasets"]["b"]["kept_after_tokenisation"] == 1.0


# rows without a preference


def test_others_by_hand():
    rows = [
        pair("one"),
        prompt_only("ask", number=1),
        prompt_only("Ask!", number=2),
        prompt_only("ask", number=3),
        demonstration("show", "a b c", number=1),
        demonstration("show", "a", number=2),
        judgement("judge", "a b", True, number=1),
        judgement("judge", "a b", False, number=2),
        Dropped(Authorship(dataset="judged", original_id=""), "empty response", "row 3"),
    ]
    stats = pooled(rows, TRAIN_ONLY, [Words()]).statistics
    assert (stats["rows"], stats["pairs"], stats["prompts"]) == (1, 1, 1)  # these are of pairs alone
    assert set(stats["datasets"]) == {"a"} and set(stats["policies"]) == {"unnamed"}
    nowhere = {split: {"rows": 0, "prompts": 0} for split in ("validation", "gate", "test", "audit")}
    assert stats["others"] == {
        "prompts": {
            "kind": "prompt",
            "rows": 3,
            "kept": 2,
            "prompts": 1,
            "dropped": {"duplicate": 1},
            "splits": {"train": {"rows": 2, "prompts": 1}, **nowhere},
            "response_words": {"mean": None, "median": None, "p95": None},
            "licences": {"unknown": 2},
        },
        "shown": {
            "kind": "demonstration",
            "rows": 2,
            "kept": 2,
            "prompts": 1,
            "dropped": {},
            "splits": {"train": {"rows": 2, "prompts": 1}, **nowhere},
            "response_words": {"mean": 2.0, "median": 2.0, "p95": 3.0},
            "licences": {"unknown": 2},
        },
        "judged": {
            "kind": "judgement",
            "rows": 3,
            "kept": 2,
            "prompts": 1,
            "dropped": {"empty response": 1},
            "splits": {"train": {"rows": 2, "prompts": 1}, **nowhere},
            "response_words": {"mean": 2.0, "median": 2.0, "p95": 2.0},
            "licences": {"unknown": 2},
        },
    }


def test_splits_count_pairs_and_prompts_of_each():
    result = pooled(
        [*FILLER, *(pair(c.prompt, "other", number=n, dataset="b") for n, c in enumerate(FILLER))], AggregateSettings()
    )
    for split, counts in result.statistics["splits"].items():
        members = result.split(split)
        assert counts == {"pairs": len(members), "prompts": len({c.prompt.id for c in members})}
    assert result.statistics["splits"]["train"]["pairs"] == 2 * result.statistics["splits"]["train"]["prompts"]


# caps, weights and licences


def test_a_cap_keeps_exactly_so_many_and_counts_the_rest():
    rows = [pair(f"q{n}", number=n) for n in range(50)]
    for most in (1, 49, 50, 51):
        stats = pooled([*rows, *FILLER], caps={"a": most}).statistics
        assert stats["datasets"]["a"]["pairs"] == min(most, 50)
        assert stats["datasets"]["a"]["dropped"] == ({"over the cap": 50 - most} if most < 50 else {})
        assert stats["datasets"]["filler"]["pairs"] == 80


def test_a_cap_counts_what_is_left_of_duplicates():
    rows = [*(pair("same", number=n) for n in range(30)), *(pair(f"q{n}", number=30 + n) for n in range(9))]
    assert pooled(rows, caps={"a": 10}).statistics["dropped"] == {"duplicate": 29}
    assert pooled(rows, caps={"a": 9}).statistics["dropped"] == {"duplicate": 29, "over the cap": 1}


def test_a_cap_keeps_the_same_rows_whatever_their_order():
    rows = [pair(f"q{n}", number=n) for n in range(50)]
    assert pooled(rows, caps={"a": 7}).ids == pooled(rows[::-1], caps={"a": 7}).ids
    assert set(pooled(rows, caps={"a": 7}).ids) < set(pooled(rows, caps={"a": 20}).ids)  # a larger one keeps them too


def test_a_cap_is_spread_over_prompts_like_a_random_sample():
    """Ten pairs of each of 200 prompts, 200 kept: a random sample meets 200 (1 - (1 - 1/10)^10) prompts or so."""
    rows = [pair(f"q{n % 200}", f"answer {n}", number=n) for n in range(2000)]
    prompts = pooled(rows, caps={"a": 200}).statistics["prompts"]
    # C(1990, 200) / C(2000, 200) of a prompt's pairs being left out altogether
    missed = 1.0
    for pairs in range(10):
        missed *= (1800 - pairs) / (2000 - pairs)
    deviation = (200 * missed * (1 - missed)) ** 0.5
    assert abs(prompts - 200 * (1 - missed)) < 4 * deviation
    assert prompts > 20  # the first 200 names, sorted, would meet them all, and whole prompts only 20


@pytest.mark.parametrize("kind", [prompt_only, demonstration, judgement])
def test_a_cap_on_other_rows(kind):
    rows = [kind(f"q{n}", dataset="capped", number=n) for n in range(10)]
    stats = pooled([*rows, pair("one")], caps={"capped": 4}).statistics["others"]["capped"]
    assert stats["kept"] == 4 and stats["dropped"] == {"over the cap": 6}


def test_weights_and_licences_reach_the_record():
    rows = [pair("one", weight=2.5, licence="MIT"), pair("two", number=2)]
    kept = {c.id: c for c in pooled(rows).comparisons}
    assert (kept["a/1"].weight, kept["a/1"].provenance.licence) == (2.5, "MIT")
    assert (kept["a/2"].weight, kept["a/2"].provenance.licence) == (1.0, "unknown")


def test_statistics_of_a_set_that_lost_a_whole_source():
    rows = [pair("q", "same x", "same y", dataset="bad", number=1, annotator="ann"), *FILLER]
    shares = SplitShares(train=1, validation=0, gate=0, test=0)
    stats = pooled(rows, AggregateSettings(shares=shares, max_dropped_share=1.0), [Words(1)]).statistics
    assert stats["datasets"]["bad"] == {
        **stats["datasets"]["bad"],
        "rows": 1,
        "pairs": 0,
        "kept_after_tokenisation": 0.0,
    }
    assert stats["annotators"]["ann"]["chosen_words"] == {"mean": None, "median": None, "p95": None}
