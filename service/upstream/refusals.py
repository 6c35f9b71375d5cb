"""What Venice says when it refuses, in our words.

Venice has no single error shape: ``error`` is a text or an object, ``details`` an object or a text,
``code`` often absent. A refusal of the caller's request keeps Venice's text; one of the operator's
key, balance or rate is the operator's business, so the caller learns only that it may come back.

What is not Venice's own JSON comes from something before it, which judges requests by their text
and knows neither keys nor models. Such an answer is about the request that got it.
"""

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
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
RATES: Final = (
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
)
ERROR_MEMBER: Final = b'"error"'
EDGE_TIMEOUTS: Final = (504, 522, 524)
REFUNDED: Final = "credits_refunded"
REJECTIONS: Final = {"content_blocked_by_provider": 422, "e2ee_attestation_stale": 400}
"""Codes within a stream that are about the request, and the statuses that go with them."""
JSON_TYPE: Final = re.compile(r"application/(?:[\w.-]+\+)?json\b", re.ASCII | re.IGNORECASE)
FORBIDDEN_MODEL_CODES: Final = ("MODEL_PRIVACY_RESTRICTED", "PRO_ONLY_MODEL")
KEY_STATUSES: Final = (401, 402, 403)
"""With which Venice refuses a key, its balance, its address, or what one call asks of them."""
CODE: Final = re.compile("[a-z]{1,20}(?:_[a-z]{1,20}){0,4}")
"""Codes that are logged. What has another form may be anything."""
RAY: Final = re.compile("[0-9a-f]{16}(?:-[A-Z]{3})?")
"""How the edge names a request."""
VENICE_KEY: Final = re.compile(r"VENICE_[A-Z]+_KEY_\S+|Bearer\s+\S+")


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """The error for an answer of Venice that is not 2xx, or of something before Venice."""
    decoded = _venices_own(headers, body)
    error = _of_edge(status, headers) if decoded is None else _error(status, headers, body)
    error.upstream_status = status
    error.is_refunded = is_refunded(body)
    error.is_charge_kept = _refund_of(body) is False
    if _whole(headers.get("Retry-After")) is not None:
        error.named_retry_after_s = _retry_after_s(headers)
    if decoded is not None:
        error.evidence = _evidence(status, headers, decoded)
    if error.evidence is Evidence.RATE_SPENT:
        reset_s = _reset_s(headers, RATES)
        error.rate_reset_s = BUSY_RETRY_S if reset_s is None else reset_s
    return error


def _venices_own(headers: Mapping[str, str], body: bytes) -> dict[str, Any] | None:
    """The body of a refusal that Venice itself wrote: JSON with an error or a code."""
    if not JSON_TYPE.match(headers.get("Content-Type", "").strip()):
        return None
    decoded = _decoded(body)
    if isinstance(decoded, dict) and (decoded.get("error") or isinstance(decoded.get("code"), str)):
        return decoded
    return None


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _of_edge(status: int, headers: Mapping[str, str]) -> UpstreamError:
    """The error for an answer that is not Venice's own."""
    log.warning(
        "answer is not venice's own",
        upstream_status=status,
        is_page=headers.get("Content-Type", "").strip().lower().startswith("text/html"),
    )
    error: UpstreamError
    if status in (429, 503):
        retry_after_s = _retry_after_s(headers)
        error = UpstreamBusy("The network before Venice is busy.", retry_after_s=retry_after_s)
    elif status in EDGE_TIMEOUTS:
        error = UpstreamTimeout("Venice did not answer the network before it in time.")
    elif 400 <= status < 500:
        # 401 and 407 would mean to the caller that their own key is at fault, 402 that it must pay.
        kept = None if status in (401, 402, 407) else status
        error = UpstreamRejected(
            f"The network before Venice refused this request with status {status}. Other requests"
            " are not affected.",
            status=kept,
        )
    else:
        error = UpstreamError(f"The network before Venice failed with status {status}.")
    error.evidence = Evidence.EDGE_FAILED if status >= 500 else Evidence.NONE
    return error


def _evidence(status: int, headers: Mapping[str, str], decoded: Mapping[str, Any]) -> Evidence:
    """What Venice's own refusal proves about the key and the model."""
    if status in KEY_STATUSES:
        is_of_model = _code(decoded) in FORBIDDEN_MODEL_CODES
        return Evidence.MODEL_FORBIDDEN if is_of_model else Evidence.KEY_REFUSED
    if status == 429:
        if any(headers.get(left) == "0" for left, _ in RATES):
            return Evidence.RATE_SPENT
        # Without numbers: too large a request, or a caller whose requests failed too often. With a
        # time that Venice names the model is overloaded, whoever asks.
        is_overload = headers.get("Retry-After", "").isdecimal()
        return Evidence.NONE if is_overload else Evidence.CALLER_REFUSED
    if status == 503:
        return Evidence.NONE
    return Evidence.REQUEST_REFUSED if 400 <= status < 500 else Evidence.FAILED


def _code(decoded: Mapping[str, Any]) -> Any:
    error = decoded.get("error")
    return decoded.get("code") or (error.get("code") if isinstance(error, dict) else None)


def spent_rate_reset_s(headers: Mapping[str, str]) -> float | None:
    """When a rate that is used up comes back, by the headers of an answer that succeeded; None
    while something of each is left."""
    return _reset_s(headers, RATES)


def _reset_s(headers: Mapping[str, str], rates: Sequence[tuple[str, str]]) -> float | None:
    """Venice states the time in milliseconds since 1970."""
    spent = [
        at_ms
        for left, reset in rates
        if headers.get(left) == "0" and (at_ms := _whole(headers.get(reset))) is not None
    ]
    return max(0.0, max(spent) / 1000 - time.time()) if spent else None


def _error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    if status in KEY_STATUSES:
        # Ours, not the caller's: the key, its balance, its address. Venice's text is not logged,
        # since they may quote the request.
        log.error("venice refuses our key", upstream_status=status)
        return UpstreamExhausted(
            "The gateway's Venice account cannot serve this call now.",
            retry_after_s=EXHAUSTED_RETRY_S,
        )
    if status == 429:
        return UpstreamBusy(
            "Venice is busy. Try again after the time in Retry-After.",
            retry_after_s=_retry_after_s(headers),
        )
    if status == 503:
        return UpstreamBusy(
            "The model is not available at Venice now.", retry_after_s=_retry_after_s(headers)
        )
    if status == 504:
        return UpstreamTimeout("Venice ran out of time; long answers need stream=true.")
    if 400 <= status < 500:
        return UpstreamRejected(message_of(body) or "Venice rejected the request.", status=status)
    return UpstreamError(f"Venice failed with status {status}.")


def ray_of(headers: Mapping[str, str]) -> str | None:
    """The edge's id of the request, by which Venice's support finds it. Any other text is left out
    of the log, since it may be anything."""
    stated = headers.get("cf-ray", "")
    return stated if RAY.fullmatch(stated) else None


def _retry_after_s(headers: Mapping[str, str]) -> int:
    stated_s = _whole(headers.get("Retry-After"))
    return BUSY_RETRY_S if stated_s is None else min(stated_s, 3600)


def _whole(header: str | None) -> int | None:
    """The whole number that a header has; None where it has something else."""
    with contextlib.suppress(ValueError):
        return parse_whole(header or "")
    return None


def split_at_error(events: bytes) -> tuple[bytes, UpstreamError | None]:
    """Whole server-sent events up to the first that is an error of Venice, and that error.

    Venice says what fails after its status in the stream: ``data: {"error": {"message", "type",
    "code", "retry_after"}}``.
    """
    if ERROR_MEMBER not in events:
        return events, None
    start = 0
    for event in sse.split(events):
        if ERROR_MEMBER in event:
            for text in sse.texts_of(event):
                if (error := _in_band(text)) is not None:
                    return events[:start], error
        start += len(event)
    return events, None


def _in_band(data: bytes) -> UpstreamError | None:
    decoded = _decoded(data)
    error = decoded.get("error") if isinstance(decoded, dict) else None
    if not isinstance(error, dict | str) or not error:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    if code == "model_overloaded":
        named = error.get("retry_after") if isinstance(error, dict) else None
        retry_after_s = named if isinstance(named, int) and 0 <= named <= 3600 else BUSY_RETRY_S
        return UpstreamBusy("The model is overloaded at Venice.", retry_after_s=retry_after_s)
    if code in REJECTIONS:
        text = message_of(data)
        return UpstreamRejected(text or "Venice rejected the request.", status=REJECTIONS[code])
    known = isinstance(code, str) and CODE.fullmatch(code)
    log.warning("venice failed within a stream", upstream_code=code if known else None)
    return UpstreamError("Venice failed while it answered.")


def is_refunded(body: bytes) -> bool:
    """Whether Venice's word on a job says that it gave back what the job had cost."""
    return _refund_of(body) is True


def _refund_of(body: bytes) -> bool | None:
    """Whether Venice gave back what it had charged; None where it states neither."""
    decoded = _decoded(body)
    error = decoded.get("error") if isinstance(decoded, dict) else None
    stated = [part.get(REFUNDED) for part in (decoded, error) if isinstance(part, dict)]
    return next((is_given for is_given in stated if isinstance(is_given, bool)), None)


def message_of(body: bytes) -> str:
    """Venice's text for people, whatever the shape, without anything that looks like a key."""
    decoded = _decoded(body)
    text = _text(decoded.get("error")) if isinstance(decoded, dict) else ""
    if text and isinstance(decoded.get("issues"), list):
        text = "; ".join([text, *filter(None, map(_issue, decoded["issues"][:5]))])
    return logs.redact(VENICE_KEY.sub(logs.REDACTED, text))[:MESSAGE_CHARACTERS]


def _text(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else ""


def _issue(issue: Any) -> str:
    if not isinstance(issue, dict) or not isinstance(issue.get("message"), str):
        return ""
    path = issue.get("path")
    where = ".".join(map(str, path)) if isinstance(path, list) else ""
    return f"{where}: {issue['message']}" if where else str(issue["message"])
