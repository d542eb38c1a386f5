"""The benchmark of selection: its vectors, and that what it measures is the selection and the product of the same."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.selection_scale import measure, pool
from benchmarks.selection_scale.pool import RowEncoder, VectorPool, policy_vectors


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "ROWS", 700)
    monkeypatch.setattr(pool, "AT_ONCE", 300)
    monkeypatch.setattr(pool, "TABLE", 512)
    made = VectorPool(tmp_path, 1500)
    made.write()
    return made


def test_a_vector_depends_on_its_row_alone(small, tmp_path, monkeypatch):
    assert [len(rows) for rows in small.shards] == [700, 700, 100]
    encode = RowEncoder(small, policy_vectors(4))
    asked = [f"{row}:{side}" for side in (0, 1) for row in range(690, 1450)]  # of three shards
    found = encode(asked)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-5)
    assert len(np.unique(found[::190].round(5), axis=0)) == 8
    monkeypatch.setattr(pool, "ROWS", 1500)
    (tmp_path / "other").mkdir()
    whole = VectorPool(tmp_path / "other", 1500)
    whole.write()
    np.testing.assert_array_equal(RowEncoder(whole, policy_vectors(4))(asked), found)
    np.testing.assert_array_equal(encode(["policy:2", "policy:0"]), policy_vectors(4)[[2, 0]])
    with pytest.raises(ValueError, match="are not two sides"):
        encode(["1:0", "3:0", "1:1", "3:1"])


def test_it_selects_from_the_very_vectors_that_it_multiplies(small, monkeypatch):
    monkeypatch.setattr(measure, "KEPT", 50)
    found = measure.compare(small, 16)
    assert found["kept"] == 50 and len(found["ratios"]) == 3 and found["time_ratio"] > 0
    others = policy_vectors(16)
    for rows, shard in zip(small.shards, range(3), strict=True):
        ours = measure.ours(small, rows, others)
        for values, vectors in zip((ours.chosen, ours.rejected), small.shard(shard), strict=True):
            np.testing.assert_allclose(values, (vectors @ others.T).max(1), atol=1e-5)
