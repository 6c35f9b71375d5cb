"""The operator's keys at Venice: which one takes a call, and which ones rest.

A key that is not valid, or has nothing left to spend, is out of service until a probe that costs
nothing finds it well again. Whether it is, Venice is asked: the refusal of one call may be about
that call. What else keeps a key from a model for a while stands in ``cooldowns``. An answer can say
that it was the last of its rate; then the key rests before it is refused.
"""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID

import msgspec
import structlog

from service.errors import (
    Evidence,
    ServiceError,
    UpstreamBusy,
    UpstreamError,
    UpstreamExhausted,
)
from service.upstream.cooldowns import Cooldowns, Source
from service.upstream.findings import Finding
from service.upstream.refusals import BUSY_RETRY_S, EXHAUSTED_RETRY_S, spent_rate_reset_s

log = structlog.get_logger()

ENVIRONMENT_KEY_ID: Final = UUID(int=1)
"""The id of the key of the settings, ``VENICE_API_KEY``."""
EVERY_MODEL: Final = ""
MOST_RATE_REST_S: Final = 60.0
PROBE_EVERY_S: Final = 1.0
MOST_PROBE_PAUSE_S: Final = 30.0
RATE_SPENT: Final = "rate used up"
LEAST_BALANCE_USD: Final = 0.1
"""Venice admits no account that has less."""


class UpstreamKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key at Venice; for one organization's calls, or else for those of all that have none."""

    id: UUID
    name: str
    secret: str
    organization_id: UUID | None = None

    def __repr__(self) -> str:
        return f"<UpstreamKey {self.name}>"


class KeyState(msgspec.Struct, rename="camel"):
    """The state of a key, as Venice states it. Whether it may make calls has no default: an answer
    without that is no evidence about the key."""

    access_permitted: bool
    balances: dict[str, float] = {}
    api_tier: dict[str, object] = {}

    @property
    def is_well(self) -> bool:
        """Whether the key may make calls, and has something to spend as far as Venice states; all
        currencies are worth a dollar."""
        return self.access_permitted and self.spendable_usd >= LEAST_BALANCE_USD

    @property
    def finding(self) -> Finding:
        """The finding's name."""
        if self.is_well:
            return Finding.WELL
        return Finding.SPENT if self.spendable_usd < LEAST_BALANCE_USD else Finding.FORBIDDEN

    @property
    def spendable_usd(self) -> float:
        """Infinite where Venice states no balance."""
        return sum(self.balances.values()) if self.balances else math.inf


class Found(NamedTuple):
    """What an examination of a key found, why, and when on the clock of ``time.monotonic``."""

    finding: Finding
    reason: str
    at: float


class Rest(msgspec.Struct, frozen=True, kw_only=True):
    """That a key takes no calls now: of one model, or of any where ``model`` is null; of one API
    key or organization (``caller_id``), or of anybody where that is null. Without ``seconds_left``
    it rests until a probe finds it well."""

    model: str | None
    reason: str
    seconds_left: float | None
    caller_id: UUID | None = None


Probe = Callable[[UpstreamKey], Awaitable[KeyState]]


class UpstreamKeys:
    """The keys of one process."""

    def __init__(self, keys: Sequence[UpstreamKey]) -> None:
        self._keys: Sequence[UpstreamKey] = ()
        self.has_changed = asyncio.Event()
        """Set when a key is new, or something else is found of one."""
        self._by_organization: dict[UUID | None, Sequence[UpstreamKey]] = {}
        """Under None those that serve every organization that has none of its own."""
        self.replace(keys)
        self._cooldowns = Cooldowns()
        self._out_of_service: dict[UUID, str] = {}
        """The reasons, by the id of a key that Venice takes no calls with."""
        self._balances_usd: dict[UUID, float] = {}
        self._probes: Counter[UUID] = Counter()
        """Since a call with the key was answered: each pause between them is longer."""
        self.in_flight: Counter[UUID] = Counter()
        self.findings: dict[UUID, Found] = {}
        """What was last found of each key, by its id."""

    def replace(self, keys: Sequence[UpstreamKey]) -> None:
        """Use these from now on; what is known of those that stay is kept."""
        if {key.id for key in keys} - {key.id for key in self._keys}:
            self.has_changed.set()
        self._keys = tuple(keys)
        owners = {key.organization_id for key in keys}
        self._by_organization = {
            owner: tuple(key for key in keys if key.organization_id == owner) for owner in owners
        }

    @property
    def all(self) -> Sequence[UpstreamKey]:
        """Every key in use."""
        return self._keys

    def find(self, key_id: UUID | None) -> UpstreamKey | None:
        """The key of this id, if it is in use."""
        return next((key for key in self._keys if key.id == key_id), None)

    def any(self) -> UpstreamKey:
        """A key for what costs nothing; one organization's own only where there is no other.

        :raises UpstreamExhausted: when there is none.
        """
        shared = [key for key in self._keys if key.organization_id is None] or self._keys
        for key in shared:
            if key.id not in self._out_of_service:
                return key
        if shared:
            return shared[0]
        raise UpstreamExhausted("The gateway has no Venice key.", retry_after_s=EXHAUSTED_RETRY_S)

    def choose(self, source: Source, model: str, tried: Collection[UUID] = ()) -> UpstreamKey:
        """The key that a call goes to: one of the organization's own if it has any, one that was
        not tried yet if there is any, of these one that has something to spend as far as is known,
        and of these the one with the fewest calls under way.

        :raises UpstreamExhausted, UpstreamBusy: when all of them rest, with the time until one is
            ready again.
        """
        ready = self.ready(source, model)
        if not ready:
            raise self._why_not(source, model)
        key = ready[0] if len(ready) == 1 else self._best(ready, tried)
        self._cooldowns.note_chosen(key.id, model, source)
        return key

    def _best(self, ready: Sequence[UpstreamKey], tried: Collection[UUID]) -> UpstreamKey:
        fresh = [key for key in ready if key.id not in tried] or ready
        funded = [key for key in fresh if self._is_funded(key)] or fresh
        return min(funded, key=lambda key: (self.in_flight[key.id], random.random()))  # noqa: S311

    def ready(self, source: Source, model: str) -> Sequence[UpstreamKey]:
        """The keys that can take a call of the source now."""
        now = time.monotonic()
        return [
            key
            for key in self._of(source.organization_id)
            if self._ready_at(key, model, source) <= now
        ]

    def _of(self, organization_id: UUID) -> Sequence[UpstreamKey]:
        shared = self._by_organization.get(None, ())
        return self._by_organization.get(organization_id, shared)

    def _is_funded(self, key: UpstreamKey) -> bool:
        return self._balances_usd.get(key.id, math.inf) >= LEAST_BALANCE_USD

    def note_state(self, key: UpstreamKey, state: KeyState) -> None:
        """Note what the key may spend, and whether it is well again."""
        if state.balances:
            self._balances_usd[key.id] = state.spendable_usd
        reason = "no balance" if state.access_permitted else "no access"
        self.note_finding(key, state.finding, reason)
        if state.is_well and self._out_of_service.pop(key.id, None) is not None:
            log.info("upstream key is well again", key=key.name)

    def note_finding(self, key: UpstreamKey, finding: Finding, reason: str) -> None:
        """Venice was asked about the key."""
        known = self.findings.get(key.id)
        self.findings[key.id] = Found(finding, reason, time.monotonic())
        if known is None or known.finding is not finding:
            self.has_changed.set()
            report = log.info if finding is Finding.WELL else log.warning
            variable = "VENICE_API_KEY" if key.id == ENVIRONMENT_KEY_ID else None
            report("upstream key checked", key=key.name, finding=finding.value, variable=variable)

    def unusable(self) -> dict[str, Finding]:
        """The names of keys that Venice itself refuses, and why."""
        found = ((key.name, self.findings.get(key.id)) for key in self._keys)
        return {
            name: known.finding
            for name, known in found
            if known and known.finding.is_of_the_key and known.finding is not Finding.WELL
        }

    def succeeded(
        self,
        key: UpstreamKey,
        model: str,
        source: Source,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """A call was answered, with these headers: the key is well, but rests for the model when
        they say that its rate is used up."""
        self._cooldowns.note_answered(key.id, model, source)
        if key.id not in self._out_of_service:
            self._probes.pop(key.id, None)
        if headers is not None and (reset_s := spent_rate_reset_s(headers)) is not None:
            self._name(key, model, min(reset_s, MOST_RATE_REST_S), RATE_SPENT)

    def failed(self, key: UpstreamKey, model: str, source: Source, error: ServiceError) -> None:
        """A call was not answered: the key rests for those callers whom that is evidence for."""
        if not isinstance(error, UpstreamError):
            return
        reason = f"status {error.upstream_status}" if error.upstream_status else error.code
        match error.evidence:
            case Evidence.REQUEST_REFUSED:
                self.succeeded(key, model, source)
            case Evidence.RATE_SPENT:
                rest_s = BUSY_RETRY_S if error.rate_reset_s is None else error.rate_reset_s
                self._name(key, model, min(rest_s, MOST_RATE_REST_S), RATE_SPENT)
            case Evidence.KEY_REFUSED | Evidence.CALLER_REFUSED | Evidence.MODEL_FORBIDDEN:
                if key.id not in self._out_of_service:
                    self._count(key, model, source, reason, error.evidence)
            case Evidence.FAILED | Evidence.EDGE_FAILED:
                self._count(key, model, source, error.code, error.evidence)
            case Evidence.NONE:
                pass

    def put_out_of_service(self, key: UpstreamKey, reason: str) -> None:
        """Venice itself stated, when asked about the key, that it takes no calls with it: nobody's
        calls go there until a probe finds it well."""
        if key.id not in self._out_of_service:
            log.warning("upstream key rests", key=key.name, model="all", reason=reason, rest_s=None)
        self._out_of_service[key.id] = reason

    def resting(self) -> dict[str, str]:
        """The names of keys that rest altogether, and why."""
        return {
            key.name: self._out_of_service[key.id]
            for key in self._keys
            if key.id in self._out_of_service
        }

    def rests(self) -> Mapping[UUID, Sequence[Rest]]:
        """The keys that rest now in this process, by id, for any or for some models."""
        found = {
            key_id: [Rest(model=None, reason=reason, seconds_left=None)]
            for key_id, reason in self._out_of_service.items()
        }
        now = time.monotonic()
        for key_id, model, caller_id, cooldown in self._cooldowns.open():
            rest = Rest(
                model=model,
                reason=cooldown.reason,
                seconds_left=round(cooldown.until - now, 1),
                caller_id=caller_id,
            )
            found.setdefault(key_id, []).append(rest)
        return found

    async def keep_probed(self, probe: Probe) -> None:
        """Ask of each key that rests altogether whether it is well again, for ever."""
        next_at: dict[UUID, float] = {}
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            now = time.monotonic()
            for key in self._keys:
                if key.id not in self._out_of_service or next_at.get(key.id, 0.0) > now:
                    continue
                self._probes[key.id] = min(10, self._probes[key.id] + 1)
                pause_s = min(MOST_PROBE_PAUSE_S, PROBE_EVERY_S * 2 ** self._probes[key.id])
                next_at[key.id] = now + pause_s
                try:
                    self.note_state(key, await probe(key))
                except ServiceError as error:
                    log.debug("upstream key probed", key=key.name, code=error.code)

    def _ready_at(self, key: UpstreamKey, model: str, source: Source) -> float:
        """When the key can take a call; in the past when it can now."""
        if key.id in self._out_of_service:
            return math.inf
        return self._cooldowns.ready_at(key.id, model, source)

    def _why_not(self, source: Source, model: str) -> UpstreamError:
        now = time.monotonic()
        keys = self._of(source.organization_id)
        ready_in_s = min(
            (self._ready_at(key, model, source) - now for key in keys), default=math.inf
        )
        if math.isinf(ready_in_s):
            return UpstreamExhausted(
                "The gateway's Venice account cannot serve this call now.",
                retry_after_s=EXHAUSTED_RETRY_S,
            )
        error = UpstreamBusy(
            "Venice cannot serve this model now.", retry_after_s=max(1, math.ceil(ready_in_s))
        )
        error.named_retry_after_s = error.retry_after_s
        return error

    def _name(self, key: UpstreamKey, model: str, seconds: float, reason: str) -> None:
        if self._cooldowns.name(key.id, model, seconds, reason):
            self._log_rest(key, model, seconds, reason)

    def _count(
        self, key: UpstreamKey, model: str, source: Source, reason: str, evidence: Evidence
    ) -> None:
        opened_s = self._cooldowns.count(key.id, model, source, reason, evidence)
        if opened_s is not None:
            self._log_rest(key, model, opened_s, reason)

    def _log_rest(self, key: UpstreamKey, model: str, seconds: float, reason: str) -> None:
        log.warning(
            "upstream key rests",
            key=key.name,
            model=model,
            reason=reason,
            rest_s=round(seconds, 1),
        )
