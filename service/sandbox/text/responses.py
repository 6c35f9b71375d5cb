"""``POST /responses``, whole or as typed events, in Venice's native and its translated mode.

Nothing is stored in either mode, and the response has usage but no cost.
"""

import time
import uuid
from typing import Any, Final

import msgspec

from service.sandbox import models
from service.sandbox.exchange import Exchange, Plain, Response, Stream
from service.sandbox.text import answers, compat, events, items, lanes, native, oddities
from service.sandbox.text.items import Reply
from service.sandbox.text.responses_request import ResponsesRequest

MODE_HEADER: Final = "x-venice-responses-mode"
_DECODER: Final = msgspec.json.Decoder(ResponsesRequest)
_MEMBERS: Final = msgspec.json.Decoder(dict[str, Any])


def respond(exchange: Exchange) -> Response:
    """Respond in the mode that Venice would choose that no model was called."""
    payload = exchange.decode(_DECODER)
    # Unlike in chat completions, a suffix of the model is ignored.
    model = models.get(payload.model.partition(":")[0], "text")
    members = exchange.decode(_MEMBERS)
    lane = lanes.choose(members, model, exchange.request.headers.get(MODE_HEADER, "auto"))
    read = native.read if lane.is_native else compat.read
    answer = answers.plan(read(payload, model))
    reply = Reply(
        id=f"resp_{'' if lane.is_native else 'chatcmpl-'}{uuid.uuid4().hex}",
        created_at=int(time.time()),
        answer=answer,
        request=payload,
        lane=lane,
        items=items.native(answer) if lane.is_native else items.compat(answer, payload),
    )
    headers = model.headers() | lane.headers()
    if payload.stream:
        pieces = oddities.bend(exchange, answer.markers, events.encoded(exchange, reply))
        return Stream(pieces=pieces, headers=headers, pause_s=answer.pause_s)
    return Plain(
        body=msgspec.json.encode(_whole(exchange, reply)),
        headers=headers,
        after_s=min(answers.MAX_PAUSE_S, answer.pause_s * answer.completion_tokens),
    )


def _whole(exchange: Exchange, reply: Reply) -> dict[str, Any]:
    """Return the whole response, and charge it.

    :raises Refusal: 500 for a failure, which only OpenAI reports in a response.
    """
    answer = reply.answer
    if answer.failure is not None:
        if answer.markers.fail is None or not reply.lane.is_native:
            raise answers.failed(answer)
        return reply.render(exchange, "failed")
    answer.charge(exchange, answer.completion_tokens)
    return reply.render(exchange, reply.last_status)
