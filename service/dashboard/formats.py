"""How pages write money, counts, shares and times. Each is a filter of the templates."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

SIGNIFICANT_DIGITS: Final = 3
"""Digits of an amount below one dollar, which is never rounded to zero."""
UNITS: Final = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
LONG_S: Final = 365 * 86_400
NEAR_SHARE: Final = Decimal("0.8")
"""How much of a limit is used or held when it is near its end."""
UNKNOWN: Final = "unknown"


def usd(amount: str | Decimal | None) -> str:
    """An amount for reading: ``$1,234.57``, ``$0.05``, ``$0.0000123``; None is unknown."""
    if amount is None:
        return UNKNOWN
    return _money(Decimal(amount), "$", "")


def diem(amount: str | Decimal | None) -> str:
    """An amount of DIEM for reading."""
    return UNKNOWN if amount is None else _money(Decimal(amount), "", " DIEM")


def _money(amount: Decimal, before: str, after: str) -> str:
    sign = "-" if amount < 0 else ""
    size = abs(amount)
    places = 2
    if 0 < size < 1:
        # Enough places for the first digits that are not zero.
        places = max(2, SIGNIFICANT_DIGITS - 1 - size.adjusted())
    text = f"{size:,.{places}f}"
    if places > 2:
        whole, _, fraction = text.partition(".")
        text = f"{whole}.{fraction.rstrip('0').ljust(2, '0')}"
    return f"{sign}{before}{text}{after}"


def count(number: int | None) -> str:
    """A number with separators: ``12,345``."""
    return UNKNOWN if number is None else f"{number:,}"


def amount(value: str | int | None, unit: str) -> str:
    """An amount of a limit in its unit: ``$5.00``, ``1,000 requests``."""
    if unit == "usd":
        return usd(None if value is None else str(value))
    if value is None:
        return UNKNOWN
    number = int(value)
    name = {"concurrency": "at a time"}.get(unit, unit)
    return f"{number:,} {name.removesuffix('s') if number == 1 else name}"


def period(name: str | None) -> str:
    """The period of a limit: ``a month``, ``an hour``, ``in all``; empty where there is none."""
    if name is None:
        return ""
    return {"hour": "an hour", "lifetime": "in all"}.get(name, f"a {name}")


def milliseconds(duration_ms: float | None) -> str:
    """A duration: ``85 ms``, ``1.3 s``, ``2 min 5 s``."""
    if duration_ms is None:
        return UNKNOWN
    if duration_ms < 1000:
        return f"{duration_ms:.0f} ms"
    if duration_ms < 60_000:
        return f"{duration_ms / 1000:.1f} s"
    return duration(duration_ms / 1000)


def duration(seconds: float | None) -> str:
    """A duration in its two largest units: ``3 d 4 h``, ``12 min``."""
    if seconds is None:
        return UNKNOWN
    if seconds > LONG_S:
        return "more than a year"
    left, parts = max(0, round(seconds)), []
    for unit, size_s in UNITS:
        number, left = divmod(left, size_s)
        if number:
            parts.append(f"{number} {unit}")
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts) or "0 s"


def relative(at: datetime, now: datetime) -> str:
    """A time as seen from now: ``3 min ago``, ``in 2 h``, ``now``."""
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1:
        return "now"
    for unit, size_s in UNITS:
        number = int(abs(seconds) // size_s)
        if number:
            return f"{number} {unit} ago" if seconds > 0 else f"in {number} {unit}"
    return "now"


def exact(at: datetime) -> str:
    """A time in UTC to the second: ``2026-11-01 08:00:00 UTC``."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def iso(at: datetime) -> str:
    """A time for programs."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds")


def percent(share: float | Decimal | None) -> str:
    """A share of a whole: ``0.4 %``, ``12 %``; one that is not zero is not written as zero."""
    if share is None:
        return UNKNOWN
    number = Decimal(share) * 100
    if number == 0 or number >= 10:
        return f"{number:.0f} %"
    return f"{number:.1f} %" if number >= Decimal("0.1") else "under 0.1 %"


def share(part: str | int, whole: str | int) -> Decimal:
    """How much of the whole the part is, from 0 to 1. All of it if the whole is nothing."""
    total = Decimal(whole)
    if total <= 0:
        return Decimal(1)
    return min(Decimal(1), max(Decimal(0), Decimal(part) / total))


def change(now: Decimal | str | int, before: Decimal | str | int) -> str:
    """How much more or less than before, as ``+12 %``; empty if there is nothing to compare."""
    was = Decimal(before)
    if was <= 0:
        return ""
    return f"{(Decimal(now) - was) / was * 100:+.0f} %"


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    function.__name__: function
    for function in (
        usd,
        diem,
        count,
        amount,
        period,
        milliseconds,
        duration,
        relative,
        exact,
        iso,
        percent,
        share,
        change,
    )
}
