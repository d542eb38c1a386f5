"""The order in which rows are presented: every epoch whole, little padding, decided by the seed alone."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.models.trl_training import presented


def order(lengths, batch=4, epochs=1.0, seed=0):
    arguments = {"per_device_train_batch_size": batch, "num_train_epochs": epochs, "seed": seed}
    return presented(list(range(len(lengths))), lengths, arguments)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(1, 9), st.integers(1, 3), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_every_epoch_presents_every_row_once(lengths, batch, epochs, seed):
    rows, arguments = order(lengths, batch, epochs, seed)
    for epoch in range(epochs):
        assert Counter(rows[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == Counter(range(len(lengths)))
    assert len(rows) == epochs * len(lengths)
    assert arguments["num_train_epochs"] == 1 and arguments["train_sampling_strategy"] == "sequential"


def test_part_of_an_epoch_presents_part_of_the_rows():
    assert len(order([1] * 10, epochs=1.5)[0]) == 15
    assert len(set(order([1] * 10, epochs=0.5)[0])) == 5


def test_rows_of_like_length_share_a_batch_and_the_order_is_still_a_shuffle():
    lengths = [(37 * i) % 101 for i in range(512)]

    def padding(rows):
        batches = [rows[i : i + 4] for i in range(0, len(rows), 4)]
        return sum(max(lengths[r] for r in batch) * len(batch) - sum(lengths[r] for r in batch) for batch in batches)

    rows = order(lengths)[0]
    assert padding(rows) < 0.2 * padding(list(range(512)))
    firsts = [lengths[row] for row in rows[::4]]
    assert firsts != sorted(firsts) and firsts != sorted(firsts, reverse=True)


def test_seed_and_epoch_change_the_order_and_nothing_else_does():
    lengths = list(range(64))
    assert order(lengths)[0] == order(lengths)[0]
    assert order(lengths, seed=1)[0] != order(lengths)[0]
    two = order(lengths, epochs=2)[0]
    assert two[:64] == order(lengths)[0] and two[64:] != two[:64]
