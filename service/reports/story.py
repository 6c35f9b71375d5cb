"""The whole story of one request: a call that was settled, one in flight, or a refusal."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from service import ledger, money
from service.database.database import Database
from service.derived import RefusalFilter, RefusalLine, list_refusals
from service.errors import NotFound
from service.ledger import Limit

MAX_ID_LENGTH: Final = 64
MAX_MATCHES: Final = 1_000
"""How many calls with one id are looked at. A caller may send the same id with each."""
MAX_OTHERS: Final = 20
MAX_LINES: Final = 100
"""How many attempts and amendments a story has at most."""

FIRST_ID: Final = UUID(int=0)
LAST_ID: Final = UUID(int=2**128 - 1)

State = Literal["settled", "in_flight", "refused"]

FIND_HOLDS: Final = """
    SELECT organization_id, id
    FROM public.holds
    WHERE request_id = $1
      AND ($2::uuid IS NULL OR organization_id = $2)
    ORDER BY id DESC
    LIMIT $3
"""
FIND_HOLD_BY_ID: Final = """
    SELECT organization_id, id
    FROM public.holds
    WHERE id = $1
      AND ($2::uuid IS NULL OR organization_id = $2)
"""
# A range of organizations, which the index finds whether it is one or all of them.
FIND_CALLS: Final = """
    SELECT organization_id, id
    FROM public.ledger_entries
    WHERE request_id = $1
      AND organization_id BETWEEN $2 AND $3
      AND kind = 'call'
    LIMIT $4
"""
READ_CALL: Final = """
    SELECT e.id, e.amends_id, e.organization_id, o.name AS organization_name, e.api_key_id,
           k.name AS key_name, k.prefix AS key_prefix, encode(e.end_user, 'hex') AS end_user,
           e.request_id, e.endpoint, e.model, e.requested_model, e.is_stream, e.tags::text AS tags,
           e.bound_nanos, e.bound_tokens, e.limit_ids, e.outcome, e.status, e.first_byte_ms,
           e.duration_ms, e.input_tokens, e.cached_input_tokens, e.output_tokens, e.cost_nanos,
           e.cost_source, e.price_version, e.counted_at, e.upstream_request_id,
           u.name AS upstream_key_name
    FROM public.ledger_entries e
    JOIN public.organizations o ON o.id = e.organization_id
    LEFT JOIN public.api_keys k ON k.id = e.api_key_id
    LEFT JOIN public.upstream_keys u ON u.id = e.upstream_key_id
    WHERE e.organization_id = $1
      AND e.id = $2
"""
READ_HOLD: Final = """
    SELECT h.id, h.organization_id, o.name AS organization_name, h.api_key_id, k.name AS key_name,
           k.prefix AS key_prefix, encode(h.end_user, 'hex') AS end_user, h.request_id, h.endpoint,
           h.model, h.requested_model, h.is_stream, h.tags::text AS tags, h.bound_nanos,
           h.bound_tokens, h.limit_ids, h.price_version, h.upstream_request_id,
           u.name AS upstream_key_name
    FROM public.holds h
    JOIN public.organizations o ON o.id = h.organization_id
    LEFT JOIN public.api_keys k ON k.id = h.api_key_id
    LEFT JOIN public.upstream_keys u ON u.id = h.upstream_key_id
    WHERE h.organization_id = $1
      AND h.id = $2
"""
LIST_AMENDMENTS: Final = """
    SELECT id, kind, cost_nanos, cost_source, note, counted_at,
           sum(cost_nanos) OVER () AS all_nanos,
           count(*) FILTER (WHERE cost_nanos IS NULL) OVER () AS unknown_costs
    FROM public.ledger_entries
    WHERE organization_id = $1
      AND amends_id = $2
    ORDER BY counted_at, id
    LIMIT $3
"""
LIST_ATTEMPTS: Final = """
    SELECT a.number, a.started_at, a.duration_ms, a.model, u.name AS upstream_key_name, a.status,
           a.code
    FROM derived.attempts a
    LEFT JOIN public.upstream_keys u ON u.id = a.upstream_key_id
    WHERE a.entry_id = $1
    ORDER BY a.number
    LIMIT $2
"""


class StoryLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit of the request. Money is a decimal string. ``needed`` is what a refused call asked
    of it, at most."""

    id: UUID
    scope: str
    unit: str
    period: str | None
    model: str | None
    ceiling: str | int
    used: str | int
    held: str | int
    needed: str | int | None
    resets_at: datetime | None


class StoryAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt at Venice. ``code`` is ``ok`` or why it failed, ``status`` is Venice's own. Only
    the operator sees the name of the key at Venice."""

    number: int
    started_at: datetime
    duration_ms: int
    model: str
    upstream_key_name: str | None
    status: int | None
    code: str


class Amendment(msgspec.Struct, frozen=True, kw_only=True):
    """A correction or a credit of a call."""

    id: UUID
    kind: str
    cost_usd: str | None
    cost_source: str
    note: str | None
    counted_at: datetime


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """Something else with the same id of a request, which is found by its own id."""

    id: UUID
    state: State
    at: datetime


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request. It has no part of what was sent or answered.

    ``id`` is that of the ledger entry, the hold or the refusal. ``at`` is when the call asked for
    admission or was refused. ``limits`` are those that counted the call, as they are now, or the
    one that refused it, as it was then; ``limits_as_of`` states which. ``attempts`` are recorded
    only if one failed. ``end_user`` is the hex digest of a name. ``total_cost_usd`` is the cost
    with all corrections and credits. ``others`` are older requests with the same id. What does not
    apply to the state is null.
    """

    state: State
    id: UUID
    request_id: str
    at: datetime
    organization_id: UUID | None
    organization_name: str | None
    api_key_id: UUID | None
    key_name: str | None
    key_prefix: str | None
    end_user: str | None
    method: str | None = None
    route: str | None = None
    endpoint: str | None
    model: str | None
    requested_model: str | None
    is_stream: bool | None
    tags: dict[str, str] | None = None
    bound_usd: str | None = None
    bound_tokens: int | None = None
    limits: Sequence[StoryLimit]
    limits_as_of: Literal["now", "refusal"]
    attempts: Sequence[StoryAttempt] = ()
    outcome: str | None = None
    status: int | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None
    retry_after_s: int | None = None
    repeats: int | None = None
    first_byte_ms: int | None = None
    duration_ms: int | None = None
    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: str | None = None
    cost_source: str | None = None
    total_cost_usd: str | None = None
    price_version: int | None = None
    counted_at: datetime | None = None
    upstream_request_id: str | None = None
    upstream_key_name: str | None = None
    amendments: Sequence[Amendment] = ()
    others: Sequence[Match] = ()


class _Place(msgspec.Struct, frozen=True):
    """An entry, a hold or a refusal that has the id."""

    match: Match
    organization_id: UUID | None
    refusal: RefusalLine | None = None


async def find(database: Database, request_id: str, organization_id: UUID | None) -> Story:
    """Find what became of a request, by its id or that of its ledger entry or refusal.

    If several have the id, the newest is found. With ``organization_id``, only requests of the
    organization are found, and nothing of the operator's keys at Venice is shown.

    :raises NotFound: when nothing is known by this id.
    :raises Unavailable: when the database does not answer in time.
    """
    if not 0 < len(request_id) <= MAX_ID_LENGTH or "\0" in request_id:
        raise _unknown()
    places = await _by_request_id(database, request_id, organization_id)
    if not places and (found := await _by_id(database, request_id, organization_id)):
        places = [found]
    if not places:
        raise _unknown()
    newest, *others = sorted(places, key=lambda place: place.match.at, reverse=True)
    if newest.refusal is not None:
        story = _of_refusal(newest.refusal)
    else:
        assert newest.organization_id is not None  # noqa: S101 - calls have one
        story = await _of_call(database, newest.organization_id, newest.match)
    if organization_id is not None:
        story = _without_upstream_keys(story)
    matches = [place.match for place in others[:MAX_OTHERS]]
    return msgspec.structs.replace(story, others=matches)


async def _by_request_id(
    database: Database, request_id: str, organization_id: UUID | None
) -> list[_Place]:
    # Holds first: a call that is settled meanwhile is found among the entries.
    holds = await database.fetch(FIND_HOLDS, request_id, organization_id, MAX_MATCHES)
    first, last = organization_id or FIRST_ID, organization_id or LAST_ID
    calls = await database.fetch(FIND_CALLS, request_id, first, last, MAX_MATCHES)
    wanted = RefusalFilter(request_id=request_id, organization_id=organization_id)
    page = await list_refusals(database, wanted, None, MAX_OTHERS)
    settled = {row["id"] for row in calls}
    return [
        *(_place(row, "settled") for row in calls),
        *(_place(row, "in_flight") for row in holds if row["id"] not in settled),
        *map(_refused, page.refusals),
    ]


async def _by_id(database: Database, text: str, organization_id: UUID | None) -> _Place | None:
    """Find a call by the id of its entry or hold, or of an entry that amends it; or a refusal."""
    try:
        wanted = UUID(text)
    except ValueError:
        return None
    if (row := await database.fetchrow(FIND_HOLD_BY_ID, wanted, organization_id)) is not None:
        return _place(row, "in_flight")
    page = await list_refusals(
        database, RefusalFilter(refusal_id=wanted, organization_id=organization_id), None, 1
    )
    if page.refusals:
        return _refused(page.refusals[0])
    try:
        owner = organization_id or await ledger.find_owner(database, wanted)
    except NotFound:
        return None
    row = await database.fetchrow(READ_CALL, owner, wanted)
    if row is None:
        return None
    call_id = row["amends_id"] or row["id"]
    return _place({"id": call_id, "organization_id": owner}, "settled")


def _place(row: Mapping[str, Any], state: State) -> _Place:
    match = Match(id=row["id"], state=state, at=_time_of(row["id"]))
    return _Place(match, row["organization_id"])


def _refused(refusal: RefusalLine) -> _Place:
    match = Match(id=refusal.id, state="refused", at=refusal.refused_at)
    return _Place(match, refusal.organization_id, refusal)


def _time_of(uuid7: UUID) -> datetime:
    return datetime.fromtimestamp((uuid7.int >> 80) / 1000, UTC)


def _unknown() -> NotFound:
    return NotFound(
        "There is no call or refusal with this id. Refusals and the ledger are kept for the time"
        " that the settings state."
    )


async def _of_call(database: Database, organization_id: UUID, match: Match) -> Story:
    """Build the story of a call, which may have been settled since it was found in flight."""
    state, row = match.state, None
    if state == "in_flight":
        row = await database.fetchrow(READ_HOLD, organization_id, match.id)
    if row is None:
        state = "settled"
        row = await database.fetchrow(READ_CALL, organization_id, match.id)
    if row is None:
        raise _unknown()
    facts = dict(row)
    facts.pop("amends_id", None)
    tags, limit_ids = facts.pop("tags"), facts.pop("limit_ids")
    bound_nanos, cost_nanos = facts.pop("bound_nanos"), facts.pop("cost_nanos", None)
    limits = await ledger.read_limits(database, limit_ids)
    attempts = await database.fetch(LIST_ATTEMPTS, match.id, MAX_LINES)
    amendments = []
    if state == "settled":
        amendments = await database.fetch(LIST_AMENDMENTS, organization_id, match.id, MAX_LINES)
    return Story(
        **facts,
        state=state,
        at=match.at,
        tags=None if tags is None else msgspec.json.decode(tags),
        bound_usd=_usd(bound_nanos),
        cost_usd=_usd(cost_nanos),
        total_cost_usd=_total(cost_nanos, amendments),
        limits=[_as_it_is(limit) for limit in limits],
        limits_as_of="now",
        attempts=[StoryAttempt(**attempt) for attempt in attempts],
        amendments=[_amendment(amendment) for amendment in amendments],
    )


def _of_refusal(refusal: RefusalLine) -> Story:
    facts = msgspec.structs.asdict(refusal)
    at, limit = facts.pop("refused_at"), facts.pop("limit")
    limits = [] if limit is None else [msgspec.convert({"needed": None, **limit}, StoryLimit)]
    return Story(**facts, state="refused", at=at, limits=limits, limits_as_of="refusal")


def _as_it_is(limit: Limit) -> StoryLimit:
    return StoryLimit(
        id=limit.id,
        scope=limit.scope,
        unit=limit.unit,
        period=limit.period,
        model=limit.model,
        ceiling=limit.ceiling,
        used=limit.used,
        held=limit.held,
        needed=None,
        resets_at=limit.resets_at,
    )


def _amendment(row: Any) -> Amendment:
    facts = {name: row[name] for name in ("id", "kind", "cost_source", "note", "counted_at")}
    return Amendment(cost_usd=_usd(row["cost_nanos"]), **facts)


def _total(cost_nanos: int | None, amendments: Sequence[Any]) -> str | None:
    """The cost with all that amends it, more than is listed too; None if a part is unknown."""
    if not amendments or cost_nanos is None:
        return _usd(cost_nanos)
    first = amendments[0]
    return None if first["unknown_costs"] else _usd(cost_nanos + int(first["all_nanos"]))


def _usd(nanos: int | None) -> str | None:
    return None if nanos is None else money.format_usd(nanos)


def _without_upstream_keys(story: Story) -> Story:
    attempts = [
        msgspec.structs.replace(attempt, upstream_key_name=None) for attempt in story.attempts
    ]
    return msgspec.structs.replace(story, upstream_key_name=None, attempts=attempts)
