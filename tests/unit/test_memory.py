"""Memory that the C library keeps is given back."""

import platform

import psutil
import pytest

from service.background.memory import give_back


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have no such call")
def test_free_memory_is_given_back():
    """What lies free below something that lives on leaves the process."""
    process = psutil.Process()
    # Below the size from which each block is the system's own, so that they are on the heap.
    blocks = [b"x" * 100_000 for _ in range(500)]
    last = blocks.pop()
    full = process.memory_info().rss
    blocks.clear()
    give_back()

    assert full - process.memory_info().rss > 40_000_000
    assert len(last) == 100_000
