"""``POST /image/generate`` and ``/images/generations``: a small square in the prompt's colour."""

import base64
import hashlib
import struct
import time
import uuid
import zlib
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from service.sandbox import models
from service.sandbox.exchange import Exchange, Plain, Response
from service.sandbox.refusals import invalid, issue

SIDE: Final = 8

Text = str | UnsetType
Flag = bool | UnsetType
Side = Annotated[int, Meta(gt=0, le=1280)] | UnsetType


class GenerateRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """All fields of Venice's own endpoint."""

    model: str
    prompt: Annotated[str, Meta(min_length=1)]
    negative_prompt: Text = UNSET
    width: Side = UNSET
    height: Side = UNSET
    aspect_ratio: Text = UNSET
    resolution: Text = UNSET
    quality: Text = UNSET
    cfg_scale: Annotated[float, Meta(gt=0, le=20)] | UnsetType = UNSET
    steps: int | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    variants: Annotated[int, Meta(ge=1, le=4)] = 1
    style_preset: Text = UNSET
    style_references: list[Any] | UnsetType = UNSET
    enhance_prompt: Flag = UNSET
    disable_prompt_optimization_thinking: Flag = UNSET
    safe_mode: Flag = UNSET
    hide_watermark: Flag = UNSET
    format: Literal["jpeg", "png", "webp"] | UnsetType = UNSET
    return_binary: bool = False
    embed_exif_metadata: Flag = UNSET
    lora_strength: Annotated[int, Meta(ge=0, le=100)] | UnsetType = UNSET
    enable_web_search: Flag = UNSET
    inpaint: Any = None
    anon_user_id: Text = UNSET


class OpenAIRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """All fields of the endpoint in OpenAI's format."""

    prompt: Annotated[str, Meta(min_length=1, max_length=1500)]
    model: str = "default"
    n: Annotated[int, Meta(ge=1, le=1)] | None = 1
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    size: str | None = None
    quality: str | None = None
    style: str | None = None
    background: str | None = None
    moderation: str | None = None
    output_format: str | None = None
    output_compression: int | None = None
    user: Text = UNSET


_GENERATE: Final = msgspec.json.Decoder(GenerateRequest)
_OPENAI: Final = msgspec.json.Decoder(OpenAIRequest)


def generate(exchange: Exchange) -> Response:
    """Return images as base64 in JSON, or a single one as bytes. Always PNG."""
    payload = exchange.decode(_GENERATE)
    model = models.get(payload.model, "image")
    if payload.return_binary and payload.variants > 1:
        raise invalid(issue("return_binary allows one variant", "variants"))
    exchange.charge_units(model, payload.variants)
    pictures = [png(f"{payload.prompt} {index}") for index in range(payload.variants)]
    headers = {**model.headers(), **exchange.withheld_headers()}
    if payload.return_binary:
        return Plain(body=pictures[0], content_type="image/png", headers=headers)
    answer = {
        "id": f"generate-image-{uuid.uuid4().hex}",
        "images": [base64.b64encode(picture).decode() for picture in pictures],
        "request": payload,
        "timing": {
            "inferenceDuration": 0,
            "inferencePreprocessingTime": 0,
            "inferenceQueueTime": 0,
            "total": 0,
        },
    }
    return Plain(body=msgspec.json.encode(answer), headers=headers)


def generations(exchange: Exchange) -> Response:
    """Return an image in OpenAI's format. An unknown model falls back to the default one."""
    payload = exchange.decode(_OPENAI)
    model = models.find(payload.model, "image") or models.get("default", "image")
    exchange.charge_units(model, 1)
    headers = {**model.headers(), **exchange.withheld_headers()}
    encoded = base64.b64encode(png(f"{payload.prompt} 0")).decode()
    picture = {"b64_json": encoded}
    if payload.response_format == "url":
        picture = {"url": f"data:image/png;base64,{encoded}"}
    answer = {"created": int(time.time()), "data": [picture]}
    return Plain(body=msgspec.json.encode(answer), headers=headers)


def png(seed: str) -> bytes:
    """Create a small square in the seed's colour."""
    colour = hashlib.sha256(seed.encode()).digest()[:3]
    rows = (b"\0" + colour * SIDE) * SIDE
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)),
            _chunk(b"tEXt", b"Comment\0simulated by the Rialto sandbox"),
            _chunk(b"IDAT", zlib.compress(rows)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    checked = kind + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))
