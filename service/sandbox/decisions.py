"""``POST /decisions``, also as ``/systemone``: every question gets its first answer."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from service.sandbox import models
from service.sandbox.exchange import Exchange, Plain, Reply

OUTPUT_TOKENS: Final = 2


class Question(Struct):
    """One question; what else it says does not matter here."""

    type: Literal["noul", "choice", "score"]
    instructions: str = ""
    criteria: Any = None


class DecisionsRequest(Struct, kw_only=True):
    """What is asked, and of which state."""

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
        sure = {"probabilities": options | {first: 1.0}, "confidence": 1.0}
        return {"type": "choice", "choice": first, **sure}
    legend = {str(level): text for level, text in enumerate(criteria)}
    sure = {"probabilities": dict.fromkeys(legend, 0.0) | {"0": 1.0}, "confidence": 1.0}
    return {"type": "score", "score": 0.0, "legend": legend, **sure}


def decide(exchange: Exchange) -> Reply:
    """An answer to each question."""
    asked = exchange.decode(_DECODER)
    model = models.get(asked.model, "decision")
    input_tokens = len(exchange.body) // 8
    output_tokens = OUTPUT_TOKENS * len(asked.questions)
    exchange.charge(model, input_tokens, output_tokens)
    answer: dict[str, Any] = {
        "id": "decision-simulated",
        "model": model.id,
        "answers": {name: _answer(question) for name, question in asked.questions.items()},
    }
    if exchange.states_usage:
        answer["usage"] = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    return Plain(body=msgspec.json.encode(answer), headers=model.headers())
