"""New secrets for keys. A key that is rotated keeps its id, and with it its settings, limits and
history."""

from datetime import timedelta
from typing import Annotated, Any, Final

import msgspec

from service import audit, crypto
from service.accounts.keys import ApiKey
from service.accounts.organizations import announce, must_be_kept
from service.audit import Actor
from service.errors import ClientError, Conflict, Forbidden, RateLimited

MAX_OVERLAP_S: Final = 30 * 86_400
DEFAULT_OVERLAP_S: Final = 86_400
OWN_ROTATIONS_APART_S: Final = 60
"""How long a key that has changed cannot rotate itself. Each change makes every process read its
callers again, so nobody should be able to make many."""

READ_DIGEST: Final = """
    SELECT digest, prefix, expires_at, revoked_at, created_at, updated_at, clock_timestamp() AS now
    FROM public.api_keys
    WHERE id = $1
"""
ROTATE_KEY: Final = """
    UPDATE public.api_keys
    SET previous_digest = digest, previous_until = $4, digest = $2, prefix = $3, updated_at = $5
    WHERE id = $1
"""


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the old secret goes on working beside the new one; a day unless stated."""

    overlap_seconds: Annotated[int, msgspec.Meta(ge=0, le=MAX_OVERLAP_S)] = DEFAULT_OVERLAP_S


async def rotate_key(
    conn: Any, actor: Actor, key: ApiKey, overlap_s: int, *, own_digest: bytes | None = None
) -> str:
    """Give the key a new secret and return it, which is stored nowhere. The old secret works for
    ``overlap_s`` seconds more, by the database's clock on every replica; the one before it, if it
    still works, ends at once. Revoking the key ends them all.

    ``own_digest`` is the digest of the secret by which a key rotates itself. It has to be the
    current one: a previous secret that leaked would otherwise take the key over.

    :raises ClientError: when the overlap is out of range.
    :raises Conflict: when the key is revoked or has expired, or the organization was deleted.
    :raises Forbidden: when a key would rotate itself by its previous secret.
    :raises RateLimited: when a key would rotate itself soon after it has changed.
    """
    if not 0 <= overlap_s <= MAX_OVERLAP_S:
        raise ClientError(
            f"overlap_seconds: must be from 0 to {MAX_OVERLAP_S}.", param="overlap_seconds"
        )
    await must_be_kept(conn, key.organization_id)
    row = await conn.fetchrow(READ_DIGEST, key.id)
    now = row["now"]
    if row["revoked_at"] is not None:
        raise Conflict("The key is revoked, so a new secret would not work. Make a new key.")
    if row["expires_at"] is not None and row["expires_at"] <= now:
        raise Conflict("The key has expired, so a new secret would not work. Change expires_at.")
    if own_digest is not None:
        _check_own(row, own_digest)
    secret = crypto.new_api_key()
    prefix = secret[: crypto.API_KEY_PREFIX_LENGTH]
    until = now + timedelta(seconds=overlap_s)
    await conn.execute(ROTATE_KEY, key.id, crypto.key_digest(secret), prefix, until, now)
    detail = {
        "prefix": prefix,
        "previous_prefix": row["prefix"],
        "overlap_seconds": overlap_s,
        "previous_until": until,
    }
    await audit.record(conn, key.organization_id, actor, "api_key.rotate", str(key.id), detail)
    await announce(conn, key.id)
    return secret


def _check_own(row: Any, own_digest: bytes) -> None:
    if row["digest"] != own_digest:
        raise Forbidden("The key was rotated: only its current secret can rotate it.")
    changed_s = (row["now"] - row["updated_at"]).total_seconds()
    if row["updated_at"] != row["created_at"] and 0 <= changed_s < OWN_ROTATIONS_APART_S:
        raise RateLimited(
            f"The key has changed within the last {OWN_ROTATIONS_APART_S} seconds, so it cannot"
            " rotate itself yet.",
            retry_after_s=OWN_ROTATIONS_APART_S - int(changed_s),
        )
