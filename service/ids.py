"""Ids that are made here."""

import random
import time
from uuid import UUID

from asyncpg.pgproto.pgproto import UUID as FastUUID  # noqa: N811 - it is one


def uuid7() -> UUID:
    """A new UUIDv7 (RFC 9562): milliseconds, 12 bits of their fraction, then 62 random bits.

    They need to be unique, and are no secrets: Python's own sequence, which the system seeds in
    each process, is asked in a tenth of the time that the system takes for each.
    """
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    fraction = rest * 4096 // 1_000_000
    tail = random.getrandbits(62)
    number = milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | tail
    # The driver's own UUIDs, as all that come from the database: made in half the time.
    made: UUID = FastUUID(number.to_bytes(16))
    return made
