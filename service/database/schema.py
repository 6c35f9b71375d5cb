"""The schema: apply migrations and functions safely, and find the fourteen tables before serving.

A serving process imports neither yoyo nor psycopg: only ``migrator`` does, and a start runs it in a
process of its own, with ``migration_process``.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

import asyncpg
import msgspec
import structlog

from service.database.database import Database
from service.database.functions import RECORDED, compare, read_functions
from service.errors import StartupError
from service.settings.address import DatabaseAddress
from service.telemetry import logs

log = structlog.get_logger()

MIGRATIONS_DIRECTORY: Final = Path(__file__).resolve().parents[2] / "migrations"
OLDEST_SERVER: Final = 16
TURN_TIMEOUT_S: Final = 300.0
LOCK_TIMEOUT_S: Final = 0.1
"""Calls of the release before queue behind a session that waits for a lock."""
OLD_CHAIN: Final = "0001_accounts"
"""The first of the migrations that the baseline has replaced."""


def _columns(names: str) -> tuple[str, ...]:
    return tuple(names.split())


TABLES: Final[dict[str, tuple[str, ...]]] = {
    "organizations": _columns(
        "id name status settings wrapped_data_key audit_sequence audit_head created_at "
        "updated_at deleted_at"
    ),
    "api_keys": _columns(
        "id organization_id name role digest prefix settings allowed_models allowed_endpoints "
        "ip_allow_list expires_at revoked_at previous_digest previous_until last_used_at "
        "created_at updated_at set_by"
    ),
    "limits": _columns(
        "organization_id id scope api_key_id end_user template_id model unit period ceiling "
        "used held carried window_start buckets bucket_at raised_to raised_until "
        "alert_percents alerted_percent children created_at updated_at deleted_at "
        "set_by"
    ),
    "upstream_keys": _columns(
        "id name role source organization_id sealed_key status status_reason set_aside_until "
        "balance_usd_nanos balance_diem_nanos tier billing_cursor last_checked_at created_at "
        "updated_at last_check condition condition_at"
    ),
    "models": _columns(
        "id organization_id name version is_current kind type capabilities prices "
        "context_tokens max_output_tokens deprecation targets created_at listing position "
        "also_named retired_at set_by"
    ),
    "holds": _columns(
        "organization_id id api_key_id end_user request_id endpoint model is_stream "
        "bound_nanos bound_tokens limit_ids limit_windows process_id lease_until "
        "price_version upstream_key_id upstream_request_id tags created_at requested_model"
    ),
    "ledger_entries": _columns(
        "organization_id id kind amends_id api_key_id end_user request_id endpoint model "
        "requested_model is_stream outcome status requests tokens input_tokens "
        "cached_input_tokens output_tokens cost_nanos cost_source bound_nanos bound_tokens "
        "price_version limit_ids limit_windows counted_at upstream_key_id upstream_request_id "
        "first_byte_ms duration_ms tags note created_at"
    ),
    "idempotency_keys": _columns(
        "organization_id api_key_id route key id request_digest state lease_until call_id "
        "status headers expires_at created_at"
    ),
    "generations": _columns(
        "organization_id id api_key_id kind parent_id custom_id previous_id call_id status "
        "process_id lease_until next_poll_at upstream_key_id upstream_reference metadata "
        "error created_at updated_at expires_at"
    ),
    "conversations": _columns(
        "organization_id id api_key_id metadata created_at updated_at expires_at"
    ),
    "items": _columns("organization_id parent_id position kind sealed created_at"),
    "webhook_endpoints": _columns(
        "id organization_id url events status sealed_secret previous_sealed_secret "
        "previous_until created_at updated_at"
    ),
    "webhook_deliveries": _columns(
        "organization_id id endpoint_id event payload attempts next_attempt_at delivered_at "
        "response_status error created_at"
    ),
    "audit_events": _columns(
        "organization_id sequence id actor action target detail request_id created_at "
        "previous_hash hash"
    ),
}
"""The tables in the order of docs/books.md, each with the columns that this code needs. A column
leaves this list one release before the migration that drops it."""
USAGE_COLUMNS: Final = _columns(
    "cut start_at organization_id api_key_id model endpoint outcome entries calls failures "
    "input_tokens cached_input_tokens output_tokens cost_nanos unknown_costs first_bytes durations"
)
DERIVED_TABLES: Final[dict[str, tuple[str, ...]]] = {
    "derived.refusals": _columns(
        "id refused_at request_id method route status code message param organization_id "
        "api_key_id key_prefix end_user endpoint model requested_model is_stream limit_state "
        "retry_after_s repeats"
    ),
    "derived.attempts": _columns(
        "id organization_id entry_id number started_at duration_ms model upstream_key_id status "
        "code"
    ),
    "derived.usage": USAGE_COLUMNS,
    "derived.usage_by_hour": USAGE_COLUMNS,
    "derived.usage_by_day": USAGE_COLUMNS,
    "derived.key_usage_by_hour": USAGE_COLUMNS,
    "derived.key_usage_by_day": USAGE_COLUMNS,
    "derived.model_usage_by_hour": USAGE_COLUMNS,
    "derived.model_usage_by_day": USAGE_COLUMNS,
    "derived.usage_cursor": _columns("is_only counted_to next_to waits_for"),
}
"""The tables of the schema ``derived``, whose rows can be lost or made again."""


def migration_ids(directory: Path = MIGRATIONS_DIRECTORY) -> list[str]:
    """Return the migrations of this code: their file names without the ending, in order.

    :raises StartupError: when there are none.
    """
    ids = sorted(
        path.stem for path in directory.glob("*.sql") if not path.name.endswith(".rollback.sql")
    )
    if not ids:
        raise StartupError(
            f"There are no migrations in {directory}.",
            "The installation is incomplete: the directory belongs beside the package.",
        )
    return ids


TABLE_IS_THERE: Final = "SELECT to_regclass('yoyo._yoyo_migration') IS NOT NULL"
APPLIED: Final = "SELECT migration_id FROM yoyo._yoyo_migration"
LIST_APPLIED: Final = """
    SELECT migration_id AS name, applied_at_utc AT TIME ZONE 'UTC' AS applied_at
    FROM yoyo._yoyo_migration
    ORDER BY migration_id
"""


async def pending(
    conn: asyncpg.Connection, directory: Path = MIGRATIONS_DIRECTORY
) -> tuple[list[str], list[str]]:
    """Return what the database lacks, and what it has that is newer than this code.

    Each is a list of the ids of migrations, then of functions as ``function NAME``.

    :raises StartupError: when the database is of the old chain.
    """
    ids, functions = migration_ids(directory), read_functions(directory)
    applied: set[str] = set()
    recorded: dict[str, list[str]] = {}
    if await conn.fetchval(TABLE_IS_THERE):
        applied = {row["migration_id"] for row in await conn.fetch(APPLIED)}
        refuse_old_chain(applied)
        recorded = {row["name"]: row["checksums"] for row in await conn.fetch(RECORDED)}
    lacking, replaced = compare(functions, recorded)
    return (
        [name for name in ids if name not in applied] + [f"function {one.name}" for one in lacking],
        sorted(applied.difference(ids)) + [f"function {one.name}" for one in replaced],
    )


class AppliedMigration(msgspec.Struct, frozen=True, kw_only=True):
    """A migration of the database. ``is_known`` is False for one that is newer than this code."""

    name: str
    applied_at: datetime
    is_known: bool


async def list_applied(database: Database) -> list[AppliedMigration]:
    """Return the migrations that the database has, in their order."""
    known = migration_ids()
    return [
        AppliedMigration(**row, is_known=row["name"] in known)
        for row in await database.fetch(LIST_APPLIED)
    ]


def refuse_old_chain(applied: Collection[str]) -> None:
    """:raises StartupError: when migrations were applied that the baseline has replaced."""
    if OLD_CHAIN in applied:
        raise StartupError(
            "The database was made by the migrations before the baseline, which no longer exist.",
            "In development, stop the service and remove .rialto/. Elsewhere, start with an empty"
            " database.",
        )


COLUMNS: Final = """
    SELECT CASE namespace.nspname
               WHEN 'public' THEN class.relname::text
               ELSE namespace.nspname || '.' || class.relname
           END AS "table",
           array_agg(attribute.attname::text) AS columns
    FROM pg_catalog.pg_class AS class
    JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
    JOIN pg_catalog.pg_attribute AS attribute ON attribute.attrelid = class.oid
    WHERE namespace.nspname IN ('public', 'derived')
      AND class.relkind IN ('r', 'p')
      AND attribute.attnum > 0
      AND NOT attribute.attisdropped
    GROUP BY 1
"""


async def verify(conn: asyncpg.Connection, directory: Path = MIGRATIONS_DIRECTORY) -> None:
    """Find the fourteen tables, and log each of them. The service does not serve without them.

    A database that is newer than the code is accepted while it has what the code needs.

    :raises StartupError: naming each table and column that is missing.
    """
    check_server_version(conn.get_server_version().major)
    lacking, unknown = await pending(conn, directory)
    if unknown:
        log.warning("database is newer than the code", migrations=unknown)
    found = {row["table"]: row["columns"] for row in await conn.fetch(COLUMNS)}
    for number, table in enumerate(TABLES, start=1):
        if table in found:
            logs.detail(f"{number}/{len(TABLES)} {table}")
    if missing := _missing(found):
        raise StartupError(
            f"The database lacks what this version needs: {', '.join(missing)}.",
            "Deploy the version that fits the database, or restore the database from a backup."
            if not lacking
            else "Apply the migrations: scripts/migrate.sh.",
        )
    if lacking:
        raise StartupError(
            f"The database lacks migrations: {', '.join(lacking)}.",
            "Apply them: scripts/migrate.sh.",
        )
    log.info("tables", found=len(TABLES))


def _missing(found: Mapping[str, Collection[str]]) -> list[str]:
    """Return the tables and columns that this code needs and the database lacks."""
    missing = []
    for table, columns in (TABLES | DERIVED_TABLES).items():
        if table not in found:
            missing.append(f"table {table}")
        else:
            missing += [f"column {table}.{name}" for name in columns if name not in found[table]]
    return missing


def check_server_version(major: int) -> None:
    """:raises StartupError: when the server is older than what the SQL needs."""
    if major < OLDEST_SERVER:
        raise StartupError(
            f"The server is PostgreSQL {major}; {OLDEST_SERVER} is the oldest that will do.",
            f"Move the database to PostgreSQL {OLDEST_SERVER} or newer.",
        )


def apply(
    address: DatabaseAddress,
    *,
    directory: Path = MIGRATIONS_DIRECTORY,
    connect_timeout_s: float = 30.0,
    turn_timeout_s: float = TURN_TIMEOUT_S,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    restore: bool = False,
) -> list[str]:
    """Apply what is pending and return the migrations. Any number of processes may do so at once.

    With ``restore``, functions of this code that another release has replaced are applied too.

    A connection that fails or is lost is made again with backoff for ``connect_timeout_s``. That is
    safe, since a migration is applied whole or not at all. ``turn_timeout_s`` is the wait for
    another process that migrates, ``lock_timeout_s`` that for the lock of a table, which is tried a
    few times.

    :raises StartupError: naming the migration that failed, and why; earlier ones stay applied.
    """
    from service.database.migrator import Migrator  # noqa: PLC0415

    migrator = Migrator(address, directory, connect_timeout_s, turn_timeout_s, lock_timeout_s)
    return migrator.apply(restore=restore)


def rollback(
    address: DatabaseAddress,
    *,
    directory: Path = MIGRATIONS_DIRECTORY,
    count: int = 1,
    migration: str | None = None,
    connect_timeout_s: float = 30.0,
    turn_timeout_s: float = TURN_TIMEOUT_S,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
) -> list[str]:
    """Roll back the newest ``count`` migrations, or ``migration`` and all that came after it.

    Functions are dropped first, since they may use what the migrations made; ``apply`` makes them
    again.

    :raises StartupError: as :func:`apply` does.
    """
    from service.database.migrator import Migrator  # noqa: PLC0415

    migrator = Migrator(address, directory, connect_timeout_s, turn_timeout_s, lock_timeout_s)
    return migrator.rollback(count, migration)
