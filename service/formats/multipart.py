"""Parses bodies of type ``multipart/form-data`` into fields, by name and length.

Venice reads the same bytes with a parser of its own. So a body that two parsers could read
differently is refused. No browser or HTTP client writes such a body.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from service.errors import ClientError

FORM: Final = "multipart/form-data"
_NAME_OF_PARAMETER: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# Parsers disagree on whether a quote after a backslash ends the text.
PARAMETER: Final = re.compile(
    rf'[ \t]*;[ \t]*({_NAME_OF_PARAMETER})=(?:"((?:[^"\\\x00-\x1f\x7f]|\\[^"\x00-\x1f\x7f])*)"'
    r'|([^\s";,\\]+))'
)
BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_./:=?-]{1,70}")
HEADER: Final = re.compile(rf"({_NAME_OF_PARAMETER}):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*)")
PADDING: Final = re.compile(rb"[ \t]{0,100}\r\n")
LAST_PADDING: Final = re.compile(rb"--[ \t]{0,100}(?:\r\n|\Z)")
WRITTEN_BY_BROWSERS: Final = {"%22": '"', "%0D": "\r", "%0A": "\n"}
# No client escapes letters, digits and - . _ like this, but some parsers decode them.
HIDDEN: Final = re.compile(r"\\|%(?:2[DE]|3[0-9]|[46][1-9A-F]|[57][0-9A]|5F)", re.IGNORECASE)
DISPOSITION_PARAMETERS: Final = frozenset({"name", "filename", "filename*"})
PLAIN_ENCODINGS: Final = frozenset({"7bit", "8bit", "binary"})
PLAIN_CHARSETS: Final = frozenset({"utf-8", "us-ascii", "iso-8859-1"})
"""Charsets in which the name of a model has the same bytes."""
MAX_PARTS: Final = 100
MAX_HEAD_BYTES: Final = 8192
"""The headers of one part. They are slow to parse for their size."""
TEXT_BYTES: Final = 65_536


class Part(NamedTuple):
    """A field. ``text`` is its value; None for a file and for a value over ``TEXT_BYTES``."""

    name: str
    length_bytes: int
    text: str | None
    start: int
    """The offset of its value in the body."""
    head: bytes
    """Its headers, without the empty line that ends them."""


def is_multipart(content_type: str) -> bool:
    """Whether the type is ``multipart/form-data``."""
    return content_type.partition(";")[0].strip().lower() == FORM


def parse(content: bytes, content_type: str) -> list[Part]:
    """Return the parts in their order (RFC 7578). Files are not copied.

    :raises ClientError: when the body is malformed, ambiguous, or has too many parts.
    """
    delimiter = b"--" + _boundary(content_type)
    parts: list[Part] = []
    at = _find(content, delimiter, 0)
    while at != -1:
        after = at + len(delimiter)
        if LAST_PADDING.match(content, after):
            return parts
        padding = PADDING.match(content, after)
        if padding is None:
            raise ClientError("A boundary of the multipart body is followed by something else.")
        at = _find(content, delimiter, padding.end())
        head_end = content.find(b"\r\n\r\n", padding.end())
        if at == -1 or not 0 <= head_end <= at - 6:
            break
        if head_end - padding.end() > MAX_HEAD_BYTES:
            raise ClientError(
                f"A part of the multipart body has more than {MAX_HEAD_BYTES} bytes of headers."
            )
        head = content[padding.end() : head_end]
        parts.append(_part(content, head, head_end + 4, at - 2))
        if len(parts) > MAX_PARTS:
            raise ClientError(f"The body has more than {MAX_PARTS} parts.")
    raise ClientError("The multipart body ends before its last boundary.")


def set_texts(content: bytes, content_type: str, texts: Mapping[str, str]) -> bytes:
    """Return the body with new values for the fields of these names, and otherwise unchanged."""
    pieces, kept_from = [], 0
    for part in parse(content, content_type):
        if part.text is not None and part.name in texts:
            pieces += [content[kept_from : part.start], texts[part.name].encode()]
            kept_from = part.start + part.length_bytes
    return b"".join([*pieces, content[kept_from:]])


def write(
    content: bytes, content_type: str, texts: Mapping[str, str], files: Iterable[tuple[str, Part]]
) -> bytes:
    """Return another body with the same boundary, made of texts and of files of this body under new
    names. The texts must not contain the boundary."""
    delimiter, view = b"--" + _boundary(content_type), memoryview(content)
    pieces: list[bytes | memoryview] = []
    for name, text in texts.items():
        head = b'Content-Disposition: form-data; name="%b"' % name.encode()
        pieces += [delimiter, b"\r\n", head, b"\r\n\r\n", text.encode(), b"\r\n"]
    for name, part in files:
        value = view[part.start : part.start + part.length_bytes]
        pieces += [delimiter, b"\r\n", _renamed(part.head, name), b"\r\n\r\n", value, b"\r\n"]
    return b"".join([*pieces, delimiter, b"--\r\n"])


def _renamed(head: bytes, name: str) -> bytes:
    """The headers of a part, with this name in its Content-Disposition."""
    lines = head.decode("latin-1").split("\r\n")
    for number, line in enumerate(lines):
        if line.lower().startswith("content-disposition:"):
            at = line.index(";")
            while (match := PARAMETER.match(line, at)) is not None:
                at = match.end()
                if match[1].lower() == "name":
                    lines[number] = f'{line[: match.start(1)]}name="{name}"{line[at:]}'
    return "\r\n".join(lines).encode("latin-1")


def _boundary(content_type: str) -> bytes:
    named = _parameters(content_type.strip()[len(FORM) :]) or {}
    boundary = named.get("boundary", "")
    # Some parsers join boundary*0 and boundary*1 into one.
    is_in_pieces = any(name.startswith("boundary*") for name in named)
    if is_in_pieces or not BOUNDARY.fullmatch(boundary):
        raise ClientError(
            f"Content-Type: {FORM} needs exactly one boundary: {FORM}; boundary=….",
            param="Content-Type",
        )
    return boundary.encode()


def _parameters(text: str) -> dict[str, str] | None:
    """Parse ``; name=value; other="value"``. Names are lower case, and quoted texts keep their
    escapes. None when the text is malformed or repeats a name."""
    found: dict[str, str] = {}
    at = 0
    while (match := PARAMETER.match(text, at)) is not None:
        name = match[1].lower()
        if name in found:
            return None
        found[name] = match[3] if match[2] is None else match[2]
        at = match.end()
    return None if text[at:].strip(" \t") else found


def _find(content: bytes, delimiter: bytes, start: int) -> int:
    """The offset of the next delimiter, which must begin a line; -1 if there is none."""
    at = content.find(delimiter, start)
    if at > 0 and content[max(0, at - 2) : at] != b"\r\n":
        raise ClientError("The boundary of the multipart body stands within a line.")
    return at


def _part(content: bytes, head: bytes, start: int, end: int) -> Part:
    headers = _headers(head)
    if "content-disposition" not in headers:
        raise ClientError("A part of the multipart body has no Content-Disposition.")
    kind, semicolon, more = headers["content-disposition"].partition(";")
    parameters = _parameters(semicolon + more)
    is_form_data = kind.strip().lower() == "form-data"
    if not is_form_data or parameters is None or not parameters.keys() <= DISPOSITION_PARAMETERS:
        raise ClientError(
            "Content-Disposition of a part must be form-data with a name and, for a file, a"
            ' filename, each at most once, quotes within written as %22: form-data; name="file";'
            ' filename="a.wav".'
        )
    if not parameters.get("name"):
        raise ClientError("A part of the multipart body has no name.")
    name = parameters["name"]
    if HIDDEN.search(name):
        raise ClientError("A name of the multipart body has a backslash, or letters written as %.")
    for written, character in WRITTEN_BY_BROWSERS.items():
        name = name.replace(written, character).replace(written.lower(), character)
    _must_be_plain(name[:100], headers, is_file=len(parameters) > 1)
    text = None
    if len(parameters) == 1 and end - start <= TEXT_BYTES:
        text = content[start:end].decode(errors="replace")
    return Part(name, end - start, text, start, head)


def _headers(head: bytes) -> dict[str, str]:
    """The headers of a part by their names in lower case.

    :raises ClientError: when a header is malformed or repeated.
    """
    headers: dict[str, str] = {}
    for line in head.decode(errors="replace").split("\r\n"):
        match = HEADER.fullmatch(line)
        if match is None:
            raise ClientError("A part of the multipart body has a line that is no header.")
        name = match[1].lower()
        if name in headers:
            raise ClientError(f"A part of the multipart body has {match[1][:100]!r} twice.")
        headers[name] = match[2].rstrip(" \t")
    return headers


def _must_be_plain(name: str, headers: Mapping[str, str], *, is_file: bool) -> None:
    """:raises ClientError: when the value is encoded, or is neither a file nor a UTF-8 text."""
    encoding = headers.get("content-transfer-encoding", "binary")
    if encoding.lower() not in PLAIN_ENCODINGS:
        raise ClientError(f"{name}: must have no Content-Transfer-Encoding.", param=name)
    if is_file or "content-type" not in headers:
        return
    kind, semicolon, more = headers["content-type"].partition(";")
    parameters = _parameters(semicolon + more)
    if parameters is None or not parameters.keys() <= {"charset"}:
        raise ClientError(f"{name}: has a Content-Type that cannot be read.", param=name)
    if parameters.get("charset", "utf-8").lower() not in PLAIN_CHARSETS:
        raise ClientError(f"{name}: must be UTF-8.", param=name)
    if kind.strip().lower() == "application/octet-stream":
        raise ClientError(f"{name}: a file needs a filename.", param=name)
