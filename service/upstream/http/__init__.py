"""An HTTP/1.1 client for one trusted purpose: relaying requests to Venice.

It has no cookies, follows no redirects, reads no proxies from the environment and decompresses
nothing. Everything that Venice sends is hostile input: ``head`` and llhttp both have to accept it.
"""

from service.upstream.http.client import Departure, HttpClient
from service.upstream.http.connection import Limits
from service.upstream.http.head import InvalidRequestError
from service.upstream.http.response import CHUNK_BYTES, READ_BUFFER_BYTES, Flow, Response
from service.upstream.http.upload import StreamedBody

__all__ = [
    "CHUNK_BYTES",
    "READ_BUFFER_BYTES",
    "Departure",
    "Flow",
    "HttpClient",
    "InvalidRequestError",
    "Limits",
    "Response",
    "StreamedBody",
]
