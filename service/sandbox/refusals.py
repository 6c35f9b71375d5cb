"""Venice's error responses. They have no uniform format, and the sandbox keeps it that way."""

import base64
import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

T = TypeVar("T")

_SANDBOX_URL: Final = "https://sandbox.invalid"


class Refusal(Exception):
    """An error response."""

    def __init__(
        self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{status} {body.get('error')}")
        self.status = status
        self.body = body
        self.headers = headers or {}


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode the request body into the decoder's struct.

    :raises Refusal: 400 with ``issues`` and ``details`` when it does not match.
    """
    if b"\\u" in body:
        body = _replace_lone_surrogates(body)
    try:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            raise invalid(*_issues(body, decoder.type, str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refusal(400, {"error": "Request body is not valid JSON"}) from None


def _replace_lone_surrogates(body: bytes) -> bytes:
    """Replace lone surrogates in JSON, as JavaScript accepts them."""
    try:
        return json.dumps(json.loads(body), ensure_ascii=False).encode(errors="replace")
    except (ValueError, RecursionError):
        return body


def invalid(*issues: dict[str, Any]) -> Refusal:
    """Build the refusal of a body with invalid fields."""
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
    """Build an entry of ``issues``."""
    return {"code": code, "message": message, "path": list(path), **more}


def _issues(body: bytes, kind: type, message: str) -> list[dict[str, Any]]:
    """Describe what is invalid in the body, with all unknown fields in one issue, as Venice
    does where it refuses them."""
    sent = msgspec.json.decode(body)
    is_strict = issubclass(kind, Struct) and kind.__struct_config__.forbid_unknown_fields
    if isinstance(sent, dict) and is_strict:
        known = {field.encode_name for field in msgspec.structs.fields(kind)}
        unknown = [name for name in sent if name not in known]
        if unknown:
            text = f"Unrecognized key(s) in object: {', '.join(map(repr, unknown))}"
            return [issue(text, code="unrecognized_keys", keys=unknown)]
    text, _, place = message.partition(" - at `$")
    path = [step for step in place.rstrip("`").replace("[", ".").split(".") if step]
    return [issue(text, *(step.rstrip("]") for step in path), code="invalid_type")]


def unauthenticated() -> Refusal:
    """Build the refusal without credentials: 402 instead of 401, offering payment by wallet."""
    body = {
        "x402Version": 2,
        "error": "Authentication required",
        "resource": {
            "url": f"{_SANDBOX_URL}/api/v1",
            "description": "The Rialto sandbox accepts no payment.",
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


def unknown_key() -> Refusal:
    """Build the refusal of an unknown key."""
    return Refusal(401, {"error": "Authentication failed"})


def model_not_found(name: str, nearest: str | None) -> Refusal:
    """Build the refusal of an unknown model, with the nearest known name."""
    hint = f" Did you mean '{nearest}'?" if nearest else ""
    return Refusal(
        404,
        {"error": f"The model '{name[:200]}' was not found.{hint}", "code": "MODEL_NOT_FOUND"},
    )


def context_exceeded(tokens: int, limit: int) -> Refusal:
    """Build the refusal of a prompt that is too long, the only one in OpenAI's format."""
    text = f"The prompt has {tokens} tokens, but this model's context holds {limit}."
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
