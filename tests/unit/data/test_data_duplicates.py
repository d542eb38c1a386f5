"""Near duplicates: what is one and what is none, the kept row, prompts with a twin in one split, and the estimates."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from inverse_alignment.core.records import Message, Prompt
from inverse_alignment.data.aggregate import AggregateSettings
from inverse_alignment.data.duplicates import DropNear, KeepNear, Signatures, _Linked, signatures_of
from inverse_alignment.data.ledger import Ledger, Names
from inverse_alignment.data.splits import SplitShares
from tests.unit.data.pooled import (
    TRAIN_ONLY,
    Words,
    demonstration,
    judgement,
    pair,
    pooled,
    prompt_only,
)

NEAR = TRAIN_ONLY.model_copy(update={"near_duplicates": DropNear()})
WORDS = [f"word{n}" for n in range(5000)]
PROMPT, GOOD, BAD = (" ".join(WORDS[begin : begin + 40]) for begin in (0, 100, 200))


def kept(*rows, settings=NEAR, **more) -> list[str]:
    return pooled(rows, settings, **more).ids


def changed(text: str, *places: int) -> str:
    """The text with some words exchanged."""
    words = text.split()
    for place in places:
        words[place] = f"new{place}"
    return " ".join(words)


# what is one, and what is none


@pytest.mark.parametrize(
    ("prompt", "good", "bad"),
    [
        (PROMPT.upper() + "?", GOOD, BAD),
        (PROMPT, GOOD.title() + "!", BAD),
        (PROMPT.replace(" ", ", "), "  " + GOOD, BAD + "."),
        (changed(PROMPT, 20), changed(GOOD, 39), changed(BAD, 0)),
    ],
)
def test_rows_that_say_nearly_the_same(prompt, good, bad):
    first, second = pair(PROMPT, GOOD, BAD), pair(prompt, good, bad, dataset="b")
    assert kept(first, second, datasets=("a", "b")) == ["a/1"]
    assert kept(first, second, datasets=("b", "a")) == ["b/1"]
    assert pooled([first, second], NEAR).statistics["dropped"] == {"near duplicate": 1}
    off = TRAIN_ONLY.model_copy(update={"near_duplicates": KeepNear()})
    assert kept(first, second, settings=off) == ["a/1", "b/1"]


REFUSAL = "I am sorry, but I cannot help with that request."


@pytest.mark.parametrize(
    "other",
    [
        pair(PROMPT, " ".join(WORDS[300:340]), BAD, dataset="b"),  # another good answer
        pair(PROMPT, GOOD, " ".join(WORDS[300:340]), dataset="b"),  # another bad one
        pair(PROMPT, BAD, GOOD, dataset="b"),  # the label the other way round
        pair(" ".join(WORDS[300:340]), GOOD, BAD, dataset="b"),  # the same answers to another prompt
        pair(changed(PROMPT, *range(0, 40, 3)), GOOD, BAD, dataset="b"),  # a prompt with few words in a row in common
    ],
)
def test_rows_that_do_not(other):
    assert kept(pair(PROMPT, GOOD, BAD), other) == ["a/1", "b/1"]


def test_one_refusal_of_many_prompts_is_no_duplicate():
    prompts = [" ".join(WORDS[begin : begin + 10]) for begin in range(0, 300, 10)]
    rows = [pair(prompt, REFUSAL, "Sure!", number=i) for i, prompt in enumerate(prompts)]
    assert len(kept(*rows)) == 30


def test_short_answers_to_one_prompt_are_no_duplicates():
    rows = [pair(PROMPT, chosen, rejected, number=f"{chosen}{rejected}") for chosen, rejected in ("AB", "AC", "BC")]
    assert len(kept(*rows)) == 3


def test_answers_of_signs_alone_are_compared_as_they_are():
    rows = [pair(PROMPT, "👍", "👎", number=1), pair(PROMPT, "👎", "👍", number=2), pair(PROMPT, "👍 ", "👎", number=3)]
    assert len(kept(*rows)) == 2


def conversation(*turns: str) -> Prompt:
    roles = ("user", "assistant") * len(turns)
    return Prompt(messages=tuple(Message(role=r, content=t) for r, t in zip(roles, turns, strict=False)))


def test_other_turns_make_another_conversation():
    """Two talks that begin alike and are answered alike are not the same."""
    one, other = conversation(PROMPT, "Which?", "The red one."), conversation(PROMPT, "Which?", "The blue one.")
    assert kept(pair(one, GOOD, BAD), pair(other, GOOD, BAD, dataset="b")) == ["a/1", "b/1"]
    louder = conversation(changed(PROMPT, 5), "Which!", "the RED one")
    assert len(kept(pair(one, GOOD, BAD), pair(louder, GOOD, BAD, dataset="b"))) == 1
    briefed = Prompt(messages=(Message(role="system", content="Be brief."), *one.messages))
    assert len(kept(pair(one, GOOD, BAD), pair(briefed, GOOD, BAD, dataset="b"))) == 2


def test_other_kinds_of_rows():
    rows = [
        pair("one"),
        prompt_only(PROMPT, number=1),
        prompt_only(PROMPT.upper(), number=2),
        demonstration(PROMPT, GOOD, number=1),
        demonstration(changed(PROMPT, 3), changed(GOOD, 3), number=2),
        demonstration(PROMPT, BAD, number=3),
        judgement(PROMPT, GOOD, True, number=1),
        judgement(PROMPT, GOOD + ".", True, number=2),
        judgement(PROMPT, GOOD, False, number=3),  # the same answer, judged the other way
    ]
    result = pooled(rows, NEAR)
    counts = {name: each["kept"] for name, each in result.statistics["others"].items()}
    assert counts == {"prompts": 1, "shown": 2, "judged": 2} and len(result.comparisons) == 1


def test_rows_of_two_kinds_are_never_the_same():
    assert kept(pair(PROMPT, GOOD, "true"), judgement(PROMPT, GOOD, True)) == ["a/1", "judged/1"]


# which row is kept


def test_a_chain_keeps_what_is_not_like_a_row_that_is_kept():
    """a ~ b ~ c but not a ~ c: b goes for a, and c stays, for what it is like is gone."""
    a, b, c = GOOD, changed(GOOD, 0, 1), changed(GOOD, 0, 1, 38, 39)
    similar = jaccard(a, b, 3), jaccard(b, c, 3), jaccard(a, c, 3)
    assert min(similar[:2]) > 0.85 and similar[2] < 0.85
    rows = [pair(PROMPT, text, BAD, dataset=name) for name, text in zip("abc", (a, b, c), strict=True)]
    strict = NEAR.model_copy(update={"near_duplicates": DropNear(threshold=0.85, permutations=1024)})
    assert kept(*rows, settings=strict, datasets=("a", "b", "c")) == ["a/1", "c/1"]
    assert kept(*rows, settings=strict, datasets=("b", "a", "c")) == ["b/1"]
    assert kept(*rows, settings=strict, datasets=("a", "c", "b")) == ["a/1", "c/1"]


def test_a_row_that_a_tokenizer_refuses_takes_no_other_with_it():
    refused = pair(PROMPT, GOOD, f"{GOOD.split()[0]} {BAD}")  # alike in their first word, the only one that is read
    sound = pair(PROMPT, changed(GOOD, 0), refused.rejected, dataset="b")
    settings = NEAR.model_copy(update={"max_dropped_share": 1.0})
    assert kept(refused, sound, settings=settings, datasets=("a", "b")) == ["a/1"]
    result = pooled([refused, sound], settings, [Words(1)], datasets=("a", "b"))
    assert result.ids == ["b/1"] and result.statistics["dropped"] == {"identical after tokenisation": 1}


def clusters(seed: int, member: Callable[[random.Random, str], str], families: int = 10, count: int = 120) -> list[str]:
    """Texts in families; members of one are more or less alike."""
    chance = random.Random(seed)
    founders = [" ".join(chance.choices(WORDS, k=40)) for _ in range(families)]
    return [member(chance, chance.choice(founders)) for _ in range(count)]


def some_words_changed(chance: random.Random, text: str) -> str:
    return changed(text, *chance.sample(range(40), chance.choice((0, 1, 1, 2, 3, 5, 9))))


@pytest.mark.parametrize("seed", range(5))
def test_the_outcome_is_that_of_comparing_every_two_rows(seed):
    """Bands may miss what is barely alike, and nothing else; nothing goes that is like no kept row."""
    settings = DropNear(threshold=0.7, permutations=256)
    texts = clusters(seed, some_words_changed)
    rows = [pair(PROMPT, text, BAD, dataset=f"{place:03d}") for place, text in enumerate(texts)]
    names = [row.provenance.dataset for row in rows]
    found = kept(*rows, settings=NEAR.model_copy(update={"near_duplicates": settings}), datasets=names)
    stays = np.array([f"{name}/1" in found for name in names])
    signatures = signatures_of(texts, settings)
    alike = (signatures[:, None] == signatures[None]).mean(axis=-1)
    exact = {text: texts.index(text) for text in texts}
    assert 20 < stays.sum() < 100
    for place, text in enumerate(texts):
        earlier = alike[place, :place][stays[:place]]
        if stays[place]:
            assert earlier.max(initial=0.0) < 0.8
        else:
            assert earlier.max(initial=0.0) >= 0.7 or exact[text] < place


# prompts with a twin


def twin_prompts(count: int) -> list[tuple[str, str]]:
    chance = random.Random(0)
    return [(text, changed(text, 20)) for text in (" ".join(chance.choices(WORDS, k=40)) for _ in range(count))]


def split_apart(near) -> float:
    """Share of prompts that do not lie in the split of their twin."""
    prompts = twin_prompts(60)
    rows = [
        pair(text, f"answer {place} of {side}", "no", number=f"{place}{side}")
        for place, both in enumerate(prompts)
        for side, text in enumerate(both)
    ]
    placed = pooled(rows, AggregateSettings(near_duplicates=near)).placed
    ids = [[Prompt.from_text(text).id for text in both] for both in prompts]
    return float(np.mean([placed[one] != placed[other] for one, other in ids]))


def test_prompts_that_are_nearly_the_same_lie_in_one_split():
    assert split_apart(DropNear()) == 0
    assert split_apart(KeepNear()) > 0.2  # expected: 1 - (0.7² + 3 · 0.1²) = 0.48


@pytest.mark.parametrize("seed", range(5))
def test_twins_are_linked_directly_or_not(seed):
    """As comparing every two prompts would link them; whoever is missed is barely alike."""
    settings = DropNear(threshold=0.7, permutations=256)
    texts = list(dict.fromkeys(clusters(seed, some_words_changed)))
    rows = [pair(text, f"answer {place}", "no", number=place) for place, text in enumerate(texts)]
    # many splits tell components apart, few prompts of one family do so by chance
    shares = SplitShares(train=0.2, validation=0.2, gate=0.2, test=0.2, audit=0.2)
    placed = pooled(rows, AggregateSettings(near_duplicates=settings, shares=shares, seed=seed)).placed
    signatures = signatures_of(texts, settings)
    alike = (signatures[:, None] == signatures[None]).mean(axis=-1)
    components = np.arange(len(texts))
    for _ in texts:
        components = np.array([components[row >= 0.75].min() for row in alike])
    for component in np.unique(components):
        members = [Prompt.from_text(texts[place]).id for place in np.flatnonzero(components == component)]
        assert len({placed[prompt] for prompt in members}) == 1


def test_a_chain_of_twins_lies_in_one_split_whoever_comes_first():
    """Of a ~ b ~ c the ends are not alike, and all three share bands."""
    for place in range(40):
        chance = random.Random(place)
        a = " ".join(chance.choices(WORDS, k=60))
        b = changed(a, 0, 1, 2, 3)
        c = changed(b, 56, 57, 58, 59)
        rows = [pair(text, f"answer {name}", "no", dataset=name) for name, text in zip("abc", (a, b, c), strict=True)]
        shares = SplitShares(train=0.4, validation=0, gate=0.3, test=0.3)
        filler = [pair(f"filler number {n}", dataset="filler", number=n) for n in range(30)]
        settings = AggregateSettings(near_duplicates=DropNear(threshold=0.8), shares=shares)
        placed = pooled([*rows, *filler], settings).placed
        assert len({placed[row.prompt.id] for row in rows}) == 1, place


def test_a_twin_in_a_test_split_pulls_the_prompt_out_of_train():
    own = AggregateSettings(
        respect_source_splits=True,
        near_duplicates=DropNear(),
        shares=SplitShares(train=1, validation=0, gate=0, test=0),
    )
    one, twin = twin_prompts(1)[0]
    rows = [
        pair(one, "answer one", "no", split="train"),
        pair(twin, "answer two", "no", dataset="b", split="test"),
        pair("another", number=2, split="train"),
    ]
    assert pooled(rows, own).placed[rows[0].prompt.id] == "test"
    without = pooled(rows, own.model_copy(update={"near_duplicates": KeepNear()}))
    assert without.placed[rows[0].prompt.id] == "train"


def filled(folder: Path, settings: DropNear, rows) -> tuple[Ledger, Signatures]:
    ledger = Ledger(folder / "rows.jsonl", datasets=Names([row.provenance.dataset for row in rows]))
    for row in rows:
        ledger.add(row)
    ledger.close()
    signatures = Signatures(folder, settings)
    signatures.add(range(len(rows)), rows)
    return ledger, signatures


def share_a_band(signatures: np.ndarray, bands: int, width: int) -> np.ndarray:
    """(n, n) whether two rows' signatures are equal all over some band."""
    parts = signatures[..., : bands * width].reshape(len(signatures), -1, bands, width)
    return (parts[:, None] == parts[None]).all(axis=(2, 4)).any(axis=-1)


def far_apart(chance: random.Random, text: str) -> str:
    return changed(text, *chance.sample(range(40), chance.randint(4, 10)))


CROWDED = DropNear(threshold=0.5, permutations=32, shingle_words=1)
"""Buckets of a hundred rows, of which many are not alike."""


@pytest.mark.parametrize("seed", range(3))
def test_in_crowded_buckets_every_two_prompts_are_compared(tmp_path, seed):
    texts = list(dict.fromkeys(clusters(seed, far_apart, families=2, count=300)))
    ledger, found = filled(tmp_path, CROWDED, [prompt_only(text, number=n) for n, text in enumerate(texts)])
    signatures = signatures_of(texts, CROWDED)
    lsh = found._lsh[1]
    meet = share_a_band(signatures[:, None], lsh.b, lsh.r)
    alike = (signatures[:, None] == signatures[None]).mean(axis=-1) >= found._twins_from
    assert meet.sum(axis=1).max() > 70 and 0.1 < (meet & alike).sum() / meet.sum() < 0.98
    ids = ledger.columns["prompt"].copy()
    for _ in range(20):
        ids = np.array([ids[row].min() for row in meet & alike])
    names = ledger.columns["prompt"].tolist()
    expected = {name: int(head) for name, head, row in zip(names, ids, meet & alike, strict=True) if row.sum() > 1}
    with found:
        assert found.twins(ledger) == expected


def test_in_a_large_bucket_a_prompt_is_compared_with_all_before_it(tmp_path):
    """More than are compared at once, and only one of them alike."""
    found, linked = Signatures(tmp_path, CROWDED), _Linked()
    numbers = np.arange(200 * 3 * 32, dtype=np.uint32).reshape(200, 3, 32)  # no two equal anywhere
    numbers[199, 0] = numbers[150, 0]
    with found:
        found._signatures.write(numbers.tobytes())
        found._link(np.arange(200), linked)
    assert sorted(linked.members) == [150, 199] and linked.root(199) == 150


@pytest.mark.parametrize("seed", range(3))
def test_in_crowded_buckets_every_two_rows_are_compared(tmp_path, seed):
    texts = list(dict.fromkeys(clusters(seed, far_apart, families=2, count=300)))
    rows = [pair(PROMPT, text, BAD, dataset=f"{place:03d}") for place, text in enumerate(texts)]
    ledger, found = filled(tmp_path, CROWDED, rows)
    fields = [signatures_of(each, CROWDED) for each in ([PROMPT] * len(texts), texts, [BAD] * len(texts))]
    lsh = found._lsh[0]
    meet = share_a_band(np.stack(fields, axis=1), lsh.b, lsh.r)
    same = meet & ((fields[1][:, None] == fields[1][None]).mean(axis=-1) >= CROWDED.threshold)
    stays: list[int] = []
    for place in range(len(rows)):
        if not same[place][stays].any():
            stays.append(place)
    with found:
        found.drop_near(ledger)
    assert ledger.kept.tolist() == stays and 5 < len(stays) < len(rows) / 2


# estimates


def jaccard(one: str, other: str, words: int) -> float:
    """Of the runs of words of two texts, counted exactly."""
    sets = []
    for text in (one, other):
        found = text.lower().split()
        sets.append({tuple(found[place : place + words]) for place in range(len(found) - words + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.parametrize("permutations", [64, 128, 512])
def test_estimates_of_the_similarity_are_as_good_as_promised(permutations):
    """Within 4/√n for every pair, and right on average (Broder 1997: unbiased, variance J(1-J)/n)."""
    chance, errors = random.Random(permutations), []
    settings = DropNear(permutations=permutations, shingle_words=1)
    for _ in range(60):
        shared = chance.sample(WORDS, chance.randint(1, 80))
        one, other = (" ".join([*shared, *chance.sample(WORDS, chance.randint(1, 60))]) for _ in range(2))
        first, second = signatures_of([one, other], settings)
        errors.append((first == second).mean() - jaccard(one, other, 1))
    assert np.abs(errors).max() < 4 / permutations**0.5
    assert abs(np.mean(errors)) < 4 * 0.5 / (60 * permutations) ** 0.5


def share_found(similarity: float, count: int = 300) -> float:
    """Of rows whose good answers have that Jaccard similarity, the share that is taken for the same."""
    chance, rows = random.Random(0), []
    for place in range(count):
        words = chance.sample(WORDS, 100)
        alone = round(100 * (1 - similarity) / 2)  # of 100 words together, so many stand in one answer only
        shared, first, second = words[: 100 - 2 * alone], words[100 - 2 * alone : 100 - alone], words[100 - alone : 100]
        prompt = f"prompt number {place}"
        rows += [
            pair(prompt, " ".join(shared + first), BAD, number=f"{place} first"),
            pair(prompt, " ".join(shared + second) + "!", BAD, number=f"{place} second"),
        ]
    settings = DropNear(threshold=0.8, shingle_words=1)
    found = pooled(rows, TRAIN_ONLY.model_copy(update={"near_duplicates": settings}))
    return found.statistics["dropped"].get("near duplicate", 0) / count


def test_recall_above_the_threshold_and_precision_below():
    """Three standard errors of the estimate (0.035 at 128 permutations) away from 0.8 hardly any is wrong."""
    assert share_found(0.92) > 0.95
    assert share_found(1.0) == 1
    assert share_found(0.68) < 0.02
    assert share_found(0.5) == 0
    assert 0.2 < share_found(0.8) < 0.8  # at the threshold itself it is a coin


# settings


def test_every_setting_changes_something():
    one, other = pair(PROMPT, GOOD, BAD), pair(PROMPT, changed(GOOD, 10, 20, 30), BAD, dataset="b")
    # three words of forty: 29 of 47 runs of three are shared, and 37 of 43 single words
    assert jaccard(one.chosen, other.chosen, 3) == 29 / 47 and jaccard(one.chosen, other.chosen, 1) == 37 / 43
    for settings, count in (
        (DropNear(permutations=512), 2),
        (DropNear(permutations=512, shingle_words=1), 1),
        (DropNear(permutations=512, threshold=0.5), 1),
    ):
        assert len(kept(one, other, settings=NEAR.model_copy(update={"near_duplicates": settings}))) == count


def test_more_permutations_give_longer_signatures():
    assert signatures_of(["a", "b"], DropNear(permutations=64)).shape == (2, 64)


@pytest.mark.parametrize(
    "settings", [{"threshold": 0.4}, {"threshold": 1.1}, {"permutations": 8}, {"shingle_words": 0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValidationError):
        DropNear(**settings)
