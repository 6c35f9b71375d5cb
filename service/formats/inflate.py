"""Unpacks compressed bodies step by step, within limits.

A small body can unpack to a thousand times its size, so the caller decides after each step whether
to go on.
"""

import zlib
from typing import Final

from service.errors import ClientError, PayloadTooLarge, UnsupportedEncoding

CODINGS: Final = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": 0}
"""The supported codings, with zlib's number for their format."""
ACCEPTED: Final = "gzip, deflate"
STEP_BYTES: Final = 128 * 1024
"""One step unpacks at most this, which takes less than a millisecond."""
MAX_RATIO: Final = 100
"""A body may unpack to this many times its compressed size. Repetitive JSON shrinks to a
twentieth."""
UNRATED_BYTES: Final = 8 * 1024 * 1024
"""The ratio is not checked up to this size."""
MAX_MEMBERS: Final = 1000
"""The most gzip members in one body."""


def coding_of(header: str) -> str | None:
    """The coding that a Content-Encoding header names; None if the body is not encoded.

    :raises UnsupportedEncoding: for any other coding, and for several codings.
    """
    coding = header.strip().lower()
    if coding in ("", "identity"):
        return None
    if coding not in CODINGS:
        raise UnsupportedEncoding(
            "Content-Encoding: must be gzip or deflate, once, or be left out.",
            param="Content-Encoding",
        )
    return coding


class Inflater:
    """Unpacks one body: ``feed`` what has arrived, then ``step`` until a step returns nothing."""

    def __init__(self, coding: str) -> None:
        self._window_bits = CODINGS[coding]
        self._member = None if coding == "deflate" else self._next_member()
        self._members = 1
        self._pending = b""
        self._is_full = False
        """Whether the last step stopped at ``STEP_BYTES``, so zlib may hold more output."""
        self._fed_bytes = 0
        self._unpacked_bytes = 0

    def _next_member(self) -> "zlib._Decompress":
        return zlib.decompressobj(self._window_bits)

    def feed(self, chunk: bytes) -> None:
        """Take more of the compressed body."""
        self._fed_bytes += len(chunk)
        self._pending += chunk

    def step(self) -> bytes:
        """Return the next part of the body, at most ``STEP_BYTES``; empty if more must be fed.

        :raises ClientError: when the body does not match its header.
        :raises PayloadTooLarge: when it unpacks to more than ``MAX_RATIO`` times its size.
        """
        piece = b""
        while not piece and (self._pending or self._is_full):
            if self._member is None:
                self._member = self._first_deflate()
            elif self._member.eof:
                self._member = self._another_member()
            try:
                piece = self._member.decompress(self._pending, STEP_BYTES)
            except zlib.error:
                raise not_as_encoded() from None
            self._pending = self._member.unused_data or self._member.unconsumed_tail
            self._is_full = len(piece) == STEP_BYTES and not self._member.eof
        self._unpacked_bytes += len(piece)
        if self._unpacked_bytes > max(UNRATED_BYTES, MAX_RATIO * self._fed_bytes):
            raise PayloadTooLarge(f"The body unpacks to over {MAX_RATIO} times its size.")
        return piece

    def _first_deflate(self) -> "zlib._Decompress":
        """Detect whether ``deflate`` has zlib's header, which some clients leave out."""
        has_header = self._pending[0] & 0xF == zlib.DEFLATED
        return zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)

    def _another_member(self) -> "zlib._Decompress":
        self._members += 1
        if not self._window_bits or self._members > MAX_MEMBERS:
            raise not_as_encoded()
        return self._next_member()

    def end(self) -> None:
        """Check that the body is complete.

        :raises ClientError: when it ends too early.
        """
        if self._fed_bytes and (self._member is None or not self._member.eof):
            raise not_as_encoded()


def not_as_encoded() -> ClientError:
    """The error for a body that does not match its headers."""
    return ClientError("The body does not match its Content-Encoding or Transfer-Encoding.")
