"""Images and sound as OpenAI's clients ask for them, where Venice has other words for it."""

import base64
import math
import re
import time
from typing import Final, NamedTuple

import msgspec
from aiohttp import web

from service.accounts import Caller
from service.api.auth import authenticate
from service.api.state import GATEWAY
from service.api.wire import REQUEST_ID, read_body, relay, relay_as
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
"""Fields with an image to edit."""
MASKS: Final = frozenset({"mask", "markup"})
END_USERS: Final = ("safety_identifier", "user", "anon_user_id")
"""Fields that name the end user, the first that is there; Venice takes none of them here."""
MEANINGLESS: Final = frozenset({"complexity", "input_fidelity", "moderation", "output_compression"})
"""Hints to OpenAI's models, and how small a file should be."""
SAYABLE: Final = {
    "n": (("1",), "must be 1, since Venice makes one image a call"),
    "stream": (("false",), "must be false, since Venice sends an edited image whole"),
    "partial_images": (("0",), "must be 0, since Venice sends an edited image whole"),
    "background": (("auto", "opaque"), "must be auto or opaque; Venice makes no transparent ones"),
    "response_format": (("b64_json", "url"), "must be b64_json or url"),
    "output_format": (("png", "jpeg", "webp"), "must be png, jpeg or webp"),
}
"""The only values of a field that Venice can be asked for, and what is said to any other."""
PASSED: Final = frozenset({"output_format"})
"""Those that Venice has too; the others are what it does anyway."""
QUALITIES: Final = {"auto": "", "standard": "", "hd": "high"}
"""OpenAI's in Venice's words; those that leave the choice to the model say nothing."""
PICTURE_TYPE: Final = re.compile(r"image/[\w.+-]+", re.ASCII)
SIZE: Final = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
RATIOS: Final = ("1:1", "3:2", "16:9", "21:9", "9:16", "2:3", "3:4", "4:5")
MOST_OFF: Final = 0.05
"""How far, as a part of it, a shape may be from one of Venice's."""
TIERS: Final = ((1792, ""), (2560, "2K"), (4096, "4K"))
"""Venice's resolutions by the longest side; the least is its default."""


class _Asked(NamedTuple):
    images: list[multipart.Part]
    texts: dict[str, str]


async def edit(request: web.Request) -> web.StreamResponse:
    """``POST /v1/images/edits``: Venice's own way to edit an image, or several into one."""
    caller = await authenticate(request)
    inbound = _inbound(request, caller, await read_body(request))
    asked = await read_large(len(inbound.content), _read, inbound)
    as_url = asked.texts.get("response_format", "").lower() == "url"

    def say(content: bytes, content_type: str) -> bytes:
        return _images(content, content_type, as_url=as_url)

    call = await read_large(len(inbound.content), _edit_call, inbound, asked)
    async with request.app[GATEWAY].call(caller, call) as answer:
        return await relay_as(answer, "application/json", say)


async def read_edit(request: web.Request, caller: Caller) -> Call:
    """The call of Venice's that the request for an edit in OpenAI's words is.

    :raises ClientError: naming the field that Venice cannot be told, or that is missing.
    """
    inbound = _inbound(request, caller, await read_body(request))
    asked = await read_large(len(inbound.content), _read, inbound)
    return await read_large(len(inbound.content), _edit_call, inbound, asked)


async def transcribe(request: web.Request) -> web.StreamResponse:
    """``POST /v1/audio/transcriptions``: the text of a sound file. Plain text would not say how
    long the sound is, which is what is charged: where it is asked for, Venice is asked for JSON."""
    caller = await authenticate(request)
    inbound = _inbound(request, caller, await read_body(request))
    inbound, is_text = await read_large(len(inbound.content), _asking_for_json, inbound)
    call = await parse(TRANSCRIPTIONS, inbound)
    async with request.app[GATEWAY].call(caller, call) as answer:
        if is_text:
            return await relay_as(answer, "text/plain; charset=utf-8", _text)
        return await relay(request, answer)


def _inbound(request: web.Request, caller: Caller, content: bytes) -> Inbound:
    return Inbound(
        content=content,
        request_id=request[REQUEST_ID],
        headers=request.headers,
        settings=caller.settings,
    )


def _read(inbound: Inbound) -> _Asked:
    """:raises ClientError: naming the field that Venice cannot be told, or that is missing."""
    if not multipart.is_multipart(inbound.content_type):
        raise ClientError("Content-Type: must be multipart/form-data.", param="Content-Type")
    asked = _Asked([], {})
    for part in multipart.parse(inbound.content, inbound.content_type):
        if IMAGE.fullmatch(part.name):
            if part.text is not None:
                raise ClientError("image: must be a file.", param="image")
            asked.images.append(part)
            continue
        if part.name in asked.texts:
            raise ClientError(f"{part.name}: is there twice.", param=part.name)
        asked.texts[part.name] = _text_of(part)
    if not asked.images:
        raise ClientError("image: is missing.", param="image")
    for name, (values, rule) in SAYABLE.items():
        if asked.texts.get(name, "").lower() not in ("", *values):
            raise ClientError(f"{name}: {rule}.", param=name)
    return asked


def _text_of(part: multipart.Part) -> str:
    if part.name in MASKS and part.text != "":
        rule = "Venice takes none; the prompt can say where"
    elif part.text is None:
        rule = f"must be a text of at most {multipart.TEXT_BYTES} bytes"
    else:
        return part.text
    raise ClientError(f"{part.name}: {rule}.", param=part.name)


def _edit_call(inbound: Inbound, asked: _Asked) -> Call:
    """The call of Venice's endpoint that can be told all of it: only that for several images takes
    a quality, and it has its own name for the model."""
    texts = _venice_texts(asked.texts)
    is_multiple = len(asked.images) > 1 or "quality" in texts
    if is_multiple and "model" in texts:
        texts["modelId"] = texts.pop("model")
    files = [("images" if is_multiple else "image", part) for part in asked.images]
    content = multipart.write(inbound.content, inbound.content_type, texts, files)
    call = (MULTI_EDIT if is_multiple else EDIT).parse(
        msgspec.structs.replace(inbound, content=content)
    )
    for name in END_USERS:
        if end_user := asked.texts.get(name):
            return msgspec.structs.replace(call, end_user=check_end_user(end_user, name))
    return call


def _venice_texts(texts: dict[str, str]) -> dict[str, str]:
    """OpenAI's fields in Venice's words; Venice's own, and what nobody knows, as they are."""
    gone = {*MEANINGLESS, *END_USERS, *MASKS, "size", *(SAYABLE.keys() - PASSED)}
    said = {"prompt": "", **_shape(texts.get("size", ""))}
    said |= {name: text for name, text in texts.items() if text and name not in gone}
    quality = said.pop("quality", "")
    if quality := QUALITIES.get(quality, quality):
        said["quality"] = quality
    return said


def _shape(size: str) -> dict[str, str]:
    """A size in pixels as the nearest shape and resolution that Venice makes.

    :raises ClientError: when it is none, or none is near.
    """
    if size in ("", "auto"):
        return {}
    match = SIZE.fullmatch(size)
    if match is None:
        raise ClientError("size: must be auto, or like 1536x1024.", param="size")
    width, height = int(match[1]), int(match[2])

    def off(ratio: str) -> float:
        across, down = map(int, ratio.split(":"))
        return abs(math.log(width * down / (height * across)))

    nearest = min(RATIOS, key=off)
    if off(nearest) > MOST_OFF:
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


def _asking_for_json(inbound: Inbound) -> tuple[Inbound, bool]:
    """The request for JSON, and whether it was one for plain text."""
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
