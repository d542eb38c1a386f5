"""What a licence's name says about its use."""

from __future__ import annotations

import re

_NON_COMMERCIAL = re.compile(r"\bNC\b|non-?commercial", re.IGNORECASE)


def non_commercial(licence: str) -> bool:
    """Whether a licence allows no commercial use, as CC BY-NC 4.0 does, told from its name."""
    return _NON_COMMERCIAL.search(licence.replace("_", "-")) is not None
