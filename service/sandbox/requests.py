"""What is paid by the request: searches, pages, documents, blockchains."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from service.sandbox.exchange import Exchange, Plain, Reply
from service.sandbox.model import nanos, usd
from service.sandbox.refusals import Refusal

AUGMENT_NANOS: Final = nanos("0.01")
RPC_NANOS: Final = nanos("0.00003")
MOST_RPC_REQUESTS: Final = 100
NETWORKS: Final = ("base-mainnet", "ethereum-mainnet", "solana-mainnet")


class SearchRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Every field of ``/augment/search``."""

    query: Annotated[str, Meta(min_length=1, max_length=400)]
    limit: Annotated[int, Meta(ge=1, le=20)] = 10
    search_provider: Literal["google", "brave"] = "brave"


class ScrapeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Every field of ``/augment/scrape``."""

    url: Annotated[str, Meta(pattern="^https?://")]


class RpcRequest(Struct, kw_only=True):
    """A request of JSON-RPC."""

    method: str
    id: Any = None


_SEARCH: Final = msgspec.json.Decoder(SearchRequest)
_SCRAPE: Final = msgspec.json.Decoder(ScrapeRequest)
_RPC: Final[Any] = msgspec.json.Decoder(RpcRequest | list[RpcRequest])


def search(exchange: Exchange) -> Reply:
    """``POST /augment/search``: one result, on the query itself."""
    asked = exchange.decode(_SEARCH)
    exchange.charge_nanos(AUGMENT_NANOS)
    result = {
        "title": f"A simulated result for {asked.query}",
        "url": "https://sandbox.invalid",
        "content": "Nothing was searched.",
        "date": "2026-01-01",
    }
    return Plain(body=msgspec.json.encode({"query": asked.query, "results": [result]}))


def scrape(exchange: Exchange) -> Reply:
    """``POST /augment/scrape``: a page that says that it is none."""
    asked = exchange.decode(_SCRAPE)
    exchange.charge_nanos(AUGMENT_NANOS)
    content = "# Simulated\n\nNo page was read."
    return Plain(
        body=msgspec.json.encode({"url": asked.url, "content": content, "format": "markdown"})
    )


def parse_text(exchange: Exchange) -> Reply:
    """``POST /augment/text-parser``: a file taken for text."""
    form = exchange.form()
    text = form.file("file").decode(errors="replace")
    exchange.charge_nanos(AUGMENT_NANOS)
    if form.texts.get("response_format") == "text":
        return Plain(body=text.encode(), content_type="text/plain")
    return Plain(body=msgspec.json.encode({"text": text, "tokens": len(text.split())}))


def call_chain(exchange: Exchange) -> Reply:
    """``POST /crypto/rpc/{network}``: every result is zero."""
    network = exchange.request.match_info["network"]
    if network not in NETWORKS:
        raise Refusal(404, {"error": f"Unsupported network: {network}"})
    asked = exchange.decode(_RPC)
    batch = asked if isinstance(asked, list) else [asked]
    if not 1 <= len(batch) <= MOST_RPC_REQUESTS:
        raise Refusal(400, {"error": f"A batch has 1 to {MOST_RPC_REQUESTS} requests"})
    answers = [{"jsonrpc": "2.0", "id": one.id, "result": "0x0"} for one in batch]
    cost_nanos = RPC_NANOS * len(batch)
    exchange.charge_nanos(cost_nanos)
    headers = {"X-Venice-RPC-Credits": str(20 * len(batch)), "X-Request-ID": "simulated"}
    if exchange.states_cost:
        headers["X-Venice-RPC-Cost-USD"] = bytes(usd(cost_nanos)).decode()
    return Plain(
        body=msgspec.json.encode(answers if isinstance(asked, list) else answers[0]),
        headers=headers,
    )


def networks(_: Exchange) -> Reply:
    """``GET /crypto/rpc/networks``."""
    return Plain(body=msgspec.json.encode({"networks": NETWORKS}))
