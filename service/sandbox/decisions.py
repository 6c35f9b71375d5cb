"""``POST /decisions`` and ``/systemone``: every question gets its first answer."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from service.sandbox import models
from service.sandbox.exchange import Exchange, Plain, Response

OUTPUT_TOKENS: Final = 2


class Question(Struct):
    """One question. Other members are ignored."""

    type: Literal["noul", "choice", "score"]
    instructions: str = ""
    criteria: Any = None


class DecisionsRequest(Struct, kw_only=True):
    """The questions, and the state that they are about."""

    model: str
    state: Any
    questions: Annotated[dict[str, Question], Meta(min_length=1)]


_DECODER: Final = msgspec.json.Decoder(DecisionsRequest)


def _answer(question: Question) -> dict[str, Any]:
    if question.type == "noul":
        return {"type": "noul", "noul": 0.5}
    criteria = question.criteria or ["simulated"]
    if question.type == "choice":
        options = dict.fromkeys(criteria, 0.0)
        first = next(iter(options))
        certain = {"probabilities": options | {first: 1.0}, "confidence": 1.0}
        return {"type": "choice", "choice": first, **certain}
    legend = {str(level): text for level, text in enumerate(criteria)}
    certain = {"probabilities": dict.fromkeys(legend, 0.0) | {"0": 1.0}, "confidence": 1.0}
    return {"type": "score", "score": 0.0, "legend": legend, **certain}


def decide(exchange: Exchange) -> Response:
    """Return an answer to each question."""
    payload = exchange.decode(_DECODER)
    model = models.get(payload.model, "decision")
    input_tokens = len(exchange.body) // 8
    output_tokens = OUTPUT_TOKENS * len(payload.questions)
    exchange.charge(model, input_tokens, output_tokens)
    answer: dict[str, Any] = {
        "id": "decision-simulated",
        "model": model.id,
        "answers": {name: _answer(question) for name, question in payload.questions.items()},
    }
    if exchange.states_usage:
        answer["usage"] = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    return Plain(body=msgspec.json.encode(answer), headers=model.headers())
