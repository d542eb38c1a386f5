"""Several processes that train one policy: each works on its share of the rows, and the result is that of one process.

Equal up to the order of sums: metrics agree within 1e-5, answers to the letter.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from inverse_alignment.core.parallel import Alone, contiguous, dealt
from tests.unit.optimise import ppo_rank

CLOSE = 1e-5
COUNTED = ("clipped_share", "value_clipped_share")
"""Shares of tokens on one side of a bound: rounding alone can move a token across."""
SIZE = 2


class Place(Alone):
    """A place in a group that nobody else is in."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What each of two processes found, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.unit.optimise.ppo_rank", str(folder)]
    ranks = [subprocess.Popen([*command, str(rank), str(SIZE)], stderr=subprocess.PIPE) for rank in range(SIZE)]
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors.decode()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(SIZE)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def largest_difference(found, metrics):
    pairs = list(zip(found["metrics"], metrics, strict=True))
    assert all(theirs.keys() == ours.keys() for theirs, ours in pairs)
    return max(abs(theirs[name] - ours[name]) for theirs, ours in pairs for name in ours if name not in COUNTED)


@pytest.mark.slow
@pytest.mark.parametrize("case", ppo_rank.CASES)
def test_two_processes_do_what_one_does(together, case):
    metrics, weights, texts = ppo_rank.trained(case, Alone())
    assert together[0][case] == together[1][case]  # to the bit: whoever writes, writes the same
    assert together[0][case]["texts"] == texts and len({len(text) for text in texts}) > 3
    assert largest_difference(together[0][case], metrics) < CLOSE
    total = float(sum(weight.double().sum() for weight in weights.values()))
    assert together[0][case]["sum"] == pytest.approx(total, abs=1e-3)
    assert metrics[-1]["policy_grad_norm"] > 0.01  # they learned something


def test_processes_that_keep_their_gradients_to_themselves_do_not(together):
    metrics, _, _ = ppo_rank.trained("separate", Alone())
    assert largest_difference(together[0]["deaf"], metrics) > 1e-3
    assert together[0]["deaf"] != together[1]["deaf"]


@pytest.mark.parametrize("rows", [1, 2, 3, 16, 17])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_row_has_one_process_and_the_shares_are_alike(rows, size):
    places = [Place(rank, size) for rank in range(size)]
    pieces = [list(range(rows))[contiguous(place, rows)] for place in places]
    assert [row for piece in pieces for row in piece] == list(range(rows))
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1
    lengths = [(7 * row) % 5 + 1 for row in range(rows)]
    shares = [dealt(place, lengths) for place in places]
    assert sorted(row for share in shares for row in share) == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    sums = [sum(lengths[row] for row in share) for share in shares]
    assert max(sums) - min(sums) <= max(lengths)


def test_alone_everything_is_as_it_was():
    numbers = torch.tensor([1.0, 2.0])
    Alone().add(numbers)
    assert numbers.tolist() == [1.0, 2.0] and Alone().gather([1, "a"]) == [1, "a"] and not Alone().agree(False)
    assert dealt(Alone(), [3, 1, 2]) == [1, 2, 0] and contiguous(Alone(), 3) == slice(0, 3)
