"""Credit per token: numbers typed by hand, sums, padding, and what each method does to an exactly known gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.maths.advantages import generalised_advantages
from inverse_alignment.maths.credit import (
    attention_credit,
    final_positions,
    penalised,
    potential_credit,
    redistributed_credit,
    terminal_credit,
    terminal_rewards,
    token_credit,
    uniform_credit,
)

NAN = float("nan")
MASK = torch.tensor([[True, True, True], [True, False, False]])
SCORES = torch.tensor([6.0, -2.0])


def credits(scores, mask, numbers, mix):
    """Every method on one (b, t + 1) table of numbers."""
    inner = numbers[:, :-1]
    return {
        "terminal": terminal_credit(scores, mask),
        "uniform": uniform_credit(scores, mask),
        "red": redistributed_credit(numbers, scores, mask, mix),
        "abc": attention_credit(scores, inner.abs() + 0.1, mask, mix),
        "potential": potential_credit(scores, inner, mask, mix),
        "token": token_credit(inner, scores, mask, mix),
        "penalised": penalised(inner, inner**2, mask, mix),
    }


def test_terminal_and_uniform_by_hand():
    torch.testing.assert_close(terminal_credit(SCORES, MASK), torch.tensor([[0.0, 0.0, 6.0], [-2.0, 0.0, 0.0]]))
    torch.testing.assert_close(uniform_credit(SCORES, MASK), torch.tensor([[2.0, 2.0, 2.0], [-2.0, 0.0, 0.0]]))


def test_redistribution_by_hand():
    # the second row has one token: what stands behind it is padding
    prefixes = torch.tensor([[1.0, 0.5, 4.0, 6.0], [-1.0, -2.0, 77.0, NAN]])
    full = redistributed_credit(prefixes, SCORES, MASK, 1.0)
    torch.testing.assert_close(full, torch.tensor([[-0.5, 3.5, 2.0], [-1.0, 0.0, 0.0]]))
    half = redistributed_credit(prefixes, SCORES, MASK, 0.5)
    torch.testing.assert_close(half, torch.tensor([[-0.25, 1.75, 4.0], [-1.5, 0.0, 0.0]]))


def test_attention_by_hand():
    attention = torch.tensor([[0.1, 0.1, 0.2], [0.3, 9.0, NAN]])  # of 0.4 and of 0.3 in all: the rest saw the prompt
    full = attention_credit(SCORES, attention, MASK, 1.0)
    torch.testing.assert_close(full, torch.tensor([[1.5, 1.5, 3.0], [-2.0, 0.0, 0.0]]))
    part = attention_credit(SCORES, attention, MASK, 0.8)
    torch.testing.assert_close(part, torch.tensor([[1.2, 1.2, 3.6], [-2.0, 0.0, 0.0]]))


def test_potential_by_hand():
    # γ = 0.5: 0.5·4 - 2 = 0; 0.5·6 - 4 = -1; 0 - 6 + 6 = 0 | 0 - 3 - 2 = -5
    potentials = torch.tensor([[2.0, 4.0, 6.0], [3.0, 9.0, NAN]])
    expected = torch.tensor([[0.0, -1.0, 0.0], [-5.0, 0.0, 0.0]])
    torch.testing.assert_close(potential_credit(SCORES, potentials, MASK, 0.5), expected)


def test_token_rewards_by_hand():
    rewards = torch.tensor([[1.0, -1.0, 2.0], [4.0, 9.0, NAN]])
    expected = torch.tensor([[0.25, -0.25, 5.0], [-0.5, 0.0, 0.0]])
    torch.testing.assert_close(token_credit(rewards, SCORES, MASK, 0.25), expected)


def test_the_price_of_kl_by_hand():
    credit, ratios = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[10.0, -10.0, NAN]])
    mask = torch.tensor([[True, True, False]])
    torch.testing.assert_close(penalised(credit, ratios, mask, 0.1), torch.tensor([[0.0, 3.0, 0.0]]))


def test_terminal_rewards_are_the_terminal_credit_less_the_price_of_kl():
    ratios = torch.tensor([[1.0, -2.0, 0.5], [3.0, NAN, NAN]])
    expected = penalised(terminal_credit(SCORES, MASK), ratios, MASK, 0.3)
    assert torch.equal(terminal_rewards(SCORES, ratios, MASK, 0.3), expected)
    torch.testing.assert_close(expected, torch.tensor([[-0.3, 0.6, 5.85], [-2.9, 0.0, 0.0]]))
    half = terminal_rewards(SCORES.double(), ratios.to(torch.bfloat16), MASK, 0.3)
    assert half.dtype == torch.bfloat16  # the type of the log-ratios, whatever the scores' is


def test_the_price_of_kl_is_in_the_type_of_the_log_ratios():
    ratios = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert penalised(MASK.double(), ratios, MASK, 0.1).dtype == torch.bfloat16


def test_shares_are_computed_in_the_type_of_the_scores():
    scores, eighths = SCORES.double(), torch.tensor([[0.125, 0.5, 2.0, 1.375], [0.75, -1.25, 4.0, 0.25]])
    for method in (
        lambda numbers: redistributed_credit(numbers, scores, MASK, 0.3),
        lambda numbers: potential_credit(scores, numbers[:, 1:], MASK, 0.3),
        lambda numbers: token_credit(numbers[:, 1:], scores, MASK, 0.3),
    ):
        assert torch.equal(method(eighths), method(eighths.double()))
    ones = torch.tensor([[2.0**24, 1.0]])  # the sum of both is no float32
    credit = attention_credit(torch.ones(1).double(), ones, torch.ones(1, 2, dtype=torch.bool), 1.0)
    assert credit.tolist() == [[2**24 / (2**24 + 1), 1 / (2**24 + 1)]]


def test_a_potential_before_the_answer_is_worth_nothing():
    potentials, mask = torch.tensor([[NAN, 2.0, 4.0]]), torch.tensor([[False, True, True]])
    credit = potential_credit(torch.tensor([6.0]), potentials, mask, 0.5)
    assert credit.tolist() == [[0.0, 0.0, 2.0]]  # ½ · 4 - 2, 0 - 4 + 6


def test_final_positions_are_found_where_the_mask_is():
    with torch.device("meta"):  # where tensors go that are told nothing
        assert final_positions(MASK).tolist() == [2, 0]


def test_an_answer_without_tokens_is_refused():
    mask = torch.tensor([[True, True], [False, False]])
    for call in (
        lambda: final_positions(mask),
        lambda: terminal_credit(SCORES, mask),
        lambda: redistributed_credit(torch.zeros(2, 3), SCORES, mask, 0.5),
        lambda: potential_credit(SCORES, torch.zeros(2, 2), mask, 1.0),
        lambda: token_credit(torch.zeros(2, 2), SCORES, mask, 0.5),
    ):
        with pytest.raises(ValueError, match="no True position"):
            call()
    for call in (lambda: uniform_credit(SCORES, mask), lambda: attention_credit(SCORES, mask.float(), mask, 0.5)):
        with pytest.raises(ValueError, match="no attention"):
            call()


@st.composite
def cases(draw):
    """Scores, a right-padded mask, a (b, t + 1) table of numbers, and a mix."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    width = max(lengths)
    numbers = st.floats(-5, 5, allow_nan=False, width=32)
    table = [draw(st.lists(numbers, min_size=width + 1, max_size=width + 1)) for _ in lengths]
    scores = draw(st.lists(numbers, min_size=len(lengths), max_size=len(lengths)))
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(-1)
    return torch.tensor(scores).double(), mask, torch.tensor(table).double(), draw(st.floats(0, 1))


@given(cases())
@settings(max_examples=60, deadline=None)
def test_rows_sum_to_what_each_method_promises(case):
    scores, mask, numbers, mix = case
    sums = {name: credit.sum(-1) for name, credit in credits(scores, mask, numbers, mix).items()}
    for name in ("terminal", "uniform", "abc"):
        torch.testing.assert_close(sums[name], scores)
    # the prefix score of the whole answer is its score: RED telescopes to s - β_c S_0
    whole = numbers.clone()
    whole[torch.arange(len(scores)), final_positions(mask) + 1] = scores
    for beta in (mix, 1.0):
        telescoped = redistributed_credit(whole, scores, mask, beta).sum(-1)
        torch.testing.assert_close(telescoped, scores - beta * numbers[:, 0])
    # Σ γ^t F_t = -Φ of the first state, at any γ
    discount = mix ** torch.arange(mask.shape[1]).double()
    shaping = potential_credit(scores, numbers[:, :-1], mask, mix) - terminal_credit(scores, mask)
    torch.testing.assert_close((discount * shaping).sum(-1), -numbers[:, 0])


@given(cases(), st.sampled_from([NAN, float("inf"), 7.0]))
@settings(max_examples=40, deadline=None)
def test_padding_changes_nothing_and_is_worth_nothing(case, garbage):
    scores, mask, numbers, mix = case
    wider = torch.cat([mask, torch.zeros(len(mask), 2, dtype=torch.bool)], -1)
    counts = torch.cat([torch.ones(len(mask), 1, dtype=torch.bool), wider], -1)
    padded = torch.cat([numbers, torch.zeros(len(mask), 2).double()], -1).masked_fill(~counts, garbage)
    plain = credits(scores, mask, numbers, mix)
    for name, credit in credits(scores, wider, padded, mix).items():
        assert torch.equal(credit[:, : mask.shape[1]], plain[name]), name
        assert (credit[~wider] == 0).all(), name


@given(cases())
@settings(max_examples=40, deadline=None)
def test_the_order_of_rows_does_not_matter(case):
    scores, mask, numbers, mix = case
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))
    plain = credits(scores, mask, numbers, mix)
    for name, credit in credits(scores[order], mask[order], numbers[order], mix).items():
        assert torch.equal(credit, plain[name][order]), name


@given(cases())
@settings(max_examples=40, deadline=None)
def test_without_a_share_every_method_is_terminal_to_the_bit(case):
    scores, mask, numbers, _ = case
    for dtype in (torch.float32, torch.float64):
        sparse = terminal_credit(scores.to(dtype), mask)
        made = credits(scores.to(dtype), mask, numbers.to(dtype), 0.0)
        for name in ("red", "abc", "token"):
            assert torch.equal(made[name], sparse), name
        assert torch.equal(potential_credit(scores.to(dtype), torch.zeros_like(sparse), mask, 1.0), sparse)


@given(cases(), st.floats(0.01, 10))
@settings(max_examples=40, deadline=None)
def test_equal_attention_is_uniform(case, level):
    scores, mask, _, _ = case
    equal = torch.full(mask.shape, level).double()
    torch.testing.assert_close(attention_credit(scores, equal, mask, 1.0), uniform_credit(scores, mask))


@given(cases(), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_critic_less_the_prefix_scores_makes_the_same_advantages_of_red(case, lam):
    """GAE at γ = 1 of RED's rewards with critic V - S is GAE of the score at the end with critic V."""
    scores, mask, numbers, _ = case
    prefixes = numbers.clone()
    prefixes[torch.arange(len(scores)), final_positions(mask) + 1] = scores
    values = torch.sin(17 * numbers[:, :-1])
    sparse = generalised_advantages(terminal_credit(scores, mask), values, mask, 1.0, lam)
    dense = redistributed_credit(prefixes, scores, mask, 1.0)
    shifted = generalised_advantages(dense, values - prefixes[:, :-1], mask, 1.0, lam)
    assert (sparse.advantages - shifted.advantages).abs().max() < 1e-12
    raw = generalised_advantages(dense, values, mask, 1.0, lam)  # negative control: the critic has to absorb S
    if (prefixes[:, :-1].abs().masked_fill(~mask, 0).amax(-1) > 0.1).any():
        assert (sparse.advantages - raw.advantages).abs().max() > 1e-3


@given(cases(), st.floats(0.1, 1), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_a_critic_less_the_potential_makes_the_same_advantages(case, gamma, lam):
    scores, mask, numbers, _ = case
    potentials, values = numbers[:, :-1], torch.cos(13 * numbers[:, :-1])
    sparse = generalised_advantages(terminal_credit(scores, mask), values, mask, gamma, lam)
    dense = potential_credit(scores, potentials, mask, gamma)
    shifted = generalised_advantages(dense, values - potentials, mask, gamma, lam)
    assert (sparse.advantages - shifted.advantages).abs().max() < 1e-12


# ------------------------------------------------------------------------------- the exact gradient of a small policy

SYMBOLS = 3
TABLE = torch.tensor([0.7, -1.0, 0.4, 2.0, 0.1, -0.6, -0.3, 1.2, 0.5]).double()  # R of the 9 answers of two symbols
OPENING = torch.tensor([0.3, -0.2, 0.9]).double()  # S after the first symbol
BARE = 0.25  # S of the prompt


def gradient(credit):
    """`E[Σ_t ∇ log π(y_t) Σ_{k≥t} r_k]` over all answers of two symbols, by enumeration."""
    first = torch.tensor([0.2, -0.5, 0.1]).double().requires_grad_()
    second = torch.tensor([[0.3, 0.0, -0.4], [1.0, -1.0, 0.2], [0.0, 0.6, -0.2]]).double().requires_grad_()
    log_first, log_second = first.log_softmax(-1), second.log_softmax(-1)
    answers = [(a, b) for a in range(SYMBOLS) for b in range(SYMBOLS)]
    log_probs = torch.stack([torch.stack([log_first[a], log_second[a, b]]) for a, b in answers])
    to_go = credit.flip(-1).cumsum(-1).flip(-1)
    objective = (log_probs.sum(-1).exp().detach() * (log_probs * to_go).sum(-1)).sum()
    return torch.cat([part.flatten() for part in torch.autograd.grad(objective, (first, second))])


def enumerated():
    """Mask, prefix scores and two attentions of the nine answers: one of them knows how the answer ends."""
    mask = torch.ones(9, 2, dtype=torch.bool)
    prefixes = torch.stack([torch.full((9,), BARE).double(), OPENING.repeat_interleave(3), TABLE], -1)
    attention = torch.stack([torch.linspace(0.1, 0.9, 9), torch.linspace(0.6, 0.2, 9)], -1).double()
    return mask, prefixes, attention


def test_red_and_potentials_leave_the_expected_gradient_as_it_is():
    mask, prefixes, _ = enumerated()
    sparse = gradient(terminal_credit(TABLE, mask))
    assert sparse.abs().max() > 0.05
    for mix in (0.5, 1.0):
        assert (gradient(redistributed_credit(prefixes, TABLE, mask, mix)) - sparse).abs().max() < 1e-12
    shaped = potential_credit(TABLE, 5 * prefixes[:, :-1], mask, 1.0)
    assert (gradient(shaped) - sparse).abs().max() < 1e-12
    undone = potential_credit(
        TABLE, 5 * prefixes[:, :-1], mask, 0.5
    )  # negative control: another γ than the estimator's
    assert (gradient(undone) - sparse).abs().max() > 0.05


def test_attention_and_uniform_credit_change_the_expected_gradient():
    """A known bias, not a defect of the code: what the second symbol earned is paid to the first."""
    mask, _, attention = enumerated()
    sparse = gradient(terminal_credit(TABLE, mask))
    bias = {
        "abc": gradient(attention_credit(TABLE, attention, mask, 1.0)) - sparse,
        "uniform": gradient(uniform_credit(TABLE, mask)) - sparse,
    }
    for difference in bias.values():
        assert difference[:SYMBOLS].abs().max() < 1e-12  # the first symbol is judged by the whole sum, which is s
        assert difference[SYMBOLS:].abs().max() > 0.05
    torch.testing.assert_close(bias["uniform"][SYMBOLS:], -0.5 * sparse[SYMBOLS:])


def test_leave_one_out_baselines_undo_red():
    """Without a critic nothing is left of RED: over one prompt's answers its sums are the scores and a constant."""
    mask, prefixes, attention = enumerated()

    def left_out(returns):
        return returns - (returns.sum() - returns) / (len(returns) - 1)

    dense = redistributed_credit(prefixes, TABLE, mask, 1.0)
    torch.testing.assert_close(left_out(dense.sum(-1)), left_out(TABLE), rtol=0, atol=1e-12)
    assert (dense.sum(-1) - TABLE).abs().min() > 0.2  # though the sums themselves differ
    foreign = token_credit(attention, TABLE, mask, 0.5).sum(-1)  # negative control: rewards that do not telescope
    assert (left_out(foreign) - left_out(TABLE)).abs().max() > 0.1


# ------------------------------------------------------------------------------- shaping and optimal policies

SIDE, GOAL = 5, (4, 4)
STEPS = ((0, 1), (0, -1), (1, 0), (-1, 0))
CELLS = [(x, y) for x in range(SIDE) for y in range(SIDE)]


def move(cell, step):
    return tuple(min(max(place + by, 0), SIDE - 1) for place, by in zip(cell, step, strict=True))


AFTER = [[move(cell, step) for step in STEPS] for cell in CELLS]
TOWARDS_THE_WRONG_CORNER = {cell: 3.0 * (2 * SIDE - sum(cell)) for cell in CELLS}


def shaping_of(potential, gamma):
    """F of every transition, from `potential_credit` itself: two states of an answer, or the last one of it."""
    moves = [(cell, after) for cell, row in zip(CELLS, AFTER, strict=True) for after in row]
    potentials = torch.tensor([[potential[cell], potential[after]] for cell, after in moves]).double()
    mask = torch.tensor([[True, after != GOAL] for _, after in moves])
    return potential_credit(torch.zeros(len(moves)).double(), potentials, mask, gamma)[:, 0].reshape(len(CELLS), -1)


def greedy(gamma, shaping):
    """Which actions are optimal in each cell of a gridworld where a step costs 1 and the goal gives 10."""
    target = torch.tensor([[CELLS.index(after) for after in row] for row in AFTER])
    ends = torch.tensor([[after == GOAL for after in row] for row in AFTER])
    rewards = -1.0 + 10.0 * ends + shaping
    values = torch.zeros(len(CELLS)).double()
    for _ in range(400):
        worth = rewards + gamma * values[target] * ~ends
        values = worth.amax(-1)
    return (worth > values.unsqueeze(-1) - 1e-6)[: CELLS.index(GOAL)].tolist()


@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_a_bad_demonstration_as_potential_changes_no_optimal_policy(gamma):
    plain, potential = greedy(gamma, 0.0), TOWARDS_THE_WRONG_CORNER
    assert plain[0] == [True, False, True, False] and plain[CELLS.index((4, 0))] == [True, False, False, False]
    assert greedy(gamma, shaping_of(potential, gamma)) == plain
    # negative control: paid for being somewhere rather than for the difference
    being = torch.tensor([[potential[after] - 20.0 for after in row] for row in AFTER])
    assert greedy(gamma, being) != plain


def test_another_discount_or_an_end_that_is_not_at_zero_would_change_the_policy():
    plain, potential = greedy(0.9, 0.0), {**TOWARDS_THE_WRONG_CORNER, GOAL: -100.0}
    assert greedy(0.9, shaping_of(potential, 0.9)) == plain  # what the potential says of the end does not matter
    kept = torch.tensor(
        [[0.9 * potential[after] - potential[cell] for after in row] for cell, row in zip(CELLS, AFTER, strict=True)]
    )
    assert greedy(0.9, kept) != plain
    assert greedy(0.9, shaping_of(potential, 1.0)) != plain
