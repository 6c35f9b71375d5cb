"""``POST /chat/completions``, plain or streamed, validated as strictly as by Venice."""

import time
import uuid
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
from msgspec import UNSET

from service.sandbox import models
from service.sandbox.exchange import Exchange, Plain, Response, Stream
from service.sandbox.instances import instance
from service.sandbox.model import Model
from service.sandbox.refusals import invalid, issue
from service.sandbox.text import answers, chunks, oddities, searches
from service.sandbox.text.answers import MAX_TOKENS, OPENING, Question, Tool
from service.sandbox.text.chat_messages import check
from service.sandbox.text.chat_request import ChatRequest, Message, VeniceParameters
from service.sandbox.text.script import Turn

_DECODER: Final = msgspec.json.Decoder(ChatRequest)
_ROLES: Final[dict[str, Any]] = {"developer": "system"}
_UNSUPPORTED: Final = ("seed", "stop", "presence_penalty", "frequency_penalty")


def complete(exchange: Exchange) -> Response:
    """Respond in the requested format that no model was called."""
    payload = exchange.decode(_DECODER)
    name, _, suffix = payload.model.partition(":")
    model = models.get(name, "text")
    parameters = _parameters(payload, suffix)
    answer = answers.plan(_question(payload, model, parameters))
    completion = chunks.Completion(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        answer=answer,
        choices=payload.n,
        parameters=parameters,
    )
    headers = model.headers()
    if "E2EE" in model.capabilities and parameters.enable_e2ee:
        if not payload.stream:
            raise invalid(issue("E2EE models require stream: true", "stream"))
        headers |= {"X-Venice-TEE": "true", "X-Venice-TEE-Provider": "simulated"}
    if payload.stream:
        events = oddities.bend(exchange, answer.markers, chunks.events(exchange, completion))
        return Stream(pieces=events, headers=headers, pause_s=answer.pause_s)
    if answer.failure is not None:
        raise answers.failed(answer)
    body = chunks.whole(exchange, completion)
    after_s = min(answers.MAX_PAUSE_S, answer.pause_s * max(0, answer.completion_tokens - 1))
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


def _question(payload: ChatRequest, model: Model, parameters: VeniceParameters) -> Question:
    messages = _messages(payload)
    check(messages, model)
    _check_sampling(payload, model)
    turns = [
        Turn(
            role=_ROLES.get(message.role, message.role),
            text=" ".join(message.texts()),
            is_call=bool(message.tool_calls),
        )
        for message in messages
    ]
    stop = payload.stop
    question = Question(
        model=model,
        turns=turns,
        tools=_tools(payload, model),
        formatted=_formatted(payload, model),
        stop=[stop] if isinstance(stop, str) else stop or [],
        max_tokens=_limit(payload),
        is_parallel=payload.parallel_tool_calls is not False,
        may_think=_may_think(payload, parameters),
        is_thought_wanted=_is_thought_wanted(payload),
        needs_reasoning_back=bool(model.returns),
    )
    _choose(payload, question)
    _ask_to_search(question, messages, parameters)
    return question


def _messages(payload: ChatRequest) -> list[Message]:
    given = payload.input if payload.messages is UNSET else payload.messages
    if isinstance(given, str):
        return [Message(role="user", content=given)]
    if not given:
        raise invalid(issue("Required", "messages", code="invalid_type"))
    return given


def _check_sampling(payload: ChatRequest, model: Model) -> None:
    """Refuse what OpenAI's reasoning models do not take.

    :raises Refusal: 400 that names the fields.
    """
    if not model.id.startswith("openai-") or "Reasoning" not in model.capabilities:
        return
    given = [name for name in _UNSUPPORTED if getattr(payload, name) not in (UNSET, None, 0)]
    given += ["n"] * (payload.n != 1)
    if given:
        raise invalid(*(issue(f"{name} is not supported by this model", name) for name in given))


def _limit(payload: ChatRequest) -> int:
    """Return the most tokens of text. Venice ignores a ``max_tokens`` of 0 or less."""
    given = (payload.max_tokens, payload.max_completion_tokens, payload.max_output_tokens)
    limits = [tokens for tokens in given if tokens is not UNSET and tokens > 0]
    return min(limits, default=MAX_TOKENS)


def _may_think(payload: ChatRequest, parameters: VeniceParameters) -> bool:
    reasoning = payload.reasoning or {}
    effort = payload.reasoning_effort or reasoning.get("effort")
    is_off = effort == "none" or (not effort and reasoning.get("enabled") is False)
    return not (is_off or parameters.disable_thinking or parameters.strip_thinking_response)


def _is_thought_wanted(payload: ChatRequest) -> bool:
    reasoning = payload.reasoning or {}
    effort = payload.reasoning_effort or reasoning.get("effort")
    return bool(effort or reasoning.get("enabled"))


def _tools(payload: ChatRequest, model: Model) -> list[Tool]:
    given = (tool.definition() for tool in payload.tools or ())
    tools = [
        Tool(name=function.name, schema=function.parameters)
        for function in given
        if function is not None
    ]
    if tools and "FunctionCalling" not in model.capabilities:
        raise invalid(issue("tools is not supported by this model", "tools"))
    return tools


def _choose(payload: ChatRequest, question: Question) -> None:
    """Apply ``tool_choice``.

    :raises Refusal: 400 when it does not fit the tools.
    """
    choice = payload.tool_choice
    if choice is UNSET:
        return
    if not isinstance(choice, str):
        function = choice.definition()
        if function is not None:
            if function.name not in {tool.name for tool in question.tools}:
                text = "tool_choice does not name a tool in tools"
                raise invalid(issue(text, "tool_choice"))
            question.tool_name = function.name
            return
        choice = choice.type
    if choice == "required" and not question.tools:
        raise invalid(issue("tool_choice needs tools", "tool_choice"))
    question.is_tool_required = choice == "required"
    question.is_tool_forbidden = choice == "none"


def _ask_to_search(
    question: Question, messages: list[Message], parameters: VeniceParameters
) -> None:
    """Apply the parameters of searches, which Venice skips for encrypted calls and pictures."""
    question.is_cited = parameters.enable_web_citations
    if parameters.enable_x_search and "XSearch" in question.model.capabilities:
        question.other_searches = 1
    is_encrypted = "E2EE" in question.model.capabilities and parameters.enable_e2ee
    last = next((message for message in reversed(messages) if message.role == "user"), None)
    if last is None or last.has_picture or is_encrypted:
        return
    if parameters.enable_web_scraping:
        question.scraped_urls = searches.count_urls(" ".join(last.texts()))
    question.search = parameters.enable_web_search


def _formatted(payload: ChatRequest, model: Model) -> Any:
    """Return the value of an answer in the requested JSON format, or UNSET."""
    requested = payload.response_format if isinstance(payload.response_format, dict) else {}
    if requested.get("type") == "json_object":
        return {"answer": OPENING}
    if requested.get("type") != "json_schema":
        return UNSET
    if "ResponseSchema" not in model.capabilities:
        raise invalid(issue("response_format is not supported by this model", "response_format"))
    path = ("response_format", "json_schema")
    return instance(answers.schema_of(requested.get("json_schema"), *path))
