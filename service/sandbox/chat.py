"""``POST /chat/completions``, plain or streamed, validated as strictly as by Venice."""

import itertools
import re
import time
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
from msgspec import UNSET

from service.sandbox import models
from service.sandbox.chat_request import ChatRequest, Message, Tool, VeniceParameters
from service.sandbox.exchange import DONE, Exchange, Plain, Response, Stream, event
from service.sandbox.instances import instance
from service.sandbox.model import Model, usd
from service.sandbox.refusals import context_exceeded, invalid, issue

MAX_TOKENS: Final = 100_000
MAX_PAUSE_S: Final = 600.0
TOKENS_PER_MESSAGE: Final = 3
MAX_ECHOED_CHARACTERS: Final = 200
MAX_ECHOED_WORDS: Final = 12
OPENING: Final = "This is a simulated answer from the Rialto sandbox: no model was called."
FILLER: Final = ("and", "the", "sandbox", "goes", "on", "for", "more", "tokens", "were", "asked")
THOUGHTS: Final = re.compile(r"\[think=(\d{1,6})\]")
TOKENS: Final = re.compile(r"\[tokens=(\d{1,6})\]")
PROMPT: Final = re.compile(r"\[prompt=(\d{1,6})\]")
TOOLS: Final = re.compile(r"\[tools=(\d{1,2})\]")
PIECE: Final = re.compile(".{1,12}", re.DOTALL)
DELAY: Final = re.compile(r"\[delay=(\d{1,3}(?:\.\d{1,6})?)\]")

_DECODER: Final = msgspec.json.Decoder(ChatRequest)


@dataclass(slots=True, kw_only=True)
class ToolCall:
    """A tool call in the response."""

    id: str
    name: str
    arguments: list[str]
    """JSON, split into pieces."""

    def as_message_part(self, arguments: str) -> dict[str, Any]:
        """Return the call as it appears in a message."""
        function = {"name": self.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(slots=True, kw_only=True)
class Plan:
    """The planned response."""

    model: Model
    id: str
    created: int
    prompt_tokens: int
    thoughts: list[str]
    tokens: list[str]
    finish_reason: str
    tools: list[ToolCall]
    choices: int
    pause_s: float

    @property
    def chunks(self) -> int:
        """Tokens per choice. A tool call counts its name and the pieces of its arguments."""
        called = sum(1 + len(call.arguments) for call in self.tools)
        return len(self.thoughts) + (called or len(self.tokens))

    def spent(self, exchange: Exchange, completion_tokens: int) -> dict[str, Any]:
        """Return ``usage`` and ``cost``, unless a fault omits them."""
        stated: dict[str, Any] = {}
        if exchange.states_usage:
            stated["usage"] = {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": self.prompt_tokens + completion_tokens,
                "prompt_tokens_details": {"cached_tokens": 0},
            }
        cost = self.model.cost_nanos(self.prompt_tokens, completion_tokens)
        if exchange.states_cost and cost is not None:
            billed = cost if completion_tokens else 0
            stated["cost"] = {"usd": usd(billed), "diem": 0}
        return stated


def complete(exchange: Exchange) -> Response:
    """Respond in the requested format that no model was called."""
    payload = exchange.decode(_DECODER)
    name, _, suffix = payload.model.partition(":")
    model = models.get(name, "text")
    parameters = _parameters(payload, suffix)
    plan = _plan(payload, model, parameters)
    headers = model.headers()
    if "E2EE" in model.capabilities and parameters.enable_e2ee:
        if not payload.stream:
            raise invalid(issue("E2EE models require stream: true", "stream"))
        headers |= {"X-Venice-TEE": "true", "X-Venice-TEE-Provider": "simulated"}
    if payload.stream:
        return Stream(pieces=_events(exchange, plan), headers=headers, pause_s=plan.pause_s)
    body = _whole(exchange, plan, parameters)
    after_s = min(MAX_PAUSE_S, plan.pause_s * max(0, plan.chunks - 1))
    return Plain(body=body, headers=headers, after_s=after_s)


def _parameters(payload: ChatRequest, suffix: str) -> VeniceParameters:
    """Return the body's Venice parameters, overridden by those in the model's suffix."""
    given = msgspec.to_builtins(payload.venice_parameters)
    if payload.web_search is not UNSET:
        given["enable_web_search"] = "on" if payload.web_search else "off"
    if not suffix and payload.web_search is UNSET:
        return payload.venice_parameters
    try:
        return msgspec.convert(given | dict(parse_qsl(suffix)), VeniceParameters, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(issue(str(error), "model")) from None


def _plan(payload: ChatRequest, model: Model, parameters: VeniceParameters) -> Plan:
    messages = _messages(payload)
    if "Vision" not in model.capabilities and any(m.has_picture for m in messages):
        raise invalid(issue("image input is not supported by this model", "messages"))
    prompt_tokens = sum(
        TOKENS_PER_MESSAGE + sum(len(text.split()) for text in message.texts())
        for message in messages
    )
    if added := PROMPT.search("".join(text for message in messages for text in message.texts())):
        prompt_tokens += int(added.group(1))
    if prompt_tokens > model.context:
        raise context_exceeded(prompt_tokens, model.context)
    prompt = next((m.texts() for m in reversed(messages) if m.role == "user"), [])
    tools = _tools(payload, model, " ".join(prompt))
    tokens, pause_s = generate_tokens(" ".join(prompt))
    tokens = _formatted(payload, model) or _until_stop(tokens, payload.stop)
    thoughts: list[str] = []
    wanted = THOUGHTS.search(" ".join(prompt))
    if wanted and "Reasoning" in model.capabilities and not parameters.disable_thinking:
        thoughts = ["Hm, "] * min(MAX_TOKENS, int(wanted.group(1)))
    given = (payload.max_tokens, payload.max_completion_tokens, payload.max_output_tokens)
    limit = min((tokens for tokens in given if tokens is not UNSET), default=MAX_TOKENS)
    finish_reason = "length" if len(tokens) > limit else "stop"
    return Plan(
        model=model,
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        prompt_tokens=prompt_tokens,
        thoughts=thoughts,
        tokens=tokens[:limit],
        finish_reason="tool_calls" if tools else finish_reason,
        tools=tools,
        choices=payload.n,
        pause_s=pause_s,
    )


def _messages(payload: ChatRequest) -> list[Message]:
    given = payload.input if payload.messages is UNSET else payload.messages
    if isinstance(given, str):
        return [Message(role="user", content=given)]
    if not given:
        raise invalid(issue("Required", "messages", code="invalid_type"))
    return given


def _tools(payload: ChatRequest, model: Model, prompt: str) -> list[ToolCall]:
    """Return the tool calls that are required, or requested by the last message: ``[tools=2]``."""
    offered = [tool.function for tool in payload.tools or () if tool.function is not None]
    if offered and "FunctionCalling" not in model.capabilities:
        raise invalid(issue("tools is not supported by this model", "tools"))
    choice = payload.tool_choice
    wanted = TOOLS.search(prompt)
    count = int(wanted.group(1)) if wanted else 1
    if isinstance(choice, Tool) and choice.function is not None:
        offered = [tool for tool in offered if tool.name == choice.function.name]
        if not offered:
            raise invalid(issue("tool_choice does not name a tool in tools", "tool_choice"))
    elif choice == "required":
        if not offered:
            raise invalid(issue("tool_choice needs tools", "tool_choice"))
    elif choice == "none" or wanted is None or _messages(payload)[-1].role == "tool":
        return []
    return [
        ToolCall(
            id=f"call_{uuid.uuid4().hex[:24]}",
            name=tool.name,
            arguments=_pieces(instance(tool.parameters) or {}),
        )
        for tool in itertools.islice(itertools.cycle(offered), count)
    ]


def _formatted(payload: ChatRequest, model: Model) -> list[str]:
    """Return the response in the requested JSON format, in pieces. Empty when none is requested."""
    requested = payload.response_format if isinstance(payload.response_format, dict) else {}
    if requested.get("type") == "json_object":
        return _pieces({"answer": OPENING})
    if requested.get("type") != "json_schema":
        return []
    if "ResponseSchema" not in model.capabilities:
        raise invalid(issue("response_format is not supported by this model", "response_format"))
    definition = requested.get("json_schema")
    if not isinstance(definition, dict) or not isinstance(definition.get("schema"), dict):
        raise invalid(issue("Required", "response_format", "json_schema", "schema"))
    return _pieces(instance(definition["schema"]))


def _pieces(value: Any) -> list[str]:
    return PIECE.findall(msgspec.json.encode(value).decode())


def _until_stop(tokens: list[str], stop: str | list[str] | None) -> list[str]:
    """Return the tokens before the first stop sequence."""
    text = "".join(tokens)
    positions = [text.find(end) for end in ([stop] if isinstance(stop, str) else stop or ())]
    remaining = min((position for position in positions if position >= 0), default=len(text))
    kept = []
    for token in tokens:
        if remaining <= 0:
            break
        kept.append(token[:remaining])
        remaining -= len(token)
    return kept


def generate_tokens(prompt: str) -> tuple[list[str], float]:
    """Return the response's tokens and the pause between them, as the last user message asks."""
    echo = " ".join(prompt[:MAX_ECHOED_CHARACTERS].split()[:MAX_ECHOED_WORDS])
    sentence = f"{OPENING} You wrote: {echo}".split(" ")
    tokens = [sentence[0], *(f" {token}" for token in sentence[1:])]
    wanted = TOKENS.search(prompt) if "[tokens=" in prompt else None
    if wanted is not None:
        filler = itertools.cycle(f" {token}" for token in FILLER)
        count = min(MAX_TOKENS, int(wanted.group(1)))
        tokens = list(itertools.islice(itertools.chain(tokens, filler), count))
    delay = DELAY.search(prompt) if "[delay=" in prompt else None
    return tokens, min(MAX_PAUSE_S, float(delay.group(1))) if delay else 0.0


def _whole(exchange: Exchange, plan: Plan, parameters: VeniceParameters) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": "".join(plan.tokens)}
    if plan.tools:
        calls = [call.as_message_part("".join(call.arguments)) for call in plan.tools]
        message |= {"content": None, "tool_calls": calls}
    if plan.thoughts:
        message["reasoning_content"] = "".join(plan.thoughts)
    # Encoded once, because all choices are equal.
    encoded = msgspec.Raw(msgspec.json.encode(message))
    completion_tokens = plan.chunks * plan.choices
    exchange.charge(plan.model, plan.prompt_tokens if completion_tokens else 0, completion_tokens)
    return msgspec.json.encode(
        {
            "id": plan.id,
            "object": "chat.completion",
            "created": plan.created,
            "model": plan.model.id,
            "choices": [
                {
                    "index": index,
                    "message": encoded,
                    "logprobs": None,
                    "finish_reason": plan.finish_reason,
                }
                for index in range(plan.choices)
            ],
            **plan.spent(exchange, completion_tokens),
            "venice_parameters": parameters,
        }
    )


def _events(exchange: Exchange, plan: Plan) -> Generator[bytes, None, None]:
    """Yield a chunk for each token, then usage and cost, whatever ``stream_options`` asks."""
    sent = 0
    head = {
        "id": plan.id,
        "object": "chat.completion.chunk",
        "created": plan.created,
        "model": plan.model.id,
    }
    start = b"data: " + msgspec.json.encode(head)[:-1] + b',"choices":[{"index":'
    try:
        for index, delta, finish_reason in _deltas(plan):
            yield b'%b%d,"delta":%b,"logprobs":null,"finish_reason":%b}]}\n\n' % (
                start,
                index,
                delta,
                finish_reason,
            )
            sent += 1
        # An empty response still has a last chunk, which carries no token.
        sent = plan.chunks * plan.choices
        spent = plan.spent(exchange, sent)
        yield (event({**head, "choices": [], **spent}) if spent else b"") + DONE
    finally:
        exchange.charge(plan.model, plan.prompt_tokens if sent else 0, sent)


def _deltas(plan: Plan) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield the index, delta and finish reason of each chunk. Choices advance together."""
    last = max(0, plan.chunks - 1)
    reason = msgspec.json.encode(plan.finish_reason)
    for position, delta in enumerate(_choice_deltas(plan)):
        finish_reason = reason if position == last else b"null"
        for index in range(plan.choices):
            yield index, delta, finish_reason


def _choice_deltas(plan: Plan) -> Iterator[bytes]:
    for thought in plan.thoughts:
        yield msgspec.json.encode({"reasoning_content": thought})
    for index, call in enumerate(plan.tools):
        begun = {"index": index, **call.as_message_part("")}
        yield msgspec.json.encode({"role": "assistant", "content": None, "tool_calls": [begun]})
        for piece in call.arguments:
            continuation = {"index": index, "function": {"arguments": piece}}
            yield msgspec.json.encode({"tool_calls": [continuation]})
    if plan.tools:
        return
    first, *others = plan.tokens or [""]
    yield msgspec.json.encode({"role": "assistant", "content": first})
    for token in others:
        yield b'{"content":%b}' % msgspec.json.encode(token)
