"""The output items of ``POST /responses``, and the response object around them."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from service.sandbox.exchange import Exchange
from service.sandbox.text import oddities, searches
from service.sandbox.text.answers import Answer, Call
from service.sandbox.text.lanes import Lane
from service.sandbox.text.native import SEAL
from service.sandbox.text.responses_request import ResponsesRequest

_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""The reasons of incomplete responses, by the finish reason of a chat completion."""
_ENCRYPTED: Final = "reasoning.encrypted_content"


@dataclass(slots=True, kw_only=True)
class Item:
    """An output item."""

    kind: str
    id: str
    done: dict[str, Any]
    """The members that the item has when it is done."""
    begun: dict[str, Any] = field(default_factory=dict)
    """Those of them that differ when it begins."""
    call: Call | None = None

    def render(self, status: str) -> dict[str, Any]:
        """Return the item in a status."""
        members = self.done if status != "in_progress" else {**self.done, **self.begun}
        rendered = {"type": self.kind, "id": self.id, **members}
        if self.kind != "reasoning":
            rendered["status"] = status
        return rendered


@dataclass(slots=True, kw_only=True)
class Reply:
    """An answer with what ``/responses`` adds to it."""

    id: str
    created_at: int
    answer: Answer
    request: ResponsesRequest
    lane: Lane
    items: list[Item]

    @property
    def last_status(self) -> str:
        """The status that the response ends with."""
        return "incomplete" if self.incomplete_reason else "completed"

    @property
    def incomplete_reason(self) -> str | None:
        return _INCOMPLETE.get(self.answer.finish_reason)

    def render(self, exchange: Exchange, status: str) -> dict[str, Any]:
        """Return the response object in a status."""
        is_done = status in ("completed", "incomplete")
        rendered: dict[str, Any] = {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "model": self.answer.model.id,
            "status": status,
            "output": [item.render(status) for item in self.items] if is_done else [],
        }
        if self.lane.is_native:
            rendered = {**rendered, **self._native_members()}
        if status == "incomplete":
            rendered["incomplete_details"] = {"reason": self.incomplete_reason}
        if status == "failed":
            message = "The simulated model failed."
            rendered["error"] = {"code": self.answer.failure, "message": message}
        if is_done and exchange.states_usage:
            rendered["usage"] = oddities.bend_counts(self._usage(), self.answer.markers.odd)
        return rendered

    def _native_members(self) -> dict[str, Any]:
        request = self.request
        return {
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": request.prompt_cache_key,
            "reasoning": request.reasoning or {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": request.text or {"format": {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    def _usage(self) -> dict[str, Any]:
        """Return the usage. The translated mode leaves out details that are zero."""
        answer = self.answer
        output_tokens = answer.completion_tokens
        usage: dict[str, Any] = {
            "input_tokens": answer.prompt_tokens,
            "output_tokens": output_tokens,
            "total_tokens": answer.prompt_tokens + output_tokens,
        }
        if self.lane.is_native:
            usage["input_tokens_details"] = {"cached_tokens": 0}
        if self.lane.is_native or answer.thoughts:
            usage["output_tokens_details"] = {"reasoning_tokens": len(answer.thoughts)}
        return usage


def new_id(prefix: str) -> str:
    """Return a new id of an item."""
    return f"{prefix}_{uuid.uuid4().hex}"


def native(answer: Answer) -> list[Item]:
    """Return the items as OpenAI does: reasoning, then the message, then the calls."""
    items = [_native_reasoning(answer)] if answer.thoughts else []
    if answer.tokens or not answer.calls:
        items.append(_message(answer, []))
    items += [_NATIVE_CALLS[call.tool.kind](call) for call in answer.calls]
    return items


def compat(answer: Answer, request: ResponsesRequest) -> list[Item]:
    """Return the items as Venice's translated mode does.

    Streamed, a message comes before the calls and has no annotations.
    """
    items = [_compat_reasoning(answer, request)] if answer.thoughts else []
    if answer.citations:
        items.append(Item(kind="web_search_call", id=new_id("ws"), done={}))
    calls = [_function_call(call) for call in answer.calls]
    if calls and not answer.tokens:
        return items + calls
    if request.stream:
        return [*items, _message(answer, []), *calls]
    return [*items, *calls, _message(answer, _annotations(answer))]


def _native_reasoning(answer: Answer) -> Item:
    summary = [{"type": "summary_text", "text": "".join(answer.thoughts)}]
    id_ = new_id("rs")
    done = {"summary": summary, "encrypted_content": f"{SEAL}{id_}"}
    return Item(kind="reasoning", id=id_, done=done, begun={"summary": []})


def _compat_reasoning(answer: Answer, request: ResponsesRequest) -> Item:
    """Return reasoning whose summary is, unlike OpenAI's, a list of texts."""
    id_ = new_id("rs")
    done: dict[str, Any] = {"summary": ["".join(answer.thoughts)]}
    if _ENCRYPTED in (request.include or ()) and "encrypted" in answer.markers.odd:
        done["encrypted_content"] = f"{SEAL}{id_}"
    return Item(kind="reasoning", id=id_, done=done, begun={"summary": []})


def part_of(item: Item) -> dict[str, Any]:
    """Return the only part of a message."""
    part: dict[str, Any] = item.done["content"][0]
    return part


def _message(answer: Answer, annotations: list[dict[str, Any]]) -> Item:
    if answer.is_refusal and not answer.calls:
        # Whether the translated mode passes refusals on is not documented.
        part: dict[str, Any] = {"type": "refusal", "refusal": answer.text}
    else:
        part = {"type": "output_text", "text": answer.text, "annotations": annotations}
    done = {"role": "assistant", "content": [part]}
    return Item(kind="message", id=new_id("msg"), done=done, begun={"content": []})


def _annotations(answer: Answer) -> list[dict[str, Any]]:
    """Return an annotation for the mark of a citation in the text."""
    mark = searches.CITATION.strip()
    start = answer.text.find(mark) if answer.citations else -1
    if start < 0:
        return []
    found = answer.citations[0]
    return [
        {
            "type": "url_citation",
            "url": found["url"],
            "title": found["title"],
            "start_index": start,
            "end_index": start + len(mark),
        }
    ]


def _function_call(call: Call) -> Item:
    named = {"namespace": call.tool.namespace} if call.tool.namespace else {}
    text = call.text
    if isinstance(call.input, str):
        # Where a free text goes when a custom tool becomes a function is not documented.
        text = msgspec.json.encode({"input": call.input}).decode()
    done = {"call_id": call.id, "name": call.tool.name, "arguments": text, **named}
    return Item(
        kind="function_call", id=new_id("fc"), done=done, begun={"arguments": ""}, call=call
    )


def _custom_call(call: Call) -> Item:
    done = {"call_id": call.id, "name": call.tool.name, "input": call.text}
    return Item(kind="custom_tool_call", id=new_id("ctc"), done=done, begun={"input": ""})


def _patch_call(call: Call) -> Item:
    done = {"call_id": call.id, "operation": call.input}
    return Item(kind="apply_patch_call", id=new_id("apc"), done=done)


def _shell_call(call: Call) -> Item:
    action: dict[str, Any] = {"commands": [], "timeout_ms": None, "max_output_length": None}
    done = {
        "call_id": call.id,
        "action": {**action, **_members(call.input, "commands")},
        "environment": {"type": "local"},
    }
    return Item(kind="shell_call", id=new_id("sh"), done=done, begun={"action": action})


def _local_shell_call(call: Call) -> Item:
    action = {"type": "exec", "env": {}, **_members(call.input, "command")}
    return Item(
        kind="local_shell_call", id=new_id("lsh"), done={"call_id": call.id, "action": action}
    )


def _computer_call(call: Call) -> Item:
    done = {"call_id": call.id, "action": call.input, "pending_safety_checks": []}
    return Item(kind="computer_call", id=new_id("cu"), done=done)


def _members(given: Any, name: str) -> dict[str, Any]:
    """Return the members of an action, for which a text or list is enough."""
    if isinstance(given, dict):
        return given
    return {name: given if isinstance(given, list) else [str(given)]}


_NATIVE_CALLS: Final[dict[str, Callable[[Call], Item]]] = {
    "function": _function_call,
    "custom": _custom_call,
    "apply_patch": _patch_call,
    "shell": _shell_call,
    "local_shell": _local_shell_call,
    "computer": _computer_call,
}
