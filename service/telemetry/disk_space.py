"""Allocates disk space ahead of time, so that a full disk fails the start instead of calls."""

import os
from pathlib import Path
from typing import Final

METRICS_FILE_BYTES: Final = 2 * 1024 * 1024
"""Enough for about 10,000 values and their names."""
METRICS_FILES: Final = 5
"""The files of one process: counters, histograms, and gauges for each multiprocess mode."""


def allocate(path: Path, size: int) -> None:
    """Create a file with ``size`` bytes allocated on disk.

    :raises OSError: when there is not enough space.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


def check_room_for_metrics(directory: Path, processes: int) -> None:
    """Check that the directory has space for the metrics of ``processes`` processes.

    :raises OSError: when there is not enough space.
    """
    trial = directory / "trial"
    try:
        allocate(trial, METRICS_FILE_BYTES * METRICS_FILES * processes)
    finally:
        trial.unlink(missing_ok=True)
