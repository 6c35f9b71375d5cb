"""A bounded queue in which nobody can push out the rows of others."""

from collections import Counter, deque
from collections.abc import Hashable, Sequence
from itertools import islice
from typing import Generic, Literal, NamedTuple, TypeVar

R = TypeVar("R")

DropReason = Literal["share", "queue", "database"]
"""Why a row is not written: its owner or source has its share, the queue is full, or the database
does not take it."""


class Queued(NamedTuple, Generic[R]):
    """A row in the queue, with those who have its place."""

    row: R
    owner: Hashable
    source: Hashable


class Queue(Generic[R]):
    """Rows that wait to be written, oldest first.

    An owner (an organization, or all strangers together) and a source (a key, or an address) have a
    share of the places at most. The queue is emptied every second, so a share bounds the rate at
    which rows are written, too.
    """

    def __init__(self, table: str, *, places: int, of_owner: int, of_source: int) -> None:
        self.table = table
        self._places = places
        self._share_of_owner = of_owner
        self._share_of_source = of_source
        self._rows: deque[Queued[R]] = deque()
        self._of_owner: Counter[Hashable] = Counter()
        self._of_source: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: R, owner: Hashable, source: Hashable) -> DropReason | None:
        """Queue the row; returns the reason if there is no place for it."""
        if (
            self._of_owner[owner] >= self._share_of_owner
            or self._of_source[source] >= self._share_of_source
        ):
            return "share"
        if len(self._rows) >= self._places:
            return "queue"
        self._rows.append(Queued(row, owner, source))
        self._of_owner[owner] += 1
        self._of_source[source] += 1
        return None

    def first(self, count: int) -> Sequence[Queued[R]]:
        """Return the oldest rows, at most ``count``, and leave them in the queue."""
        return list(islice(self._rows, count))

    def remove(self, count: int) -> None:
        """Remove the oldest rows."""
        for _ in range(count):
            _, owner, source = self._rows.popleft()
            for held, holder in ((self._of_owner, owner), (self._of_source, source)):
                held[holder] -= 1
                if not held[holder]:
                    del held[holder]
