"""Translates chat completions into Anthropic messages, whole or as events."""

import uuid
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw, Struct

from service.anthropic.request import sign
from service.errors import UpstreamError
from service.formats import sse, surrogates
from service.formats.surrogates import Pieces

MAX_EVENT_BYTES: Final = 64 * 1024 * 1024
"""A longer event cannot be read, so the stream ends with an error."""
STOP_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}

Json = dict[str, Any]


class Function(Struct):
    """The function that the model calls, or a piece of it."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(Struct):
    """A tool call, or a piece of it."""

    index: int = 0
    id: str | None = None
    function: Function = msgspec.field(default_factory=Function)


class AssistantMessage(Struct):
    """A message of the model, or a piece of one from a stream."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning_details: list[Json] | None = None
    thought_signature: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(Struct):
    """One of the completion's choices. Only the first is translated."""

    message: AssistantMessage | None = None
    delta: AssistantMessage | None = None
    finish_reason: str | None = None


class PromptDetails(Struct):
    """How many tokens of the prompt were read from the cache and written to it."""

    cached_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class ChatUsage(Struct):
    """The tokens that Venice counted."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None

    def as_anthropic(self) -> Json:
        """The same as Anthropic's ``usage``, whose input does not include the cache's tokens."""
        details = self.prompt_tokens_details or PromptDetails()
        read, written = details.cached_tokens or 0, details.cache_creation_input_tokens or 0
        return {
            "input_tokens": max(0, self.prompt_tokens - read - written),
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": read,
            "output_tokens": self.completion_tokens,
        }


class Completion(Struct):
    """A chat completion, or a chunk of one."""

    id: str = ""
    model: str = ""
    choices: list[Choice] = []
    usage: ChatUsage | None = None
    error: Any = None


def message(content: bytes, *, with_thinking: bool) -> bytes:
    """Translate a whole completion.

    :raises UpstreamError: when ``content`` is not a chat completion.
    """
    try:
        completion = surrogates.decode(content, Completion)
    except msgspec.DecodeError as error:
        raise UpstreamError("Venice's answer cannot be read as a completion.") from error
    choice = completion.choices[0] if completion.choices else Choice()
    answer = choice.message or AssistantMessage()
    blocks: list[Json] = []
    if with_thinking:
        parts = _SignatureParts()
        parts.take(answer)
        signature = parts.join()
        if answer.reasoning_content or signature:
            blocks.append(_thinking_block(answer.reasoning_content or "", signature))
    if answer.content:
        blocks.append({"type": "text", "text": answer.content})
    blocks += [_tool_use_block(call) | {"input": _input(call)} for call in answer.tool_calls or ()]
    return surrogates.encode(
        _empty_message(completion)
        | {
            "content": blocks,
            "stop_reason": _stop_reason(choice.finish_reason, has_tools=bool(answer.tool_calls)),
            "usage": (completion.usage or ChatUsage()).as_anthropic(),
        }
    )


def _empty_message(completion: Completion) -> Json:
    """A message with the completion's id and model, and without content."""
    return {
        "id": completion.id or f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": completion.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": ChatUsage().as_anthropic(),
    }


def _stop_reason(finish_reason: str | None, *, has_tools: bool) -> str:
    # Some models stop with another reason than tool_calls although they call tools.
    if has_tools and finish_reason in (None, "stop"):
        return "tool_use"
    return STOP_REASONS.get(finish_reason or "stop", "end_turn")


def _thinking_block(thought: str, signature: str) -> Json:
    return {"type": "thinking", "thinking": thought, "signature": signature}


def _tool_use_block(call: ToolCall) -> Json:
    return {
        "type": "tool_use",
        "id": call.id or f"toolu_{uuid.uuid4().hex}",
        "name": call.function.name or "",
        "input": {},
    }


def _input(call: ToolCall) -> Raw | Json:
    """The arguments as a JSON object. Other arguments become its only member, as a text."""
    arguments = surrogates.repair(call.function.arguments or "{}")
    try:
        msgspec.json.decode(arguments, type=dict[str, Raw])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {"arguments": arguments}
    return Raw(arguments.encode())


class _SignatureParts:
    """Collects what the model needs back with its thinking, which arrives in pieces."""

    def __init__(self) -> None:
        self._details: list[Json] = []
        self._thought_signature = ""

    def take(self, piece: AssistantMessage) -> None:
        """Add a piece. Pieces of one detail have the same index, and their texts are joined."""
        self._thought_signature += piece.thought_signature or ""
        for detail in piece.reasoning_details or ():
            last = self._details[-1] if self._details else {}
            if detail.get("index") is None or last.get("index") != detail["index"]:
                self._details.append(dict(detail))
                continue
            for name, value in detail.items():
                is_text = name in ("text", "summary", "data", "signature")
                is_more = is_text and isinstance(value, str) and isinstance(last.get(name), str)
                last[name] = last[name] + value if is_more else value

    def join(self) -> str:
        """The signature that a client sends back with the thinking; empty if there is none."""
        parts: Json = {}
        if self._details:
            parts["reasoning_details"] = self._details
        if self._thought_signature:
            parts["thought_signature"] = self._thought_signature
        return sign(parts)


class _OpenTool(NamedTuple):
    """A block of a tool call, which stays open to the end."""

    block: int
    """The number of the block."""
    arguments: Pieces


class MessageEvents:
    """Translates the events of a completion into those of a message.

    A block of thinking or text is closed before the next block opens. Tool calls stay open to the
    end, since their pieces may alternate.
    """

    def __init__(self, *, with_thinking: bool) -> None:
        self._with_thinking = with_thinking
        self._reader = sse.EventReader(MAX_EVENT_BYTES)
        self._out: list[bytes] = []
        self._is_begun = False
        self._is_ended = False
        self._blocks = 0
        self._open: str | None = None
        """The kind of the last block if it is still open: thinking or text."""
        self._pieces = Pieces()
        """The text of the open block."""
        self._tools: dict[int, _OpenTool] = {}
        self._signature_parts = _SignatureParts()
        self._finish_reason: str | None = None
        self._usage = ChatUsage()

    def whole(self, content: bytes) -> bytes:
        """Translate a whole completion; see :func:`message`."""
        return message(content, with_thinking=self._with_thinking)

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes, and return the message events that follow from them.

        :raises UpstreamError: when an event is not a chunk of a completion.
        """
        return self._translate(self._reader.feed(chunk))

    def end(self) -> bytes:
        """Return the message events that follow from the end of the stream.

        :raises UpstreamError: when its last event is not a chunk of a completion.
        """
        return self._translate(self._reader.end())

    def _translate(self, events: bytes) -> bytes:
        for data in sse.texts(events):
            if not self._is_ended:
                self._take(data)
        out, self._out = b"".join(self._out), []
        return out

    def _take(self, data: bytes) -> None:
        if data.strip() == sse.DONE:
            self._end()
            return
        try:
            chunk = surrogates.decode(data, Completion)
        except msgspec.DecodeError as error:
            raise UpstreamError("Venice's stream cannot be read as a completion.") from error
        if chunk.error is not None:
            text = chunk.error.get("message") if isinstance(chunk.error, dict) else chunk.error
            self._emit("error", error={"type": "api_error", "message": str(text)})
            self._is_ended = True
            return
        self._begin(chunk)
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.choices:
            self._finish_reason = chunk.choices[0].finish_reason or self._finish_reason
            self._delta(chunk.choices[0].delta or AssistantMessage())

    def _begin(self, chunk: Completion) -> None:
        if not self._is_begun:
            self._is_begun = True
            self._emit("message_start", message=_empty_message(chunk))

    def _delta(self, piece: AssistantMessage) -> None:
        if self._with_thinking:
            self._signature_parts.take(piece)
            if piece.reasoning_content:
                self._open_block("thinking", _thinking_block("", ""))
                self._piece("thinking_delta", "thinking", piece.reasoning_content)
        if piece.content:
            self._open_block("text", {"type": "text", "text": ""})
            self._piece("text_delta", "text", piece.content)
        for call in piece.tool_calls or ():
            if call.index not in self._tools:
                self._close()
                self._tools[call.index] = _OpenTool(self._start(_tool_use_block(call)), Pieces())
            if call.function.arguments:
                tool = self._tools[call.index]
                self._add_arguments(tool, tool.arguments.add(call.function.arguments))

    def _add_arguments(self, tool: _OpenTool, arguments: str) -> None:
        if arguments:
            self._emit(
                "content_block_delta",
                index=tool.block,
                delta={"type": "input_json_delta", "partial_json": arguments},
            )

    def _open_block(self, kind: str, empty: Json) -> None:
        """Open a block of this kind, unless the open block is one."""
        if self._open != kind:
            if kind != "thinking":
                self._close()
            elif self._open is not None:
                self._end_text()
                self._stop(self._blocks - 1)
            self._start(empty)
            self._open = kind

    def _piece(self, kind: str, name: str, text: str) -> None:
        if text := self._pieces.add(text):
            self._add(kind, name, text)

    def _end_text(self) -> None:
        """Emit the text of the open block that still waits."""
        if rest := self._pieces.rest():
            name = "thinking" if self._open == "thinking" else "text"
            self._add(f"{name}_delta", name, rest)

    def _add(self, kind: str, name: str, text: str) -> None:
        delta = {"type": kind, name: text}
        self._emit("content_block_delta", index=self._blocks - 1, delta=delta)

    def _start(self, block: Json) -> int:
        index = self._blocks
        self._blocks += 1
        self._emit("content_block_start", index=index, content_block=block)
        return index

    def _stop(self, index: int) -> None:
        self._emit("content_block_stop", index=index)

    def _close(self) -> None:
        """Close the open block. A signature ends the block of thinking; if there is none, one is
        opened for it."""
        self._end_text()
        if self._open == "text":
            self._stop(self._blocks - 1)
        signature = self._signature_parts.join()
        self._signature_parts = _SignatureParts()
        if signature and self._open != "thinking":
            self._start(_thinking_block("", ""))
            self._open = "thinking"
        if signature:
            self._add("signature_delta", "signature", signature)
        if self._open == "thinking":
            self._stop(self._blocks - 1)
        self._open = None

    def _end(self) -> None:
        self._is_ended = True
        self._begin(Completion())
        self._close()
        for tool in self._tools.values():
            self._add_arguments(tool, tool.arguments.rest())
            self._stop(tool.block)
        stop_reason = _stop_reason(self._finish_reason, has_tools=bool(self._tools))
        self._emit(
            "message_delta",
            delta={"stop_reason": stop_reason, "stop_sequence": None},
            usage=self._usage.as_anthropic(),
        )
        self._emit("message_stop")

    def _emit(self, kind: str, **data: Any) -> None:
        content = surrogates.encode({"type": kind, **data})
        self._out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), content))
