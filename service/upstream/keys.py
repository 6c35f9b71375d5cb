"""The operator's keys at Venice: which one takes a call, and which ones rest.

What a key is good for is known from what Venice answers to its calls. One that is not valid, or has
nothing left to spend, rests until a probe that costs nothing finds it well again. One that may not
use a model, or has used up its rate, rests for that model for a while; so does one that failed
several times in a row, until a single call has gone well. An answer can say that it was the last of
its rate; then the key rests before it is refused.
"""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import msgspec
import structlog

from service.errors import (
    ServiceError,
    UpstreamBusy,
    UpstreamCut,
    UpstreamError,
    UpstreamExhausted,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from service.upstream.refusals import spent_rate_reset_s

log = structlog.get_logger()

ENVIRONMENT_KEY_ID: Final = UUID(int=1)
"""The id of the key of the settings, ``VENICE_API_KEY``."""
EVERY_MODEL: Final = ""
FAILURES_IN_A_ROW: Final = 5
FAILING_REST_S: Final = 5.0
MOST_FAILING_REST_S: Final = 60.0
FORBIDDEN_REST_S: Final = 300.0
MOST_RATE_REST_S: Final = 60.0
TRIAL_S: Final = 5.0
"""How long a single call has to show that a model has recovered, before another may."""
PROBE_EVERY_S: Final = 1.0
MOST_PROBE_PAUSE_S: Final = 30.0
MOST_CONDITIONS: Final = 10_000
EXHAUSTED_RETRY_S: Final = 60
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
    """What Venice says of a key."""

    access_permitted: bool = False
    balances: dict[str, float] = {}
    api_tier: dict[str, object] = {}


class Rest(msgspec.Struct, frozen=True, kw_only=True):
    """That a key takes no calls now: of one model, or of any where ``model`` is null. Without
    ``seconds_left`` it rests until a probe finds it well."""

    model: str | None
    reason: str
    seconds_left: float | None


@dataclass(slots=True)
class _Condition:
    """Why a key rests, and until when."""

    until: float = 0.0
    reason: str = ""
    failures: int = 0
    rests: int = 0

    def is_resting(self, reason: str) -> bool:
        """Whether it rests now, for this reason."""
        return self.reason == reason and self.until > time.monotonic()


Probe = Callable[[UpstreamKey], Awaitable[KeyState]]


class UpstreamKeys:
    """The keys of one process."""

    def __init__(self, keys: Sequence[UpstreamKey]) -> None:
        self._keys: Sequence[UpstreamKey] = ()
        self._by_organization: dict[UUID | None, Sequence[UpstreamKey]] = {}
        """Under None those that serve every organization that has none of its own."""
        self.replace(keys)
        self._conditions: dict[tuple[UUID, str], _Condition] = {}
        self._balances_usd: dict[UUID, float] = {}
        self._probes: Counter[UUID] = Counter()
        """Since a call with the key was answered: each pause between them is longer."""
        self.in_flight: Counter[UUID] = Counter()

    def replace(self, keys: Sequence[UpstreamKey]) -> None:
        """Use these from now on; what is known of those that stay is kept."""
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
            if self._ready_at(key, EVERY_MODEL) <= time.monotonic():
                return key
        if shared:
            return shared[0]
        raise UpstreamExhausted("The gateway has no Venice key.", retry_after_s=EXHAUSTED_RETRY_S)

    def choose(
        self, organization_id: UUID, model: str, tried: Collection[UUID] = ()
    ) -> UpstreamKey:
        """The key that a call goes to: one of the organization's own if it has any, one that was
        not tried yet if there is any, of these one that has something to spend as far as is known,
        and of these the one with the fewest calls under way.

        :raises UpstreamExhausted, UpstreamBusy: when all of them rest, with the time until one is
            ready again.
        """
        ready = self.ready(organization_id, model)
        if not ready:
            raise self._why_not(self._of(organization_id), model)
        key = ready[0] if len(ready) == 1 else self._best(ready, tried)
        condition = self._conditions.get((key.id, model))
        if condition is not None and condition.failures >= FAILURES_IN_A_ROW:
            # This call is the one that shows whether it has recovered.
            condition.until = time.monotonic() + TRIAL_S
        return key

    def _best(self, ready: Sequence[UpstreamKey], tried: Collection[UUID]) -> UpstreamKey:
        fresh = [key for key in ready if key.id not in tried] or ready
        funded = [key for key in fresh if self._is_funded(key)] or fresh
        return min(funded, key=lambda key: (self.in_flight[key.id], random.random()))  # noqa: S311

    def ready(self, organization_id: UUID, model: str) -> Sequence[UpstreamKey]:
        """The keys that can take a call of the organization now."""
        keys = self._of(organization_id)
        if not self._conditions:
            return keys
        now = time.monotonic()
        return [key for key in keys if self._ready_at(key, model) <= now]

    def _of(self, organization_id: UUID) -> Sequence[UpstreamKey]:
        shared = self._by_organization.get(None, ())
        return self._by_organization.get(organization_id, shared)

    def _is_funded(self, key: UpstreamKey) -> bool:
        return self._balances_usd.get(key.id, math.inf) >= LEAST_BALANCE_USD

    def note_state(self, key: UpstreamKey, state: KeyState) -> None:
        """Venice said what the key may spend, all currencies being worth a dollar; and perhaps that
        it is well again."""
        if state.balances:
            self._balances_usd[key.id] = sum(state.balances.values())
        if state.access_permitted and (key.id, EVERY_MODEL) in self._conditions:
            del self._conditions[key.id, EVERY_MODEL]
            log.info("upstream key is well again", key=key.name)

    def succeeded(
        self, key: UpstreamKey, model: str, said: Mapping[str, str] | None = None
    ) -> None:
        """A call was answered, with these headers: the key is well, but rests for the model when
        they say that its rate is used up."""
        condition = self._conditions.get((key.id, model))
        if condition is not None and condition.is_resting(RATE_SPENT):
            # An answer that was under way does not bring a rate back.
            condition.failures = condition.rests = 0
        elif condition is not None:
            del self._conditions[key.id, model]
        if (key.id, EVERY_MODEL) not in self._conditions:
            self._probes.pop(key.id, None)
        if said is not None and (reset_s := spent_rate_reset_s(said)) is not None:
            self._rest(key, model, min(reset_s, MOST_RATE_REST_S), RATE_SPENT)

    def failed(self, key: UpstreamKey, model: str, error: ServiceError) -> None:
        """A call was not answered: the key rests, if that is a reason to."""
        status = getattr(error, "upstream_status", None)
        if isinstance(error, UpstreamUnreachable):
            return
        if isinstance(error, UpstreamRejected):
            # The caller's own mistake was found: key and model are well.
            self.succeeded(key, model)
        elif status in (401, 402):
            self._rest(key, EVERY_MODEL, math.inf, f"status {status}")
        elif status == 403:
            self._rest(key, model, FORBIDDEN_REST_S, "status 403")
        elif status == 429 and (reset_s := getattr(error, "rate_reset_s", None)) is not None:
            self._rest(key, model, min(reset_s, MOST_RATE_REST_S), RATE_SPENT)
        elif isinstance(error, UpstreamCut | UpstreamTimeout) or type(error) is UpstreamError:
            self._count_failure(key, model, error.code)

    def resting(self) -> dict[str, str]:
        """The names of keys that rest altogether, and why."""
        found = ((key, self._conditions.get((key.id, EVERY_MODEL))) for key in self._keys)
        return {key.name: condition.reason for key, condition in found if condition is not None}

    def rests(self) -> Mapping[UUID, Sequence[Rest]]:
        """The keys that rest now in this process, by id, for any or for some models."""
        now = time.monotonic()
        found: dict[UUID, list[Rest]] = {}
        for (key_id, model), condition in self._conditions.items():
            left_s = condition.until - now
            if left_s > 0:
                rest = Rest(
                    model=model or None,
                    reason=condition.reason,
                    seconds_left=None if math.isinf(left_s) else round(left_s, 1),
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
                condition = self._conditions.get((key.id, EVERY_MODEL))
                if condition is None or next_at.get(key.id, 0.0) > now:
                    continue
                self._probes[key.id] = min(10, self._probes[key.id] + 1)
                pause_s = min(MOST_PROBE_PAUSE_S, PROBE_EVERY_S * 2 ** self._probes[key.id])
                next_at[key.id] = now + pause_s
                try:
                    self.note_state(key, await probe(key))
                except ServiceError as error:
                    log.debug("upstream key probed", key=key.name, code=error.code)

    def _ready_at(self, key: UpstreamKey, model: str) -> float:
        """When the key can take a call; in the past when it can now."""
        conditions = (self._conditions.get((key.id, name)) for name in {EVERY_MODEL, model})
        return max((condition.until for condition in conditions if condition), default=0.0)

    def _why_not(self, keys: Sequence[UpstreamKey], model: str) -> UpstreamError:
        now = time.monotonic()
        ready_in_s = min((self._ready_at(key, model) - now for key in keys), default=math.inf)
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

    def _rest(self, key: UpstreamKey, model: str, rest_s: float, reason: str) -> None:
        condition = self._condition(key, model)
        is_known = condition.is_resting(reason)
        condition.until = time.monotonic() + rest_s
        condition.reason = reason
        if is_known:
            return
        log.warning(
            "upstream key rests",
            key=key.name,
            model=model or "all",
            reason=reason,
            rest_s=None if math.isinf(rest_s) else round(rest_s, 1),
        )

    def _count_failure(self, key: UpstreamKey, model: str, code: str) -> None:
        condition = self._condition(key, model)
        condition.failures += 1
        if condition.failures >= FAILURES_IN_A_ROW:
            rest_s = min(MOST_FAILING_REST_S, FAILING_REST_S * 2**condition.rests)
            condition.rests = min(condition.rests + 1, 10)
            self._rest(key, model, rest_s, code)

    def _condition(self, key: UpstreamKey, model: str) -> _Condition:
        if len(self._conditions) >= MOST_CONDITIONS:
            # Names that only callers without limits can have thought of.
            self._conditions.clear()
        return self._conditions.setdefault((key.id, model), _Condition())
