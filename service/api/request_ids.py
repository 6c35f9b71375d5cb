"""The id of a request: the caller's own where it can be nothing but an id, else one of ours.

The id is kept in the ledger and in the log, where no key and no prompt may be. So a caller's id has
the form of an id that a program made: short words, numbers, hexadecimal digits, a ULID.
"""

import re
from typing import Final

from service import crypto
from service.api.requests import Request
from service.api.state import SETTINGS
from service.telemetry import logs

HEADER: Final = "X-Request-ID"
MAX_LENGTH: Final = 64
FORM: Final = re.compile(r"[A-Za-z0-9._:-]+")
PART: Final = re.compile(r"[A-Za-z0-9]{1,16}|[0-9a-fA-F]{17,32}|[0-9A-HJKMNP-TV-Z]{26}")
"""What stands between the signs. Keys are longer, or have letters of both cases at any length."""
KEY_HEADERS: Final = ("Authorization", "x-api-key", "api-key")


def stated_id(request: Request) -> str | None:
    """The caller's own id; None where it can be something else."""
    stated = request.headers.get(HEADER, "")
    return stated if _is_id(stated) and not is_key(stated, request) else None


def _is_id(text: str) -> bool:
    if len(text) > MAX_LENGTH or not FORM.fullmatch(text):
        return False
    return all(PART.fullmatch(part) for part in re.split("[._:-]", text) if part)


def is_key(text: str, request: Request) -> bool:
    """Whether it looks like a key, is a secret of the settings, or is part of the key of this
    request."""
    settings = request.app[SETTINGS]
    ours = (settings.operator_key, settings.venice_api_key or "", *settings.encryption_keys)
    if logs.redact(text) != text or any(crypto.equal(text, secret) for secret in ours):
        return True
    sent = (value for name in KEY_HEADERS for value in request.headers.getall(name, ()))
    return any(text in value for value in sent)
