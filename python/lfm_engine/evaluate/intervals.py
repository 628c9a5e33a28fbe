"""How far a measured share may be from the true one."""

from __future__ import annotations

import math

CONFIDENCE = 0.95
_Z = 1.959963984540054  # of the normal distribution, for CONFIDENCE


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Wilson's score interval of `hits` in `count` tries, at CONFIDENCE; (0, 1) for no tries."""
    if count == 0:
        return 0.0, 1.0
    share = hits / count
    spread = _Z * math.sqrt(share * (1 - share) / count + (_Z / (2 * count)) ** 2)
    middle = share + _Z * _Z / (2 * count)
    scale = 1 + _Z * _Z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def share(hits: int, count: int) -> dict[str, object]:
    """A share as reports have it: fraction, hits, count and interval."""
    low, high = wilson(hits, count)
    return {
        "fraction": hits / count if count else 0.0,
        "hits": hits,
        "count": count,
        "interval": [low, high],
    }
