"""The files in which several processes on one port keep their metrics.

The Prometheus client memory-maps files that grow without allocated disk space, so a full disk ends
the process with SIGBUS. Our files are allocated at full size when created and never grow. Values
that no longer fit are not counted.
"""

import json
import re
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import structlog
from prometheus_client import Metric, values
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from service.telemetry.disk_space import METRICS_FILE_BYTES, allocate

log = structlog.get_logger()

SPARE_BYTES: Final = 16
"""The last value of a file, which is never read. Values that do not fit are written there."""
ENTRY_BYTES: Final = 40
"""The most that a value takes besides its name."""
KEY_PARTS: Final = 4
NAME: Final = re.compile(r"(counter|histogram|gauge_[a-z]+)_\d+\.db")
HINT: Final = "Free space in TMPDIR, set it to another directory, or set WEB_CONCURRENCY to 1."


class _AllocatedFile(MmapedDict):
    """Stores values by name in a file of fixed size."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        try:
            allocate(Path(filename), METRICS_FILE_BYTES)
        except OSError as error:
            # Metrics are created while modules are imported, before anything else can report this.
            sys.exit(f"No space for metrics in {Path(filename).parent}: {error.strerror}. {HINT}")
        # The Prometheus client has no types.
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]
        self._is_full = False

    def _init_value(self, key: str) -> None:
        spare_at = self._capacity - SPARE_BYTES
        if self._used + len(key.encode()) + ENTRY_BYTES <= spare_at:
            super()._init_value(key)  # type: ignore[no-untyped-call]
            return
        if not self._is_full:
            self._is_full = True
            log.warning(
                "metrics file full, new values are not counted", file=Path(self._fname).name
            )
        self._positions[key] = spare_at


def use_allocated_files() -> None:
    """Keep the values of all instruments created from now on in allocated files."""
    values.MmapedDict = _AllocatedFile  # type: ignore[attr-defined]  # there is no public way


class Values(MultiProcessCollector):
    """Collects the values of all processes, added up.

    Skips unreadable files, such as a file that was just created or was truncated.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(None, path=str(directory))  # type: ignore[no-untyped-call]
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        found = [path for path in self._directory.glob("*.db") if NAME.fullmatch(path.name)]
        readable = [str(path) for path in found if _is_readable(path)]
        merged: Any = self.merge(readable, accumulate=True)  # type: ignore[no-untyped-call]
        return list(merged)


def _is_readable(path: Path) -> bool:
    try:
        read: Any = MmapedDict.read_all_values_from_file(path)  # type: ignore[no-untyped-call]
        keys = [json.loads(key) for key, *_ in read]
    except (OSError, struct.error, RuntimeError, ValueError):
        log.warning("metrics file unreadable", file=path.name)
        return False
    return all(isinstance(key, list) and len(key) == KEY_PARTS for key in keys)
