"""Credits: the operator returns money of a call, or passes on Venice's refund."""

import unicodedata
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from service import audit, money
from service.audit import Actor
from service.database.database import NOW, Database
from service.errors import ClientError, Conflict, NotFound
from service.ids import uuid7
from service.ledger.limits import MAX_CEILING_NANOS

log = structlog.get_logger()

CREDIT: Final = """
    SELECT verdict, left_nanos
    FROM public.credit($1, $2, $3, $4, $5)
"""
VENICE: Final = Actor(name="venice")
REFUND_NOTE: Final = "Venice refunded the job."
NOTE_LENGTH: Final = 500
UNPRINTABLE: Final = ("Cc", "Cs")
"""Unicode's categories of control characters and lone surrogates."""
REPEAT_WITHIN_S: Final = 24 * 3600.0


class NewCredit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A requested credit.

    ``usd`` is a decimal string above zero. ``id``, a new UUIDv7, becomes the entry's id: repeating
    the same credit within a day changes nothing.
    """

    usd: str
    note: str
    id: UUID | None = None


async def credit(
    conn: Any, actor: Actor, organization_id: UUID, call_id: UUID, new: NewCredit
) -> UUID:
    """Credit ``new.usd`` of a call and return the id of the credit's entry.

    The credit lowers the used amount of the call's money limits in the windows that are open now,
    not in those in which the call counted, so it can be spent again at once. A window with little
    use can fall below zero. A credit cannot exceed the call's cost after corrections and earlier
    credits. A correction that arrives after a credit is still written.

    :raises ClientError: when a field is invalid; the error names it.
    :raises NotFound: when the organization has no such entry.
    :raises Conflict: when the credit exceeds the call's cost, or another entry has the id.
    """
    nanos = _parse_amount(new.usd)
    _check_note(new.note)
    if new.id is not None:
        _check_id(new.id, await conn.fetchval(NOW))
    credit_id = new.id or uuid7()
    row = await conn.fetchrow(CREDIT, organization_id, call_id, credit_id, nanos, new.note)
    verdict = row["verdict"]
    if verdict == "no_call":
        raise NotFound("There is no such entry in the ledger.", param="entry_id")
    if verdict == "not_a_call":
        raise ClientError(
            "entry_id: must be an entry of kind call. Credit the call itself.", param="entry_id"
        )
    if verdict == "id_taken":
        raise Conflict("id: another entry already has this id.", param="id")
    if verdict == "too_much":
        left = money.format_usd(max(0, row["left_nanos"]))
        raise Conflict(
            f"usd: must not be above {left}, the call's remaining cost after corrections and"
            " earlier credits.",
            param="usd",
        )
    if verdict == "credited":
        detail = {"amends_id": str(call_id), "usd": money.format_usd(nanos), "note": new.note}
        await audit.record(
            conn, organization_id, actor, "ledger_entry.credit", str(credit_id), detail
        )
    return credit_id


async def refund(database: Database, organization_id: UUID, call_id: UUID) -> int:
    """Credit all that a job still costs after Venice refunded it. Returns the nano-dollars.

    Repeating it credits nothing, because nothing is left.

    :raises NotFound: when the organization has no such call.
    :raises Unavailable: when the database is unavailable.
    """
    credit_id = uuid7()
    async with database.transaction() as conn:
        # Ask for more than any call costs. The verdict returns the remaining cost, and a lock keeps
        # it unchanged.
        row = await conn.fetchrow(
            CREDIT, organization_id, call_id, credit_id, MAX_CEILING_NANOS, REFUND_NOTE
        )
        if row["verdict"] != "too_much":
            raise NotFound("There is no such call in the ledger.")
        left_nanos: int = row["left_nanos"]
        if left_nanos <= 0:
            return 0
        usd = money.format_usd(left_nanos)
        new = NewCredit(usd=usd, note=REFUND_NOTE)
        await credit(conn, VENICE, organization_id, call_id, new)
    log.info("job refunded", organization_id=str(organization_id), call_id=str(call_id), usd=usd)
    return left_nanos


def _parse_amount(usd: str) -> int:
    try:
        nanos = money.parse_usd(usd)
    except ValueError as error:
        raise ClientError(f"usd: {error}.", param="usd") from None
    if nanos <= 0:
        raise ClientError("usd: must be above zero.", param="usd")
    return nanos


def _check_note(note: str) -> None:
    unprintable = any(unicodedata.category(character) in UNPRINTABLE for character in note)
    if not note.strip() or len(note) > NOTE_LENGTH or unprintable:
        raise ClientError(
            f"note: must be 1 to {NOTE_LENGTH} characters, not only whitespace, and without"
            " control characters.",
            param="note",
        )


def _check_id(credit_id: UUID, now: datetime) -> None:
    """Check that the id is recent, allowing for a clock that is ahead.

    An older id could lie in a dropped month, where a repetition would go unnoticed.
    """
    age_s = now.timestamp() - (credit_id.int >> 80) / 1000
    if credit_id.version != 7 or abs(age_s) > REPEAT_WITHIN_S:
        raise ClientError("id: must be a UUIDv7 from the last 24 hours.", param="id")
