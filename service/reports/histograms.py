"""Histograms of times that are kept as one number, and their percentiles.

Each bucket has twelve decimal digits of the number, the shortest times the lowest. So the sum of
the numbers of many hours is the histogram of all of them.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

BOUNDS_MS: Final = (
    *(0, 50, 100, 200, 300, 500, 750, 1000, 1500, 2000, 3000, 5000),
    *(10_000, 20_000, 30_000, 60_000, 120_000),
)
"""Where each bucket begins, in milliseconds; as in the view ``derived.entries``."""
BASE: Final = 10**12


def unpack(packed: Decimal | int) -> Sequence[int]:
    """Return how many times are in each bucket."""
    rest = int(packed)
    counts = []
    for _ in BOUNDS_MS:
        rest, count = divmod(rest, BASE)
        counts.append(count)
    return counts


def percentile(counts: Sequence[int], share: float) -> int | None:
    """Return the time in milliseconds that a ``share`` of all times does not exceed.

    Within its bucket it is interpolated. The last bucket has no end, so its beginning is returned.
    None without times.
    """
    rank = share * sum(counts)
    ends = (*BOUNDS_MS[1:], BOUNDS_MS[-1])
    for begin, end, count in zip(BOUNDS_MS, ends, counts, strict=True):
        if count and rank <= count:
            return round(begin + (end - begin) * rank / count)
        rank -= count
    return BOUNDS_MS[-1] if any(counts) else None
