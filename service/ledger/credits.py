"""Money of a call that the operator gives back."""

import unicodedata
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from service import audit, money
from service.audit import Actor
from service.database.connections import NOW, Database
from service.errors import ClientError, Conflict, NotFound
from service.ids import uuid7
from service.ledger.limits import MOST_NANOS

log = structlog.get_logger()

CREDIT: Final = """
    SELECT verdict, left_nanos
    FROM public.credit($1, $2, $3, $4, $5)
"""
VENICE: Final = Actor(name="venice")
REFUND_NOTE: Final = "Venice refunded the job."
NOTE_LENGTH: Final = 500
UNPRINTABLE: Final = ("Cc", "Cs")
"""Unicode's categories of control characters and of halves of a character."""
REPEAT_WITHIN_S: Final = 24 * 3600.0


class NewCredit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A credit as it is asked for.

    ``usd`` is a decimal string above zero. ``id``, a new UUIDv7, becomes the entry's: the same
    credit again within a day changes nothing.
    """

    usd: str
    note: str
    id: UUID | None = None


async def credit(
    conn: Any, actor: Actor, organization_id: UUID, call_id: UUID, new: NewCredit
) -> UUID:
    """Give ``new.usd`` of a call back; returns the id of the entry that says so.

    The call's money limits have used that much less, in the windows that run now and not in those
    in which the call counted, so what is given back can be spent again at once; a window in which
    little was used is below zero then. A credit is never more than what the call costs with its
    corrections and earlier credits. A correction that comes after a credit is written all the same.

    :raises ClientError: naming the field that breaks its rule.
    :raises NotFound: when the organization has no such entry.
    :raises Conflict: when it is more than the call costs, or the id is that of something else.
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
            "entry_id: must be of kind call: a credit amends the call itself.", param="entry_id"
        )
    if verdict == "id_taken":
        raise Conflict("id: another entry has it.", param="id")
    if verdict == "too_much":
        left = money.format_usd(max(0, row["left_nanos"]))
        raise Conflict(
            f"usd: must not be above {left}, what the call costs with its corrections and earlier"
            " credits.",
            param="usd",
        )
    if verdict == "credited":
        detail = {"amends_id": str(call_id), "usd": money.format_usd(nanos), "note": new.note}
        await audit.record(
            conn, organization_id, actor, "ledger_entry.credit", str(credit_id), detail
        )
    return credit_id


async def refund(database: Database, organization_id: UUID, call_id: UUID) -> int:
    """Give back what Venice gave back: all that a job still costs with its corrections and credits;
    returns how much, in nano-dollars. Again it is nothing: then nothing is left.

    :raises NotFound: when the organization has no such call.
    :raises Unavailable: when the database is gone.
    """
    credit_id = uuid7()
    async with database.transaction() as conn:
        # More than any call costs: the answer is what is left, and a lock keeps it so.
        row = await conn.fetchrow(
            CREDIT, organization_id, call_id, credit_id, MOST_NANOS, REFUND_NOTE
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
            f"note: must be 1 to {NOTE_LENGTH} characters, not only white space, and without"
            " control characters.",
            param="note",
        )


def _check_id(credit_id: UUID, now: datetime) -> None:
    """An older id could be of a month that is dropped, where no repetition would be noticed. The
    clock that made it may be ahead."""
    age_s = now.timestamp() - (credit_id.int >> 80) / 1000
    if credit_id.version != 7 or abs(age_s) > REPEAT_WITHIN_S:
        raise ClientError("id: must be a UUIDv7 of the last 24 hours.", param="id")
