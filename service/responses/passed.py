"""Passes on the answers that Venice writes itself, and ends their streams when they break off."""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from service.errors import ServiceError
from service.formats import sse
from service.responses.writer import (
    DONE,
    EventWriter,
    empty_response,
    event,
    failed_response,
)

TERMINAL: Final = re.compile(
    rb'^(?:event: ?|data: ?\{"type": ?")'
    rb"(?:response\.(?:completed|incomplete|failed|cancelled)|error)\b",
    re.MULTILINE,
)
"""The start of an event that ends a response."""
NUMBER: Final = re.compile(rb'"sequence_number": ?(\d{1,15})')


class PassedAnswer:
    """Passes everything on byte for byte."""

    def __init__(self, stated: Mapping[str, Any]) -> None:
        self._stated = stated
        self._first = b""
        self._last = b""
        """The first events and the last ones."""
        self._is_ended = False

    def whole(self, content: bytes) -> bytes:
        """See :meth:`Translation.whole`."""
        return content

    def feed(self, chunk: bytes) -> bytes:
        """See :meth:`Translation.feed`."""
        if sse.DATA in chunk:
            self._first = self._first or chunk
            self._last = chunk
        if not self._is_ended and TERMINAL.search(chunk):
            self._is_ended = True
        return chunk

    def end(self) -> bytes:
        """See :meth:`Translation.end`."""
        return b""

    def failure(self, error: ServiceError, stated: Mapping[str, Any]) -> bytes:
        """See :meth:`Translation.failure`."""
        if self._is_ended:
            return b""
        self._is_ended = True
        if not self._first:
            writer = EventWriter(self._stated)
            writer.fail(error, stated)
            return writer.take()
        numbers = [int(number) for number in NUMBER.findall(self._last)]
        response = failed_response(self._begun() or empty_response(self._stated), error)
        data = {"response": response, **stated}
        return event("response.failed", max(numbers, default=-1) + 1, data) + DONE

    def _begun(self) -> dict[str, Any] | None:
        """The response as Venice began it."""
        for text in sse.texts(self._first):
            try:
                begun = msgspec.json.decode(text, type=_Begun)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            if begun.response is not None:
                return begun.response
        return None


class _Begun(msgspec.Struct):
    response: dict[str, Any] | None = None
