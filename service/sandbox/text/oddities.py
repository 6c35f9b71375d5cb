"""Bends answers into the odd forms of real streams, as ``[odd=…]`` and ``[cut=N]`` ask."""

import itertools
from collections.abc import Generator, Iterator
from typing import Any, Final

from service.sandbox.exchange import DONE, Exchange
from service.sandbox.text.answers import Call
from service.sandbox.text.markers import Markers

NULLS: Final[dict[str, Any]] = {
    "role": "assistant",
    "content": None,
    "refusal": None,
    "reasoning_content": None,
    "reasoning_details": None,
    "tool_calls": None,
    "function_call": None,
    "audio": None,
}
Odd = frozenset[str]


def bend(
    exchange: Exchange, markers: Markers, pieces: Generator[bytes, None, None]
) -> Generator[bytes, None, None]:
    """Return the events of a stream, cut or with another end if the markers ask for it."""
    if markers.cut is None and not markers.odd:
        return pieces
    return _bent(exchange, markers, pieces)


def _bent(
    exchange: Exchange, markers: Markers, pieces: Generator[bytes, None, None]
) -> Generator[bytes, None, None]:
    try:
        for index, piece in enumerate(pieces):
            if index == markers.cut:
                exchange.drop()
                return
            yield _bent_piece(piece, markers.odd)
    finally:
        pieces.close()


def _bent_piece(piece: bytes, odd: Odd) -> bytes:
    if "no-done" in odd:
        piece = piece.removesuffix(DONE)
    if "no-last-line-break" in odd and piece.endswith(DONE):
        piece = piece.rstrip(b"\n")
    return piece.replace(b"\n", b"\r\n") if "crlf" in odd else piece


def bend_counts(usage: dict[str, Any], odd: Odd) -> dict[str, Any]:
    """Return ``usage`` with its counts as floats or texts if asked."""
    if not odd & {"float-usage", "text-usage"}:
        return usage
    bent: dict[str, Any] = {}
    for name, value in usage.items():
        if isinstance(value, dict):
            bent[name] = bend_counts(value, odd)
        else:
            bent[name] = float(value) if "float-usage" in odd else str(value)
    return bent


def bend_call(call: Call, odd: Odd) -> dict[str, Any]:
    """Return a call as it appears in a whole message."""
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.tool.name, "arguments": _arguments(call, odd)},
    }


def _arguments(call: Call, odd: Odd) -> Any:
    if "object-arguments" in odd:
        return call.input
    if "partial-arguments" in odd:
        return call.text[: len(call.text) // 2]
    return call.text


def bend_deltas(calls: list[Call], odd: Odd) -> Iterator[dict[str, Any]]:
    """Yield the pieces of the calls."""
    streams = [list(_deltas_of(index, call, odd)) for index, call in enumerate(calls)]
    if "interleaved" in odd:
        streams = [list(turn) for turn in itertools.zip_longest(*streams)]
    for delta in itertools.chain.from_iterable(streams):
        if delta is not None:
            yield delta


def _deltas_of(index: int, call: Call, odd: Odd) -> Iterator[dict[str, Any]]:
    place = {} if "no-index" in odd else {"index": 0 if "shared-index" in odd else index}
    function: dict[str, Any] = {"name": call.tool.name, "arguments": ""}
    begun = {**place, "id": call.id, "type": "function", "function": function}
    if odd & {"whole-calls", "object-arguments"}:
        function["arguments"] = _arguments(call, odd)
        yield begun
        return
    if "late-name" in odd:
        del function["name"]
    yield begun
    pieces = call.pieces
    if "partial-arguments" in odd:
        pieces = pieces[:-1]
    for number, piece in enumerate(pieces or [""]):
        yield {**place, **_repeated(odd), "function": {**_named(odd), "arguments": piece}}
        if "late-name" in odd and number == 0:
            yield {**place, "function": {"name": call.tool.name}}


def _repeated(odd: Odd) -> dict[str, Any]:
    """Return the members that later pieces of a call repeat without a value."""
    if "empty-texts" in odd:
        return {"id": "", "type": ""}
    return {"id": None, "type": None} if "nulls" in odd else {}


def _named(odd: Odd) -> dict[str, Any]:
    if "empty-texts" in odd:
        return {"name": ""}
    return {"name": None} if "nulls" in odd else {}
