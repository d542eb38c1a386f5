"""Rows without a preference through the stages: what SFT imitates, and what a policy is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import (
    Comparison,
    Demonstration,
    Example,
    Judgement,
    Prompt,
    PromptOnly,
    Rollout,
    read_jsonl,
)
from inverse_alignment.data.sources import JsonlSource
from inverse_alignment.models.loading import load_policy
from inverse_alignment.models.specs import InitialisedModel
from inverse_alignment.stages.aggregate import AggregateStage
from inverse_alignment.stages.reward_model import RewardStage, TrainReward
from inverse_alignment.stages.sft import SftStage, TrainSft
from inverse_alignment.stages.tokenizers import TokenizersConfig
from inverse_alignment.text.render import encode_full, encode_prompt
from inverse_alignment.text.tokenizers import load_tokenizer
from tests.stages import chain
from tests.stages.chain import Chain

MODEL = InitialisedModel(vocab_size=320, hidden_size=16, layers=1, heads=2, context=96)
SHOWN, GOOD, BAD = "alpha beta gamma", "delta epsilon zeta", "omega psi chi"
ROWS = {
    "pairs": [{"prompt": f"first ask {n}", "chosen": f"so {n}", "rejected": f"no {n}"} for n in range(60)],
    "prompts": [{"prompt": f"second ask {n}"} for n in range(20)],
    "shown": [{"prompt": f"third ask {n}", "completion": SHOWN, "source": "teacher"} for n in range(20)],
    "judged": [{"prompt": f"fourth ask {n}", "completion": (GOOD, BAD)[n % 2], "label": n % 2 == 0} for n in range(40)],
}
KINDS = {"pairs": "preference", "prompts": "prompt", "shown": "demonstration", "judged": "judgement"}
FILE_OF = {PromptOnly: "prompts.jsonl", Demonstration: "demonstrations.jsonl", Judgement: "judgements.jsonl"}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Chain:
    """A preference set of all four kinds of rows, and a policy trained on its pairs."""
    made = Chain(tmp_path_factory.mktemp("mixed"))
    sources, inputs = [], {}
    for name, rows in ROWS.items():
        path = made.root / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append(JsonlSource(name=name, path=str(path), kind=KINDS[name]))
        inputs[f"source.{name}"] = path
    config = TokenizersConfig(policy=MODEL, reward=MODEL, sources=tuple(sources))
    made.run("tokenizers", "tokenizers", inputs, config)
    stage = AggregateStage(
        sources=tuple(sources), aggregate=chain.SETTINGS, context=MODEL.context, reward_context=MODEL.context
    )
    made.run("preferences", "aggregate", {**inputs, "tokenizers": made.made["tokenizers"]}, stage)
    learn(made, "sft", "pairs", epochs=1)
    return made


def learn(made: Chain, name: str, *learn_from: str, **settings) -> Path:
    data = {part: made.made[part] for part in ("preferences", "tokenizers")}
    settings = {"epochs": 12, "learning_rate": 2e-2, **settings}
    made.run(name, "sft", data, SftStage(sft=TrainSft(learn_from=learn_from, **settings), model=MODEL))
    return made.made[name] / "policy"


def train_rows(made: Chain, kind: type[Example]) -> list:
    """Rows of the train split, read without the code that stages use."""
    if kind is Comparison:
        return read_jsonl(made.made["preferences"] / "train.jsonl", kind)
    return [
        row for row in read_jsonl(made.made["preferences"] / FILE_OF[kind], kind) if row.provenance.split == "train"
    ]


def log_prob(policy: Path, prompt: str, answer: str) -> float:
    """Nats of an answer, all its tokens together."""
    model, tokenizer = load_policy(policy), load_tokenizer(policy).tokenizer
    start = len(encode_prompt(tokenizer, Prompt.from_text(prompt), MODEL.context))
    ids = torch.tensor([encode_full(tokenizer, Prompt.from_text(prompt), answer, MODEL.context)])
    with torch.no_grad():
        steps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    return float(steps[start - 1 :].sum())


def prefers(policy: Path, one: str, other: str) -> float:
    """How many nats likelier one answer is, to a prompt that nobody has seen."""
    return log_prob(policy, "last ask 7", one) - log_prob(policy, "last ask 7", other)


def test_the_stage_keeps_every_kind_apart_and_counts_them(mixed):
    read = {kind: read_jsonl(mixed.made["preferences"] / name, kind) for kind, name in FILE_OF.items()}
    assert {kind: len(rows) for kind, rows in read.items()} == {PromptOnly: 20, Demonstration: 20, Judgement: 40}
    assert mixed.metrics["preferences"]["pairs"] == 60 and mixed.metrics["preferences"]["other_rows"] == 80
    assert all(len(train_rows(mixed, kind)) > 3 for kind in FILE_OF)


def test_demonstrations_are_imitated(mixed):
    policy = learn(mixed, "by_demonstration", "demonstrations")
    assert mixed.metrics["by_demonstration"]["demonstrations"] == len(train_rows(mixed, Demonstration))
    assert prefers(policy, SHOWN, BAD) > 5
    assert prefers(mixed.made["sft"] / "policy", SHOWN, BAD) < 5  # who saw pairs alone does not know them


def test_of_judgements_only_the_good_answers_are_imitated(mixed):
    judged = train_rows(mixed, Judgement)
    good = [row for row in judged if row.label]
    assert {row.response for row in good} == {GOOD} and 0 < len(good) < len(judged)
    policy = learn(mixed, "by_judgement", "judgements", epochs=60, batch_size=2)
    assert mixed.metrics["by_judgement"]["demonstrations"] == len(good)
    assert prefers(policy, GOOD, BAD) > 5 and prefers(policy, GOOD, SHOWN) > 5
    assert prefers(mixed.made["sft"] / "policy", GOOD, BAD) < 5


@pytest.mark.parametrize(
    ("learn_from", "kinds"),
    [
        (("pairs",), (Comparison,)),
        (("pairs", "demonstrations"), (Comparison, Demonstration)),
        (("pairs", "demonstrations", "judgements"), (Comparison, Demonstration, Judgement)),
    ],
)
def test_kinds_of_rows_add_up(mixed, learn_from, kinds):
    name = "-".join(("adding", *learn_from))
    learn(mixed, name, *learn_from, epochs=0.1)
    rows = [row for kind in kinds for row in train_rows(mixed, kind)]
    expected = sum(not isinstance(row, Judgement) or row.label for row in rows)
    assert mixed.metrics[name]["demonstrations"] == expected


def test_demonstrations_may_be_chosen_by_who_wrote_them(mixed):
    learn(mixed, "of_teacher", "pairs", "demonstrations", sources=("teacher",), epochs=0.1)
    assert mixed.metrics["of_teacher"]["demonstrations"] == len(train_rows(mixed, Demonstration))
    with pytest.raises(UserError, match="no source policy 'teacher'"):
        learn(mixed, "nobody", "pairs", sources=("teacher",))


def test_to_learn_from_nothing_is_refused(mixed, tmp_path):
    with pytest.raises(ValidationError):
        TrainSft(learn_from=())
    folder = tmp_path / "preferences"
    folder.mkdir()
    for path in mixed.made["preferences"].iterdir():
        text = "" if path.name == "demonstrations.jsonl" else path.read_text()
        (folder / path.name).write_text(text)
    bare = Chain(tmp_path, {**mixed.made, "preferences": folder}, {})
    with pytest.raises(UserError, match="no answer to imitate") as caught:
        learn(bare, "nothing", "demonstrations")
    assert caught.value.where == "sft.learn_from"


def asked_of(made: Chain) -> set[str]:
    """What a policy may be asked: prompts of pairs, and those that came alone, of the train split."""
    return {row.prompt.text() for kind in (Comparison, PromptOnly) for row in train_rows(made, kind)}


def test_a_rollout_asks_prompts_that_came_alone(mixed):
    folder = chain.roll_out(mixed, "rollouts", mixed.made["sft"] / "policy", MODEL.context)
    asked = {rollout.prompt.text() for rollout in read_jsonl(folder / "rollouts.jsonl", Rollout)}
    assert asked == asked_of(mixed)
    assert {text.split()[0] for text in asked} == {"first", "second"}


def test_ppo_asks_prompts_that_came_alone(mixed):
    policy = mixed.made["sft"] / "policy"
    if "rollouts" not in mixed.made:
        chain.roll_out(mixed, "rollouts", policy, MODEL.context)
    data = {part: mixed.made[part] for part in ("preferences", "tokenizers")}
    reward = RewardStage(reward=TrainReward(epochs=0.2, learning_rate=1e-3, batch_size=8), model=MODEL, split="train")
    mixed.run("reward", "reward_model", {**data, "reference_rollouts": mixed.made["rollouts"]}, reward)
    prompts = asked_of(mixed)
    whole_pass = chain.PPO.model_copy(
        update={"steps": 2, "batch_size": (len(prompts) + 1) // 2, "samples_every": 1, "max_new_tokens": 4}
    )
    mixed.run("ppo", "ppo", chain.ppo_inputs(mixed, "reward"), chain.ppo_stage(whole_pass, MODEL.context))
    samples = [json.loads(line) for line in (mixed.made["ppo"] / "samples.jsonl").read_text().splitlines()]
    assert {Prompt.model_validate(row["prompt"]).text() for row in samples} == prompts
