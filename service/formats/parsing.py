"""Parses numbers and times that people write, each by one strict grammar. Pure functions.

Python's own ``int()``, ``Decimal()`` and ``fromisoformat()`` accept more than people expect:
``1_000``, ``+5``, `` 5 ``, digits of other scripts, ``NaN``. A value that another parser would
refuse or read differently is refused here.
"""

import contextlib
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from service.errors import ClientError

MAX_DIGITS: Final = 19
"""The digits of the largest bigint."""
_WHOLE: Final = re.compile(rf"[0-9]{{1,{MAX_DIGITS}}}")
_DECIMAL: Final = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?")
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
# RFC 3339, seconds and their fraction optional.
_INSTANT: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def parse_whole(text: str) -> int:
    """Parse a whole number of ASCII digits.

    :raises ValueError: when it is written in another way.
    """
    if not _WHOLE.fullmatch(text):
        raise ValueError("must be a whole number, written in digits alone")
    return int(text)


def parse_decimal(text: str) -> Decimal:
    """Parse a decimal number: ASCII digits, and optionally a point and more digits.

    :raises ValueError: when it is written in another way.
    """
    if not _DECIMAL.fullmatch(text):
        raise ValueError("must be a decimal number, as 5 or 0.25")
    return Decimal(text)


def parse_day(text: str) -> datetime:
    """Parse a day. Returns its start in UTC.

    :raises ValueError: when the calendar does not have the day.
    """
    if _DAY.fullmatch(text):
        with contextlib.suppress(ValueError):
            return datetime.fromisoformat(text).replace(tzinfo=UTC)
    raise ValueError("must be a day of the calendar, as 2026-11-01")


def parse_instant(text: str) -> datetime:
    """Parse a time of RFC 3339 with a time zone. Returns it in UTC.

    :raises ValueError: when it is malformed, or outside the years 1 to 9999 in UTC.
    """
    at = None
    if _INSTANT.fullmatch(text):
        with contextlib.suppress(ValueError):
            at = datetime.fromisoformat(text.upper())
    if at is None:
        raise ValueError("must be a time and zone, as 2026-11-01T08:00:00Z")
    return _in_utc(at)


def parse_moment(text: str) -> datetime:
    """Parse a day, or a time of RFC 3339. Returns it, or the start of the day, in UTC.

    :raises ValueError: when it is neither.
    """
    for parse in (parse_day, parse_instant):
        with contextlib.suppress(ValueError):
            return parse(text)
    raise ValueError(
        "must be a day, as 2026-11-01, or a time and zone, as 2026-11-01T08:00:00Z, of the years 1"
        " to 9999 in UTC"
    )


def check_future(field: str, at: datetime, now: datetime) -> datetime:
    """Return the time of a field in UTC.

    :raises ClientError: when it has no time zone or no year in UTC, or is not after ``now``.
    """
    try:
        at = _in_utc(at)
    except ValueError as error:
        raise ClientError(f"{field}: {error}.", param=field) from None
    if at <= now:
        raise ClientError(f"{field}: must be in the future.", param=field)
    return at


def _in_utc(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise ValueError("must have a time zone, as in 2030-01-01T00:00:00Z")
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be of the years 1 to 9999 in UTC") from None
