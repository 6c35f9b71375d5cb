"""Shares a bounded resource so that no organization or key can take all of it.

An organization may hold as much as is still free, and a key half of that. So a single organization
gets half of the whole, the next one half of the remainder, and a newcomer always gets something.
"""

from collections import Counter
from typing import Self
from uuid import UUID

import msgspec


class Shares:
    """The free amount of a resource, and the amounts that organizations and keys hold."""

    def __init__(self, total: int) -> None:
        self.free = total
        self.amounts: Counter[UUID] = Counter()
        """What each organization and each key holds."""

    def held(self, holder: UUID) -> int:
        """Return the amount that an organization or key holds."""
        return self.amounts[holder]


class Share(msgspec.Struct, eq=False):
    """The amount that one request holds."""

    shares: Shares
    organization_id: UUID
    key_id: UUID
    amount: int = 0

    def grow(self, amount: int) -> bool:
        """Take ``amount`` more.

        Returns False, and takes nothing, if the organization or the key may not hold that much.
        """
        free, held = self.shares.free - amount, self.shares.amounts
        if held[self.organization_id] + amount > free or 2 * (held[self.key_id] + amount) > free:
            return False
        self.shares.free = free
        held[self.organization_id] += amount
        held[self.key_id] += amount
        self.amount += amount
        return True

    def close(self) -> None:
        """Return everything that the request holds."""
        if not self.amount:
            return
        held = self.shares.amounts
        self.shares.free += self.amount
        for holder in (self.organization_id, self.key_id):
            held[holder] -= self.amount
            if not held[holder]:
                del held[holder]
        self.amount = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
