"""The operator's Venice keys: which one takes a call, and which are cooling down.

A key that is invalid or has no balance is out of service until a free probe finds it usable again.
Venice is asked to confirm this, because the refusal of one call may be about that call. Shorter
exclusions for one model are in ``cooldowns``. A response can also report that it used up the rate
limit; the key then cools down before Venice refuses it.
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
from service.ids import uuid_of
from service.telemetry import logs
from service.upstream.cooldowns import Cooldowns, Source
from service.upstream.findings import Finding
from service.upstream.refusals import (
    BUSY_RETRY_S,
    EXHAUSTED_RETRY_S,
    NONE_LEFT,
    REQUESTS_LEFT,
    TOKENS_LEFT,
    spent_rate_reset_s,
)

log = structlog.get_logger()

ENVIRONMENT_KEY_ID: Final = uuid_of(1)
"""The id of the key from the settings, ``VENICE_API_KEY``."""
EVERY_MODEL: Final = ""
MAX_RATE_COOLDOWN_S: Final = 60.0
PROBE_EVERY_S: Final = 1.0
MAX_PROBE_PAUSE_S: Final = 30.0
RATE_SPENT: Final = "rate used up"
MIN_BALANCE_USD: Final = 0.1
"""Venice admits no account with a lower balance."""


class UpstreamKey(msgspec.Struct, frozen=True, kw_only=True):
    """A Venice key, for one organization's calls or for all organizations without a key of their
    own."""

    id: UUID
    name: str
    secret: str
    organization_id: UUID | None = None

    def __repr__(self) -> str:
        return f"<UpstreamKey {self.name}>"


class UpstreamKeyState(msgspec.Struct, rename="camel"):
    """The state of a key, as Venice reports it.

    ``access_permitted`` has no default, because a response without it is not evidence about the
    key.
    """

    access_permitted: bool
    balances: dict[str, float] = {}
    api_tier: dict[str, object] = {}

    @property
    def is_well(self) -> bool:
        """True if the key may make calls and Venice reports enough balance, or none.

        Every currency counts as dollars.
        """
        return self.access_permitted and self.spendable_usd >= MIN_BALANCE_USD

    @property
    def finding(self) -> Finding:
        """The finding that the state amounts to."""
        if self.is_well:
            return Finding.WELL
        return Finding.SPENT if self.spendable_usd < MIN_BALANCE_USD else Finding.FORBIDDEN

    @property
    def spendable_usd(self) -> float:
        """The total balance; infinite when Venice reports none."""
        return sum(self.balances.values()) if self.balances else math.inf


class KeyFinding(NamedTuple):
    """The result of a key check: the finding, its reason, and its time on ``time.monotonic``."""

    finding: Finding
    reason: str
    at: float


class KeyCooldown(msgspec.Struct, frozen=True, kw_only=True):
    """A period in which a key takes no calls.

    It covers one model, or all where ``model`` is null; and one API key or organization
    (``caller_id``), or everybody where that is null. Without ``seconds_left`` it lasts until a
    probe finds the key usable.
    """

    model: str | None
    reason: str
    seconds_left: float | None
    caller_id: UUID | None = None


Probe = Callable[[UpstreamKey], Awaitable[UpstreamKeyState]]


class UpstreamKeys:
    """The Venice keys known to one process."""

    def __init__(self, keys: Sequence[UpstreamKey]) -> None:
        self._keys: Sequence[UpstreamKey] = ()
        self.has_changed = asyncio.Event()
        """Set when a key is added, or a check of a key finds something new."""
        self._by_organization: dict[UUID | None, Sequence[UpstreamKey]] = {}
        self._shared: Sequence[UpstreamKey] = ()
        """The keys for organizations without their own."""
        self.replace(keys)
        self._cooldowns = Cooldowns()
        self._out_of_service: dict[UUID, str] = {}
        """Reasons by the id of keys that Venice takes no calls with."""
        self._balances_usd: dict[UUID, float] = {}
        self._probes: Counter[UUID] = Counter()
        """Failed probes since the key's last successful call. Each makes the next pause longer."""
        self.in_flight: Counter[UUID] = Counter()
        self.findings: dict[UUID, KeyFinding] = {}
        """The latest finding about each key, by its id."""

    def replace(self, keys: Sequence[UpstreamKey]) -> None:
        """Replace the keys in use. The state of keys that stay is kept."""
        if {key.id for key in keys} - {key.id for key in self._keys}:
            self.has_changed.set()
        self._keys = tuple(keys)
        owners = {key.organization_id for key in keys}
        self._by_organization = {
            owner: tuple(key for key in keys if key.organization_id == owner) for owner in owners
        }
        self._shared = self._by_organization.get(None, ())

    @property
    def all(self) -> Sequence[UpstreamKey]:
        """Every key in use."""
        return self._keys

    def find(self, key_id: UUID | None) -> UpstreamKey | None:
        """Return the key with this id if it is in use."""
        return next((key for key in self._keys if key.id == key_id), None)

    def any(self) -> UpstreamKey:
        """Return a key for free requests; one organization's own only when there is no shared key.

        :raises UpstreamExhausted: when there is no key at all.
        """
        shared = [key for key in self._keys if key.organization_id is None] or self._keys
        for key in shared:
            if key.id not in self._out_of_service:
                return key
        if shared:
            return shared[0]
        raise UpstreamExhausted("The gateway has no Venice key.", retry_after_s=EXHAUSTED_RETRY_S)

    def choose(self, source: Source, model: str, tried: Collection[UUID] = ()) -> UpstreamKey:
        """Choose the key for a call.

        Only the organization's own keys are considered if it has any. Keys that were not yet tried
        come first, then keys whose balance is sufficient or unknown, then those with the fewest
        calls in flight.

        :raises UpstreamExhausted, UpstreamBusy: when every key is out of service or cooling down,
            with the time until one is ready again.
        """
        ready = self._by_organization.get(source.organization_id, self._shared)
        if self._out_of_service or self._cooldowns.by_scope:
            ready = self.ready(source, model)
        if not ready:
            raise self._unavailable_error(source, model)
        key = ready[0] if len(ready) == 1 else self._best(ready, tried)
        if self._cooldowns.by_scope:
            self._cooldowns.note_chosen(key.id, model, source)
        return key

    def _best(self, ready: Sequence[UpstreamKey], tried: Collection[UUID]) -> UpstreamKey:
        fresh = [key for key in ready if key.id not in tried] or ready
        funded = [key for key in fresh if self._is_funded(key)] or fresh
        return min(funded, key=lambda key: (self.in_flight[key.id], random.random()))  # noqa: S311

    def ready(self, source: Source, model: str) -> Sequence[UpstreamKey]:
        """Return the keys that can take a call of the source now."""
        keys = self._by_organization.get(source.organization_id, self._shared)
        if not self._out_of_service and not self._cooldowns.by_scope:
            return keys
        now = time.monotonic()
        return [key for key in keys if self._ready_at(key, model, source) <= now]

    def _is_funded(self, key: UpstreamKey) -> bool:
        return self._balances_usd.get(key.id, math.inf) >= MIN_BALANCE_USD

    def note_state(self, key: UpstreamKey, state: UpstreamKeyState) -> None:
        """Record a key's balance, and put it back in service if Venice accepts it."""
        if state.balances:
            self._balances_usd[key.id] = state.spendable_usd
        reason = "no balance" if state.access_permitted else "no access"
        self.note_finding(key, state.finding, reason)
        if state.is_well and self._out_of_service.pop(key.id, None) is not None:
            log.info("upstream key recovered", key=key.name)

    def note_finding(self, key: UpstreamKey, finding: Finding, reason: str) -> None:
        """Record the result of a key check."""
        known = self.findings.get(key.id)
        self.findings[key.id] = KeyFinding(finding, reason, time.monotonic())
        if known is None or known.finding is not finding:
            self.has_changed.set()
            report = logs.detail if finding is Finding.WELL else log.warning
            variable = "VENICE_API_KEY" if key.id == ENVIRONMENT_KEY_ID else None
            report("upstream key checked", key=key.name, finding=finding.value, variable=variable)

    def unusable(self) -> dict[str, Finding]:
        """Return the names of keys that Venice refuses, with the findings."""
        found = ((key.name, self.findings.get(key.id)) for key in self._keys)
        return {
            name: known.finding
            for name, known in found
            if known and known.finding.is_about_key and known.finding is not Finding.WELL
        }

    def succeeded(
        self,
        key: UpstreamKey,
        model: str,
        source: Source,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Record a successful call.

        ``headers`` are those of the response. If they report a used-up rate limit, the key cools
        down for the model.
        """
        if self._cooldowns.by_scope:
            self._cooldowns.note_answered(key.id, model, source)
        if self._probes and key.id not in self._out_of_service:
            self._probes.pop(key.id, None)
        if headers is None:
            return
        if headers.get(REQUESTS_LEFT) == NONE_LEFT or headers.get(TOKENS_LEFT) == NONE_LEFT:
            reset_s = spent_rate_reset_s(headers)
            if reset_s is not None:
                self._name(key, model, min(reset_s, MAX_RATE_COOLDOWN_S), RATE_SPENT)

    def failed(self, key: UpstreamKey, model: str, source: Source, error: ServiceError) -> None:
        """Record a failed call. The key cools down for the callers that the failure is evidence
        about."""
        if not isinstance(error, UpstreamError):
            return
        reason = f"status {error.upstream_status}" if error.upstream_status else error.code
        match error.evidence:
            case Evidence.REQUEST_REFUSED:
                self.succeeded(key, model, source)
            case Evidence.RATE_SPENT:
                cooldown_s = BUSY_RETRY_S if error.rate_reset_s is None else error.rate_reset_s
                self._name(key, model, min(cooldown_s, MAX_RATE_COOLDOWN_S), RATE_SPENT)
            case Evidence.KEY_REFUSED | Evidence.CALLER_REFUSED | Evidence.MODEL_FORBIDDEN:
                if key.id not in self._out_of_service:
                    self._count(key, model, source, reason, error.evidence)
            case Evidence.FAILED | Evidence.EDGE_FAILED:
                self._count(key, model, source, error.code, error.evidence)
            case Evidence.NONE:
                pass

    def put_out_of_service(self, key: UpstreamKey, reason: str) -> None:
        """Send no calls to the key until a probe finds it usable.

        For keys that Venice itself refused when asked about them.
        """
        if key.id not in self._out_of_service:
            log.warning("upstream key out of service", key=key.name, reason=reason)
        self._out_of_service[key.id] = reason

    def out_of_service(self) -> dict[str, str]:
        """Return the names of keys that are out of service, with the reasons."""
        return {
            key.name: self._out_of_service[key.id]
            for key in self._keys
            if key.id in self._out_of_service
        }

    def cooldowns(self) -> Mapping[UUID, Sequence[KeyCooldown]]:
        """Return the keys that take no calls now in this process, by id, for all or for some
        models."""
        found = {
            key_id: [KeyCooldown(model=None, reason=reason, seconds_left=None)]
            for key_id, reason in self._out_of_service.items()
        }
        now = time.monotonic()
        for key_id, model, caller_id, cooldown in self._cooldowns.open():
            found.setdefault(key_id, []).append(
                KeyCooldown(
                    model=model,
                    reason=cooldown.reason,
                    seconds_left=round(cooldown.until - now, 1),
                    caller_id=caller_id,
                )
            )
        return found

    async def probe_out_of_service_keys(self, probe: Probe) -> None:
        """Probe the keys that are out of service, forever."""
        next_at: dict[UUID, float] = {}
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            now = time.monotonic()
            for key in self._keys:
                if key.id not in self._out_of_service or next_at.get(key.id, 0.0) > now:
                    continue
                self._probes[key.id] = min(10, self._probes[key.id] + 1)
                pause_s = min(MAX_PROBE_PAUSE_S, PROBE_EVERY_S * 2 ** self._probes[key.id])
                next_at[key.id] = now + pause_s
                try:
                    self.note_state(key, await probe(key))
                except ServiceError as error:
                    log.debug("upstream key probed", key=key.name, code=error.code)

    def _ready_at(self, key: UpstreamKey, model: str, source: Source) -> float:
        """Return when the key can take a call, on ``time.monotonic``. In the past if now."""
        if key.id in self._out_of_service:
            return math.inf
        return self._cooldowns.ready_at(key.id, model, source)

    def _unavailable_error(self, source: Source, model: str) -> UpstreamError:
        now = time.monotonic()
        keys = self._by_organization.get(source.organization_id, self._shared)
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
            self._log_cooldown(key, model, seconds, reason)

    def _count(
        self, key: UpstreamKey, model: str, source: Source, reason: str, evidence: Evidence
    ) -> None:
        opened_s = self._cooldowns.count(key.id, model, source, reason, evidence)
        if opened_s is not None:
            self._log_cooldown(key, model, opened_s, reason)

    def _log_cooldown(self, key: UpstreamKey, model: str, seconds: float, reason: str) -> None:
        log.warning(
            "upstream key cooling down",
            key=key.name,
            model=model,
            reason=reason,
            cooldown_s=round(seconds, 1),
        )
