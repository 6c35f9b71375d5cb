"""Records whether a request was sent. A request that was never sent costs nothing."""

import contextvars
from typing import Final

import aiohttp
import msgspec


class Departure(msgspec.Struct, eq=False):
    """Records whether any byte of a request was handed to a connection."""

    has_left: bool = False


DEPARTURE: Final[contextvars.ContextVar[Departure | None]] = contextvars.ContextVar(
    "DEPARTURE", default=None
)
"""The departure record of the request that the current task sends."""


class VeniceRequest(aiohttp.ClientRequest):
    """Records its departure once it has a connection and could write its head."""

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        response = await super().send(conn)
        if (departure := DEPARTURE.get()) is not None:
            departure.has_left = True
        return response
