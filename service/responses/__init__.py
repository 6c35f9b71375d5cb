"""Translates OpenAI's Responses API (https://platform.openai.com/docs/api-reference/responses) for
Venice, which serves it in two modes of its own and lacks some of it. It does no I/O.

``table`` decides what becomes of each member of a request; ``request`` and ``tools`` write the
request for chat completions where Venice's own modes would lose something; ``answer`` translates
the completion back, whole or as events that ``writer`` writes.
"""

from service.responses.answer import ChatAnswer
from service.responses.passed import PassedAnswer
from service.responses.request import AnswerContext, chat_body, repeated
from service.responses.table import (
    MODE_HEADER,
    MODES,
    Plan,
    RuledMember,
    Served,
    findings,
    is_native,
    plan,
    tool_type,
)

__all__ = [
    "MODES",
    "MODE_HEADER",
    "AnswerContext",
    "ChatAnswer",
    "PassedAnswer",
    "Plan",
    "RuledMember",
    "Served",
    "chat_body",
    "findings",
    "is_native",
    "plan",
    "repeated",
    "tool_type",
]
