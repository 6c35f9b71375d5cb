"""Records the requests that Rialto refuses, without the caller's words.

Messages of errors are written for callers, and may quote what they sent. So what stands in quotes
is left out of the record, and so is each name of a field that Rialto does not know.
"""

import functools
import re
from datetime import UTC, datetime
from typing import Final

import msgspec
import structlog

from service.accounts import VISITOR, Caller
from service.api.auth import address_of, shown_key
from service.api.request_ids import is_key
from service.api.requests import Request
from service.api.state import CALLERS, RECORDER
from service.crypto import API_KEY_FORM, API_KEY_PREFIX_LENGTH
from service.derived import Refusal
from service.errors import ClientError, ServiceError, Unavailable
from service.gateway import KNOWN_MEMBERS
from service.telemetry import logs

log = structlog.get_logger()

REFUSED: Final = (ClientError, Unavailable)
"""The errors that are Rialto's own refusals, and neither failures of Venice nor of Rialto."""
HEADER_NAMES: Final = frozenset(
    {
        "Authorization",
        "Content-Encoding",
        "Content-Type",
        "x-rialto-tags",
        "x-venice-responses-mode",
    }
)
"""The headers that errors name."""
LEFT_OUT: Final = "…"
MAX_MESSAGE_LENGTH: Final = 500
MAX_PARAM_LENGTH: Final = 200
QUOTED: Final = re.compile(r"(?<!\w)['\"`](?:.*['\"`]|.*)", re.DOTALL)
"""From the first quotation mark, which is no apostrophe, to the last one or the end."""
WRONG_TYPE: Final = re.compile(r"(?:[^'\"`]*: )?Expected '[\w |]+', got '\w+'\.")
"""A message that quotes only the names of types."""
NAME: Final = re.compile(r"[^.:\[\]]+")
INDEX: Final = re.compile(r"\d{1,4}")
MODEL_FORM: Final = re.compile(r"[A-Za-z0-9]{1,24}(?:[._/@-]{1,2}[A-Za-z0-9]{1,24}){0,12}")
"""The form of the names of models: short words and numbers."""

MIN_PART_OF_KEY: Final = 8


def record_refusal(
    request: Request, error: ServiceError, method: str, route: str, *, is_http: bool = True
) -> None:
    """Record the refusal, if the error is one. ``method`` and ``route`` are names of ours. What is
    not ``is_http`` has no headers that state an address."""
    if not isinstance(error, REFUSED):
        return
    try:
        refusal = _refusal(request, error, method, route)
        address = address_of(request) if is_http else None
        request.app[RECORDER].add_refusal(refusal, str(address or request.remote or ""))
    except Exception:
        # The answer must not fail for want of a record.
        log.exception("refusal not recorded", code=error.code)


def _refusal(request: Request, error: ServiceError, method: str, route: str) -> Refusal:
    caller, key_prefix = _owner(request)
    refusal = Refusal(
        refused_at=datetime.now(UTC),
        request_id=request.request_id,
        method=method,
        route=route,
        status=error.status,
        code=error.code,
        message=clean_message(error.message, error.param),
        param=None if error.param is None else clean_param(error.param),
        organization_id=None if caller is None else caller.organization_id,
        api_key_id=None if caller is None else caller.api_key_id,
        key_prefix=key_prefix,
        model=None if error.model is None else _clean_model(error.model, request),
        limit_state=error.limit,
        retry_after_s=error.advice.wait_s,
    )
    if request.relay is not None:
        route_of_call = request.relay.open_call.route
        call = route_of_call.call
        refusal.endpoint, refusal.is_stream = call.endpoint.path, call.is_stream
        refusal.model = call.model_name
        if call.requested_model is not None:
            refusal.requested_model = _clean_model(call.requested_model, request)
        if call.end_user:
            refusal.end_user = route_of_call.caller.end_user_digest(call.end_user).hex()
    return refusal


def _owner(request: Request) -> tuple[Caller | None, str | None]:
    """Whose key the request shows, in force or not, and the visible beginning of the key."""
    if request.caller is not VISITOR:
        return request.caller, request.caller.key_prefix
    key = shown_key(request)
    if key is None or not API_KEY_FORM.fullmatch(key):
        return None, None
    return request.app[CALLERS].last_known(key), key[:API_KEY_PREFIX_LENGTH]


def clean_message(message: str, param: str | None) -> str:
    """Return the message without the caller's words."""
    if param:
        message = message.replace(param, clean_param(param))
    if not WRONG_TYPE.fullmatch(message):
        message = QUOTED.sub(LEFT_OUT, message)
    return _storable(logs.redact(message))[:MAX_MESSAGE_LENGTH]


def clean_param(param: str) -> str:
    """Return the path of a field, with names that Rialto does not know left out."""
    names = known_names()

    def known(match: re.Match[str]) -> str:
        name = match[0]
        return name if name in names or INDEX.fullmatch(name) else LEFT_OUT

    return _storable(NAME.sub(known, param))[:MAX_PARAM_LENGTH]


def is_ours(module: str) -> bool:
    """Whether it is a module of the service, and not of the sandbox, which may not be loaded."""
    return module.startswith("service.") and not module.startswith("service.sandbox")


@functools.cache
def known_names() -> frozenset[str]:
    """Return the names of headers, of the members of bodies that have a meaning here, and of the
    fields that the service's types declare."""
    names = {*HEADER_NAMES, *KNOWN_MEMBERS}
    kinds = list(msgspec.Struct.__subclasses__())
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if is_ours(kind.__module__):
            names.update(kind.__struct_encode_fields__)
    return frozenset(names)


def _clean_model(name: str, request: Request) -> str | None:
    """The model's name without its suffix; None if it may be something else."""
    plain = name.partition(":")[0]
    if not MODEL_FORM.fullmatch(plain):
        return None
    # A shorter name may stand in a key by chance.
    return None if len(plain) >= MIN_PART_OF_KEY and is_key(plain, request) else plain


def _storable(text: str) -> str:
    """The text as PostgreSQL can store it: without NUL and lone surrogates."""
    return text.replace("\0", LEFT_OUT).encode(errors="replace").decode()
