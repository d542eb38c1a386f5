"""Pooling: no prompt crosses splits, nothing depends on order, duplicates go, losses are counted and bounded."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import (
    SPLITS,
    Comparison,
    Demonstration,
    Judgement,
    Message,
    Prompt,
    PromptOnly,
    Provenance,
)
from inverse_alignment.data.aggregate import (
    AggregateSettings,
    aggregate,
    pool,
    read_others,
    read_preferences,
    read_prompts,
    read_split,
)
from inverse_alignment.data.decontamination import EvaluationPrompts
from inverse_alignment.data.read import Dropped
from inverse_alignment.data.sources import JsonlSource
from inverse_alignment.data.splits import SplitShares
from inverse_alignment.text.render import RefusedConversation
from tests.unit.data.pooled import (
    FILLER,
    TRAIN_ONLY,
    Words,
    demonstration,
    judgement,
    opened,
    pair,
    pooled,
    prompt_only,
)

DATASETS = ("a", "b", "c")


def loose(rows):
    """Pool with real shares, whether or not a split is empty: prompts are padded with enough others."""
    return pooled([*rows, *FILLER], AggregateSettings(), datasets=DATASETS)


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

# properties; those of whole files, with every setting, are in tests/properties/test_aggregate_properties.py


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
def test_order_changes_no_byte(rows, data):
    assert loose(data.draw(st.permutations(rows))).files == loose(rows).files


@settings(max_examples=60, deadline=None)
@given(rows=rows, data=st.data())
def test_the_order_of_datasets_changes_what_pairs_are_called_and_nothing_else(rows, data):
    order = data.draw(st.permutations(DATASETS))
    moved = pooled([*rows, *FILLER], AggregateSettings(), datasets=order)
    assert moved.contents == loose(rows).contents and moved.placed == loose(rows).placed


@settings(max_examples=60, deadline=None)
@given(rows=rows, stated=st.lists(st.sampled_from(SPLITS), min_size=14, max_size=14), data=st.data())
def test_with_own_splits_too_no_prompt_crosses_and_order_is_free(rows, stated, data):
    own = AggregateSettings(respect_source_splits=True)
    with_splits = [
        c.model_copy(update={"provenance": c.provenance.model_copy(update={"split": s})})
        for c, s in zip(rows, stated, strict=False)
    ]
    result = pooled([*with_splits, *FILLER], own, datasets=DATASETS)
    again = pooled([*data.draw(st.permutations(with_splits)), *FILLER], own, datasets=DATASETS)
    assert again.files == result.files
    assert len({(c.prompt.id, c.provenance.split) for c in result.comparisons}) == len(result.placed)


@settings(max_examples=60, deadline=None)
@given(rows=rows, more=rows)
def test_adding_a_source_moves_nothing(rows, more):
    new = [c.model_copy(update={"provenance": Provenance(dataset="new", original_id=c.id)}) for c in more]
    before, after = loose(rows).placed, loose([*rows, *new]).placed
    assert all(after[prompt] == split for prompt, split in before.items())


@settings(max_examples=60, deadline=None)
@given(rows=rows)
def test_pooling_the_result_again_changes_nothing(rows):
    once = loose(rows)
    twice = pooled(once.comparisons, AggregateSettings(), datasets=DATASETS)
    assert twice.comparisons == once.comparisons
    assert twice.statistics["dropped"] == {}


# duplicates


def test_of_duplicates_that_of_the_first_dataset_is_kept_and_the_others_counted_by_source():
    rows = [
        pair("why", number=1),
        pair("why", number=2),
        pair("why", dataset="b"),
        pair("Why", dataset="b", number=2),
        pair("why", "no", "yes", dataset="b", number=3),
    ]
    result = pooled(rows, datasets=("a", "b"))
    assert [name for name in result.ids if name.startswith("b")] == ["b/2", "b/3"]
    assert len(result.ids) == 3 and {"a/1", "a/2"} & set(result.ids)
    assert result.statistics["datasets"]["a"]["dropped"] == {"duplicate": 1}
    assert result.statistics["datasets"]["b"]["dropped"] == {"duplicate": 1}
    assert result.statistics["contradictions"]["questions"] == 1
    other = pooled(rows[::-1], datasets=("b", "a"))
    assert other.ids == ["b/1", "b/2", "b/3"]


def test_which_of_two_equal_rows_of_one_dataset_stays_does_not_depend_on_their_order():
    rows = [pair("why", number=number) for number in range(8)]
    kept = {tuple(pooled([*rows[i:], *rows[:i]]).ids) for i in range(8)}
    assert len(kept) == 1 and len(kept.pop()) == 1


def test_annotators_who_agree_count_once_or_twice():
    agree = [pair("why", annotator="human"), pair("why", dataset="b", annotator="llm")]
    assert len(pooled(agree).comparisons) == 1
    labels = TRAIN_ONLY.model_copy(update={"duplicates": "label"})
    assert len(pooled(agree, labels).comparisons) == 2
    assert len(pooled([*agree, pair("why", dataset="c", annotator="llm")], labels).comparisons) == 2


def test_a_name_on_two_different_rows_is_refused():
    with pytest.raises(UserError, match="two rows have the id '1'") as caught:
        pooled([pair("why"), pair("who")])
    assert caught.value.where == "source 'a', id '1'"
    with pytest.raises(UserError, match="two rows have the id '1'"):
        pooled([pair("why"), pair("why", weight=2.0)])  # the same pair, but another row


def test_a_row_that_is_read_twice_is_a_duplicate():
    result = pooled([pair("why"), pair("who", number=2), pair("why")])
    assert result.ids == ["a/1", "a/2"] and result.statistics["dropped"] == {"duplicate": 1}


def test_the_same_id_in_two_sources_is_fine():
    assert len(pooled([pair("why"), pair("who", dataset="b")]).comparisons) == 2


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
    result = {c.id: c.provenance.split for c in pooled(rows, own).comparisons}
    assert [result[name] for name in ("a/1", "a/2", "a/3", "b/1", "a/4")] == [
        "test",
        "test",
        "train",
        "train",
        "validation",
    ]
    hashed = {
        c.id: c.provenance.split
        for c in pooled(FILLER, own.model_copy(update={"respect_source_splits": False})).comparisons
    }
    assert {name: result[name] for name in hashed} == hashed


def test_a_copy_in_a_test_split_pulls_the_prompt_out_of_train():
    own = AggregateSettings(respect_source_splits=True)
    rows = [pair("one", split="train"), pair("one", dataset="b", split="test"), *FILLER]
    result = {c.id: c.provenance.split for c in pooled(rows, own).comparisons}
    assert result["a/1"] == "test" and "b/1" not in result


def test_own_splits_are_ignored_by_default():
    rows = [pair(f"prompt {i}", number=i, split="test") for i in range(60)]
    assert Counter(pooled(rows, AggregateSettings()).placed.values())["train"] > 30


# losses


def test_pairs_lost_to_truncation_are_counted_by_reason_and_source():
    rows = [
        pair("one", "same start x", "same start y"),
        pair("two", "good", "bad", number=2, source_chosen="strong"),
        pair("three", "same start x", "same start y", dataset="b"),
        pair("four", "a b c d", "b", dataset="b", number=2),
    ]
    result = pooled(rows, TRAIN_ONLY, [Words(2)])
    assert result.ids == ["a/2", "b/2"]
    datasets = result.statistics["datasets"]
    assert datasets["a"]["dropped"] == datasets["b"]["dropped"] == {"identical after tokenisation": 1}
    assert (datasets["a"]["truncated"], datasets["b"]["truncated"]) == (0, 1)


def test_demonstrations_and_judgements_are_tokenised_too_but_not_prompts():
    rows = [
        pair("one", "a", "b"),
        *(demonstration(f"q{i}", "a b c" if i else "a", number=i) for i in range(2)),
        *(judgement(f"q{i}", "a b c" if i else "a", number=i) for i in range(2)),
        prompt_only("a very long prompt indeed"),
    ]
    dropped = pooled(rows, TRAIN_ONLY, [Words(2, drop=True)])
    assert dropped.ids == ["a/1", "judged/0", "prompts/1", "shown/0"]
    for name in ("shown", "judged"):
        assert dropped.statistics["others"][name]["dropped"] == {"longer than the context": 1}
    assert len(pooled(rows, TRAIN_ONLY, [Words(2)]).rows) == 6


class TalksToUsers(Words):
    """A tokenizer whose chat template takes prompts of one user turn and nothing else."""

    def encode_pairs(self, comparisons):
        self._refuse([each.prompt for each in comparisons])
        return super().encode_pairs(comparisons)

    def encode_texts(self, texts):
        self._refuse([prompt for prompt, _ in texts])
        return super().encode_texts(texts)

    def _refuse(self, prompts):
        if any(len(prompt.messages) > 1 for prompt in prompts):
            raise RefusedConversation("the chat template does not accept it", where="chat template", fix="leave it out")


@pytest.mark.parametrize("make", [pair, demonstration, judgement, prompt_only])
def test_roles_that_a_template_refuses_cost_their_row_alone_where_bad_rows_are_dropped(make):
    told = Prompt(messages=(Message(role="system", content="be brief"), Message(role="user", content="why")))
    rows = [*FILLER, make(told, dataset="odd", number=7), make("hello", dataset="odd", number=8)]
    with pytest.raises(UserError) as caught:
        pooled(rows, TRAIN_ONLY, [Words(), TalksToUsers()])
    assert caught.value.where == "row odd/7, chat template"
    assert caught.value.fix == "leave it out, or set on_bad_row: drop"
    with pytest.raises(UserError):
        pooled(rows, TRAIN_ONLY, [TalksToUsers()], dropping={"filler"})
    kept = pooled(rows, TRAIN_ONLY, [Words(), TalksToUsers()], dropping={"odd"})
    assert [name for name in kept.ids if name.startswith("odd")] == ["odd/8"]
    assert len(kept.rows) == len(FILLER) + 1
    place = kept.statistics["datasets" if make is pair else "others"]["odd"]
    assert place["dropped"] == {"refused by the chat template": 1}


def test_every_tokenizer_must_see_a_difference():
    rows = [pair("one", "same x", "same y"), pair("two", number=2)]
    assert len(pooled(rows, TRAIN_ONLY, [Words(), Words()]).comparisons) == 2
    assert len(pooled(rows, TRAIN_ONLY, [Words(), Words(1)]).comparisons) == 1


def test_verdicts_reach_their_rows_across_batches():
    """More rows than a batch, so that the next is read while one is tokenised."""
    rows = [pair(f"prompt {i}", "same x" if i % 7 else "x", "same y", number=i) for i in range(1500)]
    result = pooled(rows, TRAIN_ONLY.model_copy(update={"max_dropped_share": 1.0}), [Words(1)])
    assert result.ids == sorted(f"a/{i}" for i in range(0, 1500, 7))


def test_too_large_losses_are_refused_with_the_counts():
    lost = [pair(f"lost {i}", "same x", "same y", number=i) for i in range(3)]
    kept = [pair(f"kept {i}", number=10 + i) for i in range(2)]
    dropped = Dropped(Provenance(dataset="a", original_id="99"), "empty chosen", "row 99")
    with pytest.raises(UserError) as caught:
        pooled([*lost, *kept, dropped, *FILLER], AggregateSettings(), [Words(1)])
    assert caught.value.what == (
        "4 of 6 rows (67%) hold no preference (empty chosen: 1, identical after tokenisation: 3)"
    )
    assert caught.value.where == "source 'a', data.aggregate.max_dropped_share=0.5"
    more = AggregateSettings(max_dropped_share=0.7)
    assert pooled([*lost, *kept, dropped, *FILLER], more, [Words(1)]).statistics["datasets"]["a"]["pairs"] == 2


def test_losses_are_a_share_of_all_rows_read():
    """A source whose rows are mostly copies is judged by what was read, and copies are no loss."""
    strict = TRAIN_ONLY.model_copy(update={"max_dropped_share": 0.2})
    rows = [*(pair("one", number=i) for i in range(9)), pair("lost", "same x", "same y", number=9)]
    assert pooled(rows, strict, [Words(1)]).statistics["dropped"] == {
        "duplicate": 8,
        "identical after tokenisation": 1,
    }
    with pytest.raises(UserError, match=r"1 of 2 rows \(50%\)"):
        pooled([rows[0], rows[9]], strict, [Words(1)])


def test_duplicates_are_no_loss():
    rows = [pair("one", number=i) for i in range(10)]
    strict = TRAIN_ONLY.model_copy(update={"max_dropped_share": 0.0})
    assert pooled(rows, strict).statistics["dropped"] == {"duplicate": 9}


def test_an_empty_split_is_refused_with_a_way_out():
    with pytest.raises(UserError, match=r"no prompt falls into '\w+' \(prompts: train") as caught:
        pooled([pair("one")], AggregateSettings())
    assert "data.aggregate.seed" in caught.value.fix and "evaluation_sets" not in caught.value.fix
    with pytest.raises(UserError, match="no prompt falls into") as caught:
        pooled([pair("one")], AggregateSettings(), held_out=EvaluationPrompts([pair("one")], 0))
    assert "data.evaluation_sets" in caught.value.fix


def test_a_split_needs_a_pair_not_just_any_row():
    with pytest.raises(UserError, match="no prompt falls into 'train'"):
        pooled([prompt_only("one"), demonstration("two"), judgement("three")])


# files


def write(path: Path, *pairs: Comparison) -> JsonlSource:
    path.write_text(
        "".join(
            json.dumps({"prompt": c.prompt.text(), "chosen": c.chosen, "rejected": c.rejected}) + "\n" for c in pairs
        )
    )
    return JsonlSource(name=path.stem, path=str(path))


def test_of_two_sources_the_first_keeps_what_both_have(tmp_path):
    first = write(tmp_path / "first.jsonl", pair("one"), pair("two"))
    second = write(tmp_path / "second.jsonl", pair("two"), pair("three"))
    aggregate(tmp_path / "out", [first, second], TRAIN_ONLY)
    result = opened(tmp_path / "out")
    held = {name: data["pairs"] for name, data in result.statistics["datasets"].items()}
    assert held == {"first": 2, "second": 1}
    aggregate(tmp_path / "swapped", [second, first], TRAIN_ONLY)
    swapped = opened(tmp_path / "swapped")
    assert swapped.contents == result.contents
    held = {name: data["pairs"] for name, data in swapped.statistics["datasets"].items()}
    assert held == {"first": 1, "second": 2}


def test_files_may_lie_elsewhere(tmp_path):
    source = write(tmp_path / "x.jsonl", pair("one")).model_copy(update={"path": "nowhere"})
    aggregate(tmp_path / "out", [source], TRAIN_ONLY, paths={"x": tmp_path / "x.jsonl"})
    assert len(read_preferences(tmp_path / "out").comparisons) == 1


def test_two_sources_of_one_name_are_refused_an_evaluation_set_too(tmp_path):
    source = write(tmp_path / "x.jsonl", pair("one"))
    for sources, evaluation in (([source, source], []), ([source], [source])):
        with pytest.raises(UserError, match="two sources are named 'x'"):
            aggregate(tmp_path / "out", sources, TRAIN_ONLY, evaluation=evaluation)


def test_writing_and_reading_back(tmp_path):
    odd = ["café 猫\u2028\n", 'a "split":null\\', '{"split":"test","soft_label":0.5}', '\\"split":"gate"']
    rows = [
        *(pair(text, text + "é", text, number=i, split="test") for i, text in enumerate(odd)),
        *(prompt_only(text, number=i) for i, text in enumerate(odd)),
        *(demonstration(text, text, number=i) for i, text in enumerate(odd)),
        *(judgement(text, text, number=i) for i, text in enumerate(odd)),
        *FILLER,
    ]
    statistics = pool(tmp_path / "a", rows, AggregateSettings())
    back, read = opened(tmp_path / "a"), read_preferences(tmp_path / "a")
    assert read.statistics == statistics
    assert {row.id: row for row in back.rows} == {
        row.id: row.model_copy(
            update={"provenance": row.provenance.model_copy(update={"split": back.placed[row.prompt.id]})}
        )
        for row in rows
    }
    for split in SPLITS:
        pairs = read_split(tmp_path / "a", split)
        assert tuple(pairs) == read.split(split) == back.split(split)
        others = {kind: read_others(tmp_path / "a", kind, split) for kind in (PromptOnly, Demonstration, Judgement)}
        assert all(row.provenance.split == split for each in others.values() for row in each)
        asked = [row.prompt for row in (*pairs, *others[PromptOnly])]
        assert read_prompts(tmp_path / "a", split) == asked
    pool(tmp_path / "b", back.rows, AggregateSettings())
    assert opened(tmp_path / "b").files == back.files


def test_rows_of_a_file_are_in_an_order_that_mixes_sources(tmp_path):
    """The first n rows are a fair sample of all sources."""
    rows = [pair(f"{name} {i}", dataset=name, number=i) for name in DATASETS for i in range(300)]
    first = pooled(rows).comparisons[:300]
    for count in Counter(c.provenance.dataset for c in first).values():
        assert abs(count - 100) < 4 * (300 * (1 / 3) * (2 / 3)) ** 0.5


def test_nothing_is_left_of_the_scratch_after_an_error(tmp_path):
    with pytest.raises(UserError):
        pool(tmp_path, [pair("one"), pair("two")], TRAIN_ONLY)
    assert list(tmp_path.iterdir()) == []


def test_reading_a_damaged_set(tmp_path):
    pool(tmp_path, FILLER, AggregateSettings())
    (tmp_path / "statistics.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_preferences(tmp_path)
    (tmp_path / "gate.jsonl").unlink()
    with pytest.raises(UserError, match="lacks a file"):
        read_preferences(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"prompt": 3}\n')
    with pytest.raises(UserError, match="not a valid Comparison"):
        read_split(tmp_path, "test")


def test_every_setting_is_described():
    for kind in (AggregateSettings, SplitShares):
        assert all(field.description for field in kind.model_fields.values())
