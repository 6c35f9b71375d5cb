"""Writes the events of a response, in an order that cannot be wrong.

A response begins with ``response.created``. Its items follow one another; each is added, filled and
done. One terminal event ends it, and ``[DONE]`` after that, as at Venice.

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

import time
from collections.abc import Mapping
from typing import Any, Final

from service.errors import ServiceError
from service.formats import surrogates
from service.responses.tools import new_id

Json = dict[str, Any]

DONE: Final = b"data: [DONE]\n\n"
REPEATED: Final[Mapping[str, Any]] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
"""The members of a request that its response repeats, and what they are by default."""
CODES: Final = {
    "upstream_busy": "rate_limit_exceeded",
    "upstream_rejected": "invalid_prompt",
    "context_length_exceeded": "context_length_exceeded",
}
"""Errors as OpenAI's clients know them. Codex acts on these codes."""
OTHER_CODE: Final = "server_error"


def event(kind: str, number: int, data: Mapping[str, Any]) -> bytes:
    """Return one event of the stream."""
    content = surrogates.encode({"type": kind, "sequence_number": number, **data})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), content)


def failed_response(response: Mapping[str, Any], error: ServiceError) -> Json:
    """Return the response in its failed state."""
    message = error.message
    code = CODES.get(error.code, OTHER_CODE)
    if error.retry_after_s is not None and code == "rate_limit_exceeded":
        # Codex reads the time from these words.
        message = f"{message} Please try again in {error.retry_after_s}s."
    return {**response, "status": "failed", "error": {"code": code, "message": message}}


def empty_response(stated: Mapping[str, Any], **facts: Any) -> Json:
    """Return a response without output. It repeats ``stated``, the members of its request."""
    repeated = {
        name: default if stated.get(name) is None else stated[name]
        for name, default in REPEATED.items()
    }
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": stated.get("model") or "",
        "output": [],
        "previous_response_id": None,
        "service_tier": "default",
        "store": False,
        "usage": None,
        **repeated,
        **facts,
    }


class EventWriter:
    """Writes the events of one response. Calls that are out of order raise ``RuntimeError``."""

    def __init__(self, stated: Mapping[str, Any]) -> None:
        self._stated = stated
        self._out: list[bytes] = []
        self._number = 0
        self._response: Json = {}
        """Empty until the response begins."""
        self._item_id: str | None = None
        """The open item."""
        self.output: list[Json] = []
        """The items that are done."""
        self.is_ended = False

    @property
    def is_begun(self) -> bool:
        """Whether the first event was written."""
        return bool(self._response)

    def take(self) -> bytes:
        """Return the events that were not returned before."""
        out, self._out = b"".join(self._out), []
        return out

    def begin(self, **facts: Any) -> None:
        """Begin the response; ``facts`` are members of it."""
        if self.is_begun:
            raise RuntimeError("the response has begun")
        self._response = empty_response(self._stated, **facts)
        for kind in ("response.created", "response.in_progress"):
            self._emit(kind, response=self._response)

    def open(self, item: Json) -> None:
        """Add an item."""
        if not self.is_begun or self._item_id is not None:
            raise RuntimeError("an item is open, or the response has not begun")
        self._item_id = item["id"]
        self._emit("response.output_item.added", output_index=len(self.output), item=item)

    def emit(self, kind: str, **data: Any) -> None:
        """Write an event of the open item."""
        if self._item_id is None:
            raise RuntimeError("no item is open")
        place = {"item_id": self._item_id, "output_index": len(self.output)}
        self._emit(f"response.{kind}", **place, **data)

    def close(self, item: Json) -> None:
        """End the open item, which is ``item`` now."""
        if self._item_id != item["id"]:
            raise RuntimeError("another item is open")
        self._emit("response.output_item.done", output_index=len(self.output), item=item)
        self.output.append(item)
        self._item_id = None

    def end(self, *, usage: Json | None, incomplete: str | None) -> Json:
        """End the response, and return it. ``incomplete`` is why it is not complete."""
        if not self.is_begun or self._item_id is not None:
            raise RuntimeError("an item is open, or the response has not begun")
        status = "incomplete" if incomplete else "completed"
        response = {**self._response, "status": status, "output": self.output, "usage": usage}
        if incomplete:
            response["incomplete_details"] = {"reason": incomplete}
        self._end(f"response.{status}", response=response)
        return response

    def fail(self, error: ServiceError, stated: Mapping[str, Any]) -> None:
        """End the response with an error, at any time. An item that is open stays undone, so that
        nobody takes a part of it for the whole."""
        if self.is_ended:
            return
        if not self.is_begun:
            self.begin()
        response = failed_response({**self._response, "output": self.output}, error)
        self._end("response.failed", response=response, **stated)

    def _end(self, kind: str, **data: Any) -> None:
        self._emit(kind, **data)
        self._out.append(DONE)
        self.is_ended = True

    def _emit(self, kind: str, **data: Any) -> None:
        if self.is_ended:
            raise RuntimeError("the response has ended")
        self._out.append(event(kind, self._number, data))
        self._number += 1
