"""Translates chat completions into responses, whole or as events."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from service.errors import ServiceError, UpstreamError
from service.formats import completion, sse, surrogates
from service.formats.completion import AssistantMessage, Choice, Completion, ToolCall, Usage
from service.formats.reasoning import KeptReasoning, encode_reasoning
from service.formats.surrogates import Pieces
from service.responses.request import AnswerContext
from service.responses.tools import CallerTool, Toolbox, client_item, custom_input, new_id, new_item
from service.responses.writer import EventWriter

Json = dict[str, Any]

MAX_STREAM_BYTES: Final = 64 * 1024 * 1024
"""A longer stream ends with an error, since its last event repeats all of its texts."""
INCOMPLETE: Final = {
    "length": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "max_output_tokens": "max_output_tokens",
    "content_filter": "content_filter",
    "refusal": "content_filter",
    "safety": "content_filter",
}
"""Why a response is incomplete, by the reason for which the completion finished."""


class ChatAnswer:
    """Translates a chat completion.

    An item ends before the next begins. The pieces of tool calls may alternate, so the first call
    is written as it arrives, and everything after it waits for its end.
    """

    def __init__(self, context: AnswerContext) -> None:
        self._context = context
        self._reader = sse.EventReader(MAX_STREAM_BYTES)
        self._read_bytes = 0
        self._writer = EventWriter(context.stated)
        self._message: _OpenMessage | None = None
        self._reasoning: _OpenReasoning | None = None
        """The open item, if it is one of these."""
        self._kept = KeptReasoning()
        self._calls = _PendingCalls(context.toolbox, self._writer)
        self._waiting: list[tuple[AssistantMessage, list[Json]]] = []
        """Texts that came after a call had begun, with their log probabilities."""
        self._citations: list[Json] = []
        self._finish_reason = ""
        self._usage: Usage | None = None

    def whole(self, content: bytes) -> bytes:
        """See :meth:`Translation.whole`."""
        answer = completion.decode(content)
        self._take(answer)
        if not any(choice.index == 0 for choice in answer.choices):
            raise UpstreamError("Venice's answer holds no choice.")
        return surrogates.encode(self._end())

    def feed(self, chunk: bytes) -> bytes:
        """See :meth:`Translation.feed`."""
        self._read_bytes += len(chunk)
        if self._read_bytes > MAX_STREAM_BYTES:
            raise UpstreamError("Venice's answer is too large.")
        return self._translate(self._reader.feed(chunk))

    def end(self) -> bytes:
        """See :meth:`Translation.end`."""
        events = self._translate(self._reader.end())
        if self._writer.is_ended:
            return events
        self._end()
        return events + self._writer.take()

    def failure(self, error: ServiceError, stated: Mapping[str, Any]) -> bytes:
        """See :meth:`Translation.failure`."""
        self._writer.fail(error, stated)
        return self._writer.take()

    def _translate(self, events: bytes) -> bytes:
        for data in sse.texts(events):
            if self._writer.is_ended:
                break
            if data.strip() == sse.DONE:
                self._end()
            else:
                self._take(completion.decode(data))
        return self._writer.take()

    def _take(self, chunk: Completion) -> None:
        if chunk.error:
            raise UpstreamError("Venice failed while it was generating the response.")
        if not self._writer.is_begun:
            self._begin(chunk)
        self._usage = chunk.usage or self._usage
        # Venice may state them again.
        self._citations = self._citations or chunk.citations
        for choice in chunk.choices:
            if choice.index == 0:
                self._finish_reason = choice.finish_reason or self._finish_reason
                self._add(choice)

    def _begin(self, chunk: Completion) -> None:
        self._writer.begin(
            id=f"resp_{chunk.id}" if chunk.id else new_id("resp"),
            created_at=chunk.created or int(time.time()),
            model=chunk.model or self._context.stated.get("model") or "",
        )

    def _add(self, choice: Choice) -> None:
        piece = choice.message or choice.delta
        logprobs = _read_logprobs(choice.logprobs) if self._context.has_logprobs else []
        if piece is None:
            piece = AssistantMessage()
        self._kept.take(piece)
        if self._calls.have_begun and (piece.thought or piece.content or piece.refusal):
            self._waiting.append((piece, logprobs))
        else:
            self._add_texts(piece, logprobs)
        for call in piece.tool_calls or ():
            if not self._calls.have_begun:
                self._close()
            self._calls.take(call)

    def _add_texts(self, piece: AssistantMessage, logprobs: list[Json]) -> None:
        if piece.thought:
            if self._reasoning is None:
                self._close()
                self._reasoning = _OpenReasoning(self._writer)
            self._reasoning.add(piece.thought)
        if piece.content or piece.refusal or (logprobs and self._message is not None):
            if self._message is None:
                self._close()
                self._message = _OpenMessage(self._writer)
            self._message.add(piece.content or "", piece.refusal or "", logprobs)

    def _close(self, status: str = "completed") -> None:
        """End the open item."""
        if self._message is not None:
            self._message.close(status, self._citations)
            self._message = None
        if self._reasoning is not None:
            self._reasoning.close(status, self._sealed())
            self._reasoning = None

    def _sealed(self) -> str:
        """What the model needs back since the last time, encoded; empty if there is nothing."""
        members, self._kept = self._kept.members, KeptReasoning()
        return encode_reasoning(members) if members else ""

    def _end(self) -> Json:
        if not self._writer.is_begun:
            raise UpstreamError("Venice's stream holds no answer.")
        incomplete = INCOMPLETE.get(self._finish_reason.casefold())
        status = "incomplete" if incomplete else "completed"
        self._close("completed" if self._calls.have_begun else status)
        self._calls.end("completed" if self._waiting else status)
        for piece, logprobs in self._waiting:
            self._add_texts(piece, logprobs)
        self._close(status)
        if sealed := self._sealed():
            _OpenReasoning(self._writer).close("completed", sealed)
        if self._citations:
            self._add_search()
        usage = None if self._usage is None else _usage(self._usage)
        return self._writer.end(usage=usage, incomplete=incomplete)

    def _add_search(self) -> None:
        """Add the search that Venice ran. Its results come at the end of a stream."""
        sources = [
            {"type": "url", "url": citation["url"]}
            for citation in self._citations
            if isinstance(citation.get("url"), str)
        ]
        action = {"type": "search", "query": "", "sources": sources}
        item = {"type": "web_search_call", "id": new_id("ws"), "action": action}
        self._writer.open({**item, "status": "in_progress"})
        self._writer.close({**item, "status": "completed"})


class _OpenReasoning:
    """An item of reasoning that is open. Its text is a summary, since that is what clients show."""

    def __init__(self, writer: EventWriter) -> None:
        self._writer = writer
        self._item: Json = {"type": "reasoning", "id": new_id("rs"), "summary": []}
        self._pieces = Pieces()
        self._texts: list[str] = []
        self._is_begun = False
        writer.open({**self._item, "status": "in_progress"})

    def add(self, text: str) -> None:
        self._write(self._pieces.add(text))

    def _write(self, text: str) -> None:
        if not text:
            return
        if not self._is_begun:
            self._is_begun = True
            self._emit("part.added", part={"type": "summary_text", "text": ""})
        self._texts.append(text)
        self._emit("text.delta", delta=text)

    def _emit(self, kind: str, **data: Any) -> None:
        self._writer.emit(f"reasoning_summary_{kind}", summary_index=0, **data)

    def close(self, status: str, sealed: str) -> None:
        """``sealed``: what the model needs back."""
        self._write(self._pieces.rest())
        item = {**self._item, "status": status}
        if self._is_begun:
            part = {"type": "summary_text", "text": "".join(self._texts)}
            self._emit("text.done", text=part["text"])
            self._emit("part.done", part=part)
            item["summary"] = [part]
        if sealed:
            item["encrypted_content"] = sealed
        self._writer.close(item)


class _OpenMessage:
    """A message that is open. A text and a refusal are parts of their own."""

    def __init__(self, writer: EventWriter) -> None:
        self._writer = writer
        self._item: Json = {"type": "message", "id": new_id("msg"), "role": "assistant"}
        self._parts: list[Json] = []
        self._kind = ""
        """The member that the open part's text is in; empty if no part is open."""
        self._pieces = Pieces()
        self._texts: list[str] = []
        self._logprobs: list[Json] = []
        """The log probabilities of the open part."""
        writer.open({**self._item, "status": "in_progress", "content": []})

    def add(self, text: str, refusal: str, logprobs: list[Json]) -> None:
        if text or logprobs:
            self._open("text")
            self._logprobs += logprobs
            self._write(self._pieces.add(text), logprobs)
        if refusal:
            self._open("refusal")
            self._write(self._pieces.add(refusal), [])

    def _open(self, kind: str) -> None:
        if self._kind == kind:
            return
        self._end_part([])
        self._kind = kind
        self._emit("content_part.added", part=self._part("", [], []))

    def _part(self, text: str, logprobs: list[Json], annotations: list[Json]) -> Json:
        if self._kind == "refusal":
            return {"type": "refusal", "refusal": text}
        part = {"type": "output_text", "text": text, "annotations": annotations}
        return {**part, "logprobs": logprobs}

    def _write(self, text: str, logprobs: list[Json]) -> None:
        if not text and not logprobs:
            return
        self._texts.append(text)
        if self._kind == "refusal":
            self._emit("refusal.delta", delta=text)
        else:
            self._emit("output_text.delta", delta=text, logprobs=logprobs)

    def _end_part(self, citations: list[Json]) -> None:
        if not self._kind:
            return
        self._write(self._pieces.rest(), [])
        text = "".join(self._texts)
        annotations: list[Json] = []
        if self._kind == "refusal":
            self._emit("refusal.done", refusal=text)
        else:
            annotations = list(_annotations(text, citations))
            for index, one in enumerate(annotations):
                self._emit("output_text.annotation.added", annotation_index=index, annotation=one)
            self._emit("output_text.done", text=text, logprobs=self._logprobs)
        part = self._part(text, self._logprobs, annotations)
        self._emit("content_part.done", part=part)
        self._parts.append(part)
        self._kind, self._texts, self._logprobs = "", [], []

    def _emit(self, kind: str, **data: Any) -> None:
        self._writer.emit(kind, content_index=len(self._parts), **data)

    def close(self, status: str, citations: list[Json]) -> None:
        self._end_part(citations)
        self._writer.close({**self._item, "status": status, "content": self._parts})


class _PendingCall:
    """A call of a tool, as far as it has arrived."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []


class _PendingCalls:
    """The calls of an answer. The first is written as it arrives, and the others wait."""

    def __init__(self, toolbox: Toolbox, writer: EventWriter) -> None:
        self._toolbox = toolbox
        self._writer = writer
        self._numbers = completion.ToolCallNumbers()
        self._calls: list[_PendingCall] = []
        self._item: Json | None = None
        """The item of the first call, once it is open."""
        self._pieces = Pieces()

    @property
    def have_begun(self) -> bool:
        """Whether there is a call."""
        return bool(self._calls)

    def take(self, piece: ToolCall) -> None:
        """Add a piece of a call."""
        number = self._numbers.number_of(piece)
        if number == len(self._calls):
            self._calls.append(_PendingCall())
        call = self._calls[number]
        call.id = call.id or piece.id or ""
        call.name = call.name or piece.name
        if piece.arguments:
            call.arguments.append(piece.arguments)
        if number == 0:
            self._stream(call, piece.arguments)

    def _stream(self, call: _PendingCall, arguments: str) -> None:
        """Write the first call as far as it has arrived, if it is one of a function. It begins when
        its id and its name are known."""
        if self._item is not None:
            self._write(arguments)
        elif call.name and call.id and (tool := self._toolbox.tool_of(call.name)).is_streamed:
            self._open(tool, call)
            self._write("".join(call.arguments))

    def _open(self, tool: CallerTool, call: _PendingCall) -> None:
        self._item = new_item(tool, call.id or new_id("call"))
        self._pieces = Pieces()
        self._writer.open(self._item)

    def _write(self, arguments: str) -> None:
        self._write_delta(self._pieces.add(arguments))

    def _write_delta(self, delta: str) -> None:
        if delta and self._item is not None and self._item["type"] == "function_call":
            self._writer.emit("function_call_arguments.delta", delta=delta)

    def end(self, status: str) -> None:
        """Write all calls to their end. ``status`` is that of the last one.

        :raises UpstreamError: when a call's arguments are none of its tool.
        """
        for call in self._calls:
            own_status = status if call is self._calls[-1] else "completed"
            tool = self._toolbox.tool_of(call.name)
            if not tool.is_streamed:
                self._write_client_call(tool, call, own_status)
                continue
            if self._item is None:
                self._open(tool, call)
                self._write("".join(call.arguments))
            self._close("".join(call.arguments), own_status)

    def _write_client_call(self, tool: CallerTool, call: _PendingCall, status: str) -> None:
        arguments = "".join(call.arguments)
        try:
            item = client_item(tool, call.id or new_id("call"), arguments)
        except UpstreamError:
            if status == "completed":
                raise
            # It was cut off, which the response states.
            return
        self._writer.open({**item, "status": "in_progress"})
        self._writer.close(item)

    def _close(self, arguments: str, status: str) -> None:
        if self._item is None:
            return
        item, self._item = self._item, None
        if item["type"] == "custom_tool_call":
            text = surrogates.repair(custom_input(arguments))
            if text:
                self._writer.emit("custom_tool_call_input.delta", delta=text)
            self._writer.emit("custom_tool_call_input.done", input=text)
            self._writer.close({**item, "input": text})
            return
        self._item = item
        self._write_delta(self._pieces.rest())
        self._item = None
        whole = {"arguments": surrogates.repair(arguments)}
        self._writer.emit("function_call_arguments.done", name=item["name"], **whole)
        self._writer.close({**item, **whole, "status": status})


def _annotations(text: str, citations: list[Json]) -> Iterator[Json]:
    """The marks of the text that name search results."""
    for mark, index in completion.cited(text, citations):
        url, title = citations[index].get("url"), citations[index].get("title")
        if isinstance(url, str):
            yield {
                "type": "url_citation",
                "url": url,
                "title": title if isinstance(title, str) else "",
                "start_index": mark.start(),
                "end_index": mark.end(),
            }


def _read_logprobs(logprobs: Json | None) -> list[Json]:
    """The log probabilities of a choice. Entries that lack a token or a number are left out."""
    content = (logprobs or {}).get("content")
    return [
        {**_logprob(one), "top_logprobs": [_logprob(top) for top in _entries(one, "top_logprobs")]}
        for one in _entries({"content": content}, "content")
    ]


def _entries(of: Mapping[str, Any], name: str) -> list[Json]:
    value = of.get(name)
    return [
        one
        for one in (value if isinstance(value, list) else ())
        if isinstance(one, dict)
        and isinstance(one.get("token"), str)
        and isinstance(one.get("logprob"), int | float)
    ]


def _logprob(one: Json) -> Json:
    stated = one.get("bytes")
    is_bytes = isinstance(stated, list) and all(isinstance(byte, int) for byte in stated)
    token = surrogates.repair(one["token"])
    octets = stated if is_bytes else list(token.encode())
    return {"token": token, "bytes": octets, "logprob": one["logprob"]}


def _usage(usage: Usage) -> Json:
    """The same counts in the format of responses."""
    input_tokens, output_tokens = usage.prompt_tokens or 0, usage.completion_tokens or 0
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens or input_tokens + output_tokens,
    }
