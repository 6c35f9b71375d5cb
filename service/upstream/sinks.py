"""Where the bytes of a response go."""

from typing import Protocol


class Sink(Protocol):
    """Takes the chunks of a body.

    ``write`` is a plain function, so a chunk that can be passed on at once costs no wait.
    """

    def write(self, chunk: bytes) -> bool:
        """Take a chunk, and return whether the next may follow at once. If it may not, ``drain`` is
        awaited first."""

    async def drain(self) -> None:
        """Wait until the next chunk may follow."""
