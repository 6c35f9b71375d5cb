"""Periods of spending, and the chart of what was spent on each day."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from service.dashboard import charts
from service.dashboard.charts import Chart, Point
from service.dashboard.formats import usd
from service.reports.usage import Report

DAY: Final = timedelta(days=1)
MAX_COLUMNS: Final = 100
"""A page with more columns, each with a row in the table beneath, would be slow to load."""


def start_of_day(now: datetime) -> datetime:
    """The start of the day in UTC."""
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def start_of_month(now: datetime) -> datetime:
    """The start of the month in UTC."""
    return start_of_day(now).replace(day=1)


def cost_over_time(report: Report, link: Callable[[datetime, datetime], str]) -> Chart | None:
    """The chart of a report by day or hour: a column for each, those without calls included.

    ``link`` makes the URL of the list of a column, from its start and end. None for a period that
    has too many columns.
    """
    is_by_hour = report.group_by == "hour"
    step = timedelta(hours=1) if is_by_hour else DAY
    start = report.start.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    at = start if is_by_hour else start_of_day(report.start)
    if (report.end - at) / step > MAX_COLUMNS:
        return None
    groups = {group.key: group for group in report.groups}
    points = []
    while at < report.end:
        group = groups.get(f"{at:%Y-%m-%dT%H:%M:%SZ}" if is_by_hour else f"{at:%Y-%m-%d}")
        cost = "0" if group is None else group.cost_usd
        calls = 0 if group is None else group.calls
        points.append(
            Point(
                label=f"{at:%-d %b %H:%M}" if is_by_hour else f"{at:%-d %b}",
                value=Decimal(cost),
                text=f"{usd(cost)}, {calls:,} {'call' if calls == 1 else 'calls'}",
                url=link(at, at + step),
            )
        )
        at += step
    return charts.columns(points)
