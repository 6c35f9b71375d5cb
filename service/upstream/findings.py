"""The possible findings when Venice is asked about a key."""

import enum
from typing import Final

from service.errors import (
    Evidence,
    ServiceError,
    UpstreamCut,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)


class Finding(enum.StrEnum):
    """The condition of a key. ``UNREACHABLE`` and ``FAILED`` are no evidence about it."""

    WELL = "well"
    INVALID = "invalid"
    """Venice does not know the key, or not any more."""
    SPENT = "spent"
    """The key, or its account, has nothing left to spend."""
    FORBIDDEN = "forbidden"
    """The key may make no calls, or not from here."""
    UNREACHABLE = "unreachable"
    FAILED = "failed"
    """Venice answered with an error that is not about the key."""

    @property
    def is_of_the_key(self) -> bool:
        """Whether the finding is evidence about the key."""
        return self not in (Finding.UNREACHABLE, Finding.FAILED)


REFUSALS: Final = {401: Finding.INVALID, 402: Finding.SPENT, 403: Finding.FORBIDDEN}


def finding_of(error: ServiceError) -> Finding:
    """The finding for the error that Venice answered a question about a key with."""
    if isinstance(error, UpstreamUnreachable | UpstreamTimeout | UpstreamCut):
        return Finding.UNREACHABLE
    if isinstance(error, UpstreamError) and error.evidence is Evidence.KEY_REFUSED:
        return REFUSALS.get(error.upstream_status or 0, Finding.FAILED)
    return Finding.FAILED
