"""The typed events of ``POST /responses``, in both of Venice's modes."""

from collections.abc import Generator, Iterator
from typing import Any

import msgspec

from service.sandbox.exchange import DONE, Exchange
from service.sandbox.text.items import Item, Reply, part_of

Event = tuple[str, dict[str, Any]]


def encoded(exchange: Exchange, reply: Reply) -> Generator[bytes, None, None]:
    """Yield the events, numbered, and ``[DONE]``. The last event has the usage."""
    answer = reply.answer
    sent = number = 0
    try:
        for kind, data in _events(exchange, reply):
            if kind == "response.web_search.done":
                # The only event without a number, and with a type that is not its own.
                content = msgspec.json.encode(data)
            else:
                content = msgspec.json.encode({"type": kind, "sequence_number": number, **data})
                number += 1
            end = DONE if kind in _LAST else b""
            sent += kind.endswith(".delta")
            if end:
                sent = answer.completion_tokens
            yield b"event: %b\ndata: %b\n\n%b" % (kind.encode(), content, end)
    finally:
        answer.charge(exchange, sent)


_LAST = frozenset({"response.completed", "response.incomplete", "response.failed", "error"})


def _events(exchange: Exchange, reply: Reply) -> Iterator[Event]:
    is_native = reply.lane.is_native
    yield "response.created", {"response": reply.render(exchange, "in_progress")}
    if is_native:
        yield "response.in_progress", {"response": reply.render(exchange, "in_progress")}
    yield from _search(reply)
    status = reply.last_status
    streamed = (item for item in reply.items if item.kind != "web_search_call")
    for index, item in enumerate(streamed):
        yield "response.output_item.added", {"output_index": index, "item": item.render(_BEGUN)}
        place = {"output_index": index, "item_id": item.id}
        yield from _parts_of(reply, item, place, is_native=is_native)
        yield "response.output_item.done", {"output_index": index, "item": item.render(status)}
    failure = reply.answer.failure
    if failure is None:
        yield f"response.{status}", {"response": reply.render(exchange, status)}
    elif reply.answer.markers.fail is not None:
        yield "response.failed", {"response": reply.render(exchange, "failed")}
    else:
        yield "error", {"code": failure, "message": "The simulated model failed.", "param": None}


_BEGUN = "in_progress"


def _search(reply: Reply) -> Iterator[Event]:
    """Yield the results of a search, which come before everything else."""
    if reply.answer.citations and not reply.lane.is_native:
        call = next(item for item in reply.items if item.kind == "web_search_call")
        results = [
            {
                "index": index,
                "url": found["url"],
                "title": found["title"],
                "snippet": found["content"],
            }
            for index, found in enumerate(reply.answer.citations, 1)
        ]
        data = {"type": call.kind, "id": call.id, "status": "completed", "results": results}
        yield "response.web_search.done", data


def _parts_of(
    reply: Reply, item: Item, place: dict[str, Any], *, is_native: bool
) -> Iterator[Event]:
    """Yield the events between the first and the last of an item."""
    match item.kind:
        case "reasoning":
            thoughts = reply.answer.thoughts
            yield from _summary(thoughts, place) if is_native else _reasoning(thoughts, place)
        case "message":
            yield from _message(reply.answer.tokens, item, place, is_native=is_native)
        case "function_call":
            yield from _arguments(item, place, is_native=is_native)
        case "custom_tool_call":
            yield from _custom_input(item, place)
        case "shell_call":
            yield from _commands(item, place)
        case _:
            pass


def _summary(thoughts: list[str], place: dict[str, Any]) -> Iterator[Event]:
    within = {**place, "summary_index": 0}
    text = "".join(thoughts)
    part = {"type": "summary_text", "text": ""}
    yield "response.reasoning_summary_part.added", {**within, "part": part}
    for thought in thoughts:
        yield "response.reasoning_summary_text.delta", {**within, "delta": thought}
    yield "response.reasoning_summary_text.done", {**within, "text": text}
    yield "response.reasoning_summary_part.done", {**within, "part": {**part, "text": text}}


def _reasoning(thoughts: list[str], place: dict[str, Any]) -> Iterator[Event]:
    for thought in thoughts:
        yield "response.reasoning.delta", {**place, "delta": thought}


def _message(
    tokens: list[str], item: Item, place: dict[str, Any], *, is_native: bool
) -> Iterator[Event]:
    within = {**place, "content_index": 0}
    part = part_of(item)
    is_refusal = part["type"] == "refusal"
    name, member = ("refusal", "refusal") if is_refusal else ("output_text", "text")
    logprobs: dict[str, Any] = {"logprobs": []} if is_native and not is_refusal else {}
    yield "response.content_part.added", {**within, "part": {**part, member: ""}}
    for token in tokens:
        yield f"response.{name}.delta", {**within, "delta": token, **logprobs}
    if is_native:
        yield f"response.{name}.done", {**within, member: part[member], **logprobs}
    yield "response.content_part.done", {**within, "part": part}


def _arguments(item: Item, place: dict[str, Any], *, is_native: bool) -> Iterator[Event]:
    arguments = item.done["arguments"]
    pieces = item.call.pieces if item.call and item.call.text == arguments else [arguments]
    for piece in pieces:
        yield "response.function_call_arguments.delta", {**place, "delta": piece}
    if is_native:
        named = {"name": item.done["name"], "arguments": arguments}
        yield "response.function_call_arguments.done", {**place, **named}


def _custom_input(item: Item, place: dict[str, Any]) -> Iterator[Event]:
    given = item.done["input"]
    yield "response.custom_tool_call_input.delta", {**place, "delta": given}
    yield "response.custom_tool_call_input.done", {**place, "input": given}


def _commands(item: Item, place: dict[str, Any]) -> Iterator[Event]:
    for index, command in enumerate(item.done["action"]["commands"]):
        within = {"output_index": place["output_index"], "command_index": index}
        yield "response.shell_call_command.added", {**within, "command": ""}
        yield "response.shell_call_command.delta", {**within, "delta": command}
        yield "response.shell_call_command.done", {**within, "command": command}
