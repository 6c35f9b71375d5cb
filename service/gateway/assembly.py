"""Assembles a stream of events into the one answer that the caller asked for.

Proxies cut a connection that is silent for five minutes. So Venice is asked for a stream where a
plain answer may take longer. Texts that arrive in pieces are joined; of repeated members the last
counts that is not empty.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from service.errors import UpstreamError
from service.formats import completion, sse, surrogates
from service.formats.completion import ToolCallNumbers
from service.formats.lenient import raw_members
from service.upstream import failed_response

Json = dict[str, Any]

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
"""Members of a delta whose texts are pieces of one text. Any other member is complete."""
ENDS: Final = frozenset({"response.completed", "response.incomplete"})
FAILURES: Final = frozenset({"response.failed", "error"})
UNREADABLE: Final = (UpstreamError, msgspec.DecodeError, UnicodeDecodeError, RecursionError)
ABSENT: Final = msgspec.Raw(b"null")
EMPTY: Final = (None, "")
"""Values that do not replace what is known already."""
TYPES: Final[Mapping[str, type]] = {
    **dict.fromkeys(("id", "model", "finish_reason", "role", "type", "name"), str),
    **dict.fromkeys(("usage", "cost", "function"), dict),
}
"""Members that count only if they have this type."""


class Assembly:
    """Takes the events of a stream, and returns the answer at its end.

    ``result`` raises the error of an event that cannot be read, so the stream is read to its end
    for its cost.
    """

    def __init__(self) -> None:
        self._error: Exception | None = None

    def feed(self, events: bytes) -> None:
        """Take the next events, all of them complete."""
        for data in sse.texts(events):
            if data.strip() == sse.DONE or self._error is not None:
                continue
            try:
                self._take(data)
            except UNREADABLE as error:
                self._error = error

    def result(self) -> bytes:
        """Return the answer as JSON.

        :raises UpstreamError: when the events do not make an answer.
        """
        if isinstance(self._error, UpstreamError):
            raise self._error
        if self._error is not None:
            raise UpstreamError("Venice's stream cannot be read.") from self._error
        try:
            answer = self._whole()
        except RecursionError as error:
            raise UpstreamError("Venice's stream cannot be read.") from error
        if answer is None:
            raise UpstreamError("Venice's stream holds no answer.")
        return answer

    def _take(self, data: bytes) -> None:
        """:raises UpstreamError, msgspec.DecodeError: when an event is no piece of an answer."""
        raise NotImplementedError

    def _whole(self) -> bytes | None:
        raise NotImplementedError


class ChatCompletion(Assembly):
    """Assembles a chat completion from its chunks."""

    def __init__(self) -> None:
        super().__init__()
        self._members: Json = {}
        self._choices: dict[int, _Choice] = {}

    def _take(self, data: bytes) -> None:
        chunk = completion.decode_json(data)
        if not isinstance(chunk, dict):
            return
        for piece, choice in completion.read_choices(chunk.pop("choices", None) or []):
            index = choice.index
            whole = self._choices.get(index) or self._choices.setdefault(index, _Choice(index))
            whole.take(piece, choice)
        self._members |= _stated(chunk)

    def _whole(self) -> bytes | None:
        if not self._choices:
            return None
        choices = [self._choices[index].whole() for index in sorted(self._choices)]
        frame = {"object": "chat.completion", "choices": choices}
        return surrogates.encode(self._members | frame)


class Response(Assembly):
    """Assembles an answer of the Responses API: its last event repeats all of it."""

    def __init__(self) -> None:
        super().__init__()
        self._answer: bytes | None = None

    def _take(self, data: bytes) -> None:
        if data[:1] != b"{":
            return
        try:
            event = msgspec.json.decode(data, type=_Event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # The answer can be cut out even if it cannot be decoded.
            kind, answer = raw_members(data, ("type", "response"))
        else:
            kind, answer = bytes(event.type), bytes(event.response)
        name = kind.strip(b'"').decode(errors="replace")
        if name in ENDS and answer[:1] == b"{":
            self._answer = answer
        elif name in FAILURES and (error := failed_response(data)) is not None:
            raise error

    def _whole(self) -> bytes | None:
        return self._answer


class _Event(msgspec.Struct):
    type: msgspec.Raw = ABSENT
    response: msgspec.Raw = ABSENT


def _stated(members: Json) -> Json:
    """The members that replace what is known already."""
    return {
        name: value
        for name, value in members.items()
        if value not in EMPTY and isinstance(value, TYPES.get(name, object))
    }


class _Choice:
    """One of a completion's choices. The pieces of its message and of its log probabilities are
    joined; of any other member the last value counts."""

    def __init__(self, index: int) -> None:
        self._members: Json = {"index": index, "logprobs": None, "finish_reason": None}
        self._message = _Object()
        self._call_numbers = ToolCallNumbers()
        self._calls: list[_Object] = []
        self._logprobs: _Object | None = None

    def take(self, piece: Json, choice: completion.Choice) -> None:
        """Add a piece, which was read as ``choice``."""
        delta, logprobs = piece.pop("delta", None) or {}, piece.pop("logprobs", None)
        if choice.delta is not None:
            calls = [call for call in delta.pop("tool_calls", None) or () if call is not None]
            for call, read in zip(calls, choice.delta.tool_calls or (), strict=True):
                self._take_call(call, read)
            self._message.join({**delta, "content": choice.delta.content})
        if isinstance(logprobs, dict):
            self._logprobs = self._logprobs or _Object()
            self._logprobs.join(logprobs)
        self._members |= _stated(piece) | {"index": choice.index}

    def _take_call(self, call: Json, read: completion.ToolCall) -> None:
        """Add a piece of a tool call. In a plain answer, tool calls have no index."""
        number = self._call_numbers.number_of(read)
        if number == len(self._calls):
            self._calls.append(_Object())
        call.pop("index", None)
        if read.arguments:
            call["function"]["arguments"] = read.arguments
        self._calls[number].join(call)

    def whole(self) -> Json:
        """The choice as in a plain answer."""
        message = {"role": "assistant", "content": None, **self._message.whole()}
        if self._calls:
            message["tool_calls"] = [call.whole() for call in self._calls]
        logprobs = self._logprobs.whole() if self._logprobs is not None else None
        return {**self._members, "message": message, "logprobs": logprobs}


class _Text:
    """A text in pieces, which are joined once."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def join(self, piece: str) -> None:
        self._pieces.append(piece)

    def whole(self) -> str:
        return "".join(self._pieces)


class _Object:
    """An object whose members come in pieces."""

    def __init__(self) -> None:
        self._members: Json = {}

    def join(self, piece: Json) -> None:
        for name, value in piece.items():
            if isinstance(value, str) and name in JOINED:
                self._inner(name, _Text, value)
            elif value in EMPTY:
                self._members.setdefault(name, value)
            elif not isinstance(value, TYPES.get(name, object)):
                continue
            elif isinstance(value, dict):
                self._inner(name, _Object, value)
            elif isinstance(value, list):
                self._inner(name, _List, value)
            elif not isinstance(self._members.get(name), _Text | _Object | _List):
                self._members[name] = value

    def _inner(self, name: str, kind: "type[_Text | _Object | _List]", value: Any) -> None:
        """Join a value to those of the same kind. Only a text replaces those of another kind."""
        there = self._members.get(name)
        if kind is _Text:
            is_taken = isinstance(there, _Text)
        else:
            is_taken = isinstance(there, _Text | _Object | _List)
        if not is_taken:
            there = self._members[name] = kind()
        if isinstance(there, kind):
            there.join(value)

    def whole(self) -> Json:
        return {
            name: value.whole() if isinstance(value, _Text | _Object | _List) else value
            for name, value in self._members.items()
        }


class _List:
    """A list. Elements with the same index are pieces of one element. An element without an index
    is complete, and kept as JSON, which takes less memory."""

    def __init__(self) -> None:
        self._elements: list[_Object | msgspec.Raw] = []
        self._by_index: dict[int, _Object] = {}

    def join(self, pieces: list[Any]) -> None:
        for piece in pieces:
            index = piece.get("index") if isinstance(piece, dict) else None
            if not isinstance(index, int):
                self._elements.append(msgspec.Raw(surrogates.encode(piece)))
                continue
            if index not in self._by_index:
                self._by_index[index] = _Object()
                self._elements.append(self._by_index[index])
            self._by_index[index].join(piece)

    def whole(self) -> list[Any]:
        return [one.whole() if isinstance(one, _Object) else one for one in self._elements]
