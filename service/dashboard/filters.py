"""The filters of lists: their form, which shows them again, and the links that repeat them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from service.api.queries import read_fields
from service.dashboard.forms import UtcMoment, form_state, stated_fields
from service.dashboard.page import Page
from service.errors import ClientError

TIMES: Final = ("from", "to")


class PeriodQuery(msgspec.Struct, kw_only=True):
    """A period of days or times, which are UTC unless they state a zone."""

    start: UtcMoment | UnsetType = msgspec.field(name="from", default=UNSET)
    end: UtcMoment | UnsetType = msgspec.field(name="to", default=UNSET)


class HasPeriod(Protocol):
    """A query with a period."""

    start: UtcMoment | UnsetType
    end: UtcMoment | UnsetType


def period_of(query: HasPeriod) -> tuple[datetime | None, datetime | None]:
    """The period that a query states, None where it is open.

    :raises ClientError: when it ends before it starts.
    """
    start = None if query.start is UNSET else query.start.at
    end = None if query.end is UNSET else query.end.at
    if start is not None and end is not None and start >= end:
        raise ClientError("from: must be before to.", param="from")
    return start, end


def filters_of(page: Page, names: Sequence[str], cursor: str = "before") -> dict[str, Any]:
    """What a template shows of the filters ``names`` of a list.

    ``filters`` has the text of each, ``links`` those that are not empty, for the links to other
    pages of the list. ``state`` is that of their form. ``is_later`` states whether the page has a
    cursor, so that it is not the first.
    """
    query = page.request.query
    stated = {name: query.get(name, "").strip() for name in names}
    return {
        "filters": {
            name: local_time(text) if name in TIMES and page.error is None else text
            for name, text in stated.items()
        },
        "links": {name: text for name, text in stated.items() if text},
        "state": form_state("filters", stated, page.error),
        "is_filtered": any(stated.values()),
        "is_later": bool(query.get(cursor)),
    }


def local_time(text: str) -> str:
    """A time or day in the form of a browser's field for times, in UTC. Empty for none."""
    if not text:
        return ""
    return input_time(read_fields(stated_fields({"from": text}), PeriodQuery).start.at)  # type: ignore[union-attr]


def input_time(at: datetime | None) -> str:
    """A time in the form of a browser's field for times, in UTC. Empty for none."""
    if at is None:
        return ""
    precision = "milliseconds" if at.microsecond else "seconds"
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec=precision)
