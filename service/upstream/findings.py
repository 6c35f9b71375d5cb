"""The findings that a check of a Venice key can have."""

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
    """The condition of a key. ``UNREACHABLE`` and ``FAILED`` are not evidence about the key."""

    WELL = "well"
    INVALID = "invalid"
    """Venice does not know the key."""
    SPENT = "spent"
    """The key or its account has no balance left."""
    FORBIDDEN = "forbidden"
    """The key may not make calls, or not from this address."""
    UNREACHABLE = "unreachable"
    FAILED = "failed"
    """Venice returned an error that is not about the key."""

    @property
    def is_about_key(self) -> bool:
        """True if the finding is evidence about the key."""
        return self not in (Finding.UNREACHABLE, Finding.FAILED)


REFUSALS: Final = {401: Finding.INVALID, 402: Finding.SPENT, 403: Finding.FORBIDDEN}


def finding_of(error: ServiceError) -> Finding:
    """Map the error that Venice returned for a key check to a finding."""
    if isinstance(error, UpstreamUnreachable | UpstreamTimeout | UpstreamCut):
        return Finding.UNREACHABLE
    if isinstance(error, UpstreamError) and error.evidence is Evidence.KEY_REFUSED:
        return REFUSALS.get(error.upstream_status or 0, Finding.FAILED)
    return Finding.FAILED
