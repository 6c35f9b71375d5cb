"""What the database's errors mean: to callers, and to whoever starts the service."""

import contextlib
import ssl
from collections.abc import Iterator
from typing import Final

import asyncpg
import structlog

from service.errors import Conflict, NotFound, ServiceError, StartupError, Unavailable
from service.settings.address import DatabaseAddress

log = structlog.get_logger()

RETRY_AFTER_S: Final = 5

LOST: Final = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InvalidCachedStatementError,
    # A server that is no primary any more.
    asyncpg.ReadOnlySQLTransactionError,
    # What asyncpg raises when the server's goodbye arrived before the statement was sent.
    asyncpg.InternalClientError,
)
"""The connection is gone, was never made or cannot go on: another one may do."""
BUSY: Final = (
    TimeoutError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    # A full disk, no memory, too many connections.
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalServerError,
)
"""The database is there and cannot do this now."""
HOPELESS: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    ssl.SSLCertVerificationError,
)
"""What waiting does not mend: a wrong password, a database that does not exist."""
POOLED: Final = (
    # It refuses the settings of a connection.
    asyncpg.ProtocolViolationError,
    # Prepared statements stay behind with the server's connection, which is another's by then.
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.DuplicatePreparedStatementError,
)
"""What only a pooler between the service and PostgreSQL makes of a connection."""
POOLER: Final = "a connection pooler (PgBouncer) that gives each transaction another connection"
POOLER_HINT: Final = (
    "Set DATABASE_UNPOOLED_URL to PostgreSQL's own address, without the pooler; DATABASE_URL may"
    " stay the pooler's."
)
CONSTRAINTS: Final[dict[str, tuple[type[ServiceError], str]]] = {
    "api_keys_organization_id_fkey": (NotFound, "There is no such organization."),
    "upstream_keys_organization_id_fkey": (NotFound, "There is no such organization."),
    "upstream_keys_name_key": (Conflict, "An upstream key of this name exists."),
    "models_current_idx": (Conflict, "A model or an alias of this name exists."),
}
"""What a violated constraint means to a caller, by the beginning of the constraint's name: a part
of a divided table adds to it."""


class ConnectionLost(Exception):
    """The connection went away under its user, or did not answer in time."""


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn what asyncpg raises into our errors; what is a bug of ours passes as it is.

    :raises Unavailable: when the database is gone, busy, or too slow.
    """
    try:
        yield
    except asyncpg.IntegrityConstraintViolationError as error:
        name = error.constraint_name or ""
        for beginning, (kind, message) in CONSTRAINTS.items():
            if name.startswith(beginning):
                raise kind(message) from error
        raise
    except POOLED as error:
        log.error("a pooler breaks statements", error=type(error).__name__, hint=POOLER_HINT)
        raise Unavailable(
            "The database is not available. Try again in a moment.", retry_after_s=RETRY_AFTER_S
        ) from error
    except (*LOST, *BUSY, *HOPELESS, ConnectionLost) as error:
        raise Unavailable(
            "The database is not available. Try again in a moment.", retry_after_s=RETRY_AFTER_S
        ) from error


def behind_pooler(address: DatabaseAddress, error: BaseException | None = None) -> StartupError:
    """The error for a start through a pooler that the settings do not name."""
    reason = f" ({type(error).__name__})" if error else ""
    return StartupError(f"At {address} answers {POOLER}{reason}.", POOLER_HINT)
