"""Numbers and times have one strict grammar in all places where people write them."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from service import money
from service.commands import LazyGroup
from service.formats import parsing

MAX = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
NO_NUMBERS = [
    "",
    " ",
    "1_000",
    " 5",
    "5 ",
    "5\n",
    "+5",
    "1e3",
    "1E3",
    "５",
    "٣",
    "²",
    "0x10",
    "NaN",
    "Infinity",
    "-inf",
    "1,000",
    "5.",
    ".5",
    "$5",
    "1/2",
    "9" * 5000,
]


@pytest.mark.parametrize("text", [*NO_NUMBERS, "5.0", "-1"])
def test_whole_numbers_are_digits(text):
    """Whole numbers are ASCII digits only, unlike in Python."""
    with pytest.raises(ValueError, match=r"^must be a whole number"):
        parsing.parse_whole(text)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_decimal_numbers_are_digits_and_a_point(text):
    """Decimal numbers, such as amounts of money, are digits and a point only."""
    with pytest.raises(ValueError, match=r"^must be a decimal number"):
        parsing.parse_decimal(text)
    with pytest.raises(ValueError, match="US dollars"):
        money.parse_usd(text)


@given(st.decimals(-(10**18), 10**18, allow_nan=False, places=9))
def test_decimal_numbers_are_exact(number):
    """Decimal numbers are exact to the last place."""
    assert parsing.parse_decimal(f"{number:f}") == number


@given(st.integers(0, 10**19 - 1))
def test_whole_numbers_are_read(number):
    """Whole numbers may have leading zeros, up to a length."""
    assert parsing.parse_whole(str(number)) == number


@given(
    st.datetimes(timezones=st.timezones() | st.just(UTC)).map(lambda at: at.replace(microsecond=0))
)
def test_every_time_with_a_zone_is_parsed_or_refused(at):
    """A time that exists in UTC is parsed, and any other raises ValueError only."""
    offset = at.utcoffset()
    text = at.isoformat()
    try:
        expected = at.astimezone(UTC)
    except OverflowError:
        expected = None
    if expected is None or offset.total_seconds() % 60:
        with pytest.raises(ValueError, match="must be"):
            parsing.parse_instant(text)
    else:
        assert parsing.parse_instant(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "10000-01-01T00:00:00Z",
        "-0001-01-01T00:00:00Z",
        "0044-03-15 BC",
        "infinity",
        "-infinity",
        "now",
        "today",
        "2026-11-01",
        "2026-11-01T08:00:00",
        "2026-11-31T08:00:00Z",
        "2026-11-01T24:00:00Z",
        "2026-11-01T08:00:60Z",
        "2026-11-01T08:00:00+99:00",
        "2026-11-01T08:00:00+0100",
        "2026-11-01T08:00:00,5Z",
        "２０２６-11-01T08:00:00Z",
        "20261101T080000Z",
        "2026-W44-7T08:00:00Z",
        "2026-305T08:00:00Z",
        "1793520000",
        "",
    ],
)
def test_invalid_times(text):
    """Forms outside RFC 3339 and years outside UTC's are refused."""
    with pytest.raises(ValueError, match="must be"):
        parsing.parse_instant(text)


def test_the_ends_of_the_calendar_are_times():
    """The first and last instant of the calendar are valid, in UTC and in zones that lead into
    it."""
    for text, at in (
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("0001-01-01T00:00:00-14:00", datetime(1, 1, 1, 14, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999Z", MAX),
        ("9999-12-31T23:59:59.999999+14:00", MAX - timedelta(hours=14)),
        ("2026-11-01t08:00z", datetime(2026, 11, 1, 8, tzinfo=UTC)),
    ):
        assert parsing.parse_instant(text) == at
    assert parsing.parse_day("0001-01-01") == datetime(1, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["2026-1-5", "2026-02-30", "0000-01-01", "２０２６-01-05", "20260105", " 2026-01-05", ""],
)
def test_invalid_days(text):
    """A day has one form only."""
    with pytest.raises(ValueError, match="must be a day"):
        parsing.parse_day(text)


ORGANIZATION = ("--organization", "00000000-0000-0000-0000-000000000000")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("ledger", "list", *ORGANIZATION, "--limit", "1_0"), "--limit"),
        (("ledger", "list", *ORGANIZATION, "--limit", "５"), "--limit"),
        (("ledger", "list", *ORGANIZATION, "--limit", "0"), "--limit"),
        (("ledger", "retain", "--months", "+3"), "--months"),
        (("ledger", "export", *ORGANIZATION, "--from", "2026-1-5"), "--from"),
        (("ledger", "export", *ORGANIZATION, "--to", "0000-01-01"), "--to"),
        (("usage", *ORGANIZATION, "--to", "２０２６-01-05"), "--to"),
        (("keys", "create", *ORGANIZATION, "--name", "a", "--expires-at", "never"), "--expires-at"),
        (
            ("keys", "create", *ORGANIZATION, "--name", "a", "--expires-at", "2026-13-01T00:00Z"),
            "--expires-at",
        ),
    ],
)
def test_options_have_the_same_grammar(command, option):
    """An option with an invalid value is reported by name, before anything is opened."""
    group = click.Group(
        commands={name: LazyGroup().get_command(None, name) for name in command[:1]}
    )
    result = CliRunner().invoke(group, command)

    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.stderr
    assert "Traceback" not in result.output


def test_venices_numbers_are_json_numbers():
    """Numbers in Venice's JSON may have exponents."""
    assert money.parse_usd(Decimal("1.2E-7")) == 120
