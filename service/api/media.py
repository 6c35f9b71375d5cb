"""Translates OpenAI's requests for images and sound where Venice's differ."""

import base64
import math
import re
import time
from typing import Final, NamedTuple

import msgspec
from aiohttp import web

from service.accounts import Caller
from service.api.auth import authenticate
from service.api.requests import Request
from service.api.state import GATEWAY
from service.api.wire import read_body, relay, relay_as
from service.errors import ClientError, UpstreamError
from service.formats import multipart, surrogates
from service.gateway import (
    EDIT,
    MULTI_EDIT,
    TRANSCRIPTIONS,
    Call,
    Inbound,
    check_end_user,
    parse,
    read_large,
)

IMAGE: Final = re.compile(r"image(\[[0-9]*\])?")
"""The names of fields with an image to edit."""
MASKS: Final = frozenset({"mask", "markup"})
END_USERS: Final = ("safety_identifier", "user", "anon_user_id")
"""Fields that name the end user, in order of precedence. Venice accepts none of them here."""
IGNORED_FIELDS: Final = frozenset(
    {"complexity", "input_fidelity", "moderation", "output_compression"}
)
"""Fields that are left out: hints to OpenAI's models, and how small a file should be."""
ALLOWED_VALUES: Final = {
    "n": (("1",), "must be 1, since Venice makes one image a call"),
    "stream": (("false",), "must be false, since Venice sends an edited image whole"),
    "partial_images": (("0",), "must be 0, since Venice sends an edited image whole"),
    "background": (("auto", "opaque"), "must be auto or opaque; Venice makes no transparent ones"),
    "response_format": (("b64_json", "url"), "must be b64_json or url"),
    "output_format": (("png", "jpeg", "webp"), "must be png, jpeg or webp"),
}
"""The values of a field that Venice has a counterpart for, and the rule in the error for others."""
PASSED_FIELDS: Final = frozenset({"output_format"})
"""Checked fields that Venice has too. The others only ask for what Venice does anyway."""
QUALITIES: Final = {"auto": "", "standard": "", "hd": "high"}
"""Venice's quality for each of OpenAI's; empty where the model chooses."""
PICTURE_TYPE: Final = re.compile(r"image/[\w.+-]+", re.ASCII)
SIZE: Final = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
RATIOS: Final = ("1:1", "3:2", "16:9", "21:9", "9:16", "2:3", "3:4", "4:5")
MAX_SHAPE_DIFFERENCE: Final = 0.05
"""How far a shape may be from one of Venice's, as a part of it."""
TIERS: Final = ((1792, ""), (2560, "2K"), (4096, "4K"))
"""Venice's resolutions by the longest side; the smallest is its default."""


class _EditForm(NamedTuple):
    images: list[multipart.Part]
    texts: dict[str, str]


async def edit(request: Request) -> web.StreamResponse:
    """``POST /v1/images/edits``: edit an image, or combine several, in OpenAI's format."""
    caller = await authenticate(request)
    inbound = _inbound(request, caller, await read_body(request))
    form = await read_large(len(inbound.content), _read, inbound)
    as_url = form.texts.get("response_format", "").lower() == "url"

    def translate(content: bytes, content_type: str) -> bytes:
        return _images(content, content_type, as_url=as_url)

    call = await read_large(len(inbound.content), _edit_call, inbound, form)
    context = request.app[GATEWAY].call(caller, call)
    request.relay = context.relay
    async with context as answer:
        return await relay_as(answer, "application/json", translate)


async def read_edit(request: Request, caller: Caller) -> Call:
    """Translate OpenAI's request for an edit into Venice's call.

    :raises ClientError: naming the field that has no counterpart at Venice, or that is missing.
    """
    inbound = _inbound(request, caller, await read_body(request))
    form = await read_large(len(inbound.content), _read, inbound)
    return await read_large(len(inbound.content), _edit_call, inbound, form)


async def transcribe(request: Request) -> web.StreamResponse:
    """``POST /v1/audio/transcriptions``: transcribe a sound file. Venice charges by the length of
    the sound, which plain text does not state, so Venice is asked for JSON instead."""
    caller = await authenticate(request)
    inbound = _inbound(request, caller, await read_body(request))
    inbound, is_text = await read_large(len(inbound.content), _as_json_request, inbound)
    call = await parse(TRANSCRIPTIONS, inbound)
    context = request.app[GATEWAY].call(caller, call)
    request.relay = context.relay
    async with context as answer:
        if is_text:
            return await relay_as(answer, "text/plain; charset=utf-8", _text)
        return await relay(request, answer)


def _inbound(request: Request, caller: Caller, content: bytes) -> Inbound:
    return Inbound(
        content=content,
        request_id=request.request_id,
        headers=request.headers,
        settings=caller.settings,
    )


def _read(inbound: Inbound) -> _EditForm:
    """:raises ClientError: naming the field that has no counterpart at Venice, or is missing."""
    if not multipart.is_multipart(inbound.content_type):
        raise ClientError("Content-Type: must be multipart/form-data.", param="Content-Type")
    form = _EditForm([], {})
    for part in multipart.parse(inbound.content, inbound.content_type):
        if IMAGE.fullmatch(part.name):
            if part.text is not None:
                raise ClientError("image: must be a file.", param="image")
            form.images.append(part)
            continue
        if part.name in form.texts:
            raise ClientError(f"{part.name}: is there twice.", param=part.name)
        form.texts[part.name] = _text_of(part)
    if not form.images:
        raise ClientError("image: is missing.", param="image")
    for name, (values, rule) in ALLOWED_VALUES.items():
        if form.texts.get(name, "").lower() not in ("", *values):
            raise ClientError(f"{name}: {rule}.", param=name)
    return form


def _text_of(part: multipart.Part) -> str:
    if part.name in MASKS and part.text != "":
        rule = "Venice takes none; the prompt can say where"
    elif part.text is None:
        rule = f"must be a text of at most {multipart.TEXT_BYTES} bytes"
    else:
        return part.text
    raise ClientError(f"{part.name}: {rule}.", param=part.name)


def _edit_call(inbound: Inbound, form: _EditForm) -> Call:
    """Make the call to ``/image/edit``, or for several images or a quality to
    ``/image/multi-edit``, which has its own name for the model."""
    texts = _venice_texts(form.texts)
    is_multiple = len(form.images) > 1 or "quality" in texts
    if is_multiple and "model" in texts:
        texts["modelId"] = texts.pop("model")
    files = [("images" if is_multiple else "image", part) for part in form.images]
    content = multipart.write(inbound.content, inbound.content_type, texts, files)
    call = (MULTI_EDIT if is_multiple else EDIT).parse(
        msgspec.structs.replace(inbound, content=content)
    )
    for name in END_USERS:
        if end_user := form.texts.get(name):
            return msgspec.structs.replace(call, end_user=check_end_user(end_user, name))
    return call


def _venice_texts(texts: dict[str, str]) -> dict[str, str]:
    """Translate OpenAI's fields into Venice's; Venice's own and unknown fields stay as they are."""
    dropped = {
        *IGNORED_FIELDS,
        *END_USERS,
        *MASKS,
        "size",
        *(ALLOWED_VALUES.keys() - PASSED_FIELDS),
    }
    fields = {"prompt": "", **_shape(texts.get("size", ""))}
    fields |= {name: text for name, text in texts.items() if text and name not in dropped}
    quality = fields.pop("quality", "")
    if quality := QUALITIES.get(quality, quality):
        fields["quality"] = quality
    return fields


def _shape(size: str) -> dict[str, str]:
    """Translate a size in pixels into Venice's nearest shape and resolution.

    :raises ClientError: when the size is malformed, or no shape of Venice's is near.
    """
    if size in ("", "auto"):
        return {}
    match = SIZE.fullmatch(size)
    if match is None:
        raise ClientError("size: must be auto, or like 1536x1024.", param="size")
    width, height = int(match[1]), int(match[2])

    def difference(ratio: str) -> float:
        across, down = map(int, ratio.split(":"))
        return abs(math.log(width * down / (height * across)))

    nearest = min(RATIOS, key=difference)
    if difference(nearest) > MAX_SHAPE_DIFFERENCE:
        raise ClientError(f"size: must have a shape near {', '.join(RATIOS)}.", param="size")
    tiers = [tier for side, tier in TIERS if max(width, height) <= side]
    if not tiers:
        raise ClientError(f"size: must have sides of at most {TIERS[-1][0]}.", param="size")
    return {"aspect_ratio": nearest} | ({"resolution": tiers[0]} if tiers[0] else {})


def _images(content: bytes, content_type: str, *, as_url: bool) -> bytes:
    match = PICTURE_TYPE.match(content_type)
    if match is None:
        raise UpstreamError("Venice's answer is no image.")
    start = b'"url":"data:%b;base64,' % match[0].encode() if as_url else b'"b64_json":"'
    start = b'{"created":%d,"data":[{%b' % (int(time.time()), start)
    return b"".join((start, base64.b64encode(content), b'"}]}'))


def _as_json_request(inbound: Inbound) -> tuple[Inbound, bool]:
    """The request with JSON as its response format, and whether it asked for plain text."""
    if not _wants_text(inbound):
        return inbound, False
    texts = {"response_format": "json"}
    content = multipart.set_texts(inbound.content, inbound.content_type, texts)
    return msgspec.structs.replace(inbound, content=content), True


def _wants_text(inbound: Inbound) -> bool:
    if not multipart.is_multipart(inbound.content_type):
        return False
    return any(
        part.name == "response_format" and part.text == "text"
        for part in multipart.parse(inbound.content, inbound.content_type)
    )


class _Transcription(msgspec.Struct):
    text: str


def _text(content: bytes, _: str) -> bytes:
    try:
        text = surrogates.decode(content, _Transcription).text
    except msgspec.DecodeError as error:
        raise UpstreamError("Venice's answer has no text.") from error
    return surrogates.repair(text).encode()
