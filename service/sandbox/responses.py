"""``POST /responses``, plain or as the typed events of OpenAI's Responses API.

As in Venice's translated mode, unknown members are ignored, nothing is stored, and the response has
usage but no cost.
"""

import time
import uuid
from collections.abc import Generator
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct, UnsetType

from service.sandbox import chat, models
from service.sandbox.exchange import Exchange, Plain, Response, Stream
from service.sandbox.instances import instance
from service.sandbox.model import Model
from service.sandbox.refusals import invalid, issue

Text = str | UnsetType


class Item(Struct):
    """A part of the conversation. Only its role and text are used."""

    role: str = "user"
    content: str | list[dict[str, Any]] | None = None

    def texts(self) -> list[str]:
        """Return the text parts."""
        if isinstance(self.content, str):
            return [self.content]
        found = (part.get("text") for part in self.content or ())
        return [text for text in found if isinstance(text, str)]


class Tool(Struct):
    """A tool. In this API its name is beside its type."""

    type: str = "function"
    name: str = ""
    parameters: Any = None


class ResponsesRequest(Struct, kw_only=True):
    """The supported members of a request."""

    model: str
    input: str | Annotated[list[Item], Meta(min_length=1)]
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    stream: bool | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None


class Plan(Struct, kw_only=True):
    """The planned response."""

    model: Model
    id: str
    item_id: str
    created_at: int
    input_tokens: int
    tokens: list[str]
    tool: Tool | None
    is_whole: bool
    pause_s: float

    @property
    def output_tokens(self) -> int:
        return 2 if self.tool else len(self.tokens)

    @property
    def arguments(self) -> str:
        """The arguments of the tool call, as JSON."""
        return msgspec.json.encode((self.tool and instance(self.tool.parameters)) or {}).decode()

    def item(self, status: str) -> dict[str, Any]:
        """Return the only item of the output."""
        if self.tool is not None:
            return {
                "type": "function_call",
                "id": self.item_id,
                "call_id": f"call_{self.item_id[-24:]}",
                "name": self.tool.name,
                "arguments": self.arguments if status == "completed" else "",
                "status": status,
            }
        content = [self.part()] if status == "completed" else []
        return {
            "type": "message",
            "id": self.item_id,
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def part(self) -> dict[str, Any]:
        """Return the text part of the output."""
        return {"type": "output_text", "text": "".join(self.tokens), "annotations": []}

    def response(self, exchange: Exchange, status: str) -> dict[str, Any]:
        """Return the response object in one of its states."""
        is_done = status in ("completed", "incomplete")
        stated: dict[str, Any] = {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "model": self.model.id,
            "output": [self.item("completed")] if is_done else [],
            "incomplete_details": (
                {"reason": "max_output_tokens"} if status == "incomplete" else None
            ),
            "instructions": None,
            "metadata": {},
            "parallel_tool_calls": True,
            "temperature": None,
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            "store": False,
            "usage": None,
        }
        if is_done and exchange.states_usage:
            stated["usage"] = {
                "input_tokens": self.input_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": self.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.input_tokens + self.output_tokens,
            }
        return stated

    @property
    def last_status(self) -> str:
        return "completed" if self.is_whole else "incomplete"


_DECODER: Final = msgspec.json.Decoder(ResponsesRequest)


def respond(exchange: Exchange) -> Response:
    """Return the same response as a chat completion, in this API's format."""
    payload = exchange.decode(_DECODER)
    model = models.get(payload.model.partition(":")[0], "text")
    if "E2EE" in model.capabilities:
        raise invalid(issue("E2EE models are not available here", "model"))
    plan = _plan(payload, model)
    if payload.stream:
        return Stream(pieces=_events(exchange, plan), headers=model.headers(), pause_s=plan.pause_s)
    exchange.charge(model, plan.input_tokens, plan.output_tokens)
    return Plain(
        body=msgspec.json.encode(plan.response(exchange, plan.last_status)),
        headers=model.headers(),
        after_s=min(chat.MAX_PAUSE_S, plan.pause_s * plan.output_tokens),
    )


def _plan(payload: ResponsesRequest, model: Model) -> Plan:
    items = [Item(content=payload.input)] if isinstance(payload.input, str) else payload.input
    prompt = next((item.texts() for item in reversed(items) if item.role == "user"), [])
    tokens, pause_s = chat.generate_tokens(" ".join(prompt))
    limit = payload.max_output_tokens or chat.MAX_TOKENS
    tools = [tool for tool in payload.tools or () if tool.type == "function"]
    is_tool = payload.tool_choice == "required" or isinstance(payload.tool_choice, dict)
    return Plan(
        model=model,
        id=f"resp_{uuid.uuid4().hex}",
        item_id=f"msg_{uuid.uuid4().hex}",
        created_at=int(time.time()),
        input_tokens=sum(
            chat.TOKENS_PER_MESSAGE + sum(len(text.split()) for text in item.texts())
            for item in items
        ),
        tokens=tokens[:limit],
        tool=tools[0] if tools and is_tool else None,
        is_whole=len(tokens) <= limit,
        pause_s=pause_s,
    )


def _events(exchange: Exchange, plan: Plan) -> Generator[bytes, None, None]:
    """Yield numbered events, the last one with usage. There is no ``[DONE]``."""
    sent = 0
    try:
        for number, (kind, data) in enumerate(_typed_events(exchange, plan)):
            content = msgspec.json.encode({"type": kind, "sequence_number": number, **data})
            yield b"event: %b\ndata: %b\n\n" % (kind.encode(), content)
            sent += kind.endswith(".delta")
        sent = plan.output_tokens
    finally:
        exchange.charge(plan.model, plan.input_tokens if sent else 0, sent)


def _typed_events(
    exchange: Exchange, plan: Plan
) -> Generator[tuple[str, dict[str, Any]], None, None]:
    yield "response.created", {"response": plan.response(exchange, "in_progress")}
    yield "response.in_progress", {"response": plan.response(exchange, "in_progress")}
    position = {"output_index": 0}
    yield "response.output_item.added", {**position, "item": plan.item("in_progress")}
    within = {**position, "item_id": plan.item_id}
    if plan.tool is not None:
        yield "response.function_call_arguments.delta", {**within, "delta": plan.arguments}
        yield (
            "response.function_call_arguments.done",
            {**within, "name": plan.tool.name, "arguments": plan.arguments},
        )
    else:
        within["content_index"] = 0
        empty = {**plan.part(), "text": ""}
        yield "response.content_part.added", {**within, "part": empty}
        for token in plan.tokens:
            yield "response.output_text.delta", {**within, "delta": token, "logprobs": []}
        text = plan.part()["text"]
        yield "response.output_text.done", {**within, "text": text, "logprobs": []}
        yield "response.content_part.done", {**within, "part": plan.part()}
    yield "response.output_item.done", {**position, "item": plan.item("completed")}
    last = plan.last_status
    yield f"response.{last}", {"response": plan.response(exchange, last)}
