"""What a model needs back with its reasoning, and how clients carry it.

A model with tools refuses or forgets its reasoning unless the next request repeats it unchanged.
Clients send back what they cannot read: Anthropic's the signature of a block of thinking, those of
the Responses API the ``encrypted_content`` of a reasoning item. So these carry Venice's members of
the message.
"""

import base64
from typing import Any, Final

import msgspec

from service.formats import surrogates
from service.formats.completion import AssistantMessage

Json = dict[str, Any]

DETAILS: Final = "reasoning_details"
ENCRYPTED: Final = "reasoning_encrypted"
SIGNATURE: Final = "thought_signature"
JOINED: Final = ("text", "summary", "data", "signature")
"""Members of a detail whose texts may come in pieces."""
OPAQUE: Final = ("data", "signature")
"""Members of a detail that only the model can read."""


def encode_reasoning(members: Json) -> str:
    """Return the members as a text that a client carries."""
    return base64.b64encode(surrogates.encode(members)).decode()


def decode_reasoning(text: Any) -> Json:
    """Return the members that a text carries; none for that of another maker."""
    if not isinstance(text, str):
        return {}
    try:
        parts = msgspec.json.decode(base64.b64decode(text), type=Json)
    except (ValueError, msgspec.DecodeError, RecursionError):
        return {}
    return {name: parts[name] for name in (DETAILS, SIGNATURE, ENCRYPTED) if name in parts}


class KeptReasoning:
    """Collects what a model needs back, which arrives in pieces."""

    def __init__(self) -> None:
        self._details: list[Json] = []
        self._others: Json = {}

    def take(self, piece: AssistantMessage) -> None:
        """Add the members of a piece of a message."""
        self._take_details(piece.reasoning_details or (), is_continued=True)
        self._take_others(
            {SIGNATURE: piece.thought_signature, ENCRYPTED: piece.reasoning_encrypted}
        )

    def add(self, members: Json, *, is_continued: bool) -> None:
        """Add decoded members. ``is_continued`` is for those of a block without a thought, which go
        on where the block before it ended."""
        details = members.get(DETAILS)
        if isinstance(details, list):
            details = [detail for detail in details if isinstance(detail, dict)]
            self._take_details(details, is_continued=is_continued)
        self._take_others({name: members.get(name) for name in (SIGNATURE, ENCRYPTED)})

    def _take_details(self, details: Any, *, is_continued: bool) -> None:
        """Add details. Those with the index of the last one are pieces of it."""
        for detail in details:
            last = self._details[-1] if self._details else {}
            index = detail.get("index")
            if not is_continued or index is None or last.get("index") != index:
                self._details.append(dict(detail))
                is_continued = True
                continue
            for name, value in detail.items():
                is_more = name in JOINED and isinstance(value, str)
                if is_more and isinstance(last.get(name), str):
                    last[name] += value
                elif value is not None:
                    last[name] = value

    def _take_others(self, members: Json) -> None:
        for name, value in members.items():
            before = self._others.get(name)
            if name == ENCRYPTED and isinstance(before, str) and isinstance(value, str):
                self._others[name] = before + value
            elif value:
                self._others[name] = value

    @property
    def members(self) -> Json:
        """The members of the message that the model needs back."""
        return {DETAILS: self._details, **self._others} if self._details else dict(self._others)

    @property
    def is_opaque(self) -> bool:
        """Whether something is there that only the model can read."""
        opaque = (detail.get(name) for detail in self._details for name in OPAQUE)
        return bool(self._others) or any(opaque)
