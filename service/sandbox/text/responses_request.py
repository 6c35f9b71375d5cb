"""The request body of ``POST /responses``, and the parts that both of its modes read alike."""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from service.sandbox.model import Model
from service.sandbox.refusals import invalid, issue
from service.sandbox.text.answers import MAX_TOKENS
from service.sandbox.text.chat_request import VeniceParameters
from service.sandbox.text.script import Turn

_CALL_SUFFIX: Final = "_call"
_OUTPUT_SUFFIX: Final = "_call_output"
_ROLES: Final[dict[str, Any]] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}


class ResponsesRequest(Struct, kw_only=True):
    """The members that are read. Others decide about the mode or are ignored."""

    model: str
    input: str | Annotated[list[dict[str, Any]], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stream: bool | None = None
    include: list[str] | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    web_search: bool | None = None
    venice_parameters: VeniceParameters = msgspec.field(default_factory=VeniceParameters)

    @property
    def items(self) -> list[dict[str, Any]]:
        """The items of the conversation; a text is the user's message."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        return self.input

    @property
    def limit(self) -> int:
        """The most tokens of text."""
        return self.max_output_tokens or MAX_TOKENS

    @property
    def may_think(self) -> bool:
        reasoning = self.reasoning or {}
        effort = reasoning.get("effort")
        return effort != "none" and (bool(effort) or reasoning.get("enabled") is not False)

    @property
    def is_thought_wanted(self) -> bool:
        reasoning = self.reasoning or {}
        return bool(reasoning.get("effort") or reasoning.get("enabled"))


def kind_of(item: dict[str, Any]) -> str:
    """Return the type of an item. Without a type it is a message."""
    return str(item.get("type") or "message")


def is_call(kind: str) -> bool:
    """Return whether items of a type are calls of the client's tools."""
    return kind.endswith(_CALL_SUFFIX)


def is_output(kind: str) -> bool:
    """Return whether items of a type are results of the client's tools."""
    return kind.endswith(_OUTPUT_SUFFIX)


def turn_of(item: dict[str, Any], index: int) -> Turn:
    """Convert an item to a turn of the conversation.

    :raises Refusal: 400 for a message without a known role.
    """
    kind = kind_of(item)
    if is_output(kind):
        return Turn(role="tool", text=_text_of(item.get("output")))
    if is_call(kind):
        return Turn(role="assistant", is_call=True)
    role = _ROLES.get(str(item.get("role")))
    if role is None:
        text = "Expected 'user' | 'assistant' | 'system' | 'developer'"
        raise invalid(issue(text, "input", index, "role", code="invalid_enum_value"))
    return Turn(role=role, text=_text_of(item.get("content")))


def _text_of(value: Any) -> str:
    """Return the texts in the content of a message or the output of a tool."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(filter(None, map(_text_of, value)))
    if isinstance(value, dict):
        found = [value.get(name) for name in ("text", "refusal", "stdout", "stderr")]
        return " ".join(text for text in found if isinstance(text, str) and text)
    return "" if value is None else msgspec.json.encode(value).decode()


def has_picture(items: list[dict[str, Any]]) -> bool:
    """Return whether a message or a tool's output contains an image."""
    contents = (item.get("content") or item.get("output") for item in items)
    return any(
        isinstance(part, dict) and part.get("type") in ("input_image", "image_url")
        for content in contents
        if isinstance(content, list)
        for part in content
    )


def check_pictures(items: list[dict[str, Any]], model: Model) -> None:
    """Refuse images for a model that reads none.

    :raises Refusal: 400.
    """
    if "Vision" not in model.capabilities and has_picture(items):
        raise invalid(issue("image input is not supported by this model", "input"))
