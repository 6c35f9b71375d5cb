"""Refuses the messages that Venice's schema or a model's template refuses."""

from typing import Final

from service.sandbox.model import Model
from service.sandbox.refusals import Refusal, invalid, issue
from service.sandbox.text.answers import THOUGHT_ID
from service.sandbox.text.chat_request import Message

# Venice converts Anthropic's blocks, so their roles may carry them.
_TEXT_PARTS: Final = frozenset({"text", "tool_use", "tool_result"})


def check(messages: list[Message], model: Model) -> None:
    """Check the messages against Venice's schema and the model's requirements.

    :raises Refusal: 400, for the first message that is refused.
    """
    for index, message in enumerate(messages):
        if message.role == "tool":
            _check_result(message, index)
        elif message.role != "user" and isinstance(message.content, list):
            _check_parts(message.content, index)
    if "Vision" not in model.capabilities and any(message.has_picture for message in messages):
        raise invalid(issue("image input is not supported by this model", "messages"))
    if model.needs_system_first:
        _check_order(messages)
    if model.returns:
        _check_reasoning(messages, model)


def _check_result(message: Message, index: int) -> None:
    """A tool's result is one text in Venice's schema, and never a list of parts."""
    if not isinstance(message.content, str):
        kind = "null" if message.content is None else "array"
        text = f"Expected string, received {kind}"
        raise invalid(issue(text, "messages", index, "content", code="invalid_type"))
    if message.tool_call_id is None:
        raise invalid(issue("Required", "messages", index, "tool_call_id", code="invalid_type"))


def _check_parts(parts: list[dict[str, object]], index: int) -> None:
    for number, part in enumerate(parts):
        if part.get("type") not in _TEXT_PARTS:
            path = ("messages", index, "content", number, "type")
            raise invalid(issue("Invalid literal value, expected 'text'", *path))


def _check_order(messages: list[Message]) -> None:
    """Refuse a system message after others, as the template of Qwen's models does.

    Venice joins its own system prompt with the caller's, so several at the start are accepted.
    """
    is_begun = False
    for message in messages:
        is_system = message.role in ("system", "developer")
        if is_system and is_begun:
            raise _rejected("System message must be at the beginning.")
        is_begun = is_begun or not is_system


def _check_reasoning(messages: list[Message], model: Model) -> None:
    """Refuse a call without the reasoning that came with it, as DeepSeek and Kimi do.

    The id of the call shows that reasoning came with it.
    """
    for index, message in enumerate(messages):
        ids = [str(call.get("id", "")) for call in message.tool_calls or ()]
        if not getattr(message, model.returns) and any(id_.startswith(THOUGHT_ID) for id_ in ids):
            raise _rejected(
                f"The message at index {index} has tool calls but lacks {model.returns}, which"
                " was sent with them and must be passed back."
            )


def _rejected(text: str) -> Refusal:
    """Build the refusal by a model's provider, which Venice passes on."""
    return Refusal(400, {"error": text, "request_id": "sandbox-rejected"})
