"""What a model needs back with its reasoning, which clients carry as ``encrypted_content``."""

import base64
from typing import Any, Final

import msgspec

from service.formats import surrogates
from service.formats.completion import AssistantMessage

Json = dict[str, Any]

KEPT: Final = ("reasoning_details", "thought_signature", "reasoning_encrypted")
"""Members of a message that a model needs back unchanged."""
JOINED_DETAILS: Final = ("text", "summary", "data", "signature")


def seal(parts: Json) -> str:
    """Encode what the model needs back as ``encrypted_content``; empty if there is nothing."""
    return base64.b64encode(surrogates.encode(parts)).decode() if parts else ""


def unseal(content: Any) -> Json:
    """What :func:`seal` encoded; empty for the content of somebody else, which no other model can
    read."""
    if not isinstance(content, str):
        return {}
    try:
        parts = msgspec.json.decode(base64.b64decode(content), type=Json)
    except (ValueError, msgspec.DecodeError, RecursionError):
        return {}
    return {name: parts[name] for name in KEPT if name in parts}


class SealedReasoning:
    """Collects what the model needs back with its reasoning, which arrives in pieces."""

    def __init__(self) -> None:
        self._details: list[Json] = []
        self._signature = ""
        self._encrypted: Any = None

    def take(self, piece: AssistantMessage) -> None:
        """Add a piece. Pieces of one detail have the same index, and their texts are joined."""
        self._signature += piece.thought_signature or ""
        if piece.reasoning_encrypted is not None:
            is_more = isinstance(self._encrypted, str) and isinstance(
                piece.reasoning_encrypted, str
            )
            more = piece.reasoning_encrypted
            self._encrypted = self._encrypted + more if is_more else more
        for detail in piece.reasoning_details or ():
            last = self._details[-1] if self._details else {}
            if detail.get("index") is None or last.get("index") != detail["index"]:
                self._details.append(dict(detail))
                continue
            for name, value in detail.items():
                known = last.get(name)
                is_text = isinstance(value, str) and isinstance(known, str)
                last[name] = known + value if is_text and name in JOINED_DETAILS else value

    def seal(self) -> str:
        """Return what came since the last time, encoded; empty if nothing came."""
        parts: Json = {}
        if self._details:
            parts["reasoning_details"] = self._details
        if self._signature:
            parts["thought_signature"] = self._signature
        if self._encrypted is not None:
            parts["reasoning_encrypted"] = self._encrypted
        self._details, self._signature, self._encrypted = [], "", None
        return seal(parts)
