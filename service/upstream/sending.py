"""Notes whether a request has left, since a request that never left costs nothing."""

import contextvars
from typing import Final

import aiohttp


class Departure:
    """Whether any byte of a request was handed to a connection."""

    __slots__ = ("has_left",)

    def __init__(self) -> None:
        self.has_left = False


DEPARTURE: Final[contextvars.ContextVar[Departure | None]] = contextvars.ContextVar(
    "DEPARTURE", default=None
)
"""The departure of the request that the current task sends."""


class VeniceRequest(aiohttp.ClientRequest):
    """Notes its departure once there is a connection and its head could be written."""

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        response = await super().send(conn)
        if (departure := DEPARTURE.get()) is not None:
            departure.has_left = True
        return response
