"""Translates chat completions into messages, whole or as server-sent events."""

import enum
import uuid
from collections.abc import Mapping
from typing import Any, Final

from service.anthropic.answer import Block, Content
from service.errors import ServiceError, UpstreamCut, UpstreamError
from service.formats import completion, sse, surrogates
from service.formats.completion import AssistantMessage, Completion, Usage

Json = dict[str, Any]

MAX_EVENT_BYTES: Final = 64 * 1024 * 1024
"""A longer event cannot be read, so the stream ends with an error. The events that come while
something is held back may be as long together."""


def message(content: bytes, *, with_thinking: bool, input_estimate: int = 0) -> bytes:
    """Translate a whole completion.

    :raises UpstreamError: when ``content`` is not a chat completion.
    """
    answer = completion.decode(content)
    if not answer.choices:
        raise UpstreamError("Venice's answer holds no completion.")
    choice = answer.choices[0]
    blocks = Content(with_thinking=with_thinking)
    blocks.take_results(answer.citations)
    blocks.take(choice.message or AssistantMessage())
    blocks.finish()
    return surrogates.encode(
        _empty_message(answer)
        | {
            "content": [block.whole() for block in blocks.blocks],
            "stop_reason": blocks.stop_reason(choice.finish_reason),
            "usage": blocks.usage(answer.usage, input_estimate),
        }
    )


def _empty_message(answer: Completion) -> Json:
    """A message with the completion's id and model, and without content."""
    return {
        "id": answer.id or f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": answer.model or "",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


class _State(enum.Enum):
    """How far a stream of message events is."""

    NEW = enum.auto()
    BETWEEN_BLOCKS = enum.auto()
    IN_BLOCK = enum.auto()
    ENDED = enum.auto()


class EventWriter:
    """Writes message events, and only in a valid order: ``message_start``, then one block after the
    other, each with its deltas between its start and its stop, then ``message_delta`` and
    ``message_stop``. An ``error`` event may come anywhere before that end, and is the last.

    A method that would break the order raises :class:`RuntimeError`.
    """

    def __init__(self) -> None:
        self._state = _State.NEW
        self._index = -1
        self._events: list[bytes] = []

    @property
    def is_begun(self) -> bool:
        """Whether ``message_start`` was written."""
        return self._state is not _State.NEW

    @property
    def is_in_block(self) -> bool:
        """Whether a block is open."""
        return self._state is _State.IN_BLOCK

    @property
    def is_ended(self) -> bool:
        """Whether nothing can follow."""
        return self._state is _State.ENDED

    def take(self) -> bytes:
        """Return the events that were written since the last time."""
        events, self._events = b"".join(self._events), []
        return events

    def begin(self, begun: Json) -> None:
        """Write ``message_start``."""
        self._move(_State.NEW, _State.BETWEEN_BLOCKS)
        self._write("message_start", message=begun)

    def start_block(self, block: Json) -> None:
        """Write ``content_block_start``."""
        self._move(_State.BETWEEN_BLOCKS, _State.IN_BLOCK)
        self._index += 1
        self._write("content_block_start", index=self._index, content_block=block)

    def add(self, delta: Json) -> None:
        """Write ``content_block_delta``."""
        self._move(_State.IN_BLOCK, _State.IN_BLOCK)
        self._write("content_block_delta", index=self._index, delta=delta)

    def stop_block(self) -> None:
        """Write ``content_block_stop``."""
        self._move(_State.IN_BLOCK, _State.BETWEEN_BLOCKS)
        self._write("content_block_stop", index=self._index)

    def end(self, stop_reason: str, usage: Json) -> None:
        """Write ``message_delta`` and ``message_stop``."""
        self._move(_State.BETWEEN_BLOCKS, _State.ENDED)
        delta = {"stop_reason": stop_reason, "stop_sequence": None}
        self._write("message_delta", delta=delta, usage=usage)
        self._write("message_stop")

    def fail(self, stated: Mapping[str, Any]) -> None:
        """Write ``error``, whose members are those of an error's body."""
        if self._state is _State.ENDED:
            raise RuntimeError("The stream of events has ended.")
        self._state = _State.ENDED
        self._write("error", **stated)

    def _move(self, before: _State, after: _State) -> None:
        if self._state is not before:
            raise RuntimeError(f"This event cannot follow: the stream is {self._state.name}.")
        self._state = after

    def _write(self, kind: str, **data: Any) -> None:
        content = surrogates.encode({"type": kind, **data})
        self._events.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), content))


class MessageEvents:
    """Translates the events of a completion into those of a message.

    Only the first block that is not complete is open. Later ones wait: a tool call is complete at
    the end of the stream, because pieces of several calls may alternate.
    """

    def __init__(self, *, with_thinking: bool, input_estimate: int = 0) -> None:
        self._with_thinking = with_thinking
        self._input_estimate = input_estimate
        self._reader = sse.EventReader(MAX_EVENT_BYTES)
        self._writer = EventWriter()
        self._content = Content(with_thinking=with_thinking)
        self._held_bytes = 0
        self._has_choices = False
        self._finish_reason: str | None = None
        self._usage: Usage | None = None

    def whole(self, content: bytes) -> bytes:
        """Translate a whole completion; see :func:`message`."""
        return message(
            content, with_thinking=self._with_thinking, input_estimate=self._input_estimate
        )

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes, and return the message events that follow from them.

        :raises UpstreamError: when an event is not a chunk of a completion.
        """
        self._translate(self._reader.feed(chunk))
        blocks = self._content.blocks
        if len(blocks) > 1 or (blocks and blocks[0].is_held_back):
            self._held_bytes += len(chunk)
            if self._held_bytes > MAX_EVENT_BYTES:
                raise UpstreamError("Venice's answer is too large.")
        return self._writer.take()

    def end(self) -> bytes:
        """Return the message events that follow from the end of the stream. A stream that states
        why or at what usage it ended has ended well, even without its last event.

        :raises UpstreamError: when its last event is not a chunk of a completion.
        :raises UpstreamCut: when it ended early.
        """
        self._translate(self._reader.end())
        if not self._writer.is_ended:
            if self._finish_reason is None and self._usage is None:
                raise UpstreamCut("Venice ended the stream before its end.")
            self._end()
        return self._writer.take()

    def failure(self, error: ServiceError, stated: Mapping[str, Any]) -> bytes:  # noqa: ARG002
        """See :meth:`Translation.failure`."""
        if not self._writer.is_ended:
            self._writer.fail(stated)
        return self._writer.take()

    def _translate(self, events: bytes) -> None:
        for data in sse.texts(events):
            if self._writer.is_ended:
                return
            if data.strip() == sse.DONE:
                self._end()
            else:
                self._take(completion.decode(data))

    def _take(self, chunk: Completion) -> None:
        if chunk.error:
            text = chunk.error.get("message") if isinstance(chunk.error, dict) else chunk.error
            self._writer.fail({"error": {"type": "api_error", "message": str(text)}})
            return
        if not self._writer.is_begun:
            usage = self._content.usage(None, self._input_estimate)
            self._writer.begin(_empty_message(chunk) | {"usage": usage})
        self._usage = chunk.usage or self._usage
        self._content.take_results(chunk.citations)
        if chunk.choices:
            choice = chunk.choices[0]
            self._has_choices = True
            self._finish_reason = choice.finish_reason or self._finish_reason
            self._content.take(choice.delta or AssistantMessage())
        self._write_blocks(is_end=False)

    def _write_blocks(self, *, is_end: bool) -> None:
        blocks = self._content.blocks
        while blocks and self._write_block(blocks[0]):
            if not is_end and (len(blocks) == 1 or blocks[0].is_kept_open):
                return
            for delta in blocks[0].last_deltas():
                self._writer.add(delta)
            self._writer.stop_block()
            blocks.popleft()

    def _write_block(self, block: Block) -> bool:
        """Write what has arrived of a block, and return whether the block has begun."""
        if not self._writer.is_in_block:
            if not block.is_ready:
                return False
            self._writer.start_block(block.start())
        for delta in block.deltas():
            self._writer.add(delta)
        return True

    def _end(self) -> None:
        if not self._has_choices:
            raise UpstreamError("Venice's stream holds no answer.")
        self._content.finish()
        self._write_blocks(is_end=True)
        stop_reason = self._content.stop_reason(self._finish_reason)
        self._writer.end(stop_reason, self._content.usage(self._usage, self._input_estimate))
