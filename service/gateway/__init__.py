"""The one pipeline that every paid call takes, and a small ``Endpoint`` for each kind of call."""

from typing import Any, Final

from service.gateway import audio, images, queues, requests
from service.gateway.audio import TRANSCRIPTIONS
from service.gateway.call import Call, Endpoint, Inbound, Upload, check_end_user
from service.gateway.chat import CHAT
from service.gateway.decisions import DECISIONS
from service.gateway.embeddings import EMBEDDINGS
from service.gateway.free_requests import FreeRequests
from service.gateway.images import EDIT, MULTI_EDIT
from service.gateway.open_call import Reply
from service.gateway.pipeline import Gateway, uncancel
from service.gateway.queues import FREE_PATHS
from service.gateway.reading import parse, read_large
from service.gateway.requests import OTHER
from service.gateway.responses import RESPONSES

__all__ = [
    "CHAT",
    "DECISIONS",
    "EDIT",
    "ENDPOINTS",
    "FREE_PATHS",
    "MULTI_EDIT",
    "OTHER",
    "TRANSCRIPTIONS",
    "Call",
    "Endpoint",
    "FreeRequests",
    "Gateway",
    "Inbound",
    "Reply",
    "Upload",
    "check_end_user",
    "parse",
    "read_large",
    "uncancel",
]

ENDPOINTS: Final[tuple[Endpoint[Any], ...]] = (
    CHAT,
    RESPONSES,
    EMBEDDINGS,
    DECISIONS,
    *images.ENDPOINTS,
    *audio.ENDPOINTS,
    *queues.ENDPOINTS,
    *requests.ENDPOINTS,
)
"""Everything that Venice charges for, as far as it is known."""
