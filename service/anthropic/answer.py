"""A chat completion as a message, whole or as events."""

import uuid
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from service.anthropic.request import sign
from service.errors import UpstreamError
from service.formats import sse, surrogates
from service.formats.surrogates import Pieces

STOP_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}

Json = dict[str, Any]


class Function(Struct):
    """The function that is called, or a piece of it."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(Struct):
    """A call of a tool, or a piece of it."""

    index: int = 0
    id: str | None = None
    function: Function = msgspec.field(default_factory=Function)


class Said(Struct):
    """A message of the model, or a piece of it."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning_details: list[Json] | None = None
    thought_signature: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(Struct):
    """An answer; the first one counts."""

    message: Said | None = None
    delta: Said | None = None
    finish_reason: str | None = None


class PromptDetails(Struct):
    """What of the prompt the cache had, or got."""

    cached_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class Usage(Struct):
    """What Venice counted."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None

    def stated(self) -> Json:
        """The same in Anthropic's words: there the cache's tokens are not among the input's."""
        details = self.prompt_tokens_details or PromptDetails()
        read, written = details.cached_tokens or 0, details.cache_creation_input_tokens or 0
        return {
            "input_tokens": max(0, self.prompt_tokens - read - written),
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": read,
            "output_tokens": self.completion_tokens,
        }


class Completion(Struct):
    """A completion, or a chunk of one."""

    id: str = ""
    model: str = ""
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


def message(content: bytes, *, with_thinking: bool) -> bytes:
    """The whole answer.

    :raises UpstreamError: when it is no completion.
    """
    try:
        completion = surrogates.decode(content, Completion)
    except msgspec.DecodeError as error:
        raise UpstreamError("Venice's answer cannot be read as a completion.") from error
    choice = completion.choices[0] if completion.choices else Choice()
    said = choice.message or Said()
    blocks: list[Json] = []
    if with_thinking:
        kept = _Kept()
        kept.take(said)
        if said.reasoning_content or kept.signature():
            blocks.append(_thinking(said.reasoning_content or "", kept.signature()))
    if said.content:
        blocks.append({"type": "text", "text": said.content})
    blocks += [_tool_use(call) | {"input": _input(call)} for call in said.tool_calls or ()]
    return surrogates.encode(
        _message(completion)
        | {
            "content": blocks,
            "stop_reason": _stop_reason(choice.finish_reason, has_tools=bool(said.tool_calls)),
            "usage": (completion.usage or Usage()).stated(),
        }
    )


def _message(completion: Completion) -> Json:
    """An empty message."""
    return {
        "id": completion.id or f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": completion.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": Usage().stated(),
    }


def _stop_reason(finish_reason: str | None, *, has_tools: bool) -> str:
    # Not every model says tool_calls when it calls some.
    if has_tools and finish_reason in (None, "stop"):
        return "tool_use"
    return STOP_REASONS.get(finish_reason or "stop", "end_turn")


def _thinking(thought: str, signature: str) -> Json:
    return {"type": "thinking", "thinking": thought, "signature": signature}


def _tool_use(call: ToolCall) -> Json:
    return {
        "type": "tool_use",
        "id": call.id or f"toolu_{uuid.uuid4().hex}",
        "name": call.function.name or "",
        "input": {},
    }


def _input(call: ToolCall) -> Raw | Json:
    """The arguments, which have to be an object; what is none is kept as a text in one."""
    arguments = surrogates.repair(call.function.arguments or "{}")
    try:
        msgspec.json.decode(arguments, type=dict[str, Raw])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {"arguments": arguments}
    return Raw(arguments.encode())


class _Kept:
    """What the model wants back with its thinking, as it comes in pieces."""

    def __init__(self) -> None:
        self._details: list[Json] = []
        self._thought_signature = ""

    def take(self, said: Said) -> None:
        """Add a piece. Pieces of one detail have the same index, and their texts make one."""
        self._thought_signature += said.thought_signature or ""
        for detail in said.reasoning_details or ():
            last = self._details[-1] if self._details else {}
            if detail.get("index") is None or last.get("index") != detail["index"]:
                self._details.append(dict(detail))
                continue
            for name, value in detail.items():
                is_text = name in ("text", "summary", "data", "signature")
                is_more = is_text and isinstance(value, str) and isinstance(last.get(name), str)
                last[name] = last[name] + value if is_more else value

    def signature(self) -> str:
        """All of it."""
        kept: Json = {}
        if self._details:
            kept["reasoning_details"] = self._details
        if self._thought_signature:
            kept["thought_signature"] = self._thought_signature
        return sign(kept)


class MessageEvents:
    """Turns the events of a completion into those of a message, one after the other.

    Blocks of thinking and of text are closed before another begins; calls of tools stay open to the
    end, since their pieces may alternate.
    """

    def __init__(self, *, with_thinking: bool) -> None:
        self._with_thinking = with_thinking
        self._reader = sse.EventReader()
        self._out: list[bytes] = []
        self._is_begun = False
        self._is_ended = False
        self._blocks = 0
        self._open: str | None = None
        """The kind of the last block, if it is one of thinking or text that goes on."""
        self._pieces = Pieces()
        """Those of its text."""
        self._tools: dict[int, int] = {}
        self._arguments: dict[int, Pieces] = {}
        self._kept = _Kept()
        self._finish_reason: str | None = None
        self._usage = Usage()

    def whole(self, content: bytes) -> bytes:
        """A plain answer: :func:`message`."""
        return message(content, with_thinking=self._with_thinking)

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes, and return the message's events that follow from them.

        :raises UpstreamError: when they are no events of a completion.
        """
        return self._translate(self._reader.feed(chunk))

    def end(self) -> bytes:
        """Return the message's events that follow from the end of the stream.

        :raises UpstreamError: when its last bytes are no event of a completion.
        """
        return self._translate(self._reader.end())

    def _translate(self, events: bytes) -> bytes:
        for data in sse.parse(events):
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
            self._say("error", error={"type": "api_error", "message": str(text)})
            self._is_ended = True
            return
        self._begin(chunk)
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.choices:
            self._finish_reason = chunk.choices[0].finish_reason or self._finish_reason
            self._delta(chunk.choices[0].delta or Said())

    def _begin(self, chunk: Completion) -> None:
        if not self._is_begun:
            self._is_begun = True
            self._say("message_start", message=_message(chunk))

    def _delta(self, said: Said) -> None:
        if self._with_thinking:
            self._kept.take(said)
            if said.reasoning_content:
                self._continue("thinking", _thinking("", ""))
                self._piece("thinking_delta", "thinking", said.reasoning_content)
        if said.content:
            self._continue("text", {"type": "text", "text": ""})
            self._piece("text_delta", "text", said.content)
        for call in said.tool_calls or ():
            if call.index not in self._tools:
                self._close()
                self._tools[call.index] = self._start(_tool_use(call))
                self._arguments[call.index] = Pieces()
            if call.function.arguments:
                self._argue(call.index, self._arguments[call.index].add(call.function.arguments))

    def _argue(self, index: int, arguments: str) -> None:
        if arguments:
            self._say(
                "content_block_delta",
                index=self._tools[index],
                delta={"type": "input_json_delta", "partial_json": arguments},
            )

    def _continue(self, kind: str, empty: Json) -> None:
        """Begin a block of the kind, if the last is no such."""
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
        """Pass on what waits of the open block's text."""
        if rest := self._pieces.rest():
            name = "thinking" if self._open == "thinking" else "text"
            self._add(f"{name}_delta", name, rest)

    def _add(self, kind: str, name: str, text: str) -> None:
        delta = {"type": kind, name: text}
        self._say("content_block_delta", index=self._blocks - 1, delta=delta)

    def _start(self, block: Json) -> int:
        index = self._blocks
        self._blocks += 1
        self._say("content_block_start", index=index, content_block=block)
        return index

    def _stop(self, index: int) -> None:
        self._say("content_block_stop", index=index)

    def _close(self) -> None:
        """End the block that goes on, thinking with its signature, for which there may not have
        been a block yet."""
        self._end_text()
        if self._open == "text":
            self._stop(self._blocks - 1)
        signature, self._kept = self._kept.signature(), _Kept()
        if signature and self._open != "thinking":
            self._start(_thinking("", ""))
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
        for number, index in self._tools.items():
            self._argue(number, self._arguments[number].rest())
            self._stop(index)
        stop_reason = _stop_reason(self._finish_reason, has_tools=bool(self._tools))
        self._say(
            "message_delta",
            delta={"stop_reason": stop_reason, "stop_sequence": None},
            usage=self._usage.stated(),
        )
        self._say("message_stop")

    def _say(self, kind: str, **data: Any) -> None:
        content = surrogates.encode({"type": kind, **data})
        self._out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), content))
