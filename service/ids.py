"""Generates ids."""

import random
import time
from uuid import UUID

from asyncpg.pgproto.pgproto import UUID as FastUUID  # noqa: N811 - it is one


def uuid_of(number: int) -> UUID:
    """Create a UUID with this number, of asyncpg's type, which is hashed in C."""
    made: UUID = FastUUID(number.to_bytes(16))
    return made


def uuid7() -> UUID:
    """Create a UUIDv7 (RFC 9562): milliseconds, 12 bits of their fraction, then 62 random bits.

    Ids must be unique but not secret. Python's generator, seeded by the system in each process,
    takes a tenth of the time of the system's.
    """
    milliseconds, remainder = divmod(time.time_ns(), 1_000_000)
    fraction = remainder * 4096 // 1_000_000
    tail = random.getrandbits(62)
    number = milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | tail
    # asyncpg's own UUID type, which its results use too. It takes half the time to create.
    made: UUID = FastUUID(number.to_bytes(16))
    return made
