"""Cooldowns: which calls an upstream key takes no more for a while, and on whose evidence.

A failure is evidence about the caller that met it before it is evidence about Venice: a prompt can
make one model fail every time. So a cooldown binds no more callers than have seen the failure. What
one API key sees cools down the calls of that key. What several keys of an organization see cools
down the calls of the organization. What several organizations see cools down everybody's calls.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import UUID

from service.errors import Evidence

FAILURES_TO_OPEN: Final = 5
MAX_COUNTED_OF_A_SOURCE: Final = 3
"""Fewer than open a shared cooldown, so one source alone opens none, whatever it sends."""
FIRST_COOLDOWN_S: Final = 5.0
MAX_COOLDOWN_S: Final = 60.0
TRIAL_S: Final = 5.0
"""How long a single call has to show that a model has recovered, before its source may send
another."""
EVIDENCE_S: Final = 300.0
"""Failures further apart than this are not one outage."""
MAX_COOLDOWNS: Final = 10_000
MAX_DOUBLINGS: Final = 10
REFUSALS: Final = (Evidence.KEY_REFUSED, Evidence.CALLER_REFUSED, Evidence.MODEL_FORBIDDEN)
"""After one of these its caller waits: Venice locks out who goes on, and a key that may not use the
model for one call is not likely to for the next."""


class Source(NamedTuple):
    """Who sends a call. Without ``api_key_id`` it is the service itself, for the organization."""

    organization_id: UUID
    api_key_id: UUID | None


class _Scope(NamedTuple):
    """The calls that a cooldown binds: those of one upstream key and model, and of one API key
    (``caller_id``), of one organization (``caller_id``), or of everybody (None)."""

    key_id: UUID
    model: str
    caller_id: UUID | None


@dataclass(slots=True)
class Cooldown:
    """Why an upstream key takes no calls of a scope, and until when; or what is counted so far."""

    until: float = 0.0
    reason: str = ""
    is_named: bool = False
    """Whether Venice named the time. Then all calls may follow, without a trial."""
    openings: int = 0
    """In a row, without an answered call between them."""
    failures: Counter[UUID | None] = field(default_factory=Counter)
    """By source: the API keys of an organization, or the organizations of the deployment."""
    failed_at: float = 0.0
    trials: dict[Source, float] = field(default_factory=dict)
    """Until when each caller waits for the outcome of its trial."""

    def ready_at(self, source: Source) -> float:
        return max(self.until, self.trials.get(source, 0.0))

    def is_open(self) -> bool:
        return self.until > time.monotonic()


class Cooldowns:
    """The cooldowns of one process."""

    def __init__(self) -> None:
        self._cooldowns: OrderedDict[_Scope, Cooldown] = OrderedDict()
        """Least recently failed first."""

    def ready_at(self, key_id: UUID, model: str, source: Source) -> float:
        """When the key takes a call of the source; in the past if it does now."""
        if not self._cooldowns:
            return 0.0
        found = (
            cooldown.ready_at(source)
            for scope, _ in _scopes(key_id, model, source)
            if (cooldown := self._cooldowns.get(scope)) is not None
        )
        return max(found, default=0.0)

    def note_chosen(self, key_id: UUID, model: str, source: Source) -> None:
        """A call of the source goes to the key: after a cooldown it is the source's trial."""
        if not self._cooldowns:
            return
        for scope, _ in _scopes(key_id, model, source):
            cooldown = self._cooldowns.get(scope)
            if cooldown is not None and cooldown.openings:
                cooldown.trials[source] = time.monotonic() + TRIAL_S

    def note_answered(self, key_id: UUID, model: str, source: Source) -> None:
        """The call was answered: key and model are well. A time that Venice named still stands, as
        the answer may have been under way before."""
        if not self._cooldowns:
            return
        for scope, _ in _scopes(key_id, model, source):
            cooldown = self._cooldowns.get(scope)
            if cooldown is not None and not (cooldown.is_named and cooldown.is_open()):
                del self._cooldowns[scope]

    def name(self, key_id: UUID, model: str, seconds: float, reason: str) -> bool:
        """Venice itself named a time for the key and the model, which binds everybody. Returns
        whether that is news."""
        cooldown = self._at(_Scope(key_id, model, None))
        is_news = not (cooldown.is_open() and cooldown.reason == reason)
        cooldown.until, cooldown.reason = time.monotonic() + seconds, reason
        cooldown.is_named = True
        cooldown.openings = 0
        return is_news

    def count(
        self, key_id: UUID, model: str, source: Source, reason: str, evidence: Evidence
    ) -> float | None:
        """A call of the source failed. Returns for how many seconds a cooldown opened that binds
        everybody, if one did."""
        opened_s = None
        for scope, below in _scopes(key_id, model, source):
            if below is None and evidence is Evidence.EDGE_FAILED:
                # One caller's evidence about what stands before Venice is none.
                continue
            cooldown = self._at(scope)
            now = time.monotonic()
            cooldown.trials.pop(source, None)
            if cooldown.until > now:
                # The call was under way when the cooldown began.
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
        """Those in force: upstream key, model, the API key or organization that is bound (None for
        everybody), and the cooldown."""
        for scope, cooldown in self._cooldowns.items():
            if cooldown.is_open():
                yield (*scope, cooldown)

    def _at(self, scope: _Scope) -> Cooldown:
        cooldown = self._cooldowns.get(scope)
        if cooldown is None:
            cooldown = self._cooldowns[scope] = Cooldown()
            if len(self._cooldowns) > MAX_COOLDOWNS:
                self._cooldowns.popitem(last=False)
        self._cooldowns.move_to_end(scope)
        return cooldown


def _scopes(key_id: UUID, model: str, source: Source) -> list[tuple[_Scope, UUID | None]]:
    """The scopes that a call of the source is in, each with what distinguishes its sources."""
    organization_id, api_key_id = source
    scopes: list[tuple[_Scope, UUID | None]] = [
        (_Scope(key_id, model, None), organization_id),
        (_Scope(key_id, model, organization_id), api_key_id),
    ]
    if api_key_id is not None:
        scopes.append((_Scope(key_id, model, api_key_id), None))
    return scopes


def _is_enough(failures: Counter[UUID | None], *, is_shared: bool, is_quick: bool) -> bool:
    """Whether the failures open a cooldown: several in a row, or one; of several sources where
    those share it. After a cooldown, and for refusals, one of each source is enough."""
    if not is_shared:
        return failures.total() >= (1 if is_quick else FAILURES_TO_OPEN)
    most_of_one, needed = (1, 2) if is_quick else (MAX_COUNTED_OF_A_SOURCE, FAILURES_TO_OPEN)
    return sum(min(count, most_of_one) for count in failures.values()) >= needed
