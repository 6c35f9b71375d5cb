"""The files in which several processes on one port keep their metrics.

The Prometheus client maps them into memory, as large as they need to be and without room on the
disk: a page that then finds no room ends the process with SIGBUS. So a file gets all its room when
it is made, never grows, and what does not fit any more is not counted.
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
"""The last value of a file, which nobody reads: what does not fit is written there."""
ENTRY_BYTES: Final = 40
"""What a value takes at most beside its name."""
KEY_PARTS: Final = 4
NAME: Final = re.compile(r"(counter|histogram|gauge_[a-z]+)_\d+\.db")
HINT: Final = "Make room in TMPDIR, set it to another directory, or set WEB_CONCURRENCY to 1."


class _AllocatedFile(MmapedDict):
    """Values by their names, in a file of a fixed size."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        try:
            allocate(Path(filename), METRICS_FILE_BYTES)
        except OSError as error:
            # Values are made while modules are imported, before anything else can report this.
            sys.exit(f"No room for metrics in {Path(filename).parent}: {error.strerror}. {HINT}")
        # It has no types.
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]
        self._is_full = False

    def _init_value(self, key: str) -> None:
        spare_at = self._capacity - SPARE_BYTES
        if self._used + len(key.encode()) + ENTRY_BYTES <= spare_at:
            super()._init_value(key)  # type: ignore[no-untyped-call]
            return
        if not self._is_full:
            self._is_full = True
            log.warning("metrics are full; what is new is not counted", file=Path(self._fname).name)
        self._positions[key] = spare_at


def use_allocated_files() -> None:
    """Let every instrument that is made from now on keep its values in such files."""
    values.MmapedDict = _AllocatedFile  # type: ignore[attr-defined]  # not for use, and no other way


class Values(MultiProcessCollector):
    """What all processes count, added up; without files that cannot be read, as one that a process
    has only just made, or that was cut off."""

    def __init__(self, directory: Path) -> None:
        super().__init__(None, path=str(directory))  # type: ignore[no-untyped-call]
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        """The metrics."""
        found = [path for path in self._directory.glob("*.db") if NAME.fullmatch(path.name)]
        sound = [str(path) for path in found if _is_sound(path)]
        merged: Any = self.merge(sound, accumulate=True)  # type: ignore[no-untyped-call]
        return list(merged)


def _is_sound(path: Path) -> bool:
    try:
        read: Any = MmapedDict.read_all_values_from_file(path)  # type: ignore[no-untyped-call]
        keys = [json.loads(key) for key, *_ in read]
    except (OSError, struct.error, RuntimeError, ValueError):
        log.warning("a file of metrics cannot be read", file=path.name)
        return False
    return all(isinstance(key, list) and len(key) == KEY_PARTS for key in keys)
