"""Shares a bounded resource so that no organization or key can take all of it.

An organization may hold as much as is still free, and a key half of that. So a single organization
gets half of the whole, the next one half of the remainder, and a newcomer always gets something.
"""

from typing import Self
from uuid import UUID

import msgspec


class Shares:
    """The free amount of a resource, and the amounts that organizations and keys hold."""

    def __init__(self, total: int) -> None:
        self.free = total
        self.amounts: dict[UUID, int] = {}
        """The amounts of the organizations and keys that hold any."""

    def held(self, holder: UUID) -> int:
        """Return the amount that an organization or key holds."""
        return self.amounts.get(holder, 0)


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
        if not amount:
            return True
        amounts, free = self.shares.amounts, self.shares.free - amount
        of_organization = amounts.get(self.organization_id, 0) + amount
        if of_organization > free or 2 * (amounts.get(self.key_id, 0) + amount) > free:
            return False
        self.shares.free = free
        amounts[self.organization_id] = of_organization
        # Read again, since the organization and the key may have one id.
        amounts[self.key_id] = amounts.get(self.key_id, 0) + amount
        self.amount += amount
        return True

    def close(self) -> None:
        """Return everything that the request holds."""
        if not self.amount:
            return
        amounts = self.shares.amounts
        self.shares.free += self.amount
        for holder in (self.organization_id, self.key_id):
            if left := amounts[holder] - self.amount:
                amounts[holder] = left
            else:
                del amounts[holder]
        self.amount = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
