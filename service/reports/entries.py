"""Searches the ledger, of one organization or of all, newest settlement first.

One statement looks at no more than ``MAX_SCANNED_OF_ONE`` or ``MAX_SCANNED_OF_ALL`` entries,
however few of them match. A page that ends there has a cursor to go on from, so no search runs for
long.
"""

import contextlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from service.accounts import parse_id
from service.database.database import Database
from service.errors import ClientError
from service.ledger import LedgerEntry
from service.ledger.entries import COLUMNS, facts_of

MAX_SCANNED_OF_ONE: Final = 3_000
"""The most entries of one organization that a page looks at. Each may be in a block of its own on
the disk."""
MAX_SCANNED_OF_ALL: Final = 10_000
"""The most entries of all organizations that a page looks at. Neighbours share a block."""
CURSOR_FORM: Final = re.compile(r"([0-9a-f]{16})([0-9a-f]{32})")
"""The time in microseconds since 1970 and the id of the entry that a page comes after."""
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# ruff: noqa: S608 - statements are built from constants
MATCHES: Final = """(
    ($4::uuid IS NULL OR e.api_key_id = $4)
    AND ($5::text IS NULL OR e.model = $5)
    AND ($6::text IS NULL OR e.outcome = $6)
    AND ($7::text IS NULL OR e.endpoint = $7)
    AND ($8::bytea IS NULL OR e.end_user = $8)
    AND ($9::text IS NULL OR e.tags ->> $9 = $10)
    AND ($11::bigint IS NULL OR e.cost_nanos > $11)
    AND ($12::text IS NULL OR e.kind = $12)
) IS TRUE"""
# The names are looked up for the rows of the page alone. As joins they might be read whole.
SHOWN: Final = f"""
    organization_id,
    (SELECT o.name FROM public.organizations o WHERE o.id = e.organization_id)
        AS organization_name,
    (SELECT k.name FROM public.api_keys k WHERE k.id = e.api_key_id) AS key_name,
    (SELECT k.prefix FROM public.api_keys k WHERE k.id = e.api_key_id) AS key_prefix,
    {COLUMNS}
"""
# The last entry that is looked at comes back whether or not it matches, as the place to go on from.
# row_number() counts while the index is read, so the scan ends once the page is full.
PAGE: Final = """
    WHERE e.is_match
       OR e.is_last
    ORDER BY e.sort_at DESC, e.id DESC
    LIMIT $13
"""
# The order is spelled as in the index of all entries, which serves this statement alone.
NEWEST_OF_ALL: Final = f"""
    SELECT {SHOWN}, e.is_match, e.is_last
    FROM (
        SELECT e.*, e.counted_at AT TIME ZONE 'UTC' AS sort_at, {MATCHES} AS is_match,
               row_number() OVER (ORDER BY e.counted_at AT TIME ZONE 'UTC' DESC, e.id DESC)
                   = {MAX_SCANNED_OF_ALL} AS is_last
        FROM public.ledger_entries e
        WHERE (e.counted_at AT TIME ZONE 'UTC', e.id)
              < ($1::timestamptz AT TIME ZONE 'UTC', $2::uuid)
          AND e.counted_at AT TIME ZONE 'UTC' >= $3::timestamptz AT TIME ZONE 'UTC'
        ORDER BY sort_at DESC, e.id DESC
        LIMIT {MAX_SCANNED_OF_ALL}
    ) e
    {PAGE}
"""
NEWEST_OF_ONE: Final = f"""
    SELECT {SHOWN}, e.is_match, e.is_last
    FROM (
        SELECT e.*, e.counted_at AS sort_at, {MATCHES} AS is_match,
               row_number() OVER (ORDER BY e.counted_at DESC, e.id DESC)
                   = {MAX_SCANNED_OF_ONE} AS is_last
        FROM public.ledger_entries e
        WHERE e.organization_id = $14
          AND (e.counted_at, e.id) < ($1::timestamptz, $2::uuid)
          AND e.counted_at >= $3::timestamptz
        ORDER BY e.counted_at DESC, e.id DESC
        LIMIT {MAX_SCANNED_OF_ONE}
    ) e
    {PAGE}
"""
# A caller may give many requests the same id. Both bounds are columns of the index, so that nobody
# reads through the entries of another organization.
OF_REQUEST: Final = f"""
    SELECT {SHOWN}, true AS is_match, false AS is_last
    FROM (
        SELECT e.*
        FROM public.ledger_entries e
        WHERE e.request_id = $14
          AND e.organization_id BETWEEN $15 AND $16
          AND (e.counted_at, e.id) < ($1::timestamptz, $2::uuid)
          AND e.counted_at >= $3::timestamptz
        LIMIT {MAX_SCANNED_OF_ONE}
    ) e
    WHERE {MATCHES}
    ORDER BY e.counted_at DESC, e.id DESC
    LIMIT $13
"""
FIND_OWNER: Final = """
    SELECT organization_id
    FROM public.api_keys
    WHERE id = $1
"""
FIND_POSITION: Final = """
    SELECT counted_at, id
    FROM public.ledger_entries
    WHERE organization_id = $1
      AND id = $2
"""


class EntryFilter(msgspec.Struct, frozen=True, kw_only=True):
    """The entries to find; None does not restrict them.

    ``start`` is included and ``end`` is not; both are times of settlement, and a ``request_id``
    is found whenever it was. ``end_user`` is a digest, so it belongs to one organization. ``tag``
    is a name and its value.
    """

    organization_id: UUID | None = None
    api_key_id: UUID | None = None
    request_id: str | None = None
    model: str | None = None
    outcome: str | None = None
    endpoint: str | None = None
    end_user: bytes | None = None
    tag: tuple[str, str] | None = None
    cost_over_nanos: int | None = None
    kind: str | None = None
    start: datetime | None = None
    end: datetime | None = None


class EntryLine(LedgerEntry, frozen=True, kw_only=True):
    """An entry with the names of its organization and key, null where they are gone."""

    organization_id: UUID
    organization_name: str | None
    key_name: str | None
    key_prefix: str | None


class EntryPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of entries, newest settlement first.

    ``next`` is the cursor of the following page, null at the end. A search that looks at many
    entries for few matches returns short or empty pages that have one.
    """

    entries: Sequence[EntryLine]
    next: str | None


class _Position(NamedTuple):
    """The place of an entry in the order of the list."""

    counted_at: datetime
    id: UUID


FIRST_ID: Final = UUID(int=0)
LAST_ID: Final = UUID(int=2**128 - 1)
NEWEST_POSITION: Final = _Position(datetime.max.replace(tzinfo=UTC), LAST_ID)
OLDEST_TIME: Final = datetime.min.replace(tzinfo=UTC)


async def search(
    database: Database, wanted: EntryFilter, before: str | None, limit: int
) -> EntryPage:
    """Return a page of the entries that are wanted, older than the cursor ``before``.

    An organization's entry id is a cursor too, for a search of that organization.

    :raises ClientError: when the cursor is malformed.
    :raises Unavailable: when the database does not answer in time.
    """
    if wanted.api_key_id is not None and wanted.organization_id is None:
        # The entries of a key are found sooner among those of its organization.
        owner = await database.fetchval(FIND_OWNER, wanted.api_key_id)
        wanted = msgspec.structs.replace(wanted, organization_id=owner)
    position = await _position(database, wanted, before)
    if position is None:
        return EntryPage(entries=[], next=None)
    start = wanted.start or OLDEST_TIME
    if wanted.request_id is not None:
        start = OLDEST_TIME
    elif wanted.end is not None:
        position = min(position, _Position(wanted.end, FIRST_ID))
    sql, scope = _statement(wanted)
    tag_name, tag_value = wanted.tag or (None, None)
    filters = (
        wanted.api_key_id,
        wanted.model,
        wanted.outcome,
        wanted.endpoint,
        wanted.end_user,
        tag_name,
        tag_value,
        wanted.cost_over_nanos,
        wanted.kind,
    )
    rows = await database.fetch(sql, *position, start, *filters, limit + 1, *scope)
    return _page(rows, limit)


def _statement(wanted: EntryFilter) -> tuple[str, tuple[Any, ...]]:
    """Return the statement that finds what is wanted, and its last arguments."""
    owner = wanted.organization_id
    if wanted.request_id is not None:
        first, last = (FIRST_ID, LAST_ID) if owner is None else (owner, owner)
        return OF_REQUEST, (wanted.request_id, first, last)
    return (NEWEST_OF_ALL, ()) if owner is None else (NEWEST_OF_ONE, (owner,))


def _page(rows: Sequence[Any], limit: int) -> EntryPage:
    entries: list[EntryLine] = []
    for row in rows:
        if len(entries) == limit:
            return EntryPage(entries=entries, next=_cursor(entries[-1]))
        if row["is_match"]:
            entries.append(_line(row))
        if row["is_last"]:
            return EntryPage(entries=entries, next=_cursor(_line(row)))
    return EntryPage(entries=entries, next=None)


def _line(row: Any) -> EntryLine:
    facts = facts_of(row)
    del facts["is_match"], facts["is_last"]
    return EntryLine(**facts)


def _cursor(line: EntryLine) -> str:
    assert line.counted_at is not None  # noqa: S101 - entries without a time are not listed
    micros = (line.counted_at - EPOCH) // timedelta(microseconds=1)
    return f"{micros:016x}{line.id.hex}"


async def _position(
    database: Database, wanted: EntryFilter, before: str | None
) -> _Position | None:
    """Return where the page starts; None when the organization has no such entry."""
    if not before:
        return NEWEST_POSITION
    if cursor := CURSOR_FORM.fullmatch(before):
        with contextlib.suppress(OverflowError):
            at = EPOCH + timedelta(microseconds=int(cursor[1], 16))
            return _Position(at, UUID(cursor[2]))
    entry_id = parse_id(before)
    if entry_id is None or wanted.organization_id is None:
        raise ClientError("after: must be the next of the page before.", param="after")
    row = await database.fetchrow(FIND_POSITION, wanted.organization_id, entry_id)
    return None if row is None or row["counted_at"] is None else _Position(**row)
