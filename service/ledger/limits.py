"""Limits on how much an organization, a key or an end user may use in a period."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from service import audit, money
from service.audit import Actor
from service.database.database import NOW, Database
from service.errors import ClientError, Conflict, Forbidden, NotFound
from service.formats.parsing import check_future
from service.ids import uuid7
from service.ledger.refusals import amount

Unit = Literal["usd", "requests", "tokens", "concurrency"]
Period = Literal["minute", "hour", "day", "month", "lifetime"]

Percents = Annotated[list[Annotated[int, msgspec.Meta(ge=1, le=100)]], msgspec.Meta(max_length=10)]

DEFAULT_ALERT_PERCENTS: Final = [50, 80, 100]
MAX_CEILING_NANOS: Final = 10**18
"""Far below the largest sum that a bigint holds."""
MAX_CEILING_COUNT: Final = 2**53
"""The largest whole number that every JSON parser represents exactly."""

MAX_ADMINISTRATOR_LIMITS_PER_SCOPE: Final = 50
"""The limits that administrators may set for the same calls.

Each admission locks all limits of its call, and shares a batch with calls of other organizations.
"""

COUNT_IN_SCOPE: Final = """
    SELECT count(*)
    FROM public.limits
    WHERE organization_id = $1
      AND template_id IS NULL
      AND deleted_at IS NULL
      AND api_key_id IS NOT DISTINCT FROM $2
      AND end_user IS NOT DISTINCT FROM $3
"""
HAS_LIMITS: Final = """
EXISTS (
               SELECT
               FROM public.limits l
               WHERE l.organization_id = o.id
                 AND l.template_id IS NULL
                 AND l.deleted_at IS NULL
                 AND l.unit = 'usd'
           ) AS has_money_limit,
           EXISTS (
               SELECT
               FROM public.limits l
               WHERE l.organization_id = o.id
                 AND l.template_id IS NULL
                 AND l.deleted_at IS NULL
                 AND l.model IS NOT NULL
           ) AS has_model_limit,
           EXISTS (
               SELECT
               FROM public.limits l
               WHERE l.organization_id = o.id
                 AND l.template_id IS NULL
                 AND l.deleted_at IS NULL
                 AND l.unit = 'requests'
                 AND l.period IN ('minute', 'hour')
           ) AS has_rate_limit
""".strip()
"""Columns of a statement in which ``o`` is an organization: the kinds of limits that it has."""
LIST_IDS: Final = """
    SELECT id
    FROM public.limits
    WHERE organization_id = $1
      AND CASE WHEN $4::bytea IS NULL THEN template_id IS NULL ELSE end_user = $4 END
      AND deleted_at IS NULL
      AND id > $2
    ORDER BY id
    LIMIT $3
"""
# The limits that bind a call of the key and end user. For a limit per end user, the counter of this
# end user if it exists.
LIST_BINDING: Final = """
    SELECT coalesce(
        (SELECT c.id FROM public.limits c
         WHERE c.organization_id = l.organization_id
           AND l.scope = 'each_end_user'
           AND c.id = public.limit_child_id(l.id, $3)),
        l.id
    ) AS id
    FROM public.limits_binding($1, $2, $3) b
    JOIN public.limits l ON l.organization_id = $1 AND l.id = b.id
    WHERE $4::text IS NULL OR l.model IS NULL OR l.model = $4
"""
READ_LIMITS: Final = """
    SELECT s.id, l.organization_id, s.scope, s.api_key_id, encode(s.end_user, 'hex') AS end_user,
           s.template_id, s.model, s.unit, s.period, s.ceiling, s.used, s.held, s.resets_at,
           l.raised_until, s.alert_percents, l.children, l.created_at,
           coalesce(
               (SELECT t.set_by FROM public.limits t
                WHERE t.organization_id = l.organization_id AND t.id = l.template_id),
               l.set_by
           ) AS set_by
    FROM public.limits_as_of($1::uuid[], clock_timestamp()) s
    JOIN public.limits l USING (organization_id, id)
    WHERE l.deleted_at IS NULL
    ORDER BY s.id
"""
INSERT_LIMIT: Final = """
    INSERT INTO public.limits (
        organization_id, id, scope, api_key_id, end_user, model, unit, period, ceiling,
        alert_percents, set_by
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""
READ_SETTING: Final = """
    SELECT ceiling, set_by
    FROM public.limits
    WHERE organization_id = $1
      AND id = $2
      AND deleted_at IS NULL
"""
CHANGE_LIMIT: Final = """
    UPDATE public.limits
    SET ceiling = coalesce($3, ceiling),
        raised_to = CASE WHEN $4 THEN $5 ELSE raised_to END,
        raised_until = CASE WHEN $4 THEN $6 ELSE raised_until END,
        alert_percents = coalesce($7, alert_percents),
        set_by = CASE WHEN $8 = 'operator' THEN $8 ELSE set_by END,
        updated_at = now()
    WHERE organization_id = $1
      AND id = $2
      AND deleted_at IS NULL
"""
DELETE_LIMIT: Final = """
    UPDATE public.limits
    SET deleted_at = now(), updated_at = now()
    WHERE organization_id = $1
      AND id = $2
      AND deleted_at IS NULL
"""

# Admissions lock limits in this order too. Counters of end users end with their template.
END_LIMITS: Final = """
    WITH locked AS (
        SELECT id
        FROM public.limits
        WHERE organization_id = $1
          AND template_id IS NULL
          AND deleted_at IS NULL
        ORDER BY organization_id, id
        FOR NO KEY UPDATE
    )
    UPDATE public.limits l
    SET deleted_at = now(), updated_at = now()
    FROM locked
    WHERE l.organization_id = $1
      AND l.id = locked.id
"""


class NewLimit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A requested limit.

    ``ceiling`` is a decimal string of US dollars for unit ``usd``, a whole number otherwise.
    ``period`` is absent for concurrency only. ``api_key_id`` binds that key instead of the
    organization. ``end_user`` binds one end user and ``each_end_user`` every end user, of the
    organization or of the key. ``model`` restricts the limit to calls of that model.
    ``alert_percents``, for money only, are the percentages of the ceiling at which an event is
    recorded: 50, 80 and 100 by default, and none for ``each_end_user``.
    """

    unit: Unit
    ceiling: str | int
    period: Period | None = None
    api_key_id: UUID | None = None
    end_user: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    each_end_user: bool = False
    model: Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,256}$")] | None = None
    alert_percents: Percents | None = None

    @property
    def scope(self) -> str:
        if self.each_end_user:
            return "each_end_user"
        if self.end_user is not None:
            return "end_user"
        return "organization" if self.api_key_id is None else "api_key"


class LimitChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new ceiling, new thresholds, or a temporary raise. Nulls end the raise."""

    ceiling: str | int | msgspec.UnsetType = msgspec.UNSET
    raised_to: str | int | msgspec.UnsetType | None = msgspec.UNSET
    raised_until: datetime | msgspec.UnsetType | None = msgspec.UNSET
    alert_percents: Percents | msgspec.UnsetType = msgspec.UNSET


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """The current state of a limit.

    Money is a decimal string. ``ceiling`` includes a raise in force. ``resets_at`` is null for
    sliding windows and for limits that never reset. ``end_user`` is the hex digest of a name.
    ``end_users`` is the number of counters of a limit per end user, and ``template_id`` names the
    limit that such a counter belongs to. ``set_by`` is who last set it: administrators may lower
    the operator's limits, but not loosen or delete them.
    """

    id: UUID
    organization_id: UUID
    scope: str
    api_key_id: UUID | None
    end_user: str | None
    template_id: UUID | None
    model: str | None
    unit: Unit
    period: Period | None
    ceiling: str | int
    used: str | int
    held: str | int
    left: str | int
    resets_at: datetime | None
    raised_until: datetime | None
    alert_percents: list[int]
    end_users: int | None
    created_at: datetime
    set_by: Literal["operator", "administrator"]


def _limit(row: Any) -> Limit:
    facts = dict(row)
    children = facts.pop("children")
    facts["end_users"] = children if facts["scope"] == "each_end_user" else None
    if facts["unit"] != "usd":
        facts["alert_percents"] = []
    if facts["unit"] != "usd" and facts["period"] in ("minute", "hour"):
        facts["resets_at"] = None
    facts["left"] = max(0, facts["ceiling"] - facts["used"] - facts["held"])
    amounts = {
        name: amount(facts["unit"], facts[name]) for name in ("ceiling", "used", "held", "left")
    }
    return Limit(**{**facts, **amounts})


def left_of(limits: Sequence[Limit]) -> tuple[int | None, int | None]:
    """Return the nano-dollars and tokens that all limits leave room for, None where unlimited."""

    def minimum(unit: str) -> int | None:
        remainders = (
            money.parse_usd(str(limit.left)) if unit == "usd" else int(limit.left)
            for limit in limits
            if limit.unit == unit
        )
        return min(remainders, default=None)

    return minimum("usd"), minimum("tokens")


def parse_ceiling(unit: Unit, ceiling: str | int, field: str = "ceiling") -> int:
    """Parse a ceiling into nano-dollars or a count.

    :raises ClientError: when the value is invalid; the error names the field and the rule.
    """
    if unit == "usd":
        if not isinstance(ceiling, str):
            raise ClientError(f'{field}: must be a decimal string, such as "5.00".', param=field)
        try:
            nanos = money.parse_usd(ceiling)
        except ValueError as error:
            raise ClientError(f"{field}: {error}.", param=field) from None
        if not 0 <= nanos <= MAX_CEILING_NANOS:
            most = money.format_usd(MAX_CEILING_NANOS)
            raise ClientError(f"{field}: must be between 0 and {most}.", param=field)
        return nanos
    if not isinstance(ceiling, int) or not 0 <= ceiling <= MAX_CEILING_COUNT:
        raise ClientError(
            f"{field}: must be a whole number between 0 and {MAX_CEILING_COUNT} for {unit}.",
            param=field,
        )
    return ceiling


async def create_limit(
    conn: Any,
    actor: Actor,
    organization_id: UUID,
    new: NewLimit,
    end_user: bytes | None = None,
) -> UUID:
    """Create a limit for calls admitted from now on, and return its id.

    Usage before its creation does not count. ``end_user`` is the digest of the named end user.

    :raises ClientError: when the fields are invalid or do not fit together.
    :raises NotFound: when the organization does not exist. The caller checks that the key is one
        of its keys.
    :raises Conflict: when an administrator sets too many limits for the same calls.
    """
    if (new.unit == "concurrency") != (new.period is None):
        rule = "must be minute, hour, day, month or lifetime, and absent for concurrency."
        raise ClientError(f"period: {rule}", param="period")
    if new.end_user is not None and new.each_end_user:
        raise ClientError("each_end_user: cannot be combined with end_user.", param="end_user")
    if new.model is not None and ":" in new.model:
        rule = "name the model without a suffix; the limit binds its calls with any suffix."
        raise ClientError(f"model: {rule}", param="model")
    if new.alert_percents and new.unit != "usd":
        raise ClientError("alert_percents: only limits in usd have alerts.", param="alert_percents")
    limit_id = uuid7()
    ceiling = parse_ceiling(new.unit, new.ceiling)
    detail = msgspec.to_builtins(new)
    if end_user is not None:
        detail["end_user"] = end_user.hex()
    alert_percents = new.alert_percents
    if alert_percents is None:
        alert_percents = [] if new.each_end_user else DEFAULT_ALERT_PERCENTS
    # Recorded first, because it locks the organization and fails if there is none.
    await audit.record(conn, organization_id, actor, "limit.create", str(limit_id), detail)
    if actor.is_administrator:
        scope_key = organization_id, new.api_key_id, end_user
        if await conn.fetchval(COUNT_IN_SCOPE, *scope_key) >= MAX_ADMINISTRATOR_LIMITS_PER_SCOPE:
            raise Conflict(
                f"The same calls already have {MAX_ADMINISTRATOR_LIMITS_PER_SCOPE} limits."
                " Delete one first."
            )
    await conn.execute(
        INSERT_LIMIT,
        organization_id,
        limit_id,
        new.scope,
        new.api_key_id,
        end_user,
        new.model,
        new.unit,
        new.period,
        ceiling,
        alert_percents,
        actor.set_by,
    )
    return limit_id


async def list_limits(
    database: Database,
    organization_id: UUID,
    after: UUID,
    limit: int,
    end_user: bytes | None = None,
) -> Sequence[Limit]:
    """List an organization's limits, oldest first, as of now.

    With the digest of an end user, only limits that bind that end user, including per-user
    counters. The empty digest means calls without an end user.
    """
    found = await database.fetch(LIST_IDS, organization_id, after, limit, end_user)
    return await read_limits(database, [row["id"] for row in found])


async def list_binding(
    conn: Any, organization_id: UUID, api_key_id: UUID, end_user: bytes, model: str | None = None
) -> Sequence[Limit]:
    """List the limits that bind calls of a key, for one model or for any. A suffix of the model
    makes no difference.

    ``end_user`` is the digest of the end user, empty for calls without one.
    """
    name = model and model.partition(":")[0]
    found = await conn.fetch(LIST_BINDING, organization_id, api_key_id, end_user, name)
    return await read_limits(conn, [row["id"] for row in found])


async def read_limits(conn: Any, limit_ids: Sequence[UUID]) -> Sequence[Limit]:
    """Return the limits with these ids as of now, oldest first, without the deleted ones."""
    return [_limit(row) for row in await conn.fetch(READ_LIMITS, limit_ids)]


async def find_limit(database: Database, limit_id: UUID) -> Limit:
    """Return one limit.

    :raises NotFound: when there is no limit with this id.
    """
    row = await database.fetchrow(READ_LIMITS, [limit_id])
    if row is None:
        raise NotFound("There is no such limit.")
    return _limit(row)


def _reject_counter(limit: Limit) -> None:
    if limit.template_id is not None:
        raise Conflict(
            f"This is the counter of one end user. Use its limit {limit.template_id} instead."
        )


async def change_limit(conn: Any, actor: Actor, limit: Limit, change: LimitChange) -> None:
    """Change the ceiling, raise or thresholds. Used and held amounts stay.

    :raises ClientError: when a value does not fit the unit.
    :raises Conflict: when the limit is the counter of one end user.
    :raises Forbidden: when an administrator tries to loosen a limit that the operator set.
    """
    _reject_counter(limit)
    if change.alert_percents and limit.unit != "usd":
        raise ClientError("alert_percents: only limits in usd have alerts.", param="alert_percents")
    ceiling = None
    if change.ceiling is not msgspec.UNSET:
        ceiling = parse_ceiling(limit.unit, change.ceiling)
    raised_to, raised_until = change.raised_to, change.raised_until
    if (raised_to in (None, msgspec.UNSET)) != (raised_until in (None, msgspec.UNSET)):
        raise ClientError("raised_to: must be set together with raised_until.", param="raised_to")
    if isinstance(raised_until, datetime):
        now = await conn.fetchval(NOW)
        raised_until = check_future("raised_until", raised_until, now)
    is_raise = isinstance(raised_to, str | int) and isinstance(raised_until, datetime)
    await audit.lock(conn, limit.organization_id)
    await _require_tightening(conn, actor, limit, change, ceiling)
    status = await conn.execute(
        CHANGE_LIMIT,
        limit.organization_id,
        limit.id,
        ceiling,
        raised_to is not msgspec.UNSET,
        parse_ceiling(limit.unit, raised_to, "raised_to")
        if isinstance(raised_to, str | int)
        else None,
        raised_until if is_raise else None,
        None if change.alert_percents is msgspec.UNSET else change.alert_percents,
        actor.set_by,
    )
    if status != "UPDATE 1":
        raise NotFound("There is no such limit.")
    detail = msgspec.to_builtins(change)
    await audit.record(conn, limit.organization_id, actor, "limit.change", str(limit.id), detail)


async def _require_tightening(
    conn: Any, actor: Actor, limit: Limit, change: LimitChange, ceiling: int | None
) -> None:
    """Let administrators only lower the ceiling of the operator's limits.

    The ceiling without a raise is compared. Only the operator can raise a lowered limit again.
    """
    if not actor.is_administrator:
        return
    setting = await conn.fetchrow(READ_SETTING, limit.organization_id, limit.id)
    if setting is None or setting["set_by"] != "operator":
        return
    for field in ("raised_to", "raised_until", "alert_percents"):
        if getattr(change, field) is not msgspec.UNSET:
            raise Forbidden(
                f"{field}: the operator set this limit, so only the operator can change this.",
                param=field,
            )
    if ceiling is not None and ceiling > setting["ceiling"]:
        current_ceiling = amount(limit.unit, setting["ceiling"])
        raise Forbidden(
            "ceiling: the operator set this limit, so you can only lower it."
            f" Use at most {current_ceiling}.",
            param="ceiling",
        )


async def delete_limit(conn: Any, actor: Actor, limit: Limit) -> None:
    """Delete a limit. Entries that counted on it keep its id.

    :raises Conflict: when the limit is the counter of one end user.
    :raises Forbidden: when an administrator tries to delete a limit that the operator set.
    """
    _reject_counter(limit)
    await audit.lock(conn, limit.organization_id)
    setting = await conn.fetchrow(READ_SETTING, limit.organization_id, limit.id)
    if actor.is_administrator and setting is not None and setting["set_by"] == "operator":
        raise Forbidden("The operator set this limit, so only the operator can delete it.")
    status = await conn.execute(DELETE_LIMIT, limit.organization_id, limit.id)
    if status == "UPDATE 1":
        await audit.record(conn, limit.organization_id, actor, "limit.delete", str(limit.id))


async def end_limits(conn: Any, organization_id: UUID) -> int:
    """Delete all limits of an organization that is deleted, and return how many there were. The
    caller has locked the organization, and audits its end."""
    status: str = await conn.execute(END_LIMITS, organization_id)
    return int(status.removeprefix("UPDATE "))
