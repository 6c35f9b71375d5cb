"""Endpoints that are charged per request: search, scraping, documents and blockchain RPC."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from service.sandbox.exchange import Exchange, Plain, Response
from service.sandbox.model import nanos, usd
from service.sandbox.refusals import Refusal

AUGMENT_NANOS: Final = nanos("0.01")
RPC_NANOS: Final = nanos("0.00003")
MAX_RPC_REQUESTS: Final = 100
NETWORKS: Final = ("base-mainnet", "ethereum-mainnet", "solana-mainnet")


class SearchRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """All fields of ``/augment/search``."""

    query: Annotated[str, Meta(min_length=1, max_length=400)]
    limit: Annotated[int, Meta(ge=1, le=20)] = 10
    search_provider: Literal["google", "brave"] = "brave"


class ScrapeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """All fields of ``/augment/scrape``."""

    url: Annotated[str, Meta(pattern="^https?://")]


class RpcRequest(Struct, kw_only=True):
    """A JSON-RPC request."""

    method: str
    id: Any = None


_SEARCH: Final = msgspec.json.Decoder(SearchRequest)
_SCRAPE: Final = msgspec.json.Decoder(ScrapeRequest)
_RPC: Final[Any] = msgspec.json.Decoder(RpcRequest | list[RpcRequest])


def search(exchange: Exchange) -> Response:
    """``POST /augment/search``. Returns one result about the query itself."""
    payload = exchange.decode(_SEARCH)
    exchange.charge_nanos(AUGMENT_NANOS)
    result = {
        "title": f"A simulated result for {payload.query}",
        "url": "https://sandbox.invalid",
        "content": "No search was made.",
        "date": "2026-01-01",
    }
    return Plain(body=msgspec.json.encode({"query": payload.query, "results": [result]}))


def scrape(exchange: Exchange) -> Response:
    """``POST /augment/scrape``. Returns a placeholder page."""
    payload = exchange.decode(_SCRAPE)
    exchange.charge_nanos(AUGMENT_NANOS)
    content = "# Simulated\n\nNo page was fetched."
    return Plain(
        body=msgspec.json.encode({"url": payload.url, "content": content, "format": "markdown"})
    )


def parse_text(exchange: Exchange) -> Response:
    """``POST /augment/text-parser``. Decodes the file as text."""
    form = exchange.form()
    text = form.file("file").decode(errors="replace")
    exchange.charge_nanos(AUGMENT_NANOS)
    if form.texts.get("response_format") == "text":
        return Plain(body=text.encode(), content_type="text/plain")
    return Plain(body=msgspec.json.encode({"text": text, "tokens": len(text.split())}))


def call_chain(exchange: Exchange) -> Response:
    """``POST /crypto/rpc/{network}``. Every result is zero."""
    network = exchange.request.match_info["network"]
    if network not in NETWORKS:
        raise Refusal(404, {"error": f"Unsupported network: {network}"})
    payload = exchange.decode(_RPC)
    batch = payload if isinstance(payload, list) else [payload]
    if not 1 <= len(batch) <= MAX_RPC_REQUESTS:
        raise Refusal(400, {"error": f"A batch must have 1 to {MAX_RPC_REQUESTS} requests"})
    answers = [{"jsonrpc": "2.0", "id": one.id, "result": "0x0"} for one in batch]
    cost_nanos = RPC_NANOS * len(batch)
    exchange.charge_nanos(cost_nanos)
    headers = {"X-Venice-RPC-Credits": str(20 * len(batch)), "X-Request-ID": "simulated"}
    if exchange.states_cost:
        headers["X-Venice-RPC-Cost-USD"] = bytes(usd(cost_nanos)).decode()
    return Plain(
        body=msgspec.json.encode(answers if isinstance(payload, list) else answers[0]),
        headers=headers,
    )


def networks(_: Exchange) -> Response:
    """``GET /crypto/rpc/networks``."""
    return Plain(body=msgspec.json.encode({"networks": NETWORKS}))
