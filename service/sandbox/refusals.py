"""How Venice refuses: there is no uniform error body, and these are not made uniform either."""

import base64
import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

T = TypeVar("T")

_SANDBOX_URL: Final = "https://sandbox.invalid"


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(
        self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{status} {body.get('error')}")
        self.status = status
        self.body = body
        self.headers = headers or {}


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The request body as the decoder's struct.

    :raises Refusal: 400 with ``issues`` and ``details`` when it is anything else.
    """
    if b"\\u" in body:
        body = _with_whole_characters(body)
    try:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            raise invalid(*_issues(body, decoder.type, str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refusal(400, {"error": "Request body is not valid JSON"}) from None


def _with_whole_characters(body: bytes) -> bytes:
    """JSON as JavaScript reads it, which takes half of a surrogate pair for a character."""
    try:
        return json.dumps(json.loads(body), ensure_ascii=False).encode(errors="replace")
    except (ValueError, RecursionError):
        return body


def invalid(*issues: dict[str, Any]) -> Refusal:
    """The refusal of a body whose fields are wrong."""
    details: dict[str, Any] = {"_errors": []}
    for found in issues:
        place = details
        for step in found["path"][:1]:
            place = details.setdefault(str(step), {"_errors": []})
        place["_errors"].append(found["message"])
    return Refusal(
        400, {"error": "Invalid request parameters", "details": details, "issues": list(issues)}
    )


def issue(message: str, *path: str | int, code: str = "custom", **more: object) -> dict[str, Any]:
    """One entry of ``issues``."""
    return {"code": code, "message": message, "path": list(path), **more}


def _issues(body: bytes, kind: type, message: str) -> list[dict[str, Any]]:
    """What is wrong with the body, the unknown fields all at once as Venice names them."""
    sent = msgspec.json.decode(body)
    if isinstance(sent, dict):
        known = {field.encode_name for field in msgspec.structs.fields(kind)}
        unknown = [name for name in sent if name not in known]
        if unknown:
            text = f"Unrecognized key(s) in object: {', '.join(map(repr, unknown))}"
            return [issue(text, code="unrecognized_keys", keys=unknown)]
    text, _, place = message.partition(" - at `$")
    path = [step for step in place.rstrip("`").replace("[", ".").split(".") if step]
    return [issue(text, *(step.rstrip("]") for step in path), code="invalid_type")]


def unauthenticated() -> Refusal:
    """402 and not 401: without credentials Venice offers payment by wallet."""
    body = {
        "x402Version": 2,
        "error": "Authentication required",
        "resource": {
            "url": f"{_SANDBOX_URL}/api/v1",
            "description": "The Rialto sandbox: nothing can be bought here.",
            "mimeType": "application/json",
        },
        "accepts": [
            {
                "scheme": "exact",
                "network": "eip155:8453",
                "asset": "0x" + "0" * 40,
                "amount": "5000000",
                "payTo": "0x" + "0" * 40,
                "maxTimeoutSeconds": 300,
                "extra": {"name": "simulated", "version": "2"},
            }
        ],
        "extensions": {},
        "authOptions": {
            "apiKey": {
                "header": "Authorization: Bearer YOUR_API_KEY",
                "getKey": _SANDBOX_URL,
                "docs": _SANDBOX_URL,
            },
            "x402Wallet": {
                "header": "SIGN-IN-WITH-X",
                "legacyHeader": "X-Sign-In-With-X",
                "topUp": f"{_SANDBOX_URL}/api/v1/x402/top-up",
                "docs": _SANDBOX_URL,
            },
        },
    }
    encoded = base64.b64encode(msgspec.json.encode(body)).decode()
    return Refusal(402, body, {"PAYMENT-REQUIRED": encoded})


def bad_key() -> Refusal:
    """A key that Venice does not know."""
    return Refusal(401, {"error": "Authentication failed"})


def model_not_found(name: str, nearest: str | None) -> Refusal:
    """A model that Venice does not know, with the nearest name that it does."""
    hint = f" Did you mean '{nearest}'?" if nearest else ""
    return Refusal(
        404,
        {"error": f"The model '{name[:200]}' was not found.{hint}", "code": "MODEL_NOT_FOUND"},
    )


def context_exceeded(tokens: int, limit: int) -> Refusal:
    """The one refusal in OpenAI's shape."""
    text = f"The prompt has {tokens} tokens; this model's context holds {limit}."
    return Refusal(
        400,
        {
            "error": {
                "message": text,
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
            }
        },
    )
