"""The rows of the schema ``derived``, as they wait to be written."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from service.ids import uuid7


class Refusal(msgspec.Struct, eq=False, kw_only=True):
    """A request that Rialto refused itself.

    No text has any part of the request but a model's name: ``message`` and ``param`` are cleared of
    the caller's words. ``key_prefix`` is the visible beginning of the key that was shown.
    ``end_user`` is the hex digest of a name. ``limit_state`` is the limit that refused, with the
    numbers that the caller got. ``repeats`` counts refusals of the same source and code that have
    no row of their own.
    """

    refused_at: datetime
    request_id: str
    method: str
    route: str
    status: int
    code: str
    message: str
    param: str | None = None
    organization_id: UUID | None = None
    api_key_id: UUID | None = None
    key_prefix: str | None = None
    end_user: str | None = None
    endpoint: str | None = None
    model: str | None = None
    requested_model: str | None = None
    is_stream: bool | None = None
    limit_state: Mapping[str, Any] | None = None
    retry_after_s: int | None = None
    repeats: int = 0
    id: UUID = msgspec.field(default_factory=uuid7)


class Attempt(msgspec.Struct, eq=False, kw_only=True):
    """One attempt of a call at Venice.

    ``entry_id`` is the id of the call's hold and ledger entry. ``status`` is Venice's own, if there
    was one. ``code`` is ``ok``, or the reason for which the attempt failed.
    """

    organization_id: UUID
    entry_id: UUID
    number: int
    started_at: datetime
    duration_ms: int
    model: str
    upstream_key_id: UUID | None
    status: int | None
    code: str
    id: UUID = msgspec.field(default_factory=uuid7)
