"""Returns to the system the free memory that the C library keeps.

Prompts of a megabyte are put together from many pieces. When they are gone, the little that lives
on between them keeps their pages in the process, some 12 MB after eight at a time, until the C
library is asked to release whole pages that are free. That takes it a few milliseconds, in which
nothing else runs.
"""

import asyncio
import ctypes
from typing import Final

from service.background.repeated import every

INTERVAL_S: Final = 30.0


def give_back() -> None:
    """Release free pages once. Only glibc has this call; others release pages by themselves."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_giving_back() -> asyncio.Task[None]:
    """Release free pages now and then."""

    async def work() -> None:
        give_back()

    return every(INTERVAL_S, work, "memory", waits_first=True)
