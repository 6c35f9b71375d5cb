"""Carries what a model needs back with its reasoning in the signature of a block of thinking.

A model with tools refuses or forgets its reasoning unless the next request repeats it unchanged.
Anthropic's clients send each block of thinking back with its signature, so the signature carries
Venice's members of the message.
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

    def take_back(self, signature: str, *, has_thought: bool) -> None:
        """Add what a signature carries. A block without a thought continues the one before it. The
        signature of another maker carries nothing."""
        try:
            parts = msgspec.json.decode(base64.b64decode(signature), type=Json)
        except (ValueError, msgspec.DecodeError, RecursionError):
            return
        details = parts.get(DETAILS)
        if isinstance(details, list):
            details = [detail for detail in details if isinstance(detail, dict)]
            self._take_details(details, is_continued=not has_thought)
        self._take_others({name: parts.get(name) for name in (SIGNATURE, ENCRYPTED)})

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

    def sign(self) -> str:
        """The signature that carries the members. It is never empty, because clients drop a thought
        without a signature."""
        return base64.b64encode(surrogates.encode(self.members)).decode()
