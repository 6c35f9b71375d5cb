"""Joins JSON values that arrive in pieces, such as the deltas of a stream.

Texts in pieces are joined; of repeated members the last counts that is not empty.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from service.formats import surrogates

Json = dict[str, Any]

JOINED: Final = frozenset(
    {
        "arguments",
        "content",
        "data",
        "reasoning",
        "reasoning_content",
        "reasoning_encrypted",
        "refusal",
        "summary",
        "text",
    }
)
"""Members of a delta whose texts are pieces of one text. Any other member is complete."""
EMPTY: Final = (None, "")
"""Values that do not replace what is known already."""
TYPES: Final[Mapping[str, type]] = {
    **dict.fromkeys(("id", "model", "finish_reason", "role", "type", "name"), str),
    **dict.fromkeys(("usage", "cost", "function"), dict),
}
"""Members that count only if they have this type."""
IDENTITY: Final = ("type", "id")
"""Members that differ between two objects, but not between two pieces of one."""

MAX_DEPTH: Final = 16


def replacing(members: Json) -> Json:
    """Return the members that replace what is known already."""
    return {
        name: value
        for name, value in members.items()
        if value not in EMPTY and isinstance(value, TYPES.get(name, object))
    }


class _Text:
    """A text in pieces, which are joined once."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def join(self, piece: str) -> None:
        self._pieces.append(piece)

    def whole(self) -> str:
        return "".join(self._pieces)


class ObjectPieces:
    """An object whose members come in pieces. ``depth`` is how deep the objects and lists within it
    are joined; deeper ones are complete."""

    def __init__(self, depth: int = MAX_DEPTH) -> None:
        self._depth = depth
        self._members: Json = {}

    def join(self, piece: Json) -> None:
        """Add a piece."""
        for name, value in piece.items():
            if isinstance(value, str) and name in JOINED:
                self._join_text(name, value)
            elif value in EMPTY:
                self._members.setdefault(name, value)
            elif not isinstance(value, TYPES.get(name, object)):
                continue
            elif isinstance(value, dict) and self._depth:
                self._join_nested(name, ObjectPieces, value)
            elif isinstance(value, list) and self._depth:
                self._join_nested(name, ListPieces, value)
            elif not isinstance(self._members.get(name), _Text | ObjectPieces | ListPieces):
                self._members[name] = value

    def _join_text(self, name: str, piece: str) -> None:
        """Join a text. It replaces a value of another kind."""
        text = self._members.get(name)
        if not isinstance(text, _Text):
            text = self._members[name] = _Text()
        text.join(piece)

    def _join_nested(self, name: str, kind: "type[ObjectPieces | ListPieces]", piece: Any) -> None:
        """Join an object or a list. It is ignored beside another kind of value in pieces."""
        there = self._members.get(name)
        if not isinstance(there, _Text | ObjectPieces | ListPieces):
            there = self._members[name] = kind(self._depth - 1)
        if isinstance(there, kind):
            there.join(piece)

    def is_other(self, piece: Json) -> bool:
        """Whether a piece states another type or id, so that it belongs to another object."""
        stated = replacing({name: piece.get(name) for name in IDENTITY})
        return any(self._members.get(name) not in (*EMPTY, stated[name]) for name in stated)

    def whole(self) -> Json:
        """Return the object."""
        return {
            name: value.whole() if isinstance(value, _Text | ObjectPieces | ListPieces) else value
            for name, value in self._members.items()
        }


class ListPieces:
    """A list. Elements with the same index are pieces of one element, unless they state another
    type or id. An element without an index is complete, and kept as JSON, which takes less memory.
    ``depth`` is that of :class:`ObjectPieces`.
    """

    def __init__(self, depth: int = MAX_DEPTH) -> None:
        self._depth = depth
        self._elements: list[ObjectPieces | msgspec.Raw] = []
        self._by_index: dict[float, ObjectPieces] = {}

    def join(self, pieces: list[Any]) -> None:
        """Add elements, or pieces of elements."""
        for piece in pieces:
            index = piece.get("index") if isinstance(piece, dict) else None
            if not isinstance(index, int | float):
                self._elements.append(msgspec.Raw(surrogates.encode(piece)))
                continue
            element = self._by_index.get(index)
            if element is None or element.is_other(piece):
                element = self._by_index[index] = ObjectPieces(self._depth)
                self._elements.append(element)
            element.join(piece)

    def complete(self) -> None:
        """Complete all elements: the next ones are new, whatever their index."""
        self._by_index.clear()

    def whole(self) -> list[Any]:
        """Return the list."""
        return [one.whole() if isinstance(one, ObjectPieces) else one for one in self._elements]
