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
        self._free = total
        self._held: Counter[UUID] = Counter()

    def held(self, holder: UUID) -> int:
        """Return the amount that an organization or key holds."""
        return self._held[holder]

    def open(self, organization_id: UUID, key_id: UUID) -> "Share":
        """Open an empty share."""
        return Share(self, organization_id, key_id)

    def take(self, organization_id: UUID, key_id: UUID, amount: int) -> bool:
        """Take ``amount`` more.

        Returns False, and takes nothing, if the organization or the key may not hold that much.
        """
        free, held = self._free - amount, self._held
        if held[organization_id] + amount > free or 2 * (held[key_id] + amount) > free:
            return False
        self._free = free
        held[organization_id] += amount
        held[key_id] += amount
        return True

    def give_back(self, organization_id: UUID, key_id: UUID, amount: int) -> None:
        """Return an amount to the resource."""
        self._free += amount
        for holder in (organization_id, key_id):
            self._held[holder] -= amount
            if not self._held[holder]:
                del self._held[holder]


class Share(msgspec.Struct, eq=False):
    """The amount that one request holds."""

    shares: Shares
    organization_id: UUID
    key_id: UUID
    amount: int = 0

    def grow(self, amount: int) -> bool:
        """Take ``amount`` more if the share may grow; see :meth:`Shares.take`."""
        is_granted = self.shares.take(self.organization_id, self.key_id, amount)
        self.amount += amount * is_granted
        return is_granted

    def close(self) -> None:
        """Return everything that the request holds."""
        amount, self.amount = self.amount, 0
        if amount:
            self.shares.give_back(self.organization_id, self.key_id, amount)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
