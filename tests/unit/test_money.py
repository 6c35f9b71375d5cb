"""Money is integer nano-dollars, converted exactly in both directions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import money


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("0", 0),
        ("5", 5_000_000_000),
        ("0.000000001", 1),
        ("0.0000000001", 1),
        ("-0.5", -500_000_000),
    ],
)
def test_parse(text, nanos):
    """A decimal text becomes nano-dollars, and a fraction of one is rounded up."""
    assert money.parse_usd(text) == nanos


@pytest.mark.parametrize(
    "text", ["", "five", "NaN", "Infinity", "1e30", "1_000", "+5", "９", "9" * 30]
)
def test_invalid_amounts(text):
    """A text that is no amount is refused."""
    with pytest.raises(ValueError, match="US dollars"):
        money.parse_usd(text)


@given(st.integers(-money.MAX_NANOS, money.MAX_NANOS))
def test_format_and_parse_are_inverse(nanos):
    """An amount is the same after formatting and parsing, to the nano-dollar."""
    assert money.parse_usd(money.format_usd(nanos)) == nanos


@pytest.mark.parametrize(
    ("nanos", "text"),
    [(0, "0.00"), (12_300, "0.0000123"), (5 * 10**9, "5.00"), (-1, "-0.000000001")],
)
def test_format(nanos, text):
    """An amount is formatted as a plain decimal with two places or more."""
    assert money.format_usd(nanos) == text
