"""Translates Anthropic's Messages API (https://docs.anthropic.com/en/api/messages) into Venice's
chat completions and back: requests one way, answers and errors the other. It does no I/O.
"""

from service.anthropic.errors import AnthropicError, error_object
from service.anthropic.events import EventWriter, MessageEvents, message
from service.anthropic.models import MAX_MODELS, model_info, models_page
from service.anthropic.request import (
    ChatRequest,
    CountRequest,
    MessagesRequest,
    chat_request,
    decode,
    estimate_tokens,
)

__all__ = [
    "MAX_MODELS",
    "AnthropicError",
    "ChatRequest",
    "CountRequest",
    "EventWriter",
    "MessageEvents",
    "MessagesRequest",
    "chat_request",
    "decode",
    "error_object",
    "estimate_tokens",
    "message",
    "model_info",
    "models_page",
]
