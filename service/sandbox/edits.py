"""Image edits, upscaling and background removal. The response is always a PNG."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from service.sandbox import models
from service.sandbox.exchange import Exchange, Plain, Response
from service.sandbox.images import png
from service.sandbox.model import Model, nanos_of
from service.sandbox.refusals import invalid, issue

DEFAULT_EDIT_MODEL: Final = "firered-image-edit"
CUT_OUT_NANOS: Final = 20_000_000
MAX_INPUT_IMAGES: Final = 9

Ratio = Literal["auto", "1:1", "3:2", "16:9", "21:9", "9:16", "2:3", "3:4", "4:5"]
Format = Literal["jpeg", "png", "webp"]


class EditRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """All fields of ``/image/edit``."""

    prompt: Annotated[str, Meta(min_length=1)]
    model: str | None = None
    modelId: str | None = None  # noqa: N815 - Venice's name for it
    image: Any = None
    aspect_ratio: Ratio | None = None
    resolution: str | None = None
    output_format: Format | None = None
    safe_mode: bool | None = None
    enhance_prompt: bool | None = None


class MultiEditRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """All fields of ``/image/multi-edit``, the only edit endpoint with a quality."""

    prompt: Annotated[str, Meta(min_length=1)]
    modelId: str | None = None  # noqa: N815 - Venice's name for it
    images: list[str] | None = None
    aspect_ratio: Ratio | None = None
    resolution: str | None = None
    quality: Literal["low", "medium", "high"] | None = None
    output_format: Format | None = None
    safe_mode: bool | None = None
    enhance_prompt: bool | None = None


class UpscaleRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """All fields of ``/image/upscale``."""

    image: Any = None
    scale: Annotated[float, Meta(ge=1, le=4)] = 2
    creativity: Annotated[float, Meta(ge=0, le=1)] | None = None


class CutOutRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """All fields of ``/image/background-remove``."""

    image: Any = None
    image_url: str | None = None


def edit(exchange: Exchange) -> Response:
    """``POST /image/edit``."""
    payload, files = exchange.decode_form(EditRequest)
    if payload.image is None and not files.get("image"):
        raise invalid(issue("Required", "image", code="invalid_type"))
    return _edit(exchange, payload.model or payload.modelId, payload.prompt, 1)


def multi_edit(exchange: Exchange) -> Response:
    """``POST /image/multi-edit``."""
    payload, files = exchange.decode_form(MultiEditRequest)
    count = len(payload.images or ()) + len(files.get("images", ()))
    if not 1 <= count <= MAX_INPUT_IMAGES:
        raise invalid(issue(f"Expected 1 to {MAX_INPUT_IMAGES} images", "images"))
    return _edit(exchange, payload.modelId, payload.prompt, count)


def _edit(exchange: Exchange, name: str | None, prompt: str, count: int) -> Response:
    model = models.get(name or DEFAULT_EDIT_MODEL, "inpaint")
    exchange.charge_units(model, 1)
    more = model.spec["pricing"].get("inputImages")
    if more is not None and not exchange.is_withheld:
        additional = nanos_of(more["additional"])
        exchange.charge_nanos(max(0, count - more["included"]) * additional)
    return _picture(exchange, model, prompt)


def upscale(exchange: Exchange) -> Response:
    """``POST /image/upscale``."""
    payload, files = exchange.decode_form(UpscaleRequest)
    if payload.image is None and not files.get("image"):
        raise invalid(issue("Required", "image", code="invalid_type"))
    model = models.get("upscaler", "upscale")
    price = model.spec["pricing"]["upscale"]["2x" if payload.scale <= 2 else "4x"]
    if not exchange.is_withheld:
        exchange.charge_nanos(nanos_of(price))
    return _picture(exchange, model, "upscaled")


def remove_background(exchange: Exchange) -> Response:
    """``POST /image/background-remove``."""
    payload, files = exchange.decode_form(CutOutRequest)
    if payload.image is None and payload.image_url is None and not files.get("image"):
        raise invalid(issue("Required", "image", code="invalid_type"))
    exchange.charge_nanos(CUT_OUT_NANOS)
    return Plain(body=png("cut out"), content_type="image/png")


def _picture(exchange: Exchange, model: Model, seed: str) -> Plain:
    return Plain(
        body=png(seed),
        content_type="image/png",
        headers={**model.headers(), **exchange.withheld_headers()},
    )


STYLES: Final = ("3D Model", "Analog Film", "Anime", "Cinematic", "Comic Book")


def styles(_: Exchange) -> Response:
    """``GET /image/styles``."""
    return Plain(body=msgspec.json.encode({"object": "list", "data": STYLES}))
