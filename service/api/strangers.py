"""Connections that have not shown a key: anybody can make them, so there are only so many."""

import itertools
from typing import Final, Protocol

from service import metrics

ADDRESSES_AT_MOST: Final = 4
"""How many addresses can have all the connections that one may have."""
LOOKED_AT: Final = 16
"""Among how many of the oldest one is sought that is idle."""


class Connection(Protocol):
    """What is known of a connection here."""

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is being answered."""

    def end(self) -> None:
        """Close it at once."""


class Strangers:
    """The connections without a key, the oldest first. One too many, and the oldest that is idle
    ends: whoever means to ask something has done so long before that."""

    def __init__(self, max_of_address: int) -> None:
        self._max_of_address = max_of_address
        self._all: dict[Connection, str] = {}
        self._of: dict[str, dict[Connection, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, connection: Connection, address: str) -> None:
        """A new connection from the address."""
        self._all[connection] = address
        own = self._of.setdefault(address, {})
        own[connection] = None
        if len(own) > self._max_of_address:
            self._end_one(own)
        elif len(self._all) > ADDRESSES_AT_MOST * self._max_of_address:
            self._end_one(self._all)

    def remove(self, connection: Connection) -> None:
        """It has shown a key, or ended."""
        address = self._all.pop(connection, None)
        if address is not None:
            own = self._of[address]
            del own[connection]
            if not own:
                del self._of[address]

    def _end_one(self, connections: dict[Connection, str] | dict[Connection, None]) -> None:
        oldest = list(itertools.islice(connections, LOOKED_AT))
        idle = (connection for connection in oldest if connection.is_idle)
        ended = next(idle, oldest[0])
        self.remove(ended)
        metrics.note(metrics.TURNED_AWAY, 1, "unknown_connections")
        ended.end()
