"""Sends an answer in the format of chat completions, whole or as chunks."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from service.sandbox.exchange import DONE, Exchange, event
from service.sandbox.model import usd
from service.sandbox.text import oddities
from service.sandbox.text.answers import Answer
from service.sandbox.text.chat_request import VeniceParameters

_SIGNATURE: Final = "c2ltdWxhdGVkIHNpZ25hdHVyZQ=="


@dataclass(slots=True, kw_only=True)
class Completion:
    """An answer with what chat completions add to it."""

    id: str
    created: int
    answer: Answer
    choices: int
    parameters: VeniceParameters

    @property
    def completion_tokens(self) -> int:
        return self.answer.completion_tokens * self.choices

    @property
    def has_documents(self) -> bool:
        """True if the results of a search are also a call."""
        return bool(self.answer.citations) and self.parameters.return_search_results_as_documents

    @property
    def finish_reason(self) -> str:
        if self.has_documents and self.answer.markers.finish is None:
            return "tool_calls"
        return self.answer.finish_reason

    def spent(self, exchange: Exchange) -> dict[str, Any]:
        """Return ``usage`` and ``cost``, unless a fault omits them."""
        answer = self.answer
        stated: dict[str, Any] = {}
        if exchange.states_usage:
            usage: dict[str, Any] = {
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "total_tokens": answer.prompt_tokens + self.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": 0},
            }
            if answer.thoughts:
                reasoning_tokens = len(answer.thoughts) * self.choices
                usage["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
            stated["usage"] = oddities.bend_counts(usage, answer.markers.odd)
        cost = answer.model.cost_nanos(answer.prompt_tokens, self.completion_tokens)
        if exchange.states_cost and cost is not None:
            # Whether Venice's cost includes the fees is not documented; it is "the request's cost".
            billed = cost + answer.fees_nanos if self.completion_tokens else 0
            stated["cost"] = {"usd": usd(billed), "diem": 0}
        return stated


def whole(exchange: Exchange, completion: Completion) -> bytes:
    """Encode the whole answer, and charge it."""
    answer = completion.answer
    # Encoded once, because all choices are equal.
    encoded = msgspec.Raw(msgspec.json.encode(_message(completion)))
    answer.charge(exchange, completion.completion_tokens)
    parameters = msgspec.to_builtins(completion.parameters)
    return msgspec.json.encode(
        {
            "id": completion.id,
            "object": "chat.completion",
            "created": completion.created,
            "model": answer.model.id,
            "choices": [
                {
                    "index": index,
                    "message": encoded,
                    "logprobs": None,
                    "finish_reason": completion.finish_reason,
                }
                for index in range(completion.choices)
            ],
            **completion.spent(exchange),
            "venice_parameters": {**parameters, "web_search_citations": answer.citations},
        }
    )


def _message(completion: Completion) -> dict[str, Any]:
    answer = completion.answer
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.calls:
        message["content"] = answer.text or None
    calls = [oddities.bend_call(call, answer.markers.odd) for call in answer.calls]
    if calls or completion.has_documents:
        message["tool_calls"] = [*_documents(completion), *calls]
    if answer.is_refusal and not answer.calls:
        message |= {"content": None, "refusal": answer.text}
    if answer.thoughts:
        message["reasoning_content"] = "".join(answer.thoughts)
    if "nulls" in answer.markers.odd:
        message = {**oddities.NULLS, **message}
    for addition in _signatures(answer):
        message |= addition
    return message


def _documents(completion: Completion) -> Iterator[dict[str, Any]]:
    """Yield the call that stands for a search: its arguments are the results."""
    if not completion.has_documents:
        return
    documents = [
        {
            "id": str(number),
            "title": found["title"],
            "url": found["url"],
            "snippet": found["content"],
            "published_at": found["date"],
        }
        for number, found in enumerate(completion.answer.citations, 1)
    ]
    arguments = msgspec.json.encode({"documents": documents}).decode()
    function = {"name": "web_search", "arguments": arguments}
    yield {"id": "web_search_call", "type": "function", "function": function}


def _signatures(answer: Answer) -> Iterator[dict[str, Any]]:
    """Yield what a model sends beside its thoughts, to get it back with the next request."""
    if answer.thoughts and answer.model.returns == "reasoning_details":
        detail = {
            "type": "reasoning.text",
            "text": "".join(answer.thoughts),
            "signature": _SIGNATURE,
            "format": "anthropic-claude-v1",
            "index": 0,
        }
        yield {"reasoning_details": [detail]}
    if answer.thoughts and answer.model.returns == "thought_signature":
        yield {"thought_signature": _SIGNATURE}
    if "encrypted" in answer.markers.odd:
        yield {"reasoning_encrypted": _SIGNATURE}


def events(exchange: Exchange, completion: Completion) -> Generator[bytes, None, None]:
    """Yield a chunk for each token, then usage and cost, whatever ``stream_options`` asks."""
    answer = completion.answer
    sent = 0
    head = {
        "id": completion.id,
        "object": "chat.completion.chunk",
        "created": completion.created,
        "model": answer.model.id,
    }
    start = b"data: " + msgspec.json.encode(head)[:-1] + b',"choices":[{"index":'
    try:
        for index, delta, finish_reason in _of_choices(completion):
            yield b'%b%d,"delta":%b,"logprobs":null,"finish_reason":%b}]}\n\n' % (
                start,
                index,
                delta,
                finish_reason,
            )
            sent += 1
        # An empty response still has a last chunk, which carries no token.
        sent = completion.completion_tokens
        if answer.failure is not None:
            yield event({"error": _error(answer.failure)}) + DONE
            return
        spent = completion.spent(exchange)
        end = event({**head, "choices": [], **spent}) if spent else b""
        if answer.citations and completion.parameters.include_search_results_in_stream:
            found = {"web_search_citations": answer.citations}
            end += event({**head, "choices": [], "venice_parameters": found})
        yield end + DONE
    finally:
        answer.charge(exchange, sent)


def _error(code: str) -> dict[str, Any]:
    message = "The simulated model failed."
    return {"message": message, "type": "upstream_error", "code": code, "param": None}


def _of_choices(completion: Completion) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield the index, delta and finish reason of each chunk. Choices advance together."""
    answer = completion.answer
    is_failing = answer.failure is not None
    last = b"null" if is_failing else msgspec.json.encode(completion.finish_reason)
    deltas = _deltas(completion)
    delta = next(deltas)
    for following in deltas:
        for index in range(completion.choices):
            yield index, delta, b"null"
        delta = following
    for index in range(completion.choices):
        yield index, delta, last


def _deltas(completion: Completion) -> Iterator[bytes]:
    """Yield at least one delta."""
    answer = completion.answer
    odd = answer.markers.odd
    for call in _documents(completion):
        yield msgspec.json.encode({"role": "assistant", "tool_calls": [{"index": 0, **call}]})
    if "nulls" in odd:
        yield msgspec.json.encode(oddities.NULLS)
    for thought in answer.thoughts:
        yield msgspec.json.encode({"reasoning_content": thought})
    for addition in _signatures(answer):
        yield msgspec.json.encode(addition)
    member = b"refusal" if answer.is_refusal and not answer.calls else b"content"
    if answer.tokens or not answer.calls:
        first, *others = answer.tokens or [""]
        yield b'{"role":"assistant","%b":%b}' % (member, msgspec.json.encode(first))
        for token in others:
            yield b'{"%b":%b}' % (member, msgspec.json.encode(token))
    # The first piece of a message has its role.
    begun: dict[str, Any] = {} if answer.tokens else {"role": "assistant", "content": None}
    for piece in oddities.bend_deltas(answer.calls, odd):
        yield msgspec.json.encode({**begun, "tool_calls": [piece]})
        begun = {}
