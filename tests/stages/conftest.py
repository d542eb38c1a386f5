"""One tiny run of every stage, built once: the stages' own tests look at what lies there."""

from __future__ import annotations

import pytest
import torch

from tests.stages import chain


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Same bytes are promised for one thread count."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def built(tmp_path_factory, one_thread):
    """The outputs of a whole round, by name."""
    return chain.whole_round(chain.Chain(tmp_path_factory.mktemp("chain")))
