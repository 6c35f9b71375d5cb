"""Simulates Venice's HTTP API for offline use, tests and benchmarks.

Every response is marked as simulated, in its text or in ``x-rialto-sandbox``. The package imports
nothing else from the service. An endpoint is a function from :class:`Exchange` to :class:`Plain` or
:class:`Stream`, and a line in ``ROUTES``.

A test in the same process uses the application directly::

    app[FAULTS].push("/chat/completions", FaultKind.RATE_LIMITED, times=3)
    app[CALLS].to("/chat/completions")[-1].body
    app[LISTING].change("llama-3.3-70b", {"pricing": {…}})

Other processes use ``/sandbox/faults``, ``/sandbox/models``, ``/sandbox/release`` and
``/sandbox/calls``.
"""

from collections.abc import Collection
from typing import Final

from aiohttp import web

from service.sandbox import (
    account,
    audio,
    control,
    decisions,
    edits,
    embeddings,
    images,
    queues,
    reading,
    requests,
)
from service.sandbox.account import LISTING, Listing
from service.sandbox.calls import CALLS, Call, Calls
from service.sandbox.exchange import (
    API_KEYS,
    Exchange,
    Plain,
    Stream,
    endpoint,
)
from service.sandbox.faults import FAULTS, Fault, FaultKind, Faults
from service.sandbox.middleware import MAX_BODY_BYTES, add_headers, record
from service.sandbox.text import chat, responses

__all__ = [
    "CALLS",
    "FAULTS",
    "LISTING",
    "Call",
    "Calls",
    "Exchange",
    "Fault",
    "FaultKind",
    "Faults",
    "Listing",
    "Plain",
    "Stream",
    "create_sandbox",
]

ROUTES: Final = (
    ("GET", "/models", endpoint(account.list_models, is_public=True)),
    ("GET", "/models/traits", endpoint(account.list_traits, is_public=True)),
    ("GET", "/models/compatibility_mapping", endpoint(account.list_compatible, is_public=True)),
    ("GET", "/api_keys/rate_limits", endpoint(account.rate_limits)),
    ("GET", "/billing/balance", endpoint(account.balance)),
    ("GET", "/image/styles", endpoint(edits.styles, is_public=True)),
    ("GET", "/characters", endpoint(reading.characters)),
    ("GET", "/characters/{slug}", endpoint(reading.character)),
    ("GET", "/characters/{slug}/reviews", endpoint(reading.reviews)),
    ("GET", "/tee/attestation", endpoint(reading.attestation, is_public=True)),
    ("GET", "/tee/signature", endpoint(reading.signature, is_public=True)),
    ("GET", "/crypto/rpc/networks", endpoint(requests.networks, is_public=True)),
    ("POST", "/chat/completions", endpoint(chat.complete)),
    ("POST", "/responses", endpoint(responses.respond)),
    ("POST", "/decisions", endpoint(decisions.decide)),
    ("POST", "/systemone", endpoint(decisions.decide)),
    ("POST", "/embeddings", endpoint(embeddings.embed)),
    ("POST", "/image/generate", endpoint(images.generate)),
    ("POST", "/images/generations", endpoint(images.generations)),
    ("POST", "/image/edit", endpoint(edits.edit)),
    ("POST", "/image/multi-edit", endpoint(edits.multi_edit)),
    ("POST", "/image/upscale", endpoint(edits.upscale)),
    ("POST", "/image/background-remove", endpoint(edits.remove_background)),
    ("POST", "/audio/speech", endpoint(audio.speak)),
    ("POST", "/audio/transcriptions", endpoint(audio.transcribe)),
    ("POST", "/audio/voices", endpoint(audio.clone)),
    ("POST", "/video/quote", endpoint(queues.quote_video, is_public=True)),
    ("POST", "/video/queue", endpoint(queues.queue_video)),
    ("POST", "/video/transcriptions", endpoint(queues.transcribe_video)),
    ("POST", "/audio/quote", endpoint(queues.quote_audio, is_public=True)),
    ("POST", "/audio/queue", endpoint(queues.queue_audio)),
    ("POST", "/audio/voice-changer/quote", endpoint(queues.quote_voice, is_public=True)),
    ("POST", "/audio/voice-changer/queue", endpoint(queues.queue_voice)),
    *(
        ("POST", f"/{family}/{step}", endpoint(answer))
        for family in ("video", "audio", "audio/voice-changer")
        for step, answer in (("retrieve", queues.retrieve), ("complete", queues.complete))
    ),
    ("POST", "/augment/search", endpoint(requests.search)),
    ("POST", "/augment/scrape", endpoint(requests.scrape)),
    ("POST", "/augment/text-parser", endpoint(requests.parse_text)),
    ("POST", "/crypto/rpc/{network}", endpoint(requests.call_chain)),
)


def create_sandbox(api_keys: Collection[str] = ("sandbox",)) -> web.Application:
    """Create the application.

    Serve it with ``handler_cancellation=True``, so that it notices disconnects at once.
    """
    app = web.Application(middlewares=[record], client_max_size=MAX_BODY_BYTES)
    app[API_KEYS] = frozenset(api_keys)
    app[FAULTS] = Faults()
    app[CALLS] = Calls()
    app[LISTING] = Listing()
    app[queues.JOBS] = {}
    app.on_response_prepare.append(add_headers)
    app.on_shutdown.append(_release_held)
    for method, path, handler in ROUTES:
        app.router.add_route(method, f"/api/v1{path}", handler)
    app.router.add_put("/sandbox/faults", control.push_fault)
    app.router.add_get("/sandbox/faults", control.list_faults)
    app.router.add_delete("/sandbox/faults", control.clear_faults)
    app.router.add_put("/sandbox/models/{id:.+}", control.change_model)
    app.router.add_delete("/sandbox/models/{id:.+}", control.remove_model)
    app.router.add_delete("/sandbox/models", control.reset_models)
    app.router.add_post("/sandbox/release", control.release)
    app.router.add_get("/sandbox/calls", control.list_calls)
    return app


async def _release_held(app: web.Application) -> None:
    """Held calls must not delay the server's shutdown."""
    app[FAULTS].clear()
