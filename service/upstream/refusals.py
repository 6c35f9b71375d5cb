"""Translates Venice's error responses into ours.

Venice has no single error format: ``error`` is a string or an object, ``details`` an object or a
string, and ``code`` is often absent. When Venice refuses the caller's request, its text is kept.
When it refuses the operator's key, balance or rate, the caller learns only that it may retry.

A response that is not Venice's own JSON comes from a proxy in front of it. The proxy judges
requests by their text and knows neither keys nor models, so its response is about that one request.
"""

import contextlib
import re
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import structlog

from service.errors import (
    Evidence,
    UpstreamBusy,
    UpstreamError,
    UpstreamExhausted,
    UpstreamRejected,
    UpstreamTimeout,
)
from service.formats import sse
from service.formats.parsing import parse_whole
from service.telemetry import logs

log = structlog.get_logger()

MESSAGE_CHARACTERS: Final = 2000
BUSY_RETRY_S: Final = 5
EXHAUSTED_RETRY_S: Final = 60
REQUESTS_LEFT: Final = "x-ratelimit-remaining-requests"
TOKENS_LEFT: Final = "x-ratelimit-remaining-tokens"
RATES: Final = (
    (REQUESTS_LEFT, "x-ratelimit-reset-requests"),
    (TOKENS_LEFT, "x-ratelimit-reset-tokens"),
)
NONE_LEFT: Final = "0"
ERROR_MEMBER: Final = b'"error"'
"""Stands in every event with an error, so in no other has one to be looked for."""
EDGE_TIMEOUTS: Final = (504, 522, 524)
REFUND_MEMBER: Final = "credits_refunded"
TOO_LONG: Final = "context_length_exceeded"
"""The code of a refusal that clients act on: they shorten the conversation and try again."""
FIELD: Final = re.compile(r"[\w.\[\]]{1,64}", re.ASCII)
"""The format of fields that are passed on."""
TOO_LONG_TEXT: Final = re.compile(
    r"maximum context length|prompt is too long|exceeds?\b.{0,80}\bcontext (?:length|window|limit)"
    r"|context (?:length|window|limit)\b.{0,80}\bexceed",
    re.IGNORECASE | re.DOTALL,
)
"""Such a refusal without a code, by the words of several makers of models."""
REJECTIONS: Final = {
    "content_blocked_by_provider": 422,
    "e2ee_attestation_stale": 400,
    TOO_LONG: 400,
}
"""In-stream error codes that are about the request, with the statuses they map to."""
JSON_TYPE: Final = re.compile(r"application/(?:[\w.-]+\+)?json\b", re.ASCII | re.IGNORECASE)
FORBIDDEN_MODEL_CODES: Final = ("MODEL_PRIVACY_RESTRICTED", "PRO_ONLY_MODEL")
KEY_STATUSES: Final = (401, 402, 403)
"""The statuses with which Venice refuses a key, its balance, its address, or a call's use of
them."""
CODE: Final = re.compile("[a-z]{1,20}(?:_[a-z]{1,20}){0,4}")
"""The format of error codes that are logged. Codes in any other format may contain anything."""
RAY_ID: Final = re.compile("[0-9a-f]{16}(?:-[A-Z]{3})?")
"""The edge's id of a request."""
VENICE_KEY: Final = re.compile(r"VENICE_[A-Z]+_KEY_\S+|Bearer\s+\S+")


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """Translate a response that is not 2xx, from Venice or from a proxy in front of it."""
    decoded = _decode_own_refusal(headers, body)
    error = (
        _edge_error(status, headers) if decoded is None else _venice_error(status, headers, body)
    )
    error.upstream_status = status
    error.is_refunded = is_refunded(body)
    error.is_charge_kept = _stated_refund(body) is False
    if _parse_whole_header(headers.get("Retry-After")) is not None:
        error.named_retry_after_s = _retry_after_s(headers)
    if decoded is not None:
        error.evidence = _evidence(status, headers, decoded)
    if error.evidence is Evidence.RATE_SPENT:
        reset_s = spent_rate_reset_s(headers)
        error.rate_reset_s = BUSY_RETRY_S if reset_s is None else reset_s
    return error


def _decode_own_refusal(headers: Mapping[str, str], body: bytes) -> dict[str, Any] | None:
    """Decode a refusal that Venice itself wrote: JSON with an error or a code."""
    if not JSON_TYPE.match(headers.get("Content-Type", "").strip()):
        return None
    decoded = _decode_json(body)
    if isinstance(decoded, dict) and (decoded.get("error") or isinstance(decoded.get("code"), str)):
        return decoded
    return None


def _decode_json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _edge_error(status: int, headers: Mapping[str, str]) -> UpstreamError:
    """Translate a response that Venice did not write."""
    log.warning(
        "response not written by venice",
        upstream_status=status,
        is_page=headers.get("Content-Type", "").strip().lower().startswith("text/html"),
    )
    error: UpstreamError
    if status in (429, 503):
        retry_after_s = _retry_after_s(headers)
        error = UpstreamBusy(
            "The network in front of Venice is busy. Retry later.", retry_after_s=retry_after_s
        )
    elif status in EDGE_TIMEOUTS:
        error = UpstreamTimeout("The network in front of Venice timed out.")
    elif 400 <= status < 500:
        # The caller would read 401 and 407 as a problem with its own key, and 402 as a bill.
        kept = None if status in (401, 402, 407) else status
        error = UpstreamRejected(
            f"The network in front of Venice refused this request with status {status}. Other"
            " requests are not affected.",
            status=kept,
        )
    else:
        error = UpstreamError(f"The network in front of Venice failed with status {status}.")
    error.evidence = Evidence.EDGE_FAILED if status >= 500 else Evidence.NONE
    return error


def _evidence(status: int, headers: Mapping[str, str], decoded: Mapping[str, Any]) -> Evidence:
    """Return what Venice's own refusal proves about the key and the model."""
    if status in KEY_STATUSES:
        is_of_model = _code(decoded) in FORBIDDEN_MODEL_CODES
        return Evidence.MODEL_FORBIDDEN if is_of_model else Evidence.KEY_REFUSED
    if status == 429:
        if any(headers.get(left) == NONE_LEFT for left, _ in RATES):
            return Evidence.RATE_SPENT
        # A 429 without rate numbers means a request that is too large, or a caller whose requests
        # failed too often. With a time in Retry-After, the model is overloaded for everybody.
        is_overload = headers.get("Retry-After", "").isdecimal()
        return Evidence.NONE if is_overload else Evidence.CALLER_REFUSED
    if status == 503:
        return Evidence.NONE
    return Evidence.REQUEST_REFUSED if 400 <= status < 500 else Evidence.FAILED


def _code(decoded: Mapping[str, Any]) -> Any:
    error = decoded.get("error")
    return decoded.get("code") or (error.get("code") if isinstance(error, dict) else None)


def spent_rate_reset_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds until a used-up rate limit resets, by a successful response's headers.

    None while no limit is used up. Venice states the time in milliseconds since 1970.
    """
    last_ms = None
    for left, reset in RATES:
        if headers.get(left) == NONE_LEFT:
            at_ms = _parse_whole_header(headers.get(reset))
            if at_ms is not None:
                last_ms = max(at_ms, last_ms or 0)
    return None if last_ms is None else max(0.0, last_ms / 1000 - time.time())


def _venice_error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    if status in KEY_STATUSES:
        # The fault lies with the operator's key, balance or address. Venice's text is not logged,
        # because it may quote the request.
        log.error("venice refused our key", upstream_status=status)
        return UpstreamExhausted(
            "The gateway's Venice account cannot serve this call now.",
            retry_after_s=EXHAUSTED_RETRY_S,
        )
    if status == 429:
        return UpstreamBusy(
            "Venice is busy. Retry after the time in Retry-After.",
            retry_after_s=_retry_after_s(headers),
        )
    if status == 503:
        return UpstreamBusy(
            "The model is currently unavailable at Venice. Retry later.",
            retry_after_s=_retry_after_s(headers),
        )
    if status == 504:
        return UpstreamTimeout("Venice timed out. Set stream=true for long responses.")
    if 400 <= status < 500:
        return _rejection(status, body)
    return UpstreamError(f"Venice failed with status {status}.")


def _rejection(status: int, body: bytes) -> UpstreamRejected:
    """Translate a refusal of the request itself."""
    text = message_of(body) or "Venice rejected the request."
    decoded = _decode_json(body)
    is_too_long = isinstance(decoded, dict) and _code(decoded) == TOO_LONG
    if not is_too_long and not TOO_LONG_TEXT.search(text):
        return UpstreamRejected(text, status=status)
    error = decoded.get("error") if isinstance(decoded, dict) else None
    param = error.get("param") if isinstance(error, dict) else None
    is_field = isinstance(param, str) and FIELD.fullmatch(param)
    return UpstreamRejected(text, status=status, code=TOO_LONG, param=param if is_field else None)


def ray_of(headers: Mapping[str, str]) -> str | None:
    """Return the edge's request id, by which Venice's support finds the request.

    Other text is not returned, because the result is logged and the text may be anything.
    """
    stated = headers.get("cf-ray", "")
    return stated if RAY_ID.fullmatch(stated) else None


def _retry_after_s(headers: Mapping[str, str]) -> int:
    stated_s = _parse_whole_header(headers.get("Retry-After"))
    return BUSY_RETRY_S if stated_s is None else min(stated_s, 3600)


def _parse_whole_header(header: str | None) -> int | None:
    """Parse a header as a whole number, or return None."""
    with contextlib.suppress(ValueError):
        return parse_whole(header or "")
    return None


def split_at_error(events: bytes) -> tuple[bytes, UpstreamError | None]:
    """Split whole server-sent events before the first error event, and return that error.

    Venice reports failures after the status line within the stream: ``data: {"error": {"message",
    "type", "code", "retry_after"}}``.
    """
    if ERROR_MEMBER not in events:
        return events, None
    start = 0
    for event in sse.split(events):
        if ERROR_MEMBER in event:
            for text in sse.texts_of(event):
                if (error := _in_band_error(text)) is not None:
                    return events[:start], error
        start += len(event)
    return events, None


def _in_band_error(data: bytes) -> UpstreamError | None:
    decoded = _decode_json(data)
    error = decoded.get("error") if isinstance(decoded, dict) else None
    if not isinstance(error, dict | str) or not error:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    if code == "model_overloaded":
        named = error.get("retry_after") if isinstance(error, dict) else None
        retry_after_s = named if isinstance(named, int) and 0 <= named <= 3600 else BUSY_RETRY_S
        return UpstreamBusy("The model is overloaded at Venice.", retry_after_s=retry_after_s)
    if code in REJECTIONS:
        return _rejection(REJECTIONS[code], data)
    known = isinstance(code, str) and CODE.fullmatch(code)
    log.warning("venice failed within a stream", upstream_code=code if known else None)
    return UpstreamError("Venice failed while it was generating the response.")


def failed_response(body: bytes) -> UpstreamError | None:
    """Return the error of a response that failed, or of the event with which it failed, with the
    reason that it states; None for any other body."""
    decoded = _decode_json(body)
    if not isinstance(decoded, dict):
        return None
    response = decoded.get("response")
    if decoded.get("type") == "response.failed" and isinstance(response, dict):
        stated = response.get("error")
    elif decoded.get("type") == "error":
        stated = decoded.get("error") or decoded
    elif decoded.get("status") == "failed":
        stated = decoded.get("error")
    else:
        return None
    data = msgspec.json.encode({"error": stated})
    error = _in_band_error(data)
    reason = message_of(data)
    if reason and (error is None or type(error) is UpstreamError):
        return UpstreamError(f"Venice failed while it was generating the response: {reason}")
    return error or UpstreamError("Venice failed while it was generating the response.")


def is_refunded(body: bytes) -> bool:
    """Return whether Venice's response about a job reports a refund."""
    return _stated_refund(body) is True


def _stated_refund(body: bytes) -> bool | None:
    """Return whether Venice refunded the charge; None when it states neither."""
    decoded = _decode_json(body)
    error = decoded.get("error") if isinstance(decoded, dict) else None
    stated = [part.get(REFUND_MEMBER) for part in (decoded, error) if isinstance(part, dict)]
    return next((is_given for is_given in stated if isinstance(is_given, bool)), None)


def message_of(body: bytes) -> str:
    """Extract Venice's human-readable message from any format, with anything like a key removed."""
    decoded = _decode_json(body)
    text = _text(decoded.get("error")) if isinstance(decoded, dict) else ""
    if text and isinstance(decoded.get("issues"), list):
        text = "; ".join([text, *filter(None, map(_format_issue, decoded["issues"][:5]))])
    return logs.redact(VENICE_KEY.sub(logs.REDACTED, text))[:MESSAGE_CHARACTERS]


def _text(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else ""


def _format_issue(issue: Any) -> str:
    if not isinstance(issue, dict) or not isinstance(issue.get("message"), str):
        return ""
    path = issue.get("path")
    where = ".".join(map(str, path)) if isinstance(path, list) else ""
    return f"{where}: {issue['message']}" if where else str(issue["message"])
