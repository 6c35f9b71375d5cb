"""A small call for each paid route, and how it is sent."""

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
"""A small call for each paid route; one with bytes in it is a form."""
OTHER_NAMES = {
    "/systemone": "/decisions",
    "/messages": "/chat/completions",
    "/images/edits": "/image/edit",
}
"""What is another way to make a call of an endpoint."""
UNPRICED = {"/image/background-remove", "/audio/voices", "/audio/voice-changer/queue"}
"""What Venice states no price for, so that a limit of money lets nothing of it pass."""
QUOTED = {"/audio/queue", "/video/queue"}
"""What Venice is asked the price of, each time."""


def sent(body):
    """How a body is sent."""
    if not any(isinstance(value, bytes) for value in body.values()):
        return {"json": body}
    form = aiohttp.FormData()
    for name, value in body.items():
        form.add_field(name, value, filename="x.bin" if isinstance(value, bytes) else None)
    return {"data": form}
