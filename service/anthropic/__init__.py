"""Translates Anthropic's Messages API (https://docs.anthropic.com/en/api/messages) into Venice's
chat completions and back: requests one way, answers and errors the other. It does no I/O.
"""

from service.anthropic.answer import MessageEvents, message
from service.anthropic.errors import AnthropicError, error_object
from service.anthropic.request import (
    CountRequest,
    MessagesRequest,
    chat_body,
    decode,
    estimate_tokens,
)

__all__ = [
    "AnthropicError",
    "CountRequest",
    "MessageEvents",
    "MessagesRequest",
    "chat_body",
    "decode",
    "error_object",
    "estimate_tokens",
    "message",
]
