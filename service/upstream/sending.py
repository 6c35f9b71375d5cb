"""Whether a request has left: what never did is not charged, however it failed."""

import contextvars
from typing import Final

import aiohttp


class Departure:
    """Whether any of one request was handed to a connection."""

    __slots__ = ("has_left",)

    def __init__(self) -> None:
        self.has_left = False


DEPARTURE: Final[contextvars.ContextVar[Departure | None]] = contextvars.ContextVar(
    "DEPARTURE", default=None
)
"""That of the request that is being sent."""


class VeniceRequest(aiohttp.ClientRequest):
    """Notes that it leaves: then there is a connection, and its head could be written."""

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        response = await super().send(conn)
        if (departure := DEPARTURE.get()) is not None:
            departure.has_left = True
        return response
