"""Exports the ledger as CSV (RFC 4180) or JSON lines."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from service.database.database import Database
from service.ledger.entries import LedgerEntry

ExportFormat = Literal["csv", "jsonl"]

CONTENT_TYPES: Final[dict[ExportFormat, str]] = {
    "csv": "text/csv",
    "jsonl": "application/x-ndjson",
}
HEADERS: Final[dict[ExportFormat, bytes]] = {
    "csv": (",".join(LedgerEntry.__struct_fields__) + "\r\n").encode(),
    "jsonl": b"",
}
FIRST_ID: Final = UUID(int=0)
PAGE_ROWS: Final = 500

# ruff: noqa: S608 - statements are built from constants
# Oldest first, after the given entry.
PAGE: Final = """
    FROM public.ledger_entries
    WHERE organization_id = $1
      AND (counted_at, id) > ($2::timestamptz, $3::uuid)
      AND counted_at < $4::timestamptz
    ORDER BY counted_at, id
    LIMIT $5
"""
# PostgreSQL builds the lines, one page per value, so the service only passes them on and stays free
# for calls. The columns are those of LedgerEntry, in its order.
EXPORT_JSONL: Final = f"""
    SELECT string_agg(row_to_json(e)::text || E'\\n', '' ORDER BY e.counted_at, e.id) AS lines,
           (array_agg(e.id ORDER BY e.counted_at DESC, e.id DESC))[1] AS last_id,
           max(e.counted_at) AS last_at, count(*) AS entries
    FROM (
        SELECT id, kind, amends_id, api_key_id, encode(end_user, 'hex') AS end_user, request_id,
               endpoint, model, requested_model, is_stream, outcome, status, input_tokens,
               cached_input_tokens, output_tokens, public.usd_text(cost_nanos) AS cost_usd,
               cost_source, public.usd_text(bound_nanos) AS bound_usd, bound_tokens, price_version,
               upstream_request_id, first_byte_ms, duration_ms, tags, note, counted_at, created_at
        {PAGE}
    ) e
"""
EXPORT_CSV: Final = f"""
    SELECT string_agg(e.line, '' ORDER BY e.counted_at, e.id) AS lines,
           (array_agg(e.id ORDER BY e.counted_at DESC, e.id DESC))[1] AS last_id,
           max(e.counted_at) AS last_at, count(*) AS entries
    FROM (
        SELECT id, counted_at, concat_ws(
                   ',', id, kind, coalesce(amends_id::text, ''), coalesce(api_key_id::text, ''),
                   coalesce(encode(end_user, 'hex'), ''), public.csv_cell(request_id),
                   public.csv_cell(endpoint), public.csv_cell(model),
                   public.csv_cell(requested_model), coalesce(is_stream::text, ''),
                   public.csv_cell(outcome), coalesce(status::text, ''),
                   coalesce(input_tokens::text, ''), coalesce(cached_input_tokens::text, ''),
                   coalesce(output_tokens::text, ''), coalesce(public.usd_text(cost_nanos), ''),
                   cost_source, coalesce(public.usd_text(bound_nanos), ''),
                   coalesce(bound_tokens::text, ''), coalesce(price_version::text, ''),
                   public.csv_cell(upstream_request_id), coalesce(first_byte_ms::text, ''),
                   coalesce(duration_ms::text, ''), public.csv_cell(tags::text),
                   public.csv_cell(note), coalesce(to_json(counted_at) #>> '{{}}', ''),
                   to_json(created_at) #>> '{{}}'
               ) || E'\\r\\n' AS line
        {PAGE}
    ) e
"""
COUNT: Final = """
    SELECT count(*) AS entries
    FROM public.ledger_entries
    WHERE organization_id = $1
      AND counted_at >= $2
      AND counted_at < $3
"""
STATEMENTS: Final[dict[ExportFormat, str]] = {"csv": EXPORT_CSV, "jsonl": EXPORT_JSONL}


async def export(
    database: Database,
    organization_id: UUID,
    export_format: ExportFormat,
    start: datetime,
    end: datetime,
) -> AsyncIterator[tuple[bytes, int]]:
    """Yield the entries settled from ``start`` to before ``end``, as lines and their number.

    Entries are in order of settlement by the database's clock. Each page is a short statement of
    its own, so entries settled during the export may or may not be included.

    :raises Unavailable: when the database cannot be read.
    """
    # No entry has this id, so entries settled exactly at the start are included.
    after = (start, FIRST_ID)
    yield HEADERS[export_format], 0
    while True:
        async with database.reading() as conn:
            page = await conn.fetchrow(
                STATEMENTS[export_format], organization_id, *after, end, PAGE_ROWS
            )
        if page["entries"]:
            yield page["lines"].encode(), page["entries"]
        if page["entries"] < PAGE_ROWS:
            return
        after = (page["last_at"], page["last_id"])


async def count_entries(
    database: Database, organization_id: UUID, start: datetime, end: datetime
) -> int:
    """Return how many entries :func:`export` has for a period.

    :raises Unavailable: when the database cannot be read.
    """
    async with database.reading() as conn:
        row = await conn.fetchrow(COUNT, organization_id, start, end)
    return int(row["entries"])
