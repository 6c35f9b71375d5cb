"""A small request for each paid route."""

import aiohttp
from support import MODEL

PICTURE = "data:image/png;base64,iVBORw0KGgo="
BODIES = {
    "/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "x"}]},
    "/messages": {
        "model": MODEL,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "x"}],
    },
    "/responses": {"model": MODEL, "input": "x"},
    "/embeddings": {"model": "text-embedding-bge-m3", "input": "x"},
    "/decisions": {"model": "jev-latest", "state": "x", "questions": {"a": {"type": "noul"}}},
    "/systemone": {"model": "jev-latest", "state": "x", "questions": {"a": {"type": "noul"}}},
    "/image/generate": {"model": "venice-sd35", "prompt": "x"},
    "/images/generations": {"prompt": "x"},
    "/images/edits": {"image": b"x" * 1000, "prompt": "x"},
    "/image/edit": {"image": PICTURE, "prompt": "x"},
    "/image/multi-edit": {"images": [PICTURE], "prompt": "x"},
    "/image/upscale": {"image": PICTURE, "scale": 2},
    "/image/background-remove": {"image": PICTURE},
    "/audio/speech": {"model": "tts-kokoro", "input": "x"},
    "/audio/transcriptions": {"file": b"x" * 1000},
    "/audio/voices": {"file": b"x" * 1000},
    "/audio/queue": {"model": "elevenlabs-music", "prompt": "x", "duration_seconds": 10},
    "/audio/voice-changer/queue": {"audio": b"x" * 1000},
    "/video/queue": {
        "model": "wan-2.5-preview-text-to-video",
        "prompt": "x",
        "duration": "5s",
        "resolution": "720p",
    },
    "/augment/search": {"query": "x"},
    "/augment/scrape": {"url": "https://example.com"},
    "/augment/text-parser": {"file": b"x"},
    "/crypto/rpc/{network}": {"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber"},
}
"""A small request body for each paid route; a body with bytes in it is sent as a form."""
ENDPOINT_ALIASES = {
    "/systemone": "/decisions",
    "/messages": "/chat/completions",
    "/images/edits": "/image/edit",
}
"""Paths that are another way to call an endpoint."""
UNPRICED = {"/image/background-remove", "/audio/voices", "/audio/voice-changer/queue"}
"""Endpoints for which Venice lists no price, so a limit of money admits none of their calls."""
QUOTED_ENDPOINTS = {"/audio/queue", "/video/queue"}
"""Endpoints for which the service asks Venice for a quote before each call."""


def payload(body):
    """Return aiohttp's arguments that send the body as JSON or as a form."""
    if not any(isinstance(value, bytes) for value in body.values()):
        return {"json": body}
    form = aiohttp.FormData()
    for name, value in body.items():
        form.add_field(name, value, filename="x.bin" if isinstance(value, bytes) else None)
    return {"data": form}
