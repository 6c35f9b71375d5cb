"""A stream of events as the one answer it amounts to (pure).

A plain answer that takes minutes is asked for as a stream, since a connection that is silent for
five minutes is cut on its way. What comes in pieces is joined; what is said again is said once.
"""

from collections.abc import Iterator
from typing import Any, Final, TypeVar

import msgspec

from service.errors import UpstreamError

Json = dict[str, Any]
T = TypeVar("T", dict[str, Any], list[Any])

DATA: Final = b"data:"
DONE: Final = b"[DONE]"
JOINED: Final = frozenset(
    {
        "arguments",
        "content",
        "data",
        "reasoning",
        "reasoning_content",
        "reasoning_encrypted",
        "refusal",
        "summary",
        "text",
    }
)
"""Members of a delta whose texts are pieces of one; others are whole whenever they are there."""
ENDS: Final = frozenset({"response.completed", "response.incomplete"})


def chat_completion(events: bytes) -> bytes:
    """The chat completion that the chunks are pieces of.

    :raises UpstreamError: when they are none.
    """
    completion: Json = {}
    choices: dict[int, Json] = {}
    for chunk in _objects(events):
        for piece in chunk.pop("choices", None) or ():
            _take(choices, piece)
        completion |= {name: value for name, value in chunk.items() if value is not None}
    if not choices:
        raise UpstreamError("Venice's stream holds no answer.")
    completion["object"] = "chat.completion"
    completion["choices"] = [_finished(choices[index]) for index in sorted(choices)]
    return msgspec.json.encode(completion)


def response(events: bytes) -> bytes:
    """The answer of the Responses API, which its last event repeats.

    :raises UpstreamError: when there is none.
    """
    for event in _objects(events):
        if event.get("type") in ENDS and isinstance(event.get("response"), dict):
            return msgspec.json.encode(event["response"])
    raise UpstreamError("Venice's stream holds no answer.")


def _objects(events: bytes) -> Iterator[Json]:
    for line in events.splitlines():
        data = line[len(DATA) :].strip() if line.startswith(DATA) else b""
        if not data or data == DONE:
            continue
        try:
            said = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamError("Venice's stream cannot be read.") from error
        if isinstance(said, dict):
            yield said


def _take(choices: dict[int, Json], piece: Any) -> None:
    if not isinstance(piece, dict) or not isinstance(piece.get("index", 0), int):
        raise UpstreamError("Venice's stream cannot be read.")
    index = piece.get("index", 0)
    choice = choices.setdefault(
        index, {"index": index, "message": {}, "logprobs": None, "finish_reason": None}
    )
    for name, value in piece.items():
        if name == "delta" and isinstance(value, dict):
            _join(choice["message"], value)
        elif name == "logprobs" and isinstance(value, dict):
            _join(_inner(choice, name, {}), value)
        elif value is not None:
            choice[name] = value


def _join(whole: Json, piece: Json) -> None:
    """Put a piece to what is there of the whole."""
    for name, value in piece.items():
        there = whole.get(name)
        if value is None:
            whole.setdefault(name, None)
        elif isinstance(value, str) and name in JOINED and isinstance(there, str):
            whole[name] = there + value
        elif isinstance(value, dict):
            _join(_inner(whole, name, {}), value)
        elif isinstance(value, list):
            _join_lists(_inner(whole, name, []), value)
        else:
            whole[name] = value


def _inner(whole: Json, name: str, empty: T) -> T:
    """What is there by the name, or else the new empty one."""
    if not isinstance(whole.get(name), type(empty)):
        whole[name] = empty
    inner: T = whole[name]
    return inner


def _join_lists(whole: list[Any], pieces: list[Any]) -> None:
    """Elements that say their index are pieces of the one that has it."""
    for piece in pieces:
        index = piece.get("index") if isinstance(piece, dict) else None
        same = next((one for one in whole if index is not None and one.get("index") == index), None)
        if same is not None:
            _join(same, piece)
        elif isinstance(piece, dict):
            made: Json = {}
            _join(made, piece)
            whole.append(made)
        else:
            whole.append(piece)


def _finished(choice: Json) -> Json:
    """The choice as plain answers have it: calls of tools do not say their index there."""
    message = {"role": "assistant", "content": None, **choice["message"]}
    for call in message.get("tool_calls") or ():
        call.pop("index", None)
    return {**choice, "message": message}
