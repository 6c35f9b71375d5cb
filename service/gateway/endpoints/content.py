"""Finds what a conversation contains beside text: pictures, and media of unknown length."""

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from service.gateway.endpoints.pictures import NO_PICTURES, PictureTokens, read_size

TEXT_TYPES: Final = frozenset(
    {
        "text",
        "input_text",
        "output_text",
        "summary_text",
        "reasoning_text",
        "refusal",
        "thinking",
        "redacted_thinking",
    }
)
"""Types of message parts that consist of their text."""
PICTURE_TYPES: Final = frozenset({"image_url", "input_image", "computer_screenshot"})
PARTS: Final = frozenset({"content", "output"})
MEDIA: Final = re.compile(
    r"image|picture|audio|video|(?<!pro)file|document|media(?!t)|item_reference", re.IGNORECASE
)
"""Matches names and types of media, but not ``profile`` and ``immediate``."""
CLIENT_ITEMS: Final = {
    "function_call": "arguments",
    "custom_tool_call": "input",
    "local_shell_call": "action",
    "shell_call": "action",
    "apply_patch_call": "operation",
    "computer_call": "action",
    "web_search_call": "action",
    "tool_search_call": "arguments",
    "ghost_snapshot": "ghost_commit",
}
"""For each type of item that the client runs: the member whose JSON is read as text."""
UNREAD: Final = frozenset(
    {"role", "name", "id", "call_id", "tool_call_id", "status", "type", "text", "annotations"}
    | {"logprobs", "reasoning_content", "refusal", "cache_control", "phase"}
)
"""Members that are not media, whatever their value."""
TEXT_MESSAGE_MEMBERS: Final = (UNREAD | {"content"}) - {"type"}
"""A message with no other members has nothing to be read if its content is a text."""
EMPTY: Final[tuple[Any, ...]] = (None, False, "", [], {})
URL: Final = re.compile(r"https?://", re.IGNORECASE)
DATA_URL: Final = "data:image/"
UNBOUNDED: Final = "sound, video, files or unknown parts"
"""What may have more tokens than bytes."""


class _Place(NamedTuple):
    """An object or a list in a conversation, that is still to be read."""

    value: Any
    is_part: bool = False
    is_content: bool = True
    """Whether it is an item of the conversation, or the content of one."""


class Content(msgspec.Struct):
    """What a conversation contains."""

    pictures: PictureTokens = NO_PICTURES
    """The most tokens of its pictures."""
    picture_bytes: int = 0
    """The length of the pictures within the body, which do not count as text."""
    is_unbounded: bool = False
    """Whether it contains media that may have more tokens than bytes: sound, video, files, or parts
    of an unknown type. Only the model's window bounds these."""
    tools: list[Any] = []
    """Tools that are defined within the conversation."""

    def read(self, conversation: Any) -> None:
        """Read messages, or the items of a response's input."""
        waiting: list[_Place] = []
        for message in conversation if isinstance(conversation, list) else (conversation,):
            if isinstance(message, dict):
                is_text = isinstance(message.get("content"), str)
                if is_text and message.keys() <= TEXT_MESSAGE_MEMBERS:
                    continue
            elif not isinstance(message, list):
                continue
            waiting.append(_Place(message))
        while waiting:
            place = waiting.pop()
            if isinstance(place.value, list):
                waiting += [
                    place._replace(value=item)
                    for item in place.value
                    if isinstance(item, dict | list)
                ]
                continue
            unread = None
            # A message without a type is text.
            if place.is_part or "type" in place.value:
                # Elsewhere it may be JSON that the model gets as a text.
                if place.is_content and self._take_picture(place.value):
                    continue
                self._check_type(place.value, is_part=place.is_part)
                unread = _unread(place.value)
            waiting += self._inner(place, unread)

    def _inner(self, place: _Place, unread: str | None) -> Iterator[_Place]:
        """Check the members of an object. Yields those in which more may be."""
        for name, item in place.value.items():
            is_nested = isinstance(item, dict | list)
            if name == "tools" and isinstance(item, list):
                # Read like other tools. A namespace has its tools within it.
                self.tools += item
            elif name in PARTS and is_nested:
                yield _Place(item, is_part=True, is_content=place.is_content)
            elif name not in UNREAD and name != unread and item not in EMPTY:
                self._check_member(name, item)
                if is_nested:
                    yield _Place(item, is_content=False)

    def _take_picture(self, part: dict[str, Any]) -> bool:
        kind = part.get("type")
        if not isinstance(kind, str) or kind not in PICTURE_TYPES:
            return False
        stated = part.get("image_url")
        url = stated.get("url") if isinstance(stated, dict) else stated
        others = [
            name
            for name, value in part.items()
            if name not in ("type", "image_url") and value is not None and MEDIA.search(name)
        ]
        if others or not isinstance(url, str):
            return False
        if url.startswith(DATA_URL):
            self.picture_bytes += len(url)
        elif not URL.match(url):
            return False
        self.pictures = self.pictures.plus(PictureTokens.of(read_size(url)))
        return True

    def _check_type(self, value: dict[str, Any], *, is_part: bool) -> None:
        kind = value.get("type")
        is_text = kind in TEXT_TYPES if isinstance(kind, str) else kind is None and not is_part
        if is_part and not is_text:
            self.is_unbounded = True
        elif isinstance(kind, str):
            self.is_unbounded |= MEDIA.search(kind) is not None
        elif kind is not None:
            self.is_unbounded = True

    def _check_member(self, name: str, item: Any) -> None:
        if name in PARTS:
            # Anything but a text has a shape that no API has.
            self.is_unbounded |= not isinstance(item, str)
        elif MEDIA.search(name):
            self.is_unbounded = True


def _unread(item: dict[str, Any]) -> str | None:
    kind = item.get("type")
    return CLIENT_ITEMS.get(kind) if isinstance(kind, str) else None
