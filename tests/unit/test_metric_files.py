"""Files of metrics have their full size from the start and never grow."""

import os

import pytest

from service.telemetry import metric_files
from service.telemetry.metric_files import _AllocatedFile

SIZE = 8192


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The path of a file that has a small size."""
    monkeypatch.setattr(metric_files, "METRICS_FILE_BYTES", SIZE)
    return tmp_path / "counter_1.db"


def test_a_file_is_allocated_at_once(small):
    """A file is allocated on the disk at once, because a page without space would crash the
    process."""
    _AllocatedFile(str(small)).close()

    status = small.stat()
    assert status.st_size == SIZE
    assert status.st_blocks * 512 >= SIZE


def test_metrics_beyond_the_size_are_not_counted(small):
    """Metrics that do not fit are not counted and raise nothing, the file does not grow, and the
    others are right."""
    file = _AllocatedFile(str(small))
    for number in range(500):
        key = f'["m", "m{number}", {{}}, "help"]'
        file.read_value(key)
        file.write_value(key, float(number), 0.0)
    written = [(key, value) for key, value, _ in file.read_all_values()]
    file.close()

    assert 50 < len(written) < 500
    assert [value for _, value in written] == [float(number) for number in range(len(written))]
    assert small.stat().st_size == SIZE
    assert metric_files._is_readable(small)


def test_a_full_disk_is_reported(small, monkeypatch):
    """A process that cannot allocate the file ends with an explanation."""

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SystemExit) as ended:
        _AllocatedFile(str(small))
    assert "No space for metrics" in str(ended.value)
    assert "TMPDIR" in str(ended.value)
