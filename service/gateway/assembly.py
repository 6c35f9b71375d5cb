"""Assembles a stream of events into the one answer that the caller asked for.

Proxies cut a connection that is silent for five minutes. So Venice is asked for a stream where a
plain answer may take longer.
"""

import abc
from typing import Any, Final

import msgspec

from service.errors import UpstreamError
from service.formats import completion, sse, surrogates
from service.formats.completion import ToolCallNumbers
from service.formats.lenient import ABSENT, raw_members
from service.formats.pieces import ObjectPieces, replacing
from service.upstream import failed_response

Json = dict[str, Any]

ENDS: Final = frozenset({"response.completed", "response.incomplete"})
FAILURES: Final = frozenset({"response.failed", "error"})
UNREADABLE: Final = (UpstreamError, msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Assembly(abc.ABC):
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

    @abc.abstractmethod
    def _take(self, data: bytes) -> None:
        """:raises UpstreamError, msgspec.DecodeError: when an event is no piece of an answer."""

    @abc.abstractmethod
    def _whole(self) -> bytes | None:
        """The answer as JSON; None if the events hold none."""


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
        self._members |= replacing(chunk)

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


class _Choice:
    """One of a completion's choices. The pieces of its message and of its log probabilities are
    joined; of any other member the last value counts."""

    def __init__(self, index: int) -> None:
        self._members: Json = {"index": index, "logprobs": None, "finish_reason": None}
        self._message = ObjectPieces()
        self._call_numbers = ToolCallNumbers()
        self._calls: list[ObjectPieces] = []
        self._logprobs: ObjectPieces | None = None

    def take(self, piece: Json, choice: completion.Choice) -> None:
        """Add a piece, which was read as ``choice``."""
        delta, logprobs = piece.pop("delta", None) or {}, piece.pop("logprobs", None)
        if choice.delta is not None:
            calls = [call for call in delta.pop("tool_calls", None) or () if call is not None]
            for call, read in zip(calls, choice.delta.tool_calls or (), strict=True):
                self._take_call(call, read)
            self._message.join({**delta, "content": choice.delta.content})
        if isinstance(logprobs, dict):
            self._logprobs = self._logprobs or ObjectPieces()
            self._logprobs.join(logprobs)
        self._members |= replacing(piece) | {"index": choice.index}

    def _take_call(self, call: Json, read: completion.ToolCall) -> None:
        """Add a piece of a tool call. In a plain answer, tool calls have no index."""
        number = self._call_numbers.number_of(read)
        if number == len(self._calls):
            self._calls.append(ObjectPieces())
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
