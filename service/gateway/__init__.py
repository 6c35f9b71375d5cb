"""The one pipeline that every paid call takes, and a small ``Endpoint`` for each kind of call."""

from service.gateway.call import (
    Call,
    Endpoint,
    Inbound,
    Quote,
    Translation,
    Upload,
    check_end_user,
)
from service.gateway.endpoints import (
    CHAT,
    DECISIONS,
    EDIT,
    ENDPOINTS,
    FREE_PATHS,
    KNOWN_MEMBERS,
    MULTI_EDIT,
    OTHER,
    TRANSCRIPTIONS,
)
from service.gateway.free_requests import FreeRequests
from service.gateway.pipeline import Gateway, uncancel
from service.gateway.reading import parse, read_large
from service.gateway.relays import (
    AnswerRelay,
    AssembledRelay,
    EventsRelay,
    WholeRelay,
)

__all__ = [
    "CHAT",
    "DECISIONS",
    "EDIT",
    "ENDPOINTS",
    "FREE_PATHS",
    "KNOWN_MEMBERS",
    "MULTI_EDIT",
    "OTHER",
    "TRANSCRIPTIONS",
    "AnswerRelay",
    "AssembledRelay",
    "Call",
    "Endpoint",
    "EventsRelay",
    "FreeRequests",
    "Gateway",
    "Inbound",
    "Quote",
    "Translation",
    "Upload",
    "WholeRelay",
    "check_end_user",
    "parse",
    "read_large",
    "uncancel",
]
