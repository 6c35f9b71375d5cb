"""Entries as lines of text: CSV (RFC 4180) and JSON lines."""

import csv
import io
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from service.ledger.entries import LedgerEntry

ExportFormat = Literal["csv", "jsonl"]

COLUMNS: Final = LedgerEntry.__struct_fields__
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would run: text that begins so gets an apostrophe before it."""
CONTENT_TYPES: Final[dict[ExportFormat, str]] = {
    "csv": "text/csv",
    "jsonl": "application/x-ndjson",
}


def header(export_format: ExportFormat) -> bytes:
    """What stands before the first line."""
    return (",".join(COLUMNS) + "\r\n").encode() if export_format == "csv" else b""


def lines(export_format: ExportFormat, entries: Sequence[LedgerEntry]) -> bytes:
    """One line an entry."""
    if export_format == "jsonl":
        return b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)
    written = io.StringIO(newline="")
    writer = csv.writer(written)
    for entry in entries:
        writer.writerow([_cell(name, getattr(entry, name)) for name in COLUMNS])
    return written.getvalue().encode()


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return msgspec.json.encode(value, order="sorted").decode()
    text = str(value)
    is_number = isinstance(value, int) or name.endswith("_usd")
    return f"'{text}" if text.startswith(FORMULA) and not is_number else text
