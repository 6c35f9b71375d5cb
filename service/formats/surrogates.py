"""Decodes and encodes JSON that has halves of surrogate pairs.

JavaScript cuts texts within a character and writes the half as ``\\ud83d``. That is valid JSON but
not valid Unicode, so most decoders refuse it. In translated answers, halves that arrive in two
pieces are joined, and a lone half becomes U+FFFD.
"""

import json
from typing import Any, NoReturn, TypeVar

import msgspec

T = TypeVar("T")


def decode(content: bytes, shape: type[T]) -> T:
    """Decode JSON as ``shape``. Texts keep their halves; bytes that are not UTF-8 become U+FFFD.

    :raises msgspec.DecodeError: when it is not JSON of that shape, or nested too deeply.
    """
    try:
        return msgspec.json.decode(content, type=shape)
    except msgspec.ValidationError:
        raise
    except RecursionError as error:
        raise msgspec.DecodeError("nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            value = json.loads(content.decode(errors="replace"), parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise msgspec.DecodeError(str(error)) from error
    return convert(value, shape)


def convert(value: Any, shape: type[T], *, strict: bool = True) -> T:
    """Convert decoded JSON to ``shape``. ``strict``: whether a text is no number.

    :raises msgspec.ValidationError: when it is of another shape.
    """
    try:
        return msgspec.convert(value, shape, strict=strict)
    except UnicodeEncodeError:
        # Of a text that is not of the shape, msgspec cannot quote the half in its error.
        raise msgspec.ValidationError("has the wrong type") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def encode(value: Any) -> bytes:
    """Encode the value as JSON. Halves in its texts are joined or become U+FFFD."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_repaired(value))


def _repaired(value: Any) -> Any:
    if isinstance(value, str):
        return repair(value)
    if isinstance(value, dict):
        return {repair(name): _repaired(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_repaired(inner) for inner in value]
    return value


def repair(text: str) -> str:
    """Join the pairs of a text, and replace each lone half with U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class Pieces:
    """Joins a text that arrives in pieces, some of which may end within a surrogate pair."""

    __slots__ = ("_half",)

    def __init__(self) -> None:
        self._half = ""

    def add(self, piece: str) -> str:
        """Take a piece, and return the text that is complete: a first half waits for the second."""
        text = self._half + piece
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return text[:-1] if self._half else text

    def rest(self) -> str:
        """Return what still waits at the end of the text: U+FFFD or nothing."""
        half, self._half = self._half, ""
        return repair(half)
