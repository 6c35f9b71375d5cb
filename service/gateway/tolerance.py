"""What clients send on their own account and Venice refuses: left out, or said in Venice's words.

A key's setting ``tolerant`` turns it off; what is encrypted end to end is never touched.
"""

from typing import Any, Final

import msgspec

from service import body

LEFT_OUT: Final = {
    "context_management": "Anthropic's; some clients send it to everyone",
    "metadata": "of answers that are stored; none are",
    "service_tier": "OpenAI's own tiers",
    "store": "nothing is stored",
}
"""Members that say nothing to Venice, and why they can be left out. So can every null."""
STREAM_OPTIONS: Final = "stream_options"
"""Left out of calls that are no streams; streams always end with their usage."""
FUNCTIONS: Final = {"functions": "tools", "function_call": "tool_choice"}
"""OpenAI's first names for tools."""

Unread = msgspec.Raw | msgspec.UnsetType

_NULL: Final = msgspec.Raw(b"null")


class Tolerated(msgspec.Struct, kw_only=True):
    """The members that a request may have and Venice may not get; only whether they are there is
    looked at."""

    context_management: Unread = msgspec.UNSET
    metadata: Unread = msgspec.UNSET
    service_tier: Unread = msgspec.UNSET
    store: Unread = msgspec.UNSET
    stream_options: Unread = msgspec.UNSET
    functions: Unread = msgspec.UNSET
    function_call: Unread = msgspec.UNSET


_NAMES: Final = Tolerated.__struct_fields__


def is_odd(request: Tolerated, content: bytes) -> bool:
    """Whether the request may have something to tolerate. Most have nothing, and large ones are
    gone through once for that, not once for each name."""
    if b"null" in content:
        return True
    for name in _NAMES:  # noqa: SIM110 - twice as fast as any()
        if getattr(request, name) is not msgspec.UNSET:
            return True
    return False


def tolerate(content: bytes) -> bytes:
    """The JSON object with such members left out or renamed, every other byte as it was; itself
    where there are none."""
    members = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    gone = {name for name, value in members.items() if value == _NULL or name in LEFT_OUT}
    if members.get("stream") != msgspec.Raw(b"true"):
        gone |= {STREAM_OPTIONS} & members.keys()
    said = {
        new: _as_tools(members[old]) if new == "tools" else _as_choice(members[old])
        for old, new in FUNCTIONS.items()
        if old in members.keys() - gone and new not in members.keys() - gone
    }
    gone |= FUNCTIONS.keys() & members.keys()
    if gone:
        content = body.without_members(content, gone)
    return body.set_members(content, said, ()) if said else content


def _as_tools(functions: msgspec.Raw) -> Any:
    try:
        listed = msgspec.json.decode(functions, type=list[msgspec.Raw])
    except msgspec.ValidationError:
        return functions
    return [{"type": "function", "function": function} for function in listed]


def _as_choice(choice: msgspec.Raw) -> Any:
    if bytes(choice)[:1] != b"{":
        return choice
    return {"type": "function", "function": choice}
