"""Members that clients send unasked and Venice refuses: they are left out, renamed or rewritten.

A key's setting ``tolerant`` turns this off. Bodies that are end-to-end encrypted are never changed.
"""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import UNSET

LEFT_OUT: Final = {
    "context_management": "Anthropic's; some clients send it to everyone",
    "metadata": "of answers that are stored; none are",
    "prediction": "a hint that makes some of OpenAI's models faster",
    "service_tier": "OpenAI's own tiers",
    "store": "nothing is stored",
}
"""Members that do nothing at Venice, and why they can be left out. So can every null."""
STREAM_OPTIONS: Final = "stream_options"
"""Left out of calls that do not stream. Streams always end with their usage."""
MODALITIES: Final = "modalities"
"""Left out where it asks for text alone, which is all that Venice answers with."""
TEXT_ALONE: Final = ["text"]
FUNCTIONS: Final = {"functions": "tools", "function_call": "tool_choice"}
"""OpenAI's first names for tools."""
NEVER_SENT: Final = LEFT_OUT.keys() | FUNCTIONS.keys()
MESSAGES: Final = "messages"
"""Changed where a tool's message has its text in parts. Venice takes one text there."""


def tolerate(members: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes that leave such members out (``UNSET``), rename or rewrite them."""
    changes: dict[str, Any] = {}
    for name, value in members.items():
        if (
            value is None
            or name in NEVER_SENT
            or (name == STREAM_OPTIONS and members.get("stream") is not True)
            or (name == MODALITIES and value == TEXT_ALONE)
        ):
            changes[name] = UNSET
    for old, new in FUNCTIONS.items():
        value = members.get(old)
        if value is not None and members.get(new) is None:
            changes[new] = _as_tools(value) if new == "tools" else _as_choice(value)
    messages = members.get(MESSAGES)
    if isinstance(messages, list) and (joined := _with_joined_parts(messages)):
        changes[MESSAGES] = joined
    return changes


def _with_joined_parts(messages: list[Any]) -> list[Any] | None:
    """Return the messages with the parts of each tool's message as one text; None if all are so."""
    joined = None
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") != "tool":
            continue
        parts = message.get("content")
        if not isinstance(parts, list):
            continue
        texts = [_text_of(part) for part in parts]
        if None not in texts:
            joined = joined or [*messages]
            joined[place] = {**message, "content": "\n".join(filter(None, texts))}
    return joined


def _text_of(part: Any) -> str | None:
    """The text of a part; None for a part that is none."""
    is_text = isinstance(part, dict) and part.get("type", "text") == "text"
    text = part.get("text") if is_text else part
    return text if isinstance(text, str) else None


def _as_tools(functions: Any) -> Any:
    if not isinstance(functions, list):
        return functions
    return [{"type": "function", "function": function} for function in functions]


def _as_choice(choice: Any) -> Any:
    return {"type": "function", "function": choice} if isinstance(choice, dict) else choice
