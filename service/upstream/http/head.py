"""Writing the head of a request, and the rules for the head of a response.

llhttp frames the bodies. The grammar here comes first and is stricter, so a head that two parsers
could read differently never gets that far: RFC 9112, sections 2 to 6.
"""

import re
from collections.abc import Mapping
from typing import Final

from multidict import CIMultiDict

from service.upstream.http.errors import invalid
from service.upstream.http.response import Response

METHOD: Final = re.compile(r"[A-Z]{1,20}")
TARGET: Final = re.compile(r"/[!\"$-~]*")
"""The path and the query: visible ASCII without ``#``, since a fragment is never sent."""
NAMES: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z\n]*")
"""Names of headers, with a line feed between two."""
VALUES: Final = re.compile(r"[\t -~\x80-\U0010ffff]*")
FRAMING: Final = frozenset(
    {"connection", "content-length", "expect", "host", "keep-alive", "te", "trailer"}
    | {"transfer-encoding", "upgrade"}
)
"""Headers that only this client may set."""

RESPONSE_HEAD: Final = re.compile(
    rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [\t -~\x80-\xff]*+)?\r\n"
    rb"((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t -~\x80-\xff]*+\r\n)*+)\r\n"
)
"""Version, status and the lines of the headers."""
FIELD: Final = re.compile(r"([^:\r\n]+):[ \t]*((?:[^\r\n]*[^\r\n\t ])?)[ \t]*\r\n")
BROKEN_LINE: Final = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\0")
"""What no head may have anywhere, even before its end has arrived."""
VERSION: Final = b"HTTP/1."
HEAD_END: Final = b"\r\n\r\n"
LENGTH: Final = re.compile(r"[0-9]{1,15}")
BODILESS: Final = frozenset({204, 304})

NONE: Final = ()


class InvalidRequestError(ValueError):
    """A part of a request cannot be sent as it is. The text names the part and quotes nothing."""


def write_head(
    method: str, target: str, host_lines: str, headers: Mapping[str, str], framing: str
) -> bytes:
    """Return the head of a request. ``host_lines`` and ``framing`` are whole lines.

    :raises InvalidRequestError: when a part could be read as anything else than what it is.
    """
    if METHOD.fullmatch(method) is None or TARGET.fullmatch(target) is None:
        raise InvalidRequestError("The method or the path has characters that cannot be sent.")
    names = "\n".join(headers)
    if "" in headers or NAMES.fullmatch(names) is None or names.count("\n") >= max(1, len(headers)):
        raise InvalidRequestError("A header's name has characters that cannot be sent.")
    if VALUES.fullmatch("".join(headers.values())) is None:
        raise InvalidRequestError("A header's value has characters that cannot be sent.")
    if not FRAMING.isdisjoint(map(str.lower, headers)):
        raise InvalidRequestError("A header would change how the request is framed.")
    lines = "".join(map("{}: {}\r\n".format, headers, headers.values()))
    head = f"{method} {target} HTTP/1.1\r\n{host_lines}{lines}{framing}\r\n"
    try:
        return head.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("A header's value is not valid Unicode.") from None


def find_head(data: bytes, start: int, known_bytes: int, max_bytes: int) -> re.Match[bytes] | None:
    """Return the head that begins at ``start``; None while its end has not arrived.

    Of the data, ``known_bytes`` were looked at before.

    :raises InvalidResponse: when the data is not the beginning of a valid head.
    """
    end = data.find(HEAD_END, max(start, known_bytes - len(HEAD_END)))
    size_bytes = len(data) - start if end < 0 else end + len(HEAD_END) - start
    if size_bytes > max_bytes:
        raise invalid(f"its head is longer than {max_bytes} bytes")
    if end >= 0:
        if (found := RESPONSE_HEAD.match(data, start)) is None:
            raise invalid("its head is malformed")
        return found
    if not VERSION.startswith(data[start : start + len(VERSION)]):
        raise invalid("it does not begin with a status line")
    if BROKEN_LINE.search(data, max(start, known_bytes - 1)) is not None:
        raise invalid("its head is malformed")
    return None


def read_head(response: Response, head: re.Match[bytes], max_bytes: int, max_headers: int) -> None:
    """Fill the response with its head.

    :raises InvalidResponse: when the head is too large, or the headers do not frame the body in
        exactly one way.
    """
    version, status, lines = head.groups()
    fields = FIELD.findall(lines.decode("utf-8", "surrogateescape"))
    if head.end() - head.start() > max_bytes:
        raise invalid(f"its head is longer than {max_bytes} bytes")
    if len(fields) > max_headers:
        raise invalid(f"it has more than {max_headers} headers")
    headers = CIMultiDict(fields)
    codings = headers.getall("Transfer-Encoding", NONE)
    lengths = headers.getall("Content-Length", NONE)
    is_last = version == b"0"
    if codings and (lengths or is_last or len(codings) > 1 or codings[0].lower() != "chunked"):
        raise invalid("its Transfer-Encoding is not exactly one chunked coding, on its own")
    if lengths and (len(lengths) > 1 or LENGTH.fullmatch(lengths[0]) is None):
        raise invalid("its Content-Length is not exactly one number")
    if "Connection" in headers:
        options = ",".join(headers.getall("Connection")).lower().split(",")
        is_last = is_last or "close" in map(str.strip, options)
    response.status, response.raw_headers = int(status), headers
    if response.has_body and not codings and not lengths and response.status not in BODILESS:
        response.ends_with_connection = is_last = True
    response.is_last = is_last
