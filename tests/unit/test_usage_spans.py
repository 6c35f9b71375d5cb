"""A report's period is divided so that each entry is in one span, and in no other period's."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.reports.histograms import BOUNDS_MS, DIGITS, percentiles, unpack
from service.reports.usage import divide

START = datetime(2026, 11, 1, tzinfo=UTC)
DAYS = 4
UNITS = {"hour": timedelta(hours=1), "day": timedelta(days=1)}
# Half an hour apart, and right before and after each whole hour.
ENTRIES = [
    START + timedelta(minutes=30 * number, microseconds=offset)
    for number in range(DAYS * 48)
    for offset in (-1, 0, 1)
]
moments = st.integers(0, DAYS * 24 * 60).flatmap(
    lambda minutes: st.sampled_from([0, 1, -1]).map(
        lambda offset: START + timedelta(minutes=minutes, microseconds=offset)
    )
)


def found(span, counted_to):
    """Return the entries that a span has: those of a roll-up end where the roll-ups do."""
    if span.source == "entries":
        return [at for at in ENTRIES if span.start <= at < span.end]
    unit = UNITS[span.source]
    assert (span.start - START) % unit == (span.end - START) % unit == timedelta(0)
    return [at for at in ENTRIES if span.start <= at < span.end and at < counted_to]


@given(start=moments, end=moments, counted_to=st.none() | moments, by_hour=st.booleans())
@example(START, START + timedelta(days=2), START + timedelta(days=1), False)
@example(START, START + timedelta(hours=2), START + timedelta(hours=1), False)
@example(START, START + timedelta(days=1), START + timedelta(hours=30), False)
@example(START, START + timedelta(hours=30), START + timedelta(hours=25, minutes=3), False)
def test_each_entry_is_in_one_span(start, end, counted_to, by_hour):
    """Whatever the period and wherever the roll-ups end, the spans have the period's entries, each
    of them once."""
    spans = divide(start, end, counted_to, by_hour=by_hour)

    entries = sorted(at for span in spans for at in found(span, counted_to))
    assert entries == [at for at in ENTRIES if start <= at < end]
    assert not (by_hour and any(span.source == "day" for span in spans))


def test_a_running_month_is_read_from_days():
    """This month until now takes the days of the roll-ups and the newest entries alone."""
    counted_to = START + timedelta(days=3, hours=5, minutes=10)
    now = counted_to + timedelta(seconds=40)

    spans = divide(START, now, counted_to, by_hour=False)

    assert [span.source for span in spans] == ["day", "entries"]
    assert spans[1] == ("entries", counted_to, now)


def test_the_ends_of_the_calendar_can_be_divided():
    """A period may begin with the first year and end with the last."""
    first = datetime.min.replace(tzinfo=UTC)
    last = datetime.max.replace(tzinfo=UTC)

    assert [span.source for span in divide(first, last, START, by_hour=False)] == ["day", "entries"]
    assert divide(last - timedelta(seconds=1), last, START, by_hour=False)[0].source == "entries"


@given(st.lists(st.integers(0, 10**9), min_size=len(BOUNDS_MS), max_size=len(BOUNDS_MS)))
def test_a_histogram_fits_one_number(counts):
    """A histogram comes back from its number, and a sum of numbers is the sum of the histograms."""
    packed = sum(count * 10 ** (DIGITS * place) for place, count in enumerate(counts))

    assert unpack(str(packed)) == counts
    assert unpack(str(packed * 2)) == [count * 2 for count in counts]


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ({}, 0.5, None),
        ({0: 1}, 0.5, 25),
        ({100: 10}, 0.5, 150),
        ({100: 10, 1000: 10}, 0.95, 1450),
        ({50: 95, 10_000: 5}, 0.95, 100),
        ({120_000: 3}, 0.5, 120_000),
    ],
)
def test_percentiles_are_interpolated(counts, share, expected):
    """A percentile lies within its bucket by its rank, and at the beginning of the last bucket."""
    found = percentiles([counts.get(bound, 0) for bound in BOUNDS_MS], [share])

    assert found == [expected]
