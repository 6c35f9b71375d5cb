"""Reads large bodies in a thread, so that no caller blocks the event loop."""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from service.errors import Unavailable
from service.gateway.call import Call, Endpoint, Inbound
from service.gateway.endpoints.splice import always_replaces

T = TypeVar("T")

LARGE_BYTES: Final = 256 * 1024
"""Larger bodies are read outside the event loop, which they would block for milliseconds."""
MAX_READERS: Final = 1
"""Reading holds the interpreter lock most of the time, so more threads would only wait for each
other, and delay the event loop."""
MAX_WAIT_S: Final = 60.0


async def parse(endpoint: Endpoint[Any], inbound: Inbound) -> Call:
    """Parse a request into the call that it makes.

    :raises ClientError: naming the field and the rule.
    :raises Unavailable: when too many large bodies are being read.
    """
    size_bytes = len(inbound.content)
    if size_bytes > LARGE_BYTES:
        return await read_large(size_bytes, _parse_large, endpoint, inbound)
    call: Call = endpoint.parse(inbound)
    return call


async def read_large(size_bytes: int, function: Callable[..., T], *arguments: Any) -> T:
    """Run the function on a body of this size, in a thread if the body is large.

    :raises Unavailable: when too many large bodies are being read.
    """
    if size_bytes <= LARGE_BYTES:
        return function(*arguments)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(MAX_WAIT_S):
            return await loop.run_in_executor(_readers(), functools.partial(function, *arguments))
    except TimeoutError:
        raise Unavailable("Too many large bodies are being read.", retry_after_s=5) from None


def _parse_large(endpoint: Endpoint[Any], inbound: Inbound) -> Call:
    call: Call = endpoint.parse(inbound)
    if call.document is not None and always_replaces(call):
        # Here and not in the event loop, which replaces members later.
        call.document.locate()
    return call


@functools.cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_READERS, thread_name_prefix="body")
