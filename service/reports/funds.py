"""How long the balance at Venice lasts."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

import msgspec

from service.upstream import StoredKey

HOURS: Final = 24


class Funds(msgspec.Struct, frozen=True, kw_only=True):
    """The largest balance, in US dollars and DIEM together, of a key that serves all organizations,
    and what the last 24 hours cost an hour; each None if it is unknown.

    Keys may be of one account or of several, so only the largest balance is counted.
    """

    largest_usd: Decimal | None
    burn_an_hour_usd: Decimal | None

    @property
    def hours_left(self) -> Decimal | None:
        """How long the balance lasts at this rate; None if nobody knows."""
        if self.largest_usd is None or not self.burn_an_hour_usd:
            return None
        return self.largest_usd / self.burn_an_hour_usd


def funds_of(keys: Sequence[StoredKey], spent_usd: str | None) -> Funds:
    """Return the funds of these keys, of which the last 24 hours spent so much."""
    balances = [
        Decimal(key.balance_usd or 0) + Decimal(key.balance_diem or 0)
        for key in keys
        if key.organization_id is None
        and key.status != "disabled"
        and (key.balance_usd or key.balance_diem) is not None
    ]
    return Funds(
        largest_usd=max(balances, default=None),
        burn_an_hour_usd=None if spent_usd is None else Decimal(spent_usd) / HOURS,
    )
