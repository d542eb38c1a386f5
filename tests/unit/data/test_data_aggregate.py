"""Pooling: no prompt crosses splits, nothing depends on order, duplicates go, losses are counted and bounded."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.core.artifact import canonical_json
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import SPLITS, Comparison, Prompt, Provenance, Split
from inverse_alignment.data.aggregate import (
    AggregateSettings,
    PreferenceSet,
    aggregate,
    pool,
    read_preferences,
    read_split,
    write_preferences,
)
from inverse_alignment.data.sources import Dropped, JsonlSource
from inverse_alignment.data.splits import SplitShares
from inverse_alignment.text.render import Degenerate, EncodedPair

TRAIN_ONLY = AggregateSettings(shares=SplitShares(train=1, validation=0, gate=0, test=0))
DATASETS = ("a", "b", "c")


class Words:
    """A tokenizer with one token a word, cut at `limit`."""

    def __init__(self, limit: int = 1000) -> None:
        self.limit = limit

    def encode_pair(self, comparison: Comparison) -> EncodedPair | Degenerate:
        chosen, rejected = comparison.chosen.split(), comparison.rejected.split()
        if chosen[: self.limit] == rejected[: self.limit]:
            return "identical after tokenisation"
        numbers = [tuple(len(w) for w in answer[: self.limit]) for answer in (chosen, rejected)]
        return EncodedPair(*numbers, truncated=max(len(chosen), len(rejected)) > self.limit)


def pair(
    prompt: str,
    chosen: str = "yes",
    rejected: str = "no",
    dataset: str = "a",
    number: int | str = 1,
    split: Split | None = None,
    **provenance: str,
) -> Comparison:
    origin = Provenance(dataset=dataset, original_id=str(number), split=split, **provenance)
    return Comparison(prompt=Prompt.from_text(prompt), chosen=chosen, rejected=rejected, provenance=origin)


def placed(preferences: PreferenceSet) -> dict[str, Split | None]:
    return {c.prompt.id: c.provenance.split for c in preferences.comparisons}


def contents(preferences: PreferenceSet) -> list[tuple[str, str, str, str | None]]:
    return sorted((c.prompt.key, c.chosen, c.rejected, c.provenance.split) for c in preferences.comparisons)


def loose(rows: list[Comparison]) -> PreferenceSet:
    """Pool with real shares, whether or not a split is empty: prompts are padded with enough others."""
    return pool([*rows, *FILLER], AggregateSettings())


FILLER = [pair(f"filler number {i}", dataset="filler", number=i) for i in range(80)]

rows = st.lists(
    st.tuples(
        st.sampled_from(["Why?", "why", "WHY!", "who", "Where to?", "where to", "how so"]),
        st.sampled_from(["x", "y", "z"]),
        st.sampled_from(["u", "v"]),
        st.sampled_from(DATASETS),
    ),
    min_size=1,
    max_size=14,
).map(lambda items: [pair(p, c, r, d, i) for i, (p, c, r, d) in enumerate(items)])

# properties


@settings(max_examples=60, deadline=None)
@given(rows=rows)
def test_no_prompt_crosses_splits(rows):
    result = loose(rows)
    by_prompt: dict[str, set[str | None]] = {}
    for c in result.comparisons:
        by_prompt.setdefault(c.prompt.id, set()).add(c.provenance.split)
    assert all(len(splits) == 1 for splits in by_prompt.values())
    assert sum(len(result.split(s)) for s in SPLITS) == len(result.comparisons)


@settings(max_examples=60, deadline=None)
@given(rows=rows, data=st.data())
def test_order_changes_neither_pairs_nor_splits(rows, data):
    assert contents(loose(data.draw(st.permutations(rows)))) == contents(loose(rows))


@settings(max_examples=60, deadline=None)
@given(rows=rows, stated=st.lists(st.sampled_from(SPLITS), min_size=14, max_size=14), data=st.data())
def test_with_own_splits_too_no_prompt_crosses_and_order_is_free(rows, stated, data):
    own = AggregateSettings(respect_source_splits=True)
    with_splits = [
        c.model_copy(update={"provenance": c.provenance.model_copy(update={"split": s})})
        for c, s in zip(rows, stated, strict=False)
    ]
    result = pool([*with_splits, *FILLER], own)
    again = pool([*data.draw(st.permutations(with_splits)), *FILLER], own)
    assert placed(again) == placed(result)
    assert len({(c.prompt.id, c.provenance.split) for c in result.comparisons}) == len(placed(result))


@settings(max_examples=60, deadline=None)
@given(rows=rows, more=rows)
def test_adding_a_source_moves_nothing(rows, more):
    new = [c.model_copy(update={"provenance": Provenance(dataset="new", original_id=c.id)}) for c in more]
    before, after = placed(loose(rows)), placed(loose([*rows, *new]))
    assert all(after[prompt] == split for prompt, split in before.items())


@settings(max_examples=60, deadline=None)
@given(rows=rows)
def test_pooling_the_result_again_changes_nothing(rows):
    once = loose(rows)
    twice = pool(once.comparisons, AggregateSettings())
    assert twice.comparisons == once.comparisons
    assert twice.statistics["dropped"] == {}


# duplicates


def test_the_first_duplicate_is_kept_and_the_others_counted_by_source():
    result = pool(
        [
            pair("why", number=1),
            pair("why", number=2),
            pair("why", dataset="b"),
            pair("Why", dataset="b", number=2),
            pair("why", "no", "yes", dataset="b", number=3),
        ],
        TRAIN_ONLY,
    )
    assert [c.id for c in result.comparisons] == ["a/1", "b/2", "b/3"]
    assert result.statistics["datasets"]["a"]["dropped"] == {"duplicate": 1}
    assert result.statistics["datasets"]["b"]["dropped"] == {"duplicate": 1}
    assert result.statistics["contradictions"] == 1


def test_annotators_who_agree_count_once_or_twice():
    agree = [pair("why", annotator="human"), pair("why", dataset="b", annotator="llm")]
    assert len(pool(agree, TRAIN_ONLY).comparisons) == 1
    labels = TRAIN_ONLY.model_copy(update={"duplicates": "label"})
    assert len(pool(agree, labels).comparisons) == 2
    assert len(pool([*agree, pair("why", dataset="c", annotator="llm")], labels).comparisons) == 2


def test_a_repeated_id_is_refused():
    with pytest.raises(UserError, match="two rows have the id '1'") as caught:
        pool([pair("why"), pair("who")], TRAIN_ONLY)
    assert caught.value.where == "source 'a', id '1'"


def test_the_same_id_in_two_sources_is_fine():
    assert len(pool([pair("why"), pair("who", dataset="b")], TRAIN_ONLY).comparisons) == 2


# own splits


def test_own_splits_are_used_and_the_rest_is_hashed():
    shares = SplitShares(train=0.9, validation=0.1, gate=0, test=0)
    own = AggregateSettings(shares=shares, respect_source_splits=True)
    rows = [
        pair("one", number=1, split="train"),
        pair("One!", "x", number=2, split="test"),
        pair("two", number=3, split="train"),
        pair("two", "x", dataset="b"),
        pair("three", number=4, split="validation"),
        *FILLER,
    ]
    result = {c.id: c.provenance.split for c in pool(rows, own).comparisons}
    assert [result[name] for name in ("a/1", "a/2", "a/3", "b/1", "a/4")] == [
        "test",
        "test",
        "train",
        "train",
        "validation",
    ]
    hashed = {
        c.id: c.provenance.split
        for c in pool(FILLER, own.model_copy(update={"respect_source_splits": False})).comparisons
    }
    assert {name: result[name] for name in hashed} == hashed


def test_a_copy_in_a_test_split_pulls_the_prompt_out_of_train():
    own = AggregateSettings(respect_source_splits=True)
    rows = [pair("one", split="train"), pair("one", dataset="b", split="test"), *FILLER]
    result = {c.id: c.provenance.split for c in pool(rows, own).comparisons}
    assert result["a/1"] == "test" and "b/1" not in result


def test_own_splits_are_ignored_by_default():
    rows = [pair(f"prompt {i}", number=i, split="test") for i in range(60)]
    assert Counter(placed(pool(rows, AggregateSettings())).values())["train"] > 30


# losses


def test_pairs_lost_to_truncation_are_counted_by_reason_and_source():
    rows = [
        pair("one", "same start x", "same start y"),
        pair("two", "good", "bad", number=2, source_chosen="strong"),
        pair("three", "same start x", "same start y", dataset="b"),
        pair("four", "a b c d", "b", dataset="b", number=2),
    ]
    result = pool(rows, TRAIN_ONLY, [Words(2)])
    assert [c.id for c in result.comparisons] == ["a/2", "b/2"]
    datasets = result.statistics["datasets"]
    assert datasets["a"]["dropped"] == datasets["b"]["dropped"] == {"identical after tokenisation": 1}
    assert (datasets["a"]["truncated"], datasets["b"]["truncated"]) == (0, 1)


def test_every_tokenizer_must_see_a_difference():
    rows = [pair("one", "same x", "same y"), pair("two", number=2)]
    assert len(pool(rows, TRAIN_ONLY, [Words(), Words()]).comparisons) == 2
    assert len(pool(rows, TRAIN_ONLY, [Words(), Words(1)]).comparisons) == 1


def test_too_large_losses_are_refused_with_the_counts():
    lost = [pair(f"lost {i}", "same x", "same y", number=i) for i in range(3)]
    kept = [pair(f"kept {i}", number=10 + i) for i in range(2)]
    dropped = Dropped(Provenance(dataset="a", original_id="99"), "empty chosen", "row 99")
    with pytest.raises(UserError) as caught:
        pool([*lost, *kept, dropped, *FILLER], AggregateSettings(), [Words(1)])
    assert caught.value.what == (
        "4 of 6 rows (67%) hold no preference (empty chosen: 1, identical after tokenisation: 3)"
    )
    assert caught.value.where == "source 'a', data.aggregate.max_dropped_share=0.5"
    more = AggregateSettings(max_dropped_share=0.7)
    assert pool([*lost, *kept, dropped, *FILLER], more, [Words(1)]).statistics["datasets"]["a"]["pairs"] == 2


def test_duplicates_are_no_loss():
    rows = [pair("one", number=i) for i in range(10)]
    strict = TRAIN_ONLY.model_copy(update={"max_dropped_share": 0.0})
    assert pool(rows, strict).statistics["dropped"] == {"duplicate": 9}


def test_an_empty_split_is_refused_with_a_way_out():
    with pytest.raises(UserError, match=r"no prompt falls into '\w+' \(prompts: train") as caught:
        pool([pair("one")], AggregateSettings())
    assert "data.aggregate.seed" in caught.value.fix


# files


def write(path: Path, *pairs: Comparison) -> JsonlSource:
    path.write_text(
        "".join(
            json.dumps({"prompt": c.prompt.text(), "chosen": c.chosen, "rejected": c.rejected}) + "\n" for c in pairs
        )
    )
    return JsonlSource(name=path.stem, path=str(path))


def test_sources_are_pooled_in_their_order(tmp_path):
    first = write(tmp_path / "first.jsonl", pair("one"), pair("two"))
    second = write(tmp_path / "second.jsonl", pair("two"), pair("three"))
    result = aggregate([first, second], TRAIN_ONLY)
    assert [c.id for c in result.comparisons] == ["first/1", "first/2", "second/2"]
    swapped = aggregate([second, first], TRAIN_ONLY)
    assert contents(swapped) == contents(result)
    assert [c.id for c in swapped.comparisons] == ["second/1", "second/2", "first/1"]


def test_files_may_lie_elsewhere(tmp_path):
    source = write(tmp_path / "x.jsonl", pair("one")).model_copy(update={"path": "nowhere"})
    assert len(aggregate([source], TRAIN_ONLY, paths={"x": tmp_path / "x.jsonl"}).comparisons) == 1


def test_two_sources_of_one_name_are_refused(tmp_path):
    source = write(tmp_path / "x.jsonl", pair("one"))
    with pytest.raises(UserError, match="two sources are named 'x'"):
        aggregate([source, source], TRAIN_ONLY)


def test_writing_and_reading_back(tmp_path):
    rows = [pair("café 猫\u2028\n", "é", margin_free, number=i) for i, margin_free in enumerate("xyz")]
    result = pool([*rows, *FILLER], AggregateSettings())
    write_preferences(tmp_path / "a", result)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["gate.jsonl", "statistics.json", "test.jsonl", "train.jsonl", "validation.jsonl"]
    back = read_preferences(tmp_path / "a")
    assert back.statistics == result.statistics
    assert contents(back) == contents(result)
    for split in SPLITS:
        assert tuple(read_split(tmp_path / "a", split)) == result.split(split)
    write_preferences(tmp_path / "b", back)
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)


def test_reading_a_damaged_set(tmp_path):
    write_preferences(tmp_path, pool(FILLER, AggregateSettings()))
    (tmp_path / "statistics.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_preferences(tmp_path)
    (tmp_path / "gate.jsonl").unlink()
    with pytest.raises(UserError, match="lacks a split"):
        read_preferences(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"prompt": 3}\n')
    with pytest.raises(UserError, match="not a valid Comparison"):
        read_split(tmp_path, "test")


# statistics


def test_statistics_by_hand():
    rows = [
        pair("one", "a b c", "a", number=1, source_chosen="s", source_rejected="w", annotator="h", licence="MIT"),
        pair("One", "a", "b c", number=2, source_chosen="w", source_rejected="s", annotator="h", licence="MIT"),
        pair("two", "a b", "c d", number=3, source_chosen="s", source_rejected="s", annotator="l"),
        Dropped(Provenance(dataset="a", original_id="4", source_chosen="w", annotator="h"), "empty chosen", "row 4"),
    ]
    stats = pool(rows, TRAIN_ONLY).statistics
    assert json.loads(canonical_json(stats)) == stats
    assert (stats["rows"], stats["pairs"], stats["prompts"]) == (4, 3, 2)
    assert stats["chosen_words"] == {"mean": 2.0, "median": 2.0}
    assert stats["rejected_words"] == {"mean": 5 / 3, "median": 2.0}
    assert stats["longer_wins"] == 0.5  # won, lost, tied
    assert stats["licences"] == {"MIT": 2, "unknown": 1}
    assert stats["splits"]["train"] == {"pairs": 3, "prompts": 2}
    strong, weak = stats["policies"]["s"], stats["policies"]["w"]
    assert (strong["pairs"], strong["wins"], strong["losses"], strong["dropped"]) == (3, 2, 2, {})
    assert (weak["pairs"], weak["wins"], weak["losses"], weak["dropped"]) == (2, 1, 1, {"empty chosen": 1})
    assert stats["annotators"]["h"]["longer_wins"] == 0.5 and stats["annotators"]["h"]["rows"] == 3
    assert stats["annotators"]["l"]["prompts"] == 1
    assert stats["policies"]["unnamed"] == {**stats["policies"]["unnamed"], "pairs": 0, "longer_wins": None}


def test_every_setting_is_described():
    for kind in (AggregateSettings, SplitShares):
        assert all(field.description for field in kind.model_fields.values())
