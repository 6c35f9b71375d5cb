"""``POST /chat/completions``: whole or as a stream, strict as Venice is."""

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
from service.sandbox.exchange import DONE, Exchange, Plain, Reply, Stream, event
from service.sandbox.instances import instance
from service.sandbox.model import Model, usd
from service.sandbox.refusals import context_exceeded, invalid, issue

MAX_TOKENS: Final = 100_000
MAX_PAUSE_S: Final = 600.0
TOKENS_PER_MESSAGE: Final = 3
ECHOED_CHARACTERS: Final = 200
ECHOED_WORDS: Final = 12
OPENING: Final = "This is a simulated answer from the Rialto sandbox: no model was asked."
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
    """A tool that is called."""

    id: str
    name: str
    arguments: list[str]
    """JSON, in pieces."""

    def said(self, arguments: str) -> dict[str, Any]:
        """The call as it stands in a message."""
        function = {"name": self.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(slots=True, kw_only=True)
class Plan:
    """What will be answered."""

    model: Model
    id: str
    created: int
    prompt_tokens: int
    thoughts: list[str]
    words: list[str]
    finish_reason: str
    tools: list[ToolCall]
    choices: int
    pause_s: float

    @property
    def chunks(self) -> int:
        """Tokens of one choice. Those of a tool call: its name, the pieces of its arguments."""
        called = sum(1 + len(call.arguments) for call in self.tools)
        return len(self.thoughts) + (called or len(self.words))

    def spent(self, exchange: Exchange, completion_tokens: int) -> dict[str, Any]:
        """``usage`` and ``cost``, as far as they are stated."""
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


def complete(exchange: Exchange) -> Reply:
    """Answer that nothing was asked of any model, in the form that was asked for."""
    asked = exchange.decode(_DECODER)
    name, _, suffix = asked.model.partition(":")
    model = models.get(name, "text")
    parameters = _parameters(asked, suffix)
    plan = _plan(asked, model, parameters)
    headers = model.headers()
    if "E2EE" in model.capabilities and parameters.enable_e2ee:
        if not asked.stream:
            raise invalid(issue("E2EE models require stream: true", "stream"))
        headers |= {"X-Venice-TEE": "true", "X-Venice-TEE-Provider": "simulated"}
    if asked.stream:
        return Stream(pieces=_events(exchange, plan), headers=headers, pause_s=plan.pause_s)
    body = _whole(exchange, plan, parameters)
    after_s = min(MAX_PAUSE_S, plan.pause_s * max(0, plan.chunks - 1))
    return Plain(body=body, headers=headers, after_s=after_s)


def _parameters(asked: ChatRequest, suffix: str) -> VeniceParameters:
    """The parameters of the body, with those of the model's suffix over them."""
    given = msgspec.to_builtins(asked.venice_parameters)
    if asked.web_search is not UNSET:
        given["enable_web_search"] = "on" if asked.web_search else "off"
    if not suffix and asked.web_search is UNSET:
        return asked.venice_parameters
    try:
        return msgspec.convert(given | dict(parse_qsl(suffix)), VeniceParameters, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(issue(str(error), "model")) from None


def _plan(asked: ChatRequest, model: Model, parameters: VeniceParameters) -> Plan:
    messages = _messages(asked)
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
    said = next((m.texts() for m in reversed(messages) if m.role == "user"), [])
    tools = _tools(asked, model, " ".join(said))
    words, pause_s = words_for(" ".join(said))
    words = _formatted(asked, model) or _until_stop(words, asked.stop)
    thoughts: list[str] = []
    wanted = THOUGHTS.search(" ".join(said))
    if wanted and "Reasoning" in model.capabilities and not parameters.disable_thinking:
        thoughts = ["Hm, "] * min(MAX_TOKENS, int(wanted.group(1)))
    given = (asked.max_tokens, asked.max_completion_tokens, asked.max_output_tokens)
    limit = min((tokens for tokens in given if tokens is not UNSET), default=MAX_TOKENS)
    finish_reason = "length" if len(words) > limit else "stop"
    return Plan(
        model=model,
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        prompt_tokens=prompt_tokens,
        thoughts=thoughts,
        words=words[:limit],
        finish_reason="tool_calls" if tools else finish_reason,
        tools=tools,
        choices=asked.n,
        pause_s=pause_s,
    )


def _messages(asked: ChatRequest) -> list[Message]:
    given = asked.input if asked.messages is UNSET else asked.messages
    if isinstance(given, str):
        return [Message(role="user", content=given)]
    if not given:
        raise invalid(issue("Required", "messages", code="invalid_type"))
    return given


def _tools(asked: ChatRequest, model: Model, said: str) -> list[ToolCall]:
    """The tools that have to be called, or that the last user message asks for: ``[tools=2]``."""
    offered = [tool.function for tool in asked.tools or () if tool.function is not None]
    if offered and "FunctionCalling" not in model.capabilities:
        raise invalid(issue("tools is not supported by this model", "tools"))
    choice = asked.tool_choice
    wanted = TOOLS.search(said)
    count = int(wanted.group(1)) if wanted else 1
    if isinstance(choice, Tool) and choice.function is not None:
        offered = [tool for tool in offered if tool.name == choice.function.name]
        if not offered:
            raise invalid(issue("tool_choice names no tool of tools", "tool_choice"))
    elif choice == "required":
        if not offered:
            raise invalid(issue("tool_choice needs tools", "tool_choice"))
    elif choice == "none" or wanted is None or _messages(asked)[-1].role == "tool":
        return []
    return [
        ToolCall(
            id=f"call_{uuid.uuid4().hex[:24]}",
            name=tool.name,
            arguments=_pieces(instance(tool.parameters) or {}),
        )
        for tool in itertools.islice(itertools.cycle(offered), count)
    ]


def _formatted(asked: ChatRequest, model: Model) -> list[str]:
    """The answer in the format that was asked for, in pieces; none when none was."""
    asks = asked.response_format if isinstance(asked.response_format, dict) else {}
    if asks.get("type") == "json_object":
        return _pieces({"answer": OPENING})
    if asks.get("type") != "json_schema":
        return []
    if "ResponseSchema" not in model.capabilities:
        raise invalid(issue("response_format is not supported by this model", "response_format"))
    described = asks.get("json_schema")
    if not isinstance(described, dict) or not isinstance(described.get("schema"), dict):
        raise invalid(issue("Required", "response_format", "json_schema", "schema"))
    return _pieces(instance(described["schema"]))


def _pieces(value: Any) -> list[str]:
    return PIECE.findall(msgspec.json.encode(value).decode())


def _until_stop(words: list[str], stop: str | list[str] | None) -> list[str]:
    """The words before the first of the texts that end an answer."""
    text = "".join(words)
    places = [text.find(end) for end in ([stop] if isinstance(stop, str) else stop or ())]
    left = min((place for place in places if place >= 0), default=len(text))
    kept = []
    for word in words:
        if left <= 0:
            break
        kept.append(word[:left])
        left -= len(word)
    return kept


def words_for(said: str) -> tuple[list[str], float]:
    """The answer's tokens, and the pause between them, as the last user message asks for."""
    echo = " ".join(said[:ECHOED_CHARACTERS].split()[:ECHOED_WORDS])
    sentence = f"{OPENING} You wrote: {echo}".split(" ")
    words = [sentence[0], *(f" {word}" for word in sentence[1:])]
    wanted = TOKENS.search(said) if "[tokens=" in said else None
    if wanted is not None:
        filler = itertools.cycle(f" {word}" for word in FILLER)
        count = min(MAX_TOKENS, int(wanted.group(1)))
        words = list(itertools.islice(itertools.chain(words, filler), count))
    delay = DELAY.search(said) if "[delay=" in said else None
    return words, min(MAX_PAUSE_S, float(delay.group(1))) if delay else 0.0


def _whole(exchange: Exchange, plan: Plan, parameters: VeniceParameters) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": "".join(plan.words)}
    if plan.tools:
        calls = [call.said("".join(call.arguments)) for call in plan.tools]
        message |= {"content": None, "tool_calls": calls}
    if plan.thoughts:
        message["reasoning_content"] = "".join(plan.thoughts)
    # Encoded once: the choices are the same.
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
    """A chunk for each token, then usage and cost, whatever ``stream_options`` says."""
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
        # An empty answer has a last chunk too, but no token in it.
        sent = plan.chunks * plan.choices
        spent = plan.spent(exchange, sent)
        yield (event({**head, "choices": [], **spent}) if spent else b"") + DONE
    finally:
        exchange.charge(plan.model, plan.prompt_tokens if sent else 0, sent)


def _deltas(plan: Plan) -> Iterator[tuple[int, bytes, bytes]]:
    """Index, delta and finish reason of each chunk; the choices advance together."""
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
        begun = {"index": index, **call.said("")}
        yield msgspec.json.encode({"role": "assistant", "content": None, "tool_calls": [begun]})
        for piece in call.arguments:
            rest = {"index": index, "function": {"arguments": piece}}
            yield msgspec.json.encode({"tool_calls": [rest]})
    if plan.tools:
        return
    first, *others = plan.words or [""]
    yield msgspec.json.encode({"role": "assistant", "content": first})
    for word in others:
        yield b'{"content":%b}' % msgspec.json.encode(word)
