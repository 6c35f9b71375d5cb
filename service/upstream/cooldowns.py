"""Cooldowns: which calls an upstream key stops taking for a while, and on whose evidence.

A failure is evidence about the caller that met it before it is evidence about Venice: a prompt can
make one model fail every time. So a cooldown binds only the callers that saw the failure. A failure
that one API key sees cools down that key's calls. A failure that several keys of an organization
see cools down the organization's calls. A failure that several organizations see cools down
everybody's calls.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import UUID

from service.errors import Evidence

FAILURES_TO_OPEN: Final = 5
MAX_COUNTED_PER_SOURCE: Final = 3
"""Below the threshold of a shared cooldown, so one source alone can never open one."""
FIRST_COOLDOWN_S: Final = 5.0
MAX_COOLDOWN_S: Final = 60.0
TRIAL_S: Final = 5.0
"""How long a trial call has to show that a model has recovered before its source may send
another."""
EVIDENCE_S: Final = 300.0
"""Failures further apart than this are not counted as one outage."""
MAX_COOLDOWNS: Final = 10_000
MAX_DOUBLINGS: Final = 10
REFUSALS: Final = (Evidence.KEY_REFUSED, Evidence.CALLER_REFUSED, Evidence.MODEL_FORBIDDEN)
"""After one of these the caller waits. Venice locks out callers that continue, and a key that
may not use the model for one call will probably not for the next."""


class Source(NamedTuple):
    """The sender of a call. Without ``api_key_id`` the service itself sends it for the
    organization."""

    organization_id: UUID
    api_key_id: UUID | None


class _Scope(NamedTuple):
    """The calls that a cooldown binds: those of one upstream key and model.

    ``caller_id`` narrows them to one API key or one organization; None means everybody.
    """

    key_id: UUID
    model: str
    caller_id: UUID | None


@dataclass(slots=True)
class Cooldown:
    """A cooldown of one scope, or the failures counted so far towards one."""

    until: float = 0.0
    reason: str = ""
    is_named: bool = False
    """True if Venice named the time. All calls may then follow at once, without a trial."""
    openings: int = 0
    """Cooldowns in a row without a successful call between them."""
    failures: Counter[UUID | None] = field(default_factory=Counter)
    """Failures by source: the API keys of an organization, or the organizations of the
    deployment."""
    failed_at: float = 0.0
    trials: dict[Source, float] = field(default_factory=dict)
    """The time until which each source waits for the outcome of its trial call."""

    def ready_at(self, source: Source) -> float:
        return max(self.until, self.trials.get(source, 0.0))

    def is_open(self) -> bool:
        return self.until > time.monotonic()


class Cooldowns:
    """The cooldowns of one process."""

    def __init__(self) -> None:
        self.by_scope: OrderedDict[_Scope, Cooldown] = OrderedDict()
        """Ordered by the last failure, oldest first. As a rule there is none."""

    def ready_at(self, key_id: UUID, model: str, source: Source) -> float:
        """Return when the key takes calls of the source, on ``time.monotonic``. In the past if
        now."""
        found = (
            cooldown.ready_at(source)
            for scope, _ in _scopes(key_id, model, source)
            if (cooldown := self.by_scope.get(scope)) is not None
        )
        return max(found, default=0.0)

    def note_chosen(self, key_id: UUID, model: str, source: Source) -> None:
        """Record that a call of the source was sent. After a cooldown it is the source's trial."""
        for scope, _ in _scopes(key_id, model, source):
            cooldown = self.by_scope.get(scope)
            if cooldown is not None and cooldown.openings:
                cooldown.trials[source] = time.monotonic() + TRIAL_S

    def note_answered(self, key_id: UUID, model: str, source: Source) -> None:
        """Record a successful call, which ends the cooldowns of its scopes.

        A time that Venice named stays in force, because the response may have been in flight before
        it.
        """
        for scope, _ in _scopes(key_id, model, source):
            cooldown = self.by_scope.get(scope)
            if cooldown is not None and not (cooldown.is_named and cooldown.is_open()):
                del self.by_scope[scope]

    def name(self, key_id: UUID, model: str, seconds: float, reason: str) -> bool:
        """Apply a time that Venice named for the key and the model. It binds everybody.

        Returns True if the cooldown is new.
        """
        cooldown = self._at(_Scope(key_id, model, None))
        is_news = not (cooldown.is_open() and cooldown.reason == reason)
        cooldown.until, cooldown.reason = time.monotonic() + seconds, reason
        cooldown.is_named = True
        cooldown.openings = 0
        return is_news

    def count(
        self, key_id: UUID, model: str, source: Source, reason: str, evidence: Evidence
    ) -> float | None:
        """Count a failed call of the source.

        Returns the seconds of a cooldown that binds everybody, if one opened.
        """
        opened_s = None
        for scope, below in _scopes(key_id, model, source):
            if below is None and evidence is Evidence.EDGE_FAILED:
                # One caller's failures at the edge prove nothing about the caller.
                continue
            cooldown = self._at(scope)
            now = time.monotonic()
            cooldown.trials.pop(source, None)
            if cooldown.until > now:
                # The call was already in flight when the cooldown began.
                continue
            if now - cooldown.failed_at > EVIDENCE_S:
                cooldown.failures.clear()
            cooldown.failed_at = now
            cooldown.failures[below] += 1
            is_enough = _is_enough(
                cooldown.failures,
                is_shared=below is not None,
                is_quick=evidence in REFUSALS or cooldown.openings > 0,
            )
            if is_enough:
                seconds = min(MAX_COOLDOWN_S, FIRST_COOLDOWN_S * 2**cooldown.openings)
                cooldown.openings = min(cooldown.openings + 1, MAX_DOUBLINGS)
                cooldown.until, cooldown.reason, cooldown.is_named = now + seconds, reason, False
                cooldown.failures.clear()
                cooldown.trials.clear()
                if scope.caller_id is None:
                    opened_s = seconds
        return opened_s

    def open(self) -> Iterator[tuple[UUID, str, UUID | None, Cooldown]]:
        """Yield the open cooldowns: upstream key, model, caller and cooldown.

        The caller is the API key or organization that is bound, or None for everybody.
        """
        for scope, cooldown in self.by_scope.items():
            if cooldown.is_open():
                yield (*scope, cooldown)

    def _at(self, scope: _Scope) -> Cooldown:
        cooldown = self.by_scope.get(scope)
        if cooldown is None:
            cooldown = self.by_scope[scope] = Cooldown()
            if len(self.by_scope) > MAX_COOLDOWNS:
                self.by_scope.popitem(last=False)
        self.by_scope.move_to_end(scope)
        return cooldown


def _scopes(key_id: UUID, model: str, source: Source) -> list[tuple[_Scope, UUID | None]]:
    """Return the scopes of a call, each with the id that distinguishes its sources."""
    organization_id, api_key_id = source
    scopes: list[tuple[_Scope, UUID | None]] = [
        (_Scope(key_id, model, None), organization_id),
        (_Scope(key_id, model, organization_id), api_key_id),
    ]
    if api_key_id is not None:
        scopes.append((_Scope(key_id, model, api_key_id), None))
    return scopes


def _is_enough(failures: Counter[UUID | None], *, is_shared: bool, is_quick: bool) -> bool:
    """Return whether the failures open a cooldown.

    An unshared cooldown needs several failures in a row, a shared one failures of several sources.
    After a cooldown, and for refusals, one failure of each source is enough.
    """
    if not is_shared:
        return failures.total() >= (1 if is_quick else FAILURES_TO_OPEN)
    max_per_source, needed = (1, 2) if is_quick else (MAX_COUNTED_PER_SOURCE, FAILURES_TO_OPEN)
    return sum(min(count, max_per_source) for count in failures.values()) >= needed
