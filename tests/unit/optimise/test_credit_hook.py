"""The credit hook: who is asked for what, what becomes of penalties, exact standardisation, options that act."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Authorship, Demonstration, Prompt
from inverse_alignment.generation.answers import Answer, answer, batch_of
from inverse_alignment.maths.credit import penalised, terminal_credit, terminal_rewards
from inverse_alignment.models.reward_scores import CalibratedReward, Calibration, RewardScorer
from inverse_alignment.models.token_heads import token_head_from_trunk
from inverse_alignment.models.token_scores import TokenHead
from inverse_alignment.models.tqr import TqrForm, new_tqr
from inverse_alignment.models.tqr_scores import TqrScorer
from inverse_alignment.optimise.credit import KnownTokens, assign, given_answers
from inverse_alignment.optimise.credit_settings import (
    AttentionCredit,
    CreditConfig,
    DenseCredit,
    PotentialCredit,
    RedistributedCredit,
    TerminalCredit,
    TokenCredit,
    UniformCredit,
)
from inverse_alignment.text.render import encode_response
from tests.unit.models import tiny

TOKENS = tiny.tokenizer()
PROMPTS = tiny.PROMPTS
CALIBRATION = Calibration(mean=3.0, std=0.5, answers=8)
MASK = torch.tensor([[True, True, True], [True, True, False]])
SCORES = torch.tensor([2.0, -1.0])
DENSE = [RedistributedCredit(), AttentionCredit(), PotentialCredit(), TokenCredit(), DenseCredit()]


def said(ids: list[int], text: str = "") -> Answer:
    return Answer([2], ids, True, text)


ANSWERS = [said([7, 8, 1]), said([9, 1])]


class Told:
    """A `TokenScores` that says what it is told, and remembers what it was asked for."""

    def __init__(self, **rows: list[list[float]]) -> None:
        self.rows, self.asked = rows, []

    def _say(self, name, prompts, answers):
        assert list(prompts) == PROMPTS[:2] and answers == ANSWERS
        self.asked.append(name)
        return [np.array(row) for row in self.rows[name]]

    def prefix_scores(self, prompts, answers):
        return self._say("prefix_scores", prompts, answers)

    def attention(self, prompts, answers):
        return self._say("attention", prompts, answers)

    def token_rewards(self, prompts, answers):
        return self._say("token_rewards", prompts, answers)

    def dense_rewards(self, prompts, answers):
        return self._say("dense_rewards", prompts, answers)

    def potentials(self, prompts, answers):
        return self._say("potentials", prompts, answers)


def told() -> Told:
    return Told(
        prefix_scores=[[0.5, 1.0, 0.0, 9.0], [-1.0, 0.0, 9.0]],
        attention=[[0.1, 0.3, 0.1], [0.2, 0.6]],
        token_rewards=[[1.0, -1.0, 2.0], [0.5, 0.5]],
        potentials=[[0.0, 0.5, 1.0], [0.0, 0.25]],
        dense_rewards=[[0.5, 0.0, 1.0], [-1.0, 2.0]],
    )


def credit(config: CreditConfig, tokens: Told, gamma: float = 1.0, scores=SCORES, mask=MASK) -> torch.Tensor:
    return assign(config, scores, mask, PROMPTS[:2], ANSWERS, tokens, gamma)


@pytest.mark.parametrize(
    ("config", "asked", "expected"),
    [
        (TerminalCredit(), [], [[0.0, 0.0, 2.0], [0.0, -1.0, 0.0]]),
        (UniformCredit(), [], [[2 / 3, 2 / 3, 2 / 3], [-0.5, -0.5, 0.0]]),
        # the whole answer is worth the shaped 2 and -1, whatever the reward model said of it
        (RedistributedCredit(), ["prefix_scores"], [[0.5, -1.0, 2.0], [1.0, -1.0, 0.0]]),
        (RedistributedCredit(mix=0.5), ["prefix_scores"], [[0.25, -0.5, 2.0], [0.5, -1.0, 0.0]]),
        (AttentionCredit(mix=1.0), ["attention"], [[0.4, 1.2, 0.4], [-0.25, -0.75, 0.0]]),
        (AttentionCredit(), ["attention"], [[0.32, 0.96, 0.72], [-0.2, -0.8, 0.0]]),
        (TokenCredit(), ["token_rewards"], [[0.5, -0.5, 2.0], [0.25, -0.25, 0.0]]),
        (DenseCredit(), ["dense_rewards"], [[0.5, 0.0, 1.0], [-1.0, 2.0, 0.0]]),
        (DenseCredit(share=0.5), ["dense_rewards"], [[0.25, 0.0, 1.5], [-0.5, 0.5, 0.0]]),
        # 2 Φ: γ = 1: 1 - 0, 2 - 1, 0 - 2 + 2
        (PotentialCredit(weight=2.0), ["potentials"], [[1.0, 1.0, 0.0], [0.5, -1.5, 0.0]]),
    ],
)
def test_each_method_by_hand_asks_for_what_it_needs(config, asked, expected):
    tokens = told()
    torch.testing.assert_close(credit(config, tokens), torch.tensor(expected))
    assert tokens.asked == asked


def test_the_potential_is_discounted_as_the_advantages_are():
    # 0.5·0.5 - 0, 0.5·1 - 0.5, 0 - 1 + 2 | 0.5·0.25 - 0, 0 - 0.25 - 1
    expected = torch.tensor([[0.25, 0.0, 1.0], [0.125, -1.25, 0.0]])
    torch.testing.assert_close(credit(PotentialCredit(), told(), gamma=0.5), expected)


@pytest.mark.parametrize(
    "config", [RedistributedCredit(mix=0), AttentionCredit(mix=0), TokenCredit(share=0), DenseCredit(share=0)]
)
def test_no_share_is_the_sparse_reward_to_the_bit(config):
    scores = torch.randn(2, generator=torch.Generator().manual_seed(0)) * 3
    ratios = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    made = penalised(credit(config, told(), scores=scores), ratios, MASK, 0.15)
    assert made.dtype == torch.float32 and torch.equal(made, terminal_rewards(scores, ratios, MASK, 0.15))
    other = penalised(credit(type(config)(), told(), scores=scores), ratios, MASK, 0.15)
    assert not torch.equal(other, made)


@pytest.mark.parametrize("config", [TerminalCredit(), UniformCredit(), *DENSE])
def test_columns_that_no_answer_needs_change_nothing(config):
    wide = torch.cat([MASK, torch.zeros(2, 2, dtype=torch.bool)], -1)
    plain, padded = credit(config, told()), credit(config, told(), mask=wide)
    assert torch.equal(padded[:, :3], plain) and (padded[:, 3:] == 0).all()


def test_rows_of_another_length_are_refused():
    tokens = told()
    tokens.rows["attention"][1].append(0.5)
    with pytest.raises(ValueError, match=r"\[3, 3\] tokens, but their rows of the mask \[3, 2\]"):
        credit(AttentionCredit(), tokens)


# ------------------------------------------------------------------------------------------------- with real models


@pytest.fixture(scope="module")
def reward() -> CalibratedReward:
    made = tiny.reward_model(3)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return CalibratedReward(RewardScorer(made, TOKENS, 64, 8), CALIBRATION)


@pytest.fixture(scope="module")
def sampled():
    """Answers of a policy, and their mask."""
    policy = tiny.policy(scale=3.0)
    answers = answer(policy, TOKENS, PROMPTS, [11, 12, 13, 14], tiny.sampling(max_new_tokens=9))
    return answers, batch_of(answers, TOKENS.pad_token_id, torch.device("cpu")).response_mask


def test_red_telescopes_to_the_standardised_score_and_penalties_fall_on_the_last_token(reward, sampled):
    answers, mask = sampled
    tokens = KnownTokens.of(RedistributedCredit(), reward, TOKENS)
    scores = torch.from_numpy(reward(PROMPTS, [given.text for given in answers]))
    bare = torch.tensor([row[0] for row in tokens.prefix_scores(PROMPTS, answers)]).double()
    plain = assign(RedistributedCredit(), scores, mask, PROMPTS, answers, tokens, 1.0)
    torch.testing.assert_close(plain.sum(-1), scores - bare)
    shaped = scores.clamp(-0.1, 0.1) - 1.0
    penalty = assign(RedistributedCredit(), shaped, mask, PROMPTS, answers, tokens, 1.0) - plain
    torch.testing.assert_close(penalty, terminal_credit(shaped - scores, mask), atol=1e-9, rtol=0)
    assert (plain[mask] != 0).float().mean() > 0.5  # it is dense


def test_standardising_divides_the_changes_by_the_deviation_and_the_mean_drops_out(reward, sampled):
    answers, _ = sampled
    scorer = KnownTokens.of(RedistributedCredit(), reward, TOKENS).scorer
    raw = scorer.prefix_scores(PROMPTS, answers)
    for mean in (0.0, 3.0, -1e4):
        known = KnownTokens(CalibratedReward(reward.scorer, Calibration(mean, 0.5, 8)), TOKENS, scorer)
        for row, standardised in zip(raw, known.prefix_scores(PROMPTS, answers), strict=True):
            np.testing.assert_allclose(np.diff(standardised), np.diff(row) / 0.5, atol=1e-10)


@pytest.mark.parametrize(
    ("config", "passes"), [(TerminalCredit(), 1), (RedistributedCredit(), 1), (AttentionCredit(), 1)]
)
def test_scores_and_credit_together_take_one_pass_of_the_reward_model(reward, sampled, config, passes):
    answers, mask = sampled
    texts = [given.text for given in answers]
    tokens = KnownTokens.of(config, reward, TOKENS)
    plain, seen = reward(PROMPTS, texts), []
    watch = reward.scorer.model.register_forward_hook(lambda module, args, made: seen.append(len(made.logits)))
    scores = tokens(PROMPTS, texts)
    assign(config, torch.from_numpy(scores), mask, PROMPTS, answers, tokens, 1.0)
    watch.remove()
    np.testing.assert_allclose(scores, plain, atol=1e-5)
    assert sum(seen) == passes * len(answers)


def test_attention_credit_keeps_the_score(reward, sampled):
    answers, mask = sampled
    tokens = KnownTokens.of(AttentionCredit(), reward, TOKENS)
    scores = torch.tensor([1.0, -2.0, 0.5, 4.0])
    made = assign(AttentionCredit(mix=1.0), scores, mask, PROMPTS, answers, tokens, 1.0)
    torch.testing.assert_close(made.sum(-1), scores)
    uniform = assign(UniformCredit(), scores, mask, PROMPTS, answers, tokens, 1.0)
    assert (made - uniform).abs().max() > 1e-3


def test_token_rewards_come_from_the_head(reward, sampled, tmp_path):
    answers, mask = sampled
    head = token_head_from_trunk(tiny.saved(tiny.policy(), tmp_path / "trunk"))
    with torch.no_grad():
        head.score.bias.fill_(0.25)
    judge = TokenHead(head, TOKENS, TOKENS, 64, 8)
    tokens = KnownTokens.of(TokenCredit(), reward, TOKENS, judge)
    made = assign(TokenCredit(share=1.0), torch.zeros(4), mask, PROMPTS, answers, tokens, 1.0)
    read = [len(encode_response(TOKENS, given.text)) for given in answers]  # bytes that are no text are read as such
    assert made.sum(-1).tolist() == pytest.approx([0.25 * count for count in read])


def test_dense_rewards_are_the_reward_models_own_in_deviations_and_take_no_second_pass(sampled):
    answers, mask = sampled
    model = new_tqr(tiny.policy(scale=3.0), TqrForm(score="sum"))
    with torch.no_grad():
        model.reward_head.weight.copy_(torch.linspace(-1, 1, model.reward_head.weight.numel()).reshape(2, -1))
    scorer = TqrScorer(model, TOKENS, 64, 8)
    tokens = KnownTokens.of(DenseCredit(), CalibratedReward(scorer, CALIBRATION), TOKENS)
    passes = []
    watch = model.trunk.register_forward_hook(lambda *_: passes.append(1))
    scores = torch.from_numpy(tokens(PROMPTS, [given.text for given in answers]))
    once = len(passes)
    made = assign(DenseCredit(), scores, mask, PROMPTS, answers, tokens, 1.0)
    watch.remove()
    assert len(passes) == once > 0
    torch.testing.assert_close(made.sum(-1), scores + CALIBRATION.mean / CALIBRATION.std)
    shared = assign(DenseCredit(share=0.25), scores, mask, PROMPTS, answers, tokens, 1.0)
    torch.testing.assert_close(shared, 0.25 * made + 0.75 * terminal_credit(scores, mask))


def test_potentials_are_the_likeness_with_the_given_answer(reward):
    ids = encode_response(TOKENS, "the cat sat")
    prompts, answers = [PROMPTS[0], PROMPTS[1]], [said(ids, "the cat sat"), said(ids, "the cat sat")]
    tokens = KnownTokens.of(PotentialCredit(), reward, TOKENS, references={PROMPTS[0].key: "the cat sat"})
    with_reference, without = tokens.potentials(prompts, answers)
    written = len(ids) - 1
    expected = [2 * count / (count + written) for count in range(len(ids))]
    assert with_reference.tolist() == pytest.approx(expected) and with_reference[-1] == 1.0
    assert without.tolist() == [0.0] * len(ids)
    mask = torch.ones(2, len(ids), dtype=torch.bool)
    made = assign(PotentialCredit(), torch.zeros(2), mask, prompts, answers, tokens, 1.0)
    assert (made[0, :-1] > 0).all() and made[0].sum().item() == pytest.approx(0.0, abs=1e-6)
    assert (made[1] == 0).all()


def test_only_who_reads_the_reward_model_per_token_asks_whether_it_can_be():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(TOKENS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    encoder = CalibratedReward(RewardScorer(BertForSequenceClassification(config), TOKENS, 64, 2), CALIBRATION)
    for fine in (TerminalCredit(), UniformCredit(), PotentialCredit(), TokenCredit()):
        KnownTokens.of(fine, encoder, TOKENS)
    for needs in (RedistributedCredit(), AttentionCredit()):
        with pytest.raises(UserError, match="scores no prefix"):
            KnownTokens.of(needs, encoder, TOKENS)


def test_a_demonstration_is_preferred_to_a_chosen_answer_and_the_first_to_later_ones():
    shown = [
        Demonstration(
            prompt=Prompt.from_text("p"),
            response=text,
            provenance=Authorship(dataset="d", original_id=text),
        )
        for text in ("first", "second")
    ]
    pairs = [tiny.pair("p", "chosen", "other"), tiny.pair("q", "one", "two"), tiny.pair("q", "later", "two")]
    keys = {text: Prompt.from_text(text).key for text in "pq"}
    assert given_answers(shown, pairs) == {keys["p"]: "first", keys["q"]: "one"}


# ------------------------------------------------------------------------------------------------- configuration

ANY = TypeAdapter(CreditConfig)


@pytest.mark.parametrize("config", [TerminalCredit(), UniformCredit(), *DENSE])
def test_the_type_says_which_section_it_is(config):
    assert ANY.validate_python(config.model_dump()) == config
    assert all(field.description for name, field in type(config).model_fields.items() if name != "type")


@pytest.mark.parametrize(
    "bad",
    [
        {"type": "red", "mix": 1.1},
        {"type": "abc", "mix": -0.1},
        {"type": "token", "share": 2},
        {"type": "dense", "share": -1},
        {"type": "potential", "weight": 0},
        {"type": "terminal", "mix": 0.5},
        {"type": "segment"},
    ],
)
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(ValidationError):
        ANY.validate_python(bad)
