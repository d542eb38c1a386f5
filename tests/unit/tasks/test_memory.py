"""The most memory since it was asked to forget: what was held and freed counts, what was before does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.memory import forget_peaks, peaks


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets")
def test_what_was_held_in_between_is_the_peak() -> None:
    assert forget_peaks()
    before = peaks()["peak_gib"]
    held = np.ones(2**26)  # half a GiB
    assert held.sum() == 2**26
    del held
    after = peaks()["peak_gib"]
    assert before is not None and after is not None and 0.45 < after - before < 0.6
    assert forget_peaks()
    again = peaks()["peak_gib"]
    assert again is not None and again < before + 0.2
    assert peaks()["gpu_peak_gib"] is None
