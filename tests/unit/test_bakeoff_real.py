"""The bake-off on real preferences: who wrote what, what is kept apart, and statistics on rows written by hand."""

import json

import numpy as np
import pytest

from benchmarks.bakeoff.real import analysis, collection, page, plan
from benchmarks.bakeoff.real.collection import Collection, Sizes
from benchmarks.bakeoff.real.nearness import Nearness, centred, nearness, read_nearness
from benchmarks.bakeoff.real.plan import NEW, ORACLE, Unit
from inverse_alignment.core.errors import UserError

SIZES = Sizes(
    targets=2,
    least_pairs=2,
    references=("ref",),
    pairs=4,
    validation_pairs=2,
    test_pairs=2,
    nearest=1,
    nearness_prompts=3,
)
NEAR = Nearness(
    "d",
    ["a", "b", "c", "ref"],
    meaning=[[1, 0.9, 0.1, 0.5], [0.9, 1, 0.2, 0.4], [0.1, 0.2, 1, 0.3], [0.5, 0.4, 0.3, 1]],
    form=[[1, 0.1, 0.9, 0.5], [0.1, 1, 0.2, 0.4], [0.9, 0.2, 1, 0.3], [0.5, 0.4, 0.3, 1]],
)


def pair(number, chosen, rejected, split="train", prompt=None):
    """A preference pair of two writers."""
    prompt = prompt or f"p{number}"
    return {
        "id": f"{split}-{number}",
        "split": split,
        "prompt_id": prompt,
        "prompt": f"say {prompt}",
        "chosen": f"{chosen} says",
        "rejected": f"{rejected} says so",
        "source_chosen": chosen,
        "source_rejected": rejected,
        "annotator": "llm:judge",
        "margin": 1.0,
        "meta": {"dropped": True},
    }


def answer(writer, prompt, words, split="train"):
    """One writer's answer to one prompt."""
    return {
        "source": writer,
        "prompt_id": prompt,
        "prompt": f"say {prompt}",
        "response": f"{writer} " * words,
        "split": split,
    }


@pytest.fixture
def whole():
    """Writers a, b, c, d of answers of 1, 2, 3 and 4 words, all compared with ref; e wrote too little."""
    names = {"a": 1, "b": 2, "c": 3, "d": 4}
    prompts = [f"p{number}" for number in range(40)]
    train = [pair(f"{name}{n}", name, "ref", prompt=prompts[n]) for name in names for n in range(40)]
    test = [pair(f"{name}{n}", name, "ref", "test", f"t{n}") for name in names for n in range(5)]
    validation = [pair(f"{name}{n}", name, "ref", "validation", f"v{n}") for name in names for n in range(3)]
    shown = [answer(name, prompt, words) for name, words in names.items() for prompt in prompts]
    shown += [answer(name, f"v{n}", words, "validation") for name, words in names.items() for n in range(3)]
    return Collection([*train, *test, *validation, pair("e", "e", "ref")], shown)


def row(selector, target="a", seed=0, picked=None, after=0.6, accepted=True, **more):
    """What a selector picked of a pool of 100 answers, of which `a` wrote 10."""
    judged = {
        kind: {"pairs": 10, "before": 0.5, "after": after, "nats": 0.01} for kind in ("target", "held_out", "others")
    }
    return {
        "selector": selector,
        "target": target,
        "seed": seed,
        "model": NEW,
        "code": "c",
        "config": f"of-{selector}",
        "commit": "abc1234",
        "held_out": "d",
        "nearest": ["b"],
        "pool": {"pairs": 50, "by_source": {"a": 10, "b": 30, "c": 20, "ref": 40}},
        "selected": {"pairs": 10, "by_source": picked or {"a": 2, "b": 6, "c": 4, "ref": 8}},
        "length_matched": {"target": 0.2, "nearest": 0.3},
        "characters": {"pool": 100.0, "selected": 80.0},
        "gate": {"accepted": accepted, "mean": 0.0, "low": 0.0, "detectable": 0.0, "pairs": 5},
        "judged": judged,
        "longer_wins": {"target": 0.6, "held_out": 0.6, "others": 0.6},
        "policy": {"answers": 4, "kl": 1.0, "tokens": 5.0, "ended": 1.0, "rank_of_target": 1, "writers": 4},
        **more,
    }


def test_targets_are_spread_over_lengths_and_no_reference_or_rare_writer_is_one(whole):
    assert collection.targets(whole, SIZES) == ["a", "d"]
    assert collection.targets(whole, SIZES.model_copy(update={"targets": 3})) == ["a", "b", "d"]
    with pytest.raises(UserError, match="only 4 writers"):
        collection.targets(whole, SIZES.model_copy(update={"targets": 5}))


def test_the_nearest_writer_that_is_nearer_to_no_other_target_is_held_out():
    near = {"a": {"b": 0.9, "c": 0.8, "d": 0.3, "ref": 0.7}, "b": {"a": 0.9, "c": 0.85, "d": 0.1, "ref": 0.99}}
    assert collection.held_out(near, ("ref",)) == {"a": "d", "b": "c"}
    with pytest.raises(UserError, match="no writer is nearer to b"):
        collection.held_out({"a": {"b": 0.9, "c": 0.8}, "b": {"a": 0.9, "c": 0.7}}, ())


def test_no_prompt_both_shows_and_is_in_the_pool_and_nothing_of_a_held_out_writer_is_in_either(whole):
    sizes = SIZES.model_copy(update={"pairs": 1000})
    shown = collection.demonstrations(whole, {"b"}, seed=3)
    pairs = collection.pairs(whole, {"a": "b"}, sizes, seed=3)
    pool = [one for one in pairs if one["split"] == "train"]
    assert shown and pool
    assert not {one["prompt"] for one in shown} & {one["prompt"] for one in pool}
    assert "b" not in {one["source"] for one in shown}
    assert all("b" not in collection.writers(one) for one in pairs if one["split"] != "test")
    assert any("b" in collection.writers(one) for one in pairs if one["split"] == "test")
    assert set(pool[0]) == set(collection.COPIED)
    assert {one["prompt"] for one in shown} != {
        one["prompt"] for one in collection.demonstrations(whole, {"b"}, seed=4)
    }


def test_test_pairs_are_so_many_of_each_kind_whatever_the_order(whole):
    found = collection.tests(whole, "a", "b", SIZES)
    kinds = [collection.kind_of(one, "a", "b") for one in found]
    assert kinds == ["target"] * 2 + ["held_out"] * 2 + ["others"] * 2
    turned = Collection(whole.pairs[::-1], whole.answers)
    assert collection.tests(turned, "a", "b", SIZES) == found
    assert collection.kind_of(pair(1, "a", "b"), "a", "b") == "target"


def test_data_are_written_whole_and_once(tmp_path):
    collection.write(tmp_path / "data", {"one.jsonl": [{"x": 1}, {"x": 2}]})
    collection.write(tmp_path / "data", {"one.jsonl": []})
    assert [json.loads(line) for line in (tmp_path / "data/one.jsonl").read_text().splitlines()] == [{"x": 1}, {"x": 2}]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_missing_collection_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        collection.read(tmp_path)


def test_nearness_leaves_out_the_writer_himself_and_is_read_again_for_equal_answers(whole, tmp_path, monkeypatch):
    assert NEAR.to("a") == {"b": 0.9, "c": 0.1, "ref": 0.5}
    assert NEAR.to("a", "form")["c"] == 0.9
    assert NEAR.order("a") == ["b", "ref", "c"]
    calls = []

    def measured(texts):
        calls.append(len(texts))
        return np.eye(4)

    monkeypatch.setattr("benchmarks.bakeoff.real.nearness.by_meaning", measured)
    monkeypatch.setattr("benchmarks.bakeoff.real.nearness.by_form", measured)
    first = nearness(whole.answers, 2, tmp_path / "near.json")
    assert nearness(whole.answers, 2, tmp_path / "near.json") == first == read_nearness(tmp_path / "near.json")
    assert calls == [2, 2] and first.writers == ["a", "b", "c", "d"]
    assert nearness(whole.answers, 3, tmp_path / "near.json").digest != first.digest


def test_centred_cosines_are_those_of_the_vectors_less_their_mean():
    vectors = np.random.default_rng(0).normal(size=(5, 3)) + 4  # all near each other, until the mean is gone
    less = vectors - vectors.mean(0)
    expected = less @ less.T / np.outer(np.linalg.norm(less, axis=1), np.linalg.norm(less, axis=1))
    np.testing.assert_allclose(centred(vectors @ vectors.T), expected, atol=1e-12)


def test_form_finds_who_spells_alike():
    from benchmarks.bakeoff.real.nearness import by_form

    texts = [
        ["the cat sat there", "the cat sat here", "* ONE\n* TWO"],
        ["the dog ran there", "the dog ran off", "* SIX\n* TEN"],
    ]
    found = by_form(texts)
    np.testing.assert_allclose(np.diag(found), 1)
    assert found[0, 1] > found[0, 2]


def test_a_lift_is_the_share_over_that_in_the_pool():
    picked = {"a": 10, "b": 0, "c": 0, "ref": 10}
    one = row("similarity", picked=picked)
    assert analysis.lift(one, ["a"]) == pytest.approx(0.5 / 0.1)
    assert analysis.lift(one, ["b"]) == 0
    assert analysis.lift(one, ["a", "ref"]) == pytest.approx(1 / 0.5)
    assert analysis.lift(row("all", picked={"a": 10, "b": 30, "c": 20, "ref": 40}), ["a"]) == 1
    assert analysis.lift_beyond_length(one, "target") == pytest.approx(5 - 0.2 / 0.1)
    assert analysis.lift_beyond_length(one, "nearest") == pytest.approx(0 - 0.3 / 0.3)


def test_the_rank_correlation_follows_nearness_and_its_sign():
    near = {"b": 0.9, "c": 0.1, "ref": 0.5}
    towards = row("similarity", picked={"b": 12, "ref": 8, "c": 0})
    away = row("lowest_similarity", picked={"b": 0, "ref": 8, "c": 12})
    assert analysis.rank_correlation(towards, near) == pytest.approx(1)
    assert analysis.rank_correlation(away, near) == pytest.approx(-1)
    assert analysis.rank_correlation(row("all"), near) == 0  # everybody's lift is 1


def test_ranks_share_the_mean_of_equal_values():
    assert analysis.ranks(np.array([0.3, 0.1, 0.3, 0.9])).tolist() == [1.5, 0.0, 1.5, 3.0]


def test_the_interval_knows_that_seeds_share_their_target():
    alike = {(target, seed): float(target == "a") for target in "ab" for seed in range(20)}
    found = analysis.interval(alike)
    assert found == (0.5, 0.0, 1.0)  # two targets are two observations, however many seeds
    apart = {("a", seed): float(seed % 2) for seed in range(40)}
    assert 0.3 < analysis.interval(apart).low < 0.5 < analysis.interval(apart).high < 0.7
    assert analysis.interval({("a", 0): 0.25}) == (0.25, 0.25, 0.25)


def test_targets_count_alike_whatever_their_seeds():
    assert analysis.interval({("a", 0): 1.0, ("b", 0): 0.0, ("b", 1): 0.0, ("b", 2): 0.0}).mean == 0.5


def test_a_summary_pairs_units_with_their_own_baseline():
    rows = [
        row("random", seed=0, after=0.5),
        row("random", seed=1, after=0.9),
        row("similarity", seed=0, after=0.6, accepted=False, picked={"a": 10, "ref": 10}),
        row("similarity", seed=1, after=1.0, picked={"a": 10, "ref": 10}),
        row("similarity", seed=2, after=0.0, picked={"a": 10, "ref": 10}),
    ]
    found = analysis.summarise(rows, NEAR)
    assert found["similarity"]["units"] == 3
    assert found["similarity"]["accuracy_target_over_random"]["mean"] == pytest.approx(0.1)
    assert found["similarity"]["accuracy_target_over_random"]["ci95"] == pytest.approx([0.1, 0.1])
    assert found["similarity"]["lift_target_over_random"]["mean"] == pytest.approx(4.0)
    assert found["similarity"]["acceptance_rate"] == pytest.approx(2 / 3)
    assert "lift_target_over_random" not in found["random"]
    assert found["random"]["accuracy_target"]["mean"] == pytest.approx(0.2)
    assert found["random"]["accuracy_before_target"]["mean"] == 0.5


def test_a_selector_that_likes_a_writer_whoever_the_policy_is_does_not_heed_the_policy():
    """Lift of `a` for its own policy 5, for the policy of `b` 4; of `b` 1/3 for either."""
    rows = [
        row("fond", picked={"a": 10, "b": 2, "c": 4, "ref": 4}),
        row("fond", target="b", picked={"a": 8, "b": 2, "c": 6, "ref": 4}),
        row("fond", target="b", seed=1),
    ]
    found = analysis.own_policy(rows)
    assert found == {("a", 0): pytest.approx(1.0), ("b", 0): pytest.approx(0.0)}  # seed 1 has no other target
    assert analysis.own_policy(rows[:1]) == {}
    assert "lift_own_policy" not in analysis.summarise(rows[:1], NEAR)["fond"]


def test_what_was_not_refreshed_has_lifts_alone():
    rows = [row("random"), row("influence", judged=None, gate=None)]
    found = analysis.summarise(rows, NEAR)["influence"]
    assert found["lift_target"]["mean"] == 1 and found["acceptance_rate"] is None
    assert "lift_target_over_random" in found and not any(name.startswith("accuracy") for name in found)


def test_only_rows_of_this_code_and_these_units_count_and_the_newest_of_each():
    unit = Unit(0, "a", NEW, "d", ("b",))
    rows = [
        row("random", after=0.1),
        row("random", after=0.2),
        row("random", after=0.3, code="older"),
        row("random", after=0.4, seed=7),
        row("all", after=0.5),
    ]
    found = analysis.newest(rows, [unit], ["random"], "c")
    assert [one["judged"]["target"]["after"] for one in found] == [0.2]


def test_what_lengths_alone_would_pick_by_hand():
    from benchmarks.bakeoff.real.work import expected, strata

    lengths = np.array([[1, 1], [2, 1], [9, 9], [8, 9]])
    classes = strata(lengths, 2)
    assert classes.tolist() == [0, 0, 3, 3]
    written = np.array([1, 0, 2, 1])  # of both answers of a pair, one or two may be the group's
    assert expected(classes, np.array([0]), written) == pytest.approx(0.25)
    assert expected(classes, np.array([0, 2]), written) == pytest.approx((0.5 + 1.5) / 2 / 2)


def test_every_selector_of_the_plan_means_something_and_the_oracle_is_beside_them(tmp_path):
    unit = Unit(1, "a", NEW, "d", ("b",))
    config = plan.config_of(unit, tmp_path, tmp_path)
    names = plan.selectors()
    assert names[-1] == ORACLE and {"random", "length_matched_random", "similarity", "density_ratio"} < set(names)
    digests = {name: plan.digest_of(unit, name, config) for name in names}
    assert len(set(digests.values())) == len(names)
    assert plan.digest_of(unit, "random", plan.config_of(unit, tmp_path / "elsewhere", tmp_path)) == digests["random"]
    assert plan.digest_of(Unit(1, "b", NEW, "d", ("b",)), "random", config) != digests["random"]
    assert (
        plan.digest_of_data(1, {"a": "b"}) != plan.digest_of_data(1, {"a": "c"}) != plan.digest_of_data(2, {"a": "c"})
    )
    assert set(plan.refreshed()) <= set(names)
    assert plan.imitation("a").sources == ("a",)


def test_a_checkpoint_takes_the_place_of_new_models(tmp_path):
    config = plan.config_of(Unit(0, "a", "some/where", "d", ("b",)), tmp_path, tmp_path)
    assert config.models.policy.type == config.models.reward.type == "checkpoint"
    assert Unit(0, "a", "some/where", "d", ()).start == "where-s0"


def test_the_page_is_made_between_its_marks(tmp_path):
    text = "".join(f"before {name}\n<!-- made: {name} -->\nold\n<!-- end -->\n" for name in page.PARTS)
    (tmp_path / "page.md").write_text(text)
    rows = [row("random"), row("similarity", picked={"a": 10, "ref": 10}), row("similarity", model="other")]
    page.render(rows, NEAR, tmp_path / "made", tmp_path / "page.md")
    made = (tmp_path / "page.md").read_text()
    assert "old" not in made and all(f"before {name}" in made for name in page.PARTS)
    assert "| `similarity` | 5.00 (5.00 to 5.00) | – | +4.00 (+4.00 to +4.00) | – |" in made
    first = (tmp_path / "made/lifts.svg").read_bytes()
    page.render(rows, NEAR, tmp_path / "made", tmp_path / "page.md")
    assert (tmp_path / "made/lifts.svg").read_bytes() == first
    with pytest.raises(ValueError, match="no rows"):
        page.render([], NEAR, tmp_path, tmp_path / "page.md")
    with pytest.raises(ValueError, match="several versions"):
        page.render([*rows, row("random", seed=1, code="older")], NEAR, tmp_path, tmp_path / "page.md")
