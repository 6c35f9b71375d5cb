"""``POST /embeddings``: unit vectors that depend only on the text."""

import array
import base64
import hashlib
import math
import struct
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from service.sandbox import models
from service.sandbox.exchange import Exchange, Plain, Response

Text = Annotated[str, Meta(min_length=1)]


class EmbeddingsRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """All fields that Venice accepts. Arrays of tokens are refused, as by Venice."""

    model: str
    input: Text | Annotated[list[str], Meta(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1, le=4096)] | UnsetType = UNSET
    user: str | UnsetType = UNSET


_DECODER: Final = msgspec.json.Decoder(EmbeddingsRequest)


def embed(exchange: Exchange) -> Response:
    """Return vectors for the texts."""
    payload = exchange.decode(_DECODER)
    model = models.get(payload.model, "embedding")
    texts = [payload.input] if isinstance(payload.input, str) else payload.input
    size = int(model.spec["embeddingDimensions"])
    if payload.dimensions is not UNSET:
        size = min(size, payload.dimensions)
    tokens = sum(len(text.split()) for text in texts)
    exchange.charge(model, tokens)
    answer: dict[str, Any] = {
        "object": "list",
        "model": model.id,
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _encoded(_vector(text, size), payload.encoding_format),
            }
            for index, text in enumerate(texts)
        ],
    }
    if exchange.states_usage:
        answer["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Plain(body=msgspec.json.encode(answer), headers=model.headers())


def _vector(text: str, size: int) -> list[float]:
    numbers = array.array("h", hashlib.shake_128(text.encode()).digest(2 * size))
    length = math.sqrt(sum(number * number for number in numbers)) or 1.0
    return [number / length for number in numbers]


def _encoded(vector: list[float], encoding: str) -> list[float] | str:
    if encoding == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
