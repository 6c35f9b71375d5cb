"""Money as integer nano-dollars: 1 USD is 1,000,000,000. Never a float.

A cost is rounded up once, at the end, to the next whole nano-dollar, so that many small calls are
never free.
"""

import itertools
import operator
from decimal import ROUND_CEILING, Decimal
from typing import Final

from service.formats.parsing import parse_decimal

NANOS_PER_USD: Final = 1_000_000_000
TOKENS_PER_PRICE: Final = 1_000_000
"""Venice states prices per million tokens."""
MAX_NANOS: Final = 2**63 - 1
"""The largest PostgreSQL bigint, about nine billion dollars."""
MAX_USD: Final = Decimal(MAX_NANOS) / NANOS_PER_USD


def parse_usd(amount: str | Decimal) -> int:
    """Convert an amount in USD, a number or decimal text, to nano-dollars.

    :raises ValueError: when it is not a finite decimal number, or too large for a bigint.
    """
    if isinstance(amount, str):
        try:
            amount = parse_decimal(amount)
        except ValueError:
            raise ValueError(
                'must be a decimal number of US dollars, such as "5" or "0.25"'
            ) from None
    if not amount.is_finite() or abs(amount) > MAX_USD:
        raise ValueError("must be a finite amount of US dollars")
    return int((amount * NANOS_PER_USD).to_integral_value(rounding=ROUND_CEILING))


def format_usd(nanos: int) -> str:
    """Format the amount as a decimal string with at least two decimals: ``0.0000123``, ``5.00``."""
    sign = "-" if nanos < 0 else ""
    dollars, remainder = divmod(abs(nanos), NANOS_PER_USD)
    return f"{sign}{dollars}.{f'{remainder:09d}'.rstrip('0').ljust(2, '0')}"


def cost_of_tokens(*pairs: tuple[int, int]) -> int:
    """Return the cost of ``(tokens, nanos per million tokens)`` pairs, rounded up once."""
    nanos: int = sum(itertools.starmap(operator.mul, pairs))
    return -(-nanos // TOKENS_PER_PRICE)
