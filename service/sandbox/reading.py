"""Free read-only endpoints: characters, reviews and TEE attestations."""

from typing import Any, Final

import msgspec

from service.sandbox.exchange import Exchange, Plain, Response
from service.sandbox.refusals import Refusal, invalid, issue

CREATED: Final = "2026-01-01T00:00:00.000Z"
CHARACTER: Final[dict[str, Any]] = {
    "id": "4f6c1b1e-0000-4000-8000-000000000001",
    "slug": "simulated-sage",
    "name": "Simulated Sage",
    "description": "Knows that this is a simulation.",
    "author": "sandbox",
    "adult": False,
    "featured": False,
    "createdAt": CREATED,
    "updatedAt": CREATED,
    "shareUrl": "https://sandbox.invalid/c/simulated-sage",
    "photoUrl": None,
    "modelId": "llama-3.3-70b",
    "tags": ["simulated"],
    "webEnabled": False,
    "stats": {
        "imports": 0,
        "averageRating": 5,
        "ratingCount": 1,
        "ratingSum": 5,
        "userRating": None,
    },
}
REVIEW: Final = {
    "id": "4f6c1b1e-0000-4000-8000-000000000002",
    "characterId": CHARACTER["id"],
    "createdAt": CREATED,
    "isOwner": False,
    "locale": "en",
    "message": "A simulated review.",
    "rating": 5,
    "userAvatarUrl": None,
    "username": "sandbox",
}


def characters(_: Exchange) -> Response:
    """``GET /characters``."""
    return Plain(body=msgspec.json.encode({"object": "list", "data": [CHARACTER]}))


def character(exchange: Exchange) -> Response:
    """``GET /characters/{slug}``."""
    _require_character(exchange)
    return Plain(body=msgspec.json.encode({"object": "character", "data": CHARACTER}))


def reviews(exchange: Exchange) -> Response:
    """``GET /characters/{slug}/reviews``."""
    _require_character(exchange)
    answer = {
        "object": "list",
        "data": [REVIEW],
        "pagination": {"page": 1, "pageSize": 20, "total": 1, "totalPages": 1},
        "summary": {"averageRating": 5, "totalReviews": 1},
    }
    return Plain(body=msgspec.json.encode(answer), headers={"x-pagination-total": "1"})


def _require_character(exchange: Exchange) -> None:
    if exchange.request.match_info["slug"] != CHARACTER["slug"]:
        raise Refusal(404, {"error": "Character not found", "code": "CHARACTER_NOT_FOUND"})


def attestation(exchange: Exchange) -> Response:
    """``GET /tee/attestation``. The enclave does not exist."""
    query = exchange.call.query
    if "model" not in query:
        raise invalid(issue("Required", "model", code="invalid_type"))
    answer = {"model": query["model"], "nonce": query.get("nonce"), "verified": False}
    return Plain(body=msgspec.json.encode({**answer, "simulated": True}))


def signature(exchange: Exchange) -> Response:
    """``GET /tee/signature``. The enclave does not exist."""
    query = exchange.call.query
    if "request_id" not in query:
        raise invalid(issue("Required", "request_id", code="invalid_type"))
    answer = {"request_id": query["request_id"], "signature": "0x0", "simulated": True}
    return Plain(body=msgspec.json.encode(answer))
