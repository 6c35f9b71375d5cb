"""Bounds the connections that have not shown a key, since anybody can open them."""

import itertools
from typing import Final, Protocol

from service.telemetry import metrics

FULL_ADDRESSES: Final = 4
"""All addresses together may have as many connections as this many full ones."""
MAX_SEARCHED: Final = 16
"""How many of the oldest connections are searched for an idle one."""


class Connection(Protocol):
    """What :class:`Strangers` needs of a connection."""

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is being answered."""

    def end(self) -> None:
        """Close it at once."""


class Strangers:
    """The connections without a key, oldest first. When there is one too many, the oldest idle one
    is closed: a client that has something to ask sends it long before that."""

    def __init__(self, max_of_address: int) -> None:
        self._max_of_address = max_of_address
        self._all: dict[Connection, str] = {}
        self._of: dict[str, dict[Connection, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, connection: Connection, address: str) -> None:
        """Add a new connection from the address, and close one if there are too many."""
        self._all[connection] = address
        own = self._of.setdefault(address, {})
        own[connection] = None
        if len(own) > self._max_of_address:
            self._end_one(own)
        elif len(self._all) > FULL_ADDRESSES * self._max_of_address:
            self._end_one(self._all)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that has shown a key, or ended."""
        address = self._all.pop(connection, None)
        if address is not None:
            own = self._of[address]
            del own[connection]
            if not own:
                del self._of[address]

    def _end_one(self, connections: dict[Connection, str] | dict[Connection, None]) -> None:
        oldest = list(itertools.islice(connections, MAX_SEARCHED))
        idle = (connection for connection in oldest if connection.is_idle)
        ended = next(idle, oldest[0])
        self.remove(ended)
        metrics.note(metrics.TURNED_AWAY, 1, "unknown_connections")
        ended.end()
