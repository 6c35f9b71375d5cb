"""What a conversation holds beside text: pictures, and what has no bound but the model's window."""

import re
from typing import Any, Final

import msgspec

PICTURE_TOKENS: Final = 16_384
"""The most that one picture is to a model. Models that see scale pictures down: Qwen's take the
most, 16,384 pieces by default; Claude's and OpenAI's take under 5,000."""
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
"""Parts of a message that are no more than their text."""
PICTURE_TYPES: Final = frozenset({"image_url", "input_image", "computer_screenshot"})
PARTS: Final = frozenset({"content", "output"})
MEDIA: Final = re.compile(
    r"image|picture|audio|video|(?<!pro)file|document|media(?!t)|item_reference", re.IGNORECASE
)
"""In names of members and types of what is more than its text; not in profile or immediate."""
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
"""What the client did or was asked to do, by the type of the item: JSON that stays its text."""
UNREAD: Final = frozenset(
    {"role", "name", "id", "call_id", "tool_call_id", "status", "type", "text", "annotations"}
    | {"logprobs", "reasoning_content", "refusal", "cache_control", "phase"}
)
"""Members that are no media by their names."""
EMPTY: Final[tuple[Any, ...]] = (None, False, "", [], {})
URL: Final = re.compile(r"https?://", re.IGNORECASE)
DATA_URL: Final = "data:image/"


class Content(msgspec.Struct):
    """What stands in a conversation."""

    pictures: int = 0
    picture_bytes: int = 0
    """The length of the pictures that the body itself holds, which are no text."""
    is_unbounded: bool = False
    """Whether it holds what is more tokens than bytes: sound, video, files, or something that is
    not known here."""
    tools: list[Any] = []
    """Tools that stand within the conversation."""

    def read(self, conversation: Any) -> None:
        """Read messages, or the items of a response's input."""
        waiting: list[tuple[Any, bool]] = []
        if isinstance(conversation, dict | list):
            waiting.append((conversation, False))
        while waiting:
            value, is_part = waiting.pop()
            if isinstance(value, list):
                waiting += [(item, is_part) for item in value if isinstance(item, dict | list)]
            elif not self._take_picture(value):
                self._check_type(value, is_part=is_part)
                unread = _unread(value)
                for name, item in value.items():
                    if name in PARTS and isinstance(item, dict | list):
                        waiting.append((item, True))
                    elif name not in UNREAD and name != unread and item not in EMPTY:
                        self._check_member(name, item)
                        if isinstance(item, dict | list):
                            waiting.append((item, False))

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
        self.pictures += 1
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
        if name == "tools" and isinstance(item, list):
            self.tools += item
        elif name in PARTS:
            # A text, or a shape that no API has.
            self.is_unbounded |= not isinstance(item, str)
        elif MEDIA.search(name):
            self.is_unbounded = True


def _unread(item: dict[str, Any]) -> str | None:
    kind = item.get("type")
    return CLIENT_ITEMS.get(kind) if isinstance(kind, str) else None
