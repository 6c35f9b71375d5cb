"""Money: integer nano-dollars, exact both ways."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import money
from service.catalog import ExtendedRates, Leaf, Price, Pricing, Usage


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("0", 0),
        ("5", 5_000_000_000),
        ("0.000000001", 1),
        ("0.0000000001", 1),
        ("1.2e-7", 120),
        ("-0.5", -500_000_000),
    ],
)
def test_parse(text, nanos):
    """Decimal text becomes nano-dollars; less than one of them is rounded up."""
    assert money.parse_usd(text) == nanos


@pytest.mark.parametrize("text", ["", "five", "NaN", "Infinity", "1e30"])
def test_parse_refuses(text):
    """What is no amount is refused."""
    with pytest.raises(ValueError, match="US dollars"):
        money.parse_usd(text)


@given(st.integers(-money.MAX_NANOS, money.MAX_NANOS))
def test_format_and_parse_are_inverse(nanos):
    """An amount survives being shown and read again, to the nano-dollar."""
    assert money.parse_usd(money.format_usd(nanos)) == nanos


@pytest.mark.parametrize(
    ("nanos", "text"),
    [(0, "0.00"), (12_300, "0.0000123"), (5 * 10**9, "5.00"), (-1, "-0.000000001")],
)
def test_format(nanos, text):
    """Amounts are plain decimals with two places or more."""
    assert money.format_usd(nanos) == text


def rates(**usd):
    """Price leaves from texts."""
    return {name: Leaf(Decimal(value)) for name, value in usd.items()}


def test_cost_splits_cached_tokens():
    """Cached tokens are part of the input and have a rate of their own."""
    price = Price(Pricing(**rates(input="1", output="2", cache_input="0.1")), 100_000, None)

    cost = price.cost_nanos(Usage(input_tokens=1000, output_tokens=10, cached_input_tokens=400))

    assert cost == 600 * 1000 + 400 * 100 + 10 * 2000


def test_cost_above_the_threshold_is_extended_for_all():
    """Past the threshold the whole request is billed at the extended rates."""
    extended = ExtendedRates(context_token_threshold=100, **rates(input="2", output="4"))
    price = Price(Pricing(extended=extended, **rates(input="1", output="2")), None, None)

    assert price.cost_nanos(Usage(input_tokens=100, output_tokens=0)) == 100_000
    assert price.cost_nanos(Usage(input_tokens=101, output_tokens=1)) == 101 * 2000 + 4000


def test_cost_is_rounded_up_once():
    """A fraction of a nano-dollar is a nano-dollar, once a call and not once a part."""
    assert money.cost_of_tokens((1, 1), (1, 1)) == 1


def test_cost_without_a_rate_is_unknown():
    """A missing rate makes the cost unknown, not zero."""
    price = Price(Pricing(**rates(input="1")), None, None)

    assert price.cost_nanos(Usage(input_tokens=1, output_tokens=1)) is None
