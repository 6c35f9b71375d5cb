"""Forms: their bodies, and what a page shows again when one of them is refused."""

import contextlib
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Final
from urllib.parse import parse_qsl

import msgspec

from service.api.queries import Moment, QueryValue
from service.api.requests import Request
from service.api.wire import read_body
from service.errors import ClientError, ServiceError

CONTENT_TYPE: Final = "application/x-www-form-urlencoded"
MAX_FORM_BYTES: Final = 64 * 1024
MAX_FIELDS: Final = 200
TOKEN_FIELD: Final = "csrf"  # noqa: S105 - the name of the field
"""The field that has the token of the session."""


class UtcMoment(QueryValue):
    """A time that a browser's field states without a zone, which is UTC; or any :class:`Moment`."""

    schema: ClassVar[dict[str, Any]] = {"type": "string", "examples": ["2026-11-01T08:00"]}

    def __init__(self, text: str) -> None:
        with contextlib.suppress(ValueError):
            at = datetime.fromisoformat(text)
            if at.tzinfo is None:
                self.at: datetime = at.replace(tzinfo=UTC)
                return
        self.at = Moment(text).at


class FormState(msgspec.Struct, frozen=True, kw_only=True):
    """What a form shows: nothing, or what was stated and why it was refused."""

    prefix: str
    """Begins the ids of its fields, since a page may have several forms."""
    fields: Mapping[str, str] = {}
    error: ServiceError | None = None

    def value(self, name: str, default: object = "") -> str:
        """What the field shows: what was stated, else its default."""
        if self.error is not None:
            return self.fields.get(name, "")
        return "" if default is None else str(default)

    def fault(self, name: str) -> str:
        """Why the field was refused; empty if it was not."""
        error = self.error
        return error.message if error is not None and error.param == name else ""

    def id(self, name: str) -> str:
        """The id of the field."""
        return f"{self.prefix}-{name}"


def form_state(action: str, fields: Mapping[str, str], error: ServiceError | None) -> FormState:
    """The state of the form that is sent to the URL ``action``."""
    prefix = "f" + hashlib.sha256(action.encode()).hexdigest()[:8]
    return FormState(prefix=prefix, fields=fields, error=error)


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form. Empty ones count as absent; of a name that is there twice the first
    counts.

    :raises ClientError, PayloadTooLarge, RequestTimeout: when it is no form that can be read.
    """
    if request.content_type != CONTENT_TYPE:
        raise ClientError(f"The body must be a form: {CONTENT_TYPE}.")
    content = await read_body(request, MAX_FORM_BYTES)
    try:
        pairs = parse_qsl(
            content.decode(), encoding="utf-8", errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError:
        raise ClientError(f"The form must be UTF-8 and have at most {MAX_FIELDS} fields.") from None
    return stated_fields(dict(reversed(pairs)))


def stated_fields(fields: Mapping[str, str]) -> dict[str, str]:
    """The fields that are not empty.

    :raises ClientError: when one has a NUL character, which the database does not take.
    """
    for name, text in fields.items():
        if "\0" in text:
            raise ClientError("A field must not have NUL characters.", param=name)
    return {name: text.strip() for name, text in fields.items() if text.strip()}
