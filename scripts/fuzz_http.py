"""Plays bytes that atheris chooses to the HTTP client: tests/http_wire.py has what must hold."""

import asyncio
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

with atheris.instrument_imports(include=["service.upstream.http", "service.upstream.response"]):
    import http_wire

PARTS = http_wire.PARTS_OF_RESPONSES
LOOP = asyncio.new_event_loop()


def play(data):
    """Play one response, made of known parts and any bytes, and cut into pieces, to one request."""
    chosen = atheris.FuzzedDataProvider(data)
    method = "HEAD" if chosen.ConsumeIntInRange(0, 9) == 0 else "POST"
    pieces = [b""]
    while chosen.remaining_bytes():
        choice = chosen.ConsumeIntInRange(0, len(PARTS) + 1)
        if choice == len(PARTS):
            pieces.append(b"")
        elif choice < len(PARTS):
            pieces[-1] += PARTS[choice]
        else:
            pieces[-1] += chosen.ConsumeBytes(chosen.ConsumeIntInRange(0, 40))
    LOOP.run_until_complete(http_wire.play([piece for piece in pieces if piece], method))


if __name__ == "__main__":
    atheris.Setup(sys.argv, play)
    atheris.Fuzz()
