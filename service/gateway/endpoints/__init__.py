"""The kinds of paid call: each has an ``Endpoint`` that parses, bounds and prices it."""

from typing import Any, Final

from service.gateway.call import Endpoint
from service.gateway.endpoints import audio, images, queues, requests
from service.gateway.endpoints.audio import TRANSCRIPTIONS
from service.gateway.endpoints.chat import CHAT
from service.gateway.endpoints.decisions import DECISIONS
from service.gateway.endpoints.embeddings import EMBEDDINGS
from service.gateway.endpoints.images import EDIT, MULTI_EDIT
from service.gateway.endpoints.members import KNOWN_MEMBERS
from service.gateway.endpoints.queues import FREE_PATHS
from service.gateway.endpoints.requests import OTHER
from service.gateway.endpoints.responses import RESPONSES

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
"""All known endpoints that Venice charges for."""
