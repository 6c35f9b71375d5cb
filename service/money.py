"""Money as integer nano-dollars: 1 USD is 1,000,000,000. No float comes near it.

A cost is rounded once, at its end, up to the next whole nano-dollar, so that many small calls are
never free.
"""

from decimal import ROUND_CEILING, Decimal
from typing import Final

from service.formats.parsing import parse_decimal

NANOS_PER_USD: Final = 1_000_000_000
TOKENS_PER_PRICE: Final = 1_000_000
"""Venice states the price of a million tokens."""
MAX_NANOS: Final = 2**63 - 1
"""PostgreSQL's bigint; some nine billion dollars."""
MAX_USD: Final = Decimal(MAX_NANOS) / NANOS_PER_USD


def parse_usd(amount: str | Decimal) -> int:
    """Nano-dollars of an amount in USD: a number, or a text as people write one.

    :raises ValueError: when it is no finite decimal number, or beyond what bigint holds.
    """
    if isinstance(amount, str):
        try:
            amount = parse_decimal(amount)
        except ValueError:
            raise ValueError('must be a decimal number of US dollars, as "5" or "0.25"') from None
    if not amount.is_finite() or abs(amount) > MAX_USD:
        raise ValueError("must be a finite amount of US dollars")
    return int((amount * NANOS_PER_USD).to_integral_value(rounding=ROUND_CEILING))


def format_usd(nanos: int) -> str:
    """The amount as a plain decimal string with at least two places: ``0.0000123``, ``5.00``."""
    sign = "-" if nanos < 0 else ""
    dollars, rest = divmod(abs(nanos), NANOS_PER_USD)
    return f"{sign}{dollars}.{f'{rest:09d}'.rstrip('0').ljust(2, '0')}"


def cost_of_tokens(*priced: tuple[int, int]) -> int:
    """Nano-dollars of ``(tokens, nanos per million tokens)`` pairs, rounded up once."""
    return -(-sum([tokens * nanos for tokens, nanos in priced]) // TOKENS_PER_PRICE)
