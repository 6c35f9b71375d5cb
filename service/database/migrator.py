"""Migrations: SQL files that yoyo reads, applied safely.

This module closes the gaps that yoyo leaves:

- The change, yoyo's log and yoyo's mark are one transaction, so a run that is killed at any point
  leaves nothing half done.
- yoyo's lock is a row, which a killed run leaves behind. So an advisory lock counts instead. The
  session that migrates holds it, so a killed process whose last statement still runs keeps all
  others out.
- yoyo's tables are in a schema of their own.
- A migration waits for the lock of a table for 0.1 s, since all other sessions queue behind it, and
  then tries again.

A migration with ``-- transactional: false`` is refused, since it cannot be undone when it is
interrupted. So are files that begin or end transactions themselves. The search path is empty while
statements run, so that an object without ``public.`` before it is an error.

After the migrations come the functions, all in one transaction. A session that is within one of
them meanwhile runs its old text and calls the new texts of others; see ``functions.py``.
"""

import logging
import random
import re
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg
import structlog
import tenacity
from psycopg import errors
from yoyo import exceptions, read_migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.migrations import read_sql_migration

from service.database.errors import behind_pooler
from service.database.functions import RECORDED, Function, compare, read_functions
from service.database.schema import (
    APPLIED,
    check_server_version,
    migration_ids,
    refuse_old_chain,
)
from service.errors import StartupError
from service.settings.address import DatabaseAddress

log = structlog.get_logger()

ADVISORY_LOCK: Final = int.from_bytes(b"rialto")
"""One key for all: advisory locks are per database."""
CONNECT_TIMEOUT_S: Final = 5
TURN_POLL_S: Final = 0.25
TURN_LOG_EVERY_S: Final = 10.0
LOCK_ATTEMPTS: Final = 20
"""With the pauses between them: a minute or less."""

HOPELESS: Final = re.compile(
    r"authentication failed|no pg_hba\.conf entry|(role|database) \".*\" does not exist"
    r"|certificate verify failed|root certificate|no password supplied|does not support SSL"
)
"""Failures that another attempt does not cure. libpq gives no error code for a failed connection,
only a text; attempts go on until the deadline when this does not match it."""
POOLED: Final = (
    errors.ProtocolViolation,
    errors.InvalidSqlStatementName,
    errors.DuplicatePreparedStatement,
)
"""As :data:`service.database.errors.POOLED`."""
UNSUPPORTED: Final = "unsupported startup parameter"
LOST_STATES: Final = ("08", "57P01", "57P02", "57P03", "53300")
"""Error codes of a server that shuts down, is not up yet, or has no connection to spare."""
TRANSACTION_WORDS: Final = frozenset(
    {"ABORT", "BEGIN", "COMMIT", "END", "PREPARE", "RELEASE", "ROLLBACK", "SAVEPOINT", "START"}
)
FIRST_WORD: Final = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(\w*)", re.DOTALL)

TRY_LOCK: Final = "SELECT pg_try_advisory_lock(:key)"
HOLDER: Final = """
    SELECT pid FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
      AND classid::bigint << 32 | objid::bigint = :key
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
LOCK_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS yoyo.yoyo_lock (
        locked int DEFAULT 1, ctime timestamp, pid int NOT NULL, PRIMARY KEY (locked)
    )
"""
FUNCTIONS_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS yoyo.functions (
        name text NOT NULL,
        checksum text NOT NULL,
        applied_at timestamptz NOT NULL,
        PRIMARY KEY (name, checksum)
    )
"""
RECORD_FUNCTION: Final = """
    INSERT INTO yoyo.functions (name, checksum, applied_at)
    VALUES (:name, :checksum, clock_timestamp())
    ON CONFLICT (name, checksum) DO UPDATE SET applied_at = excluded.applied_at
"""
COUNT_SIGNATURES: Final = """
    SELECT count(*) FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace AND proname = :name
"""
DROP_FUNCTIONS: Final = """
    DO $$
    DECLARE
        signature text;
    BEGIN
        FOR signature IN
            SELECT p.oid::regprocedure
            FROM pg_proc p
            WHERE p.pronamespace = 'public'::regnamespace
              AND p.proname IN (SELECT name FROM yoyo.functions)
        LOOP
            EXECUTE 'DROP FUNCTION ' || signature;
        END LOOP;
        DELETE FROM yoyo.functions;
    END
    $$
"""
NEW_NAME: Final = (
    "A function whose signature changes gets a new name, such as {0}_v2. The old file stays for one"
    " release."
)


class Migrator:
    """One run against one database."""

    def __init__(
        self,
        address: DatabaseAddress,
        directory: Path,
        connect_timeout_s: float,
        turn_timeout_s: float,
        lock_timeout_s: float,
    ) -> None:
        self._address = address
        self._directory = directory
        self._connect_timeout_s = connect_timeout_s
        self._turn_timeout_s = turn_timeout_s
        self._lock_timeout_s = lock_timeout_s
        # This module logs the same events, in the format of the service.
        logging.getLogger("yoyo").setLevel(logging.CRITICAL)

    def apply(self, *, restore: bool = False) -> list[str]:
        """Apply what is pending; with ``restore``, functions that were replaced as well."""
        done: list[str] = []

        def work(backend: Backend) -> None:
            migrations, functions = _read(self._directory), read_functions(self._directory)
            applied = set(backend.get_applied_migration_hashes())
            refuse_old_chain({row[0] for row in backend.execute(APPLIED).fetchall()})
            if unknown := applied.difference(one.hash for one in migrations):
                log.warning("database is newer than the code", migrations=len(unknown))
            lacking, replaced = compare(functions, dict(backend.execute(RECORDED).fetchall()))
            if restore:
                lacking += replaced
            _check(one for one in migrations if one.hash not in applied)
            _check_functions(lacking)
            pending = backend.to_apply(migrations)
            log.info("migrations", pending=len(pending), names=[one.id for one in pending])
            for number, migration in enumerate(pending, start=1):
                duration_ms = self._run_one(backend, partial(backend.apply_one, migration))
                log.info(
                    "migration applied",
                    migration=migration.id,
                    number=number,
                    of=len(pending),
                    duration_ms=duration_ms,
                )
                done.append(migration.id)
            if lacking:
                duration_ms = self._run_one(backend, partial(backend.apply_functions, lacking))
                names = [one.name for one in lacking]
                log.info("functions applied", names=names, duration_ms=duration_ms)

        self._in_turn(work)
        return done

    def rollback(self, count: int, migration: str | None) -> list[str]:
        """Roll back the newest ``count``, or ``migration`` and all that came after it."""
        # Chosen once: after a lost connection, a second choice might roll back one too many.
        chosen: list[str] = []

        def work(backend: Backend) -> None:
            migrations = _read(self._directory)
            _check(migrations)
            applied = list(backend.to_rollback(migrations))
            if not chosen:
                chosen.extend(_choose([one.id for one in applied], count, migration))
            if chosen:
                self._run_one(backend, backend.drop_functions)
            for one in applied:
                if one.id in chosen:
                    duration_ms = self._run_one(backend, partial(backend.rollback_one, one))
                    log.info("migration rolled back", migration=one.id, duration_ms=duration_ms)

        self._in_turn(work)
        return chosen

    def _in_turn(self, work: Callable[["Backend"], None]) -> None:
        """Run ``work`` in turn, and again, with backoff, when the connection is lost."""

        def attempt() -> None:
            with Backend(self._address, self._lock_timeout_s) as backend:
                check_server_version(backend.connection.info.server_version // 10_000)
                self._wait_for_turn(backend)
                backend.init_database()
                # The advisory lock is ours, so whoever left a row in yoyo's lock table is gone.
                backend.break_lock()
                with backend.lock():
                    work(backend)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_lost),
            stop=tenacity.stop_before_delay(self._connect_timeout_s),
            wait=_pause_s,
            before_sleep=_log_not_there,
            reraise=True,
        )
        try:
            retrying(attempt)
        except psycopg.Error as error:
            if _is_pooled(error):
                raise behind_pooler(self._address, error) from error
            if _is_lost(error):
                raise StartupError(
                    f"No database at {self._address} within {self._connect_timeout_s:g} s:"
                    f" {_one_line(error)}",
                    "Check that the database service runs and that DATABASE_URL names it.",
                ) from error
            raise StartupError(
                f"The database at {self._address} refuses: {_one_line(error)}",
                "Check user, password, database and sslmode in DATABASE_URL, and that the user may"
                " create schemas.",
            ) from error

    def _wait_for_turn(self, backend: "Backend") -> None:
        started = time.monotonic()
        logged_at = -TURN_LOG_EVERY_S
        while not backend.execute(TRY_LOCK, {"key": ADVISORY_LOCK}).fetchone()[0]:
            waited_s = time.monotonic() - started
            row = backend.execute(HOLDER, {"key": ADVISORY_LOCK}).fetchone()
            holder = row[0] if row else None
            if waited_s > self._turn_timeout_s:
                raise StartupError(
                    f"Another process has been migrating for {waited_s:.1f} s (backend {holder}).",
                    "Let it end, or end it with pg_terminate_backend(); then start again.",
                )
            if waited_s - logged_at >= TURN_LOG_EVERY_S:
                logged_at = waited_s
                log.info("another process migrates", backend=holder, waited_s=round(waited_s, 1))
            time.sleep(TURN_POLL_S * random.uniform(0.5, 1.5))  # noqa: S311

    def _run_one(self, backend: "Backend", run: Callable[[], None]) -> float:
        """Run one transaction, and again after a pause when it did not get the lock of a table.

        Returns its duration in milliseconds.
        """
        started = time.perf_counter()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(
                (errors.LockNotAvailable, errors.DeadlockDetected)
            ),
            stop=tenacity.stop_after_attempt(LOCK_ATTEMPTS),
            # Sessions that queued behind the attempt get their turn in the pause.
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=5.0),
            before_sleep=lambda state: log.warning(
                "migration waits for a lock",
                attempt=state.attempt_number,
                **{backend.kind: backend.name},
            ),
            reraise=True,
        )
        try:
            retrying(run)
        except psycopg.Error as error:
            if _is_lost(error) or _is_pooled(error):
                raise
            message = error.diag.message_primary or type(error).__name__
            hint = "Mend what the message names and start again; earlier migrations stay applied."
            if isinstance(error, errors.LockNotAvailable):
                hint = "A session holds a table's lock for long: see pg_locks, pg_stat_activity."
            if isinstance(error, errors.InvalidFunctionDefinition):
                hint = NEW_NAME.format(backend.name)
            raise StartupError(
                f"{backend.kind.capitalize()} {backend.name} failed: {message} ({error.sqlstate})."
                " Nothing of it is applied.",
                hint,
            ) from error
        return round((time.perf_counter() - started) * 1000, 1)


def _choose(applied: list[str], count: int, migration: str | None) -> list[str]:
    """Choose the migrations to roll back from those that are applied, newest first."""
    if migration is None:
        return applied[:count]
    if migration not in applied:
        raise StartupError(f"{migration} is not applied.", f"Applied: {', '.join(applied)}.")
    return applied[: applied.index(migration) + 1]


def _pause_s(state: Any) -> float:
    return float(min(5.0, 0.1 * 2**state.attempt_number) * random.uniform(0.8, 1.2))  # noqa: S311


def _log_not_there(state: Any) -> None:
    log.warning(
        "database not there yet",
        attempt=state.attempt_number,
        error=_one_line(state.outcome.exception()),
        waited_s=round(state.seconds_since_start, 1),
        next_try_s=round(state.next_action.sleep, 1),
    )


def _is_pooled(error: BaseException) -> bool:
    """Whether only a pooler causes the error, or it was raised while such an error was handled."""
    if isinstance(error, POOLED) or UNSUPPORTED in str(error):
        return True
    return error.__context__ is not None and _is_pooled(error.__context__)


def _is_lost(error: BaseException) -> bool:
    """Whether another connection may succeed."""
    if not isinstance(error, psycopg.OperationalError) or _is_pooled(error):
        return False
    if error.sqlstate is None:
        return HOPELESS.search(str(error)) is None
    return error.sqlstate.startswith(LOST_STATES)


def _one_line(error: BaseException) -> str:
    """Return libpq's message, which contains host and user and never a password."""
    return " ".join(str(error).split())[:400]


def _read(directory: Path) -> Any:
    """Return yoyo's list of the files."""
    migration_ids(directory)
    # yoyo reads a directory's name as a glob pattern.
    return read_migrations(re.sub(r"([*?[])", r"[\1]", str(directory)))


def _check(migrations: Iterable[Any]) -> None:
    """Refuse a mistake in one of the files before anything is applied."""
    for migration in migrations:
        try:
            migration.load()
        except (exceptions.BadMigration, KeyError, ValueError, OSError) as error:
            raise StartupError(
                f"Migration {migration.id} cannot be read: {error}", "Mend its head comment."
            ) from error
        if not migration.use_transactions:
            raise StartupError(
                f"Migration {migration.id} is marked as not transactional.",
                "A migration is applied whole or not at all. Remove the mark.",
            )
        _refuse_transactions(Path(migration.path))
        _refuse_transactions(_rollback_path(migration))


def _check_functions(functions: Iterable[Function]) -> None:
    for function in functions:
        if len(read_sql_migration(str(function.path))[2]) != 1:
            raise StartupError(
                f"{function.path.name} has more than one statement.",
                "A file creates one function. All else is for migrations.",
            )


def _rollback_path(migration: Any) -> Path:
    return Path(migration.path).with_suffix(".rollback.sql")


def _refuse_transactions(path: Path) -> None:
    for statement in read_sql_migration(str(path))[2]:
        first = FIRST_WORD.match(statement)
        if first and first[1].upper() in TRANSACTION_WORDS:
            raise StartupError(
                f"{path.name} has a {first[1].upper()} of its own.",
                "A migration is one transaction, begun and ended for it. Remove the statement.",
            )


class Cursor(psycopg.Cursor[Any]):
    """A cursor without a description: yoyo prints the rows of any other to stdout."""

    @property
    def description(self) -> None:
        return None


class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo has no types
    """yoyo's connection to the database, with one transaction for each migration."""

    schema = "yoyo"
    kind = name = "migration"
    """What is being applied, for messages: a migration or a function, and its name."""

    def __init__(self, address: DatabaseAddress, lock_timeout_s: float) -> None:
        self.lock_timeout_ms = int(lock_timeout_s * 1000)
        super().__init__(address, "_yoyo_migration")

    def connect(self, dburi: DatabaseAddress) -> Any:
        connection = psycopg.connect(
            **_connect_arguments(dburi), autocommit=True, cursor_factory=Cursor
        )
        try:
            # While it runs a statement, the server checks each second that the client is alive.
            connection.execute("SET client_connection_check_interval = '1s'")
        except psycopg.errors.InvalidParameterValue:
            log.debug("the server's system cannot detect lost clients")
        return connection

    def init_database(self) -> None:
        with self.transaction():
            # IF NOT EXISTS requires the right to create schemas even if the schema exists.
            if self.execute("SELECT to_regnamespace('yoyo')").fetchone()[0] is None:
                self.execute("CREATE SCHEMA yoyo")
            self.execute(LOCK_TABLE)
            self.execute(FUNCTIONS_TABLE)

    def ensure_internal_schema_updated(self) -> None:
        super().ensure_internal_schema_updated()
        self._internal_schema_updated = True

    def begin(self) -> None:
        super().begin()
        self.execute(f"SET LOCAL lock_timeout = {self.lock_timeout_ms}")

    def apply_one(self, migration: Any, force: bool = False, mark: bool = True) -> None:
        self.kind, self.name = "migration", migration.id
        self.ensure_internal_schema_updated()
        with self.transaction():
            self._run_steps(migration, "apply", force=force)
            self.log_migration(migration, "apply")
            if mark:
                self.mark_one(migration, log=False)

    def rollback_one(self, migration: Any, force: bool = False) -> None:
        if not _rollback_path(migration).exists():
            raise StartupError(f"{migration.id} has no rollback.", "Write one beside it.")
        self.kind, self.name = "migration", migration.id
        self.ensure_internal_schema_updated()
        with self.transaction():
            self._run_steps(migration, "rollback", force=force)
            self.log_migration(migration, "rollback")
            self.unmark_one(migration, log=False)

    def apply_functions(self, functions: list[Function]) -> None:
        """Create the functions, in one transaction.

        :raises StartupError: when a function exists with other arguments.
        """
        self.kind = "function"
        with self.transaction():
            self.execute("SET LOCAL search_path = ''")
            # Functions call each other, so their bodies are checked when all of them exist.
            for is_checked in ("off", "on"):
                self.execute(f"SET LOCAL check_function_bodies = {is_checked}")
                for function in functions:
                    self.name = function.name
                    self.connection.execute(function.text)
            for function in functions:
                self._record(function)

    def _record(self, function: Function) -> None:
        if self.execute(COUNT_SIGNATURES, {"name": function.name}).fetchone()[0] > 1:
            raise StartupError(
                f"Function {function.name} exists with other arguments. Nothing is applied.",
                NEW_NAME.format(function.name),
            )
        self.execute(RECORD_FUNCTION, {"name": function.name, "checksum": function.checksum})

    def drop_functions(self) -> None:
        """Drop all functions that were applied, whichever release they are of."""
        self.kind = self.name = "functions"
        with self.transaction():
            self.connection.execute(DROP_FUNCTIONS)

    def _run_steps(self, migration: Any, direction: str, *, force: bool) -> None:
        self.execute("SET LOCAL search_path = ''")
        # Its own transaction becomes a savepoint in ours.
        migration.process_steps(self, direction, force=force)
        self.execute("SET LOCAL search_path = yoyo")

    def get_log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, Any]:
        # yoyo asks for the name of the process's user, which a container's may not have, and for
        # the host's full name, which may take a resolver's timeout.
        return {
            "id": str(uuid.uuid4()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": self.uri.user[:255],
            "hostname": socket.gethostname()[:255],
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }


def _connect_arguments(address: DatabaseAddress) -> dict[str, Any]:
    root_certificate = address.sslrootcert
    if root_certificate is None and address.sslmode in ("verify-ca", "verify-full"):
        # libpq would look in the home directory. asyncpg gets the system's certificates too.
        root_certificate = ssl.get_default_verify_paths().cafile
    return {
        "host": address.host,
        "port": address.port,
        "user": address.user,
        "password": address.password,
        "dbname": address.database,
        "sslmode": address.sslmode,
        "sslrootcert": root_certificate,
        "application_name": "rialto migrate",
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
    }
