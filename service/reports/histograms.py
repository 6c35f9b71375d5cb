"""Histograms of times that are kept as one number, and their percentiles.

Each bucket has twelve decimal digits of the number, the shortest times the lowest. So the sum of
the numbers of many hours is the histogram of all of them.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

BOUNDS_MS: Final = (
    *(0, 50, 100, 200, 300, 500, 750, 1000, 1500, 2000, 3000, 5000),
    *(10_000, 20_000, 30_000, 60_000, 120_000),
)
"""Where each bucket begins, in milliseconds; as in the view ``derived.entries``."""
DIGITS: Final = 12
LENGTH: Final = DIGITS * len(BOUNDS_MS)
PLACES: Final = [(start, start + DIGITS) for start in range(LENGTH - DIGITS, -1, -DIGITS)]


def unpack(packed: str) -> Sequence[int]:
    """Return how many times are in each bucket. ``packed`` is the number in digits."""
    digits = packed.zfill(LENGTH)
    return [int(digits[start:end]) for start, end in PLACES]


def percentiles(counts: Sequence[int], shares: Sequence[float]) -> Sequence[int | None]:
    """Return, for each of the shares, the time in milliseconds that it of all times does not
    exceed.

    Within its bucket it is interpolated. The last bucket has no end, so its beginning is returned.
    None without times.
    """
    sums = list(accumulate(counts))
    return [_interpolate(counts, sums, share * sums[-1]) if sums[-1] else None for share in shares]


def _interpolate(counts: Sequence[int], sums: Sequence[int], rank: float) -> int:
    place = bisect_left(sums, rank)
    begin = BOUNDS_MS[place]
    if place == len(BOUNDS_MS) - 1:
        return begin
    part = 1 - (sums[place] - rank) / counts[place]
    return round(begin + (BOUNDS_MS[place + 1] - begin) * part)
