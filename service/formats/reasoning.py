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
from service.formats.pieces import ListPieces, ObjectPieces

Json = dict[str, Any]

DETAILS: Final = "reasoning_details"
ENCRYPTED: Final = "reasoning_encrypted"
SIGNATURE: Final = "thought_signature"
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
    """Collects what a model needs back. Details and encrypted reasoning may arrive in pieces; a
    signature is complete, so the last one counts."""

    def __init__(self) -> None:
        self.is_opaque = False
        """Whether something is there that only the model can read."""
        self._details = ListPieces()
        self._others = ObjectPieces()

    def take(self, piece: AssistantMessage) -> None:
        """Add the members of a piece of a message, most of which have none."""
        if piece.reasoning_details or piece.thought_signature or piece.reasoning_encrypted:
            members = {
                DETAILS: piece.reasoning_details,
                SIGNATURE: piece.thought_signature,
                ENCRYPTED: piece.reasoning_encrypted,
            }
            self.add(members, is_continued=True)

    def add(self, members: Json, *, is_continued: bool) -> None:
        """Add decoded members. ``is_continued`` is for those of a block without a thought, which go
        on where the block before it ended."""
        if not is_continued:
            self._details.complete()
        details = members.get(DETAILS)
        details = details if isinstance(details, list) else []
        details = [detail for detail in details if isinstance(detail, dict)]
        others = {name: members[name] for name in (SIGNATURE, ENCRYPTED) if members.get(name)}
        opaque = [detail.get(name) for detail in details for name in OPAQUE]
        self.is_opaque = self.is_opaque or bool(others) or any(opaque)
        self._details.join(details)
        self._others.join(others)

    @property
    def members(self) -> Json:
        """The members of the message that the model needs back."""
        details = self._details.whole()
        return {DETAILS: details} | self._others.whole() if details else self._others.whole()
