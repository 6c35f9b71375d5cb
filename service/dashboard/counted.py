"""Which requests make up what a limit has used."""

from datetime import datetime, timedelta

from service.dashboard.filters import input_time
from service.dashboard.paths import url
from service.dashboard.spending import start_of_day, start_of_month
from service.ledger import Limit


def counted_url(limit: Limit, now: datetime) -> str:
    """The URL of the list of the requests that the limit counts now. Those from before it was set
    do not count."""
    return url(
        "requests",
        organization=limit.organization_id,
        key=limit.api_key_id,
        model=limit.model,
        end_user=f"digest:{limit.end_user}" if limit.end_user else None,
        from_=input_time(max(limit.created_at, _start(limit, now))),
    )


def _start(limit: Limit, now: datetime) -> datetime:
    """The start of the limit's period. Minutes and hours slide."""
    match limit.period:
        case "minute":
            return now - timedelta(minutes=1)
        case "hour":
            return now - timedelta(hours=1)
        case "day":
            return start_of_day(now)
        case "month":
            return start_of_month(now)
        case _:
            return limit.created_at
