"""Memory that the C library keeps is returned to the system."""

import platform

import psutil
import pytest

from service.background.memory import give_back


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have no such call")
def test_free_memory_is_returned():
    """Free memory below a block that is still in use is returned to the system."""
    process = psutil.Process()
    # Each block is below the size from which it would be mapped separately, so all are on the heap.
    blocks = [b"x" * 100_000 for _ in range(500)]
    last = blocks.pop()
    full = process.memory_info().rss
    blocks.clear()
    give_back()

    assert full - process.memory_info().rss > 40_000_000
    assert len(last) == 100_000
