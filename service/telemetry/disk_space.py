"""Allocates disk space before it is needed, so that a full disk fails a start and no call."""

import os
from pathlib import Path
from typing import Final

METRICS_FILE_BYTES: Final = 2 * 1024 * 1024
"""Some 10,000 values, with their names."""
METRICS_FILES: Final = 5
"""Of a process: counters, histograms, and gauges for each way to put several processes together."""


def allocate(path: Path, size: int) -> None:
    """Make a file with ``size`` bytes allocated on the disk.

    :raises OSError: when there is no room.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


def check_room_for_metrics(directory: Path, processes: int) -> None:
    """Check that the directory has room for the metrics of so many processes.

    :raises OSError: when there is no room for them.
    """
    trial = directory / "trial"
    try:
        allocate(trial, METRICS_FILE_BYTES * METRICS_FILES * processes)
    finally:
        trial.unlink(missing_ok=True)
