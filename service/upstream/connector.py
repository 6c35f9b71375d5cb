"""Connections to Venice.

aiohttp 3.14 asks a connection to go on after each chunk of a body that is read, whether or not it
had been told to wait: the parser is run for nothing and the transport told what it knows. Of a
stream whose many small chunks arrive together that is a quarter of all the work.
"""

import asyncio
import functools
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler


class VeniceProtocol(ResponseHandler):
    """Is not asked to go on before it has waited for the first time; after that aiohttp's parser
    may have kept something back, and has to be asked. For bodies that are not decompressed here:
    of those it keeps something back at any time."""

    __slots__ = ("_has_waited",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._has_waited = False

    def pause_reading(self) -> None:
        self._has_waited = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        if self._has_waited:
            super().resume_reading(resume_parser)


class Connector(aiohttp.TCPConnector):
    """aiohttp's own, for the length of a session."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # There is no public way to say which protocol its connections have.
        self._factory = functools.partial(VeniceProtocol, loop=self._loop)  # type: ignore[assignment]
