"""Who is calling: keys as they are shown, looked up through a small cache.

A key is 256 random bits; the database holds its SHA-256. The cache only saves reads: NOTIFY empties
it when a key or an organization changes, each entry is read again after a few seconds anyway,
and paid calls are checked again at admission.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from service import crypto
from service.accounts.organizations import END_USERS
from service.accounts.restrictions import Restrictions
from service.accounts.settings import KeySettings, OrganizationSettings, Role
from service.audit import OPERATOR_ORGANIZATION_ID
from service.database.lanes import STRANGERS, Lanes
from service.errors import Forbidden, NotFound, ServiceError, Unauthenticated
from service.ledger import HAS_LIMITS

CACHED_CALLERS: Final = 10_000
FIND_CALLER: Final = f"""
    SELECT k.id, k.organization_id, k.name, k.role, k.prefix, k.digest, k.previous_until,
           k.expires_at, k.revoked_at, k.settings::text AS settings, k.allowed_models,
           k.allowed_endpoints, k.ip_allow_list, clock_timestamp() AS now,
           o.status AS organization_status, o.wrapped_data_key,
           o.settings::text AS organization_settings,
           {HAS_LIMITS}
    FROM public.api_keys k
    JOIN public.organizations o ON o.id = k.organization_id
    WHERE k.digest = $1
       OR k.previous_digest = $1
"""  # noqa: S608 - put together from constants

FIND_DIGEST: Final = """
    SELECT digest
    FROM public.api_keys
    WHERE id = $1
"""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who is calling: a key in force, or the operator (whose ``api_key_id`` is None)."""

    organization_id: UUID
    api_key_id: UUID | None
    role: Role
    key_prefix: str | None = None
    """The visible beginning of its key."""
    pseudonym_key: bytes = b""
    end_users_key: bytes = b""
    settings: KeySettings = KeySettings()
    key_digest: bytes | None = None
    """The digest of the secret that was shown: that of the key, or its previous one."""
    previous_until: datetime | None = None
    """When the secret that was shown stops working, if it is the previous one."""
    expires_at: datetime | None = None
    restrictions: Restrictions | None = None
    """Where and for what it may be used; None if that is not restricted."""
    allowed_models: frozenset[str] | None = None
    """Aliases and models of Venice's that it may use; None for all."""
    has_money_limit: bool = False
    """Whether any limit of its organization is one of money."""
    has_model_limit: bool = False
    """Whether any limit of its organization is for one model."""
    has_rate_limit: bool = False
    """Whether any limit of its organization is one of requests of a minute or an hour."""
    unnamed_pseudonym: str = ""
    """The pseudonym of all end users whom the caller does not name; computed once."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "unnamed_pseudonym", self.pseudonym(""))

    @property
    def actor_name(self) -> str:
        return "operator" if self.api_key_id is None else f"api_key:{self.api_key_id}"

    def pseudonym(self, end_user: str) -> str:
        """What upstream gets to see instead of ``end_user``; differs for each key."""
        return crypto.pseudonym(self.pseudonym_key, str(self.api_key_id), end_user)

    def end_user_digest(self, end_user: str) -> bytes:
        """What the books keep instead of ``end_user``; the same for all keys of an organization."""
        return crypto.end_user_digest(self.end_users_key, end_user)

    def __repr__(self) -> str:
        return f"<Caller {self.role} {self.actor_name} of {self.organization_id}>"


OPERATOR: Final = Caller(organization_id=OPERATOR_ORGANIZATION_ID, api_key_id=None, role="operator")
VISITOR: Final = Caller(organization_id=STRANGERS, api_key_id=None, role="inference")
"""Whoever has shown no key yet."""


class _End(NamedTuple):
    """A reason for which a secret stops working."""

    at: float
    """When, by the clock of :func:`time.monotonic`."""
    error: type[ServiceError]
    code: str
    message: str


class _Known(msgspec.Struct, frozen=True):
    read_at: float
    changes: int
    """How many changes there were before it was read."""
    caller: Caller
    ends: tuple[_End, ...]
    ends_at: float
    """The first of them; infinite where there is none."""

    def check_in_force(self) -> None:
        """:raises Unauthenticated, Forbidden: when the secret works no longer."""
        now = time.monotonic()
        for end in self.ends:
            if end.at <= now:
                raise end.error(end.message, code=end.code)


class Callers:
    """Answers who a bearer key belongs to."""

    def __init__(self, lanes: Lanes, keyring: crypto.Keyring, cache_s: float) -> None:
        self._lanes = lanes
        self._keyring = keyring
        self._cache_s = cache_s
        self._cache: OrderedDict[bytes, _Known] = OrderedDict()
        self._changes = 0
        self._reading: dict[tuple[bytes, int], asyncio.Task[_Known]] = {}
        """What is being read, by digest and the number of changes before it began."""

    def forget(self) -> None:
        """Something changed: read each key again on its next use."""
        self._changes += 1

    def find(self, key: str) -> Caller | None:
        """The caller whose key this is, if it was read a moment ago; None if :meth:`identify` has
        to read it.

        :raises Unauthenticated, Forbidden: as :meth:`identify`.
        """
        if not crypto.API_KEY_FORM.fullmatch(key):
            return None
        digest = crypto.key_digest(key)
        known = self._cache.get(digest)
        if known is None or known.changes != self._changes:
            return None
        now = time.monotonic()
        if now - known.read_at > self._cache_s:
            return None
        if known.ends_at <= now:
            known.check_in_force()
        return known.caller

    async def identify(self, key: str) -> Caller:
        """The caller whose key this is.

        :raises Unauthenticated: malformed, unknown, revoked or expired; each has its own code.
        :raises Forbidden: when its organization is not active.
        :raises Unavailable: when the database is unavailable; that is never a 401.
        """
        if not crypto.API_KEY_FORM.fullmatch(key):
            raise Unauthenticated(
                "The API key is malformed: a key is rk_ and 43 letters, digits, - or _.",
                code="malformed_api_key",
            )
        if (caller := self.find(key)) is not None:
            return caller
        return await self.identify_digest(crypto.key_digest(key))

    async def identify_digest(self, digest: bytes) -> Caller:
        """The caller whose key has this digest, read anew.

        :raises Unauthenticated, Forbidden, Unavailable: as :meth:`identify`.
        """
        known = await self._read_once(digest)
        known.check_in_force()
        return known.caller

    def last_known(self, key: str) -> Caller | None:
        """The caller whose key this is or was, in force or not; None if it was not read lately."""
        known = self._cache.get(crypto.key_digest(key))
        return None if known is None else known.caller

    async def of_key(self, api_key_id: UUID) -> Caller:
        """The caller with the key of this id, for the operator's questions about its calls.

        :raises NotFound: when there is no such key.
        :raises Unauthenticated, Forbidden: as :meth:`identify`.
        """
        digest = await self._lanes.of(STRANGERS).fetchval(FIND_DIGEST, api_key_id)
        if digest is None:
            raise NotFound("There is no such API key.")
        known = await self._read_once(digest)
        known.check_in_force()
        return known.caller

    async def _read_once(self, digest: bytes) -> _Known:
        """Many may call with a key at once; it is read for all of them, but for those that come
        after a change was announced."""
        place = digest, self._changes
        reading = self._reading.get(place)
        if reading is None:
            reading = self._reading[place] = asyncio.create_task(self._read(digest))
            reading.add_done_callback(lambda _: self._reading.pop(place))
            # Should all who wait be gone, nobody else looks at it.
            reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(reading)

    async def _read(self, digest: bytes) -> _Known:
        changes, read_at = self._changes, time.monotonic()
        before = self._cache.get(digest)
        owner = STRANGERS if before is None else before.caller.organization_id
        row = await self._lanes.of(owner).fetchrow(FIND_CALLER, digest)
        if row is None:
            self._cache.pop(digest, None)
            raise Unauthenticated("The API key is not known here.", code="invalid_api_key")
        ends = tuple(_ends(row, digest))
        ends_at = min((end.at for end in ends), default=math.inf)
        known = _Known(read_at, changes, self._caller(row, digest), ends, ends_at)
        # What was read before a change was announced is not fresh, but shows that the key is known.
        self._cache[digest] = known
        self._cache.move_to_end(digest)
        if len(self._cache) > CACHED_CALLERS:
            self._cache.popitem(last=False)
        return known

    def _caller(self, row: Any, digest: bytes) -> Caller:
        pseudonym_key = end_users_key = b""
        if row["wrapped_data_key"] is not None:
            owner = row["organization_id"].bytes
            data_key = self._keyring.open_data_key(owner, row["wrapped_data_key"])
            pseudonym_key = crypto.derive(data_key, "pseudonym")
            end_users_key = crypto.derive(data_key, END_USERS)
        return Caller(
            organization_id=row["organization_id"],
            api_key_id=row["id"],
            role=row["role"],
            key_prefix=row["prefix"],
            pseudonym_key=pseudonym_key,
            end_users_key=end_users_key,
            settings=_merged(row),
            key_digest=digest,
            previous_until=_previous_until(row, digest),
            expires_at=row["expires_at"],
            restrictions=Restrictions.of(row),
            allowed_models=_set(row["allowed_models"]),
            has_money_limit=row["has_money_limit"],
            has_model_limit=row["has_model_limit"],
            has_rate_limit=row["has_rate_limit"],
        )


def _set(names: list[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)


def _merged(row: Any) -> KeySettings:
    """The key's settings over those of its organization, and the default of ``on_small_budget``,
    which depends on the limits."""
    settings = msgspec.json.decode(row["settings"], type=KeySettings)
    common = msgspec.json.decode(row["organization_settings"], type=OrganizationSettings)
    parameters = {**common.venice_parameters, **settings.venice_parameters}
    cuts = row["has_money_limit"] or settings.least_output_tokens is not None
    stated = settings.on_small_budget or common.on_small_budget
    return msgspec.structs.replace(
        settings,
        venice_parameters=parameters,
        on_small_budget=stated or ("cut" if cuts else "refuse"),
    )


def _previous_until(row: Any, digest: bytes) -> datetime | None:
    """When the secret of this digest stops working, if it is the previous one of its key."""
    if row["digest"] == digest:
        return None
    ends: list[datetime] = [row["previous_until"]]
    if row["expires_at"] is not None:
        ends.append(row["expires_at"])
    return min(ends)


def _ends(row: Any, digest: bytes) -> Iterator[_End]:
    """The reasons for which the secret of this digest does not work, or will not.

    Times are the database's, whose clock may differ from that of this process. So each becomes a
    time from now on.
    """
    now = time.monotonic()
    database_now: datetime = row["now"]

    def at(moment: datetime) -> float:
        return now + (moment - database_now).total_seconds()

    if row["revoked_at"] is not None:
        yield _End(-math.inf, Unauthenticated, "revoked_api_key", "The API key was revoked.")
    # Which of its two digests the row was found by; both are of random keys, and no secrets.
    if row["digest"] != digest:
        yield _End(
            at(row["previous_until"]),
            Unauthenticated,
            "expired_api_key",
            "The API key was rotated, and its previous secret does not work any more.",
        )
    if row["expires_at"] is not None:
        expired = "The API key has expired."
        yield _End(at(row["expires_at"]), Unauthenticated, "expired_api_key", expired)
    status = row["organization_status"]
    if status != "active":
        inactive = f"The organization is {status}."
        yield _End(-math.inf, Forbidden, "organization_inactive", inactive)
