"""The bound of a picture follows from its size, as far as its own first bytes prove it."""

import base64
import struct

import pytest

from service.gateway.endpoints.content import Content
from service.gateway.endpoints.pictures import NO_PICTURES, PictureTokens, Size, read_size

MODEL, GPT, MINI = "kimi-k2-6", "openai-gpt-54", "openai-gpt-4o-mini-2024-07-18"


def data_url(content, kind="png"):
    """Return the data URL of a picture."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def png(width, height, rest=b"\x08\x02\0\0\0" + b"x" * 900):
    """Return the beginning of a PNG of this size."""
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + rest


def segment(marker, content):
    """Return a segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def frame(width, height, marker=0xC0):
    """Return the segment that states the size of a JPEG."""
    return segment(marker, b"\x08" + struct.pack(">HH", height, width) + b"\x03" + b"\0" * 9)


def jpeg(*segments):
    """Return the beginning of a JPEG."""
    return b"\xff\xd8" + b"".join(segments) + b"x" * 900


THUMBNAIL = segment(0xE1, b"Exif\0\0" + jpeg(frame(160, 120)))
"""Metadata with a picture of its own."""
TABLES = segment(0xDB, b"\0" * 65) + segment(0xC4, b"\0" * 29)


@pytest.mark.parametrize(
    "url",
    [
        data_url(png(800, 600)),
        # What a picture is depends on its bytes, and not on its stated type.
        data_url(png(800, 600), "jpeg"),
        data_url(jpeg(frame(800, 600)), "jpeg"),
        data_url(jpeg(THUMBNAIL, TABLES, frame(800, 600)), "jpeg"),
        data_url(jpeg(*[segment(0xE2, b"x" * 9_000)] * 5, frame(800, 600, 0xC2)), "jpg"),
    ],
)
def test_the_size_is_read(url):
    """The size is read from the head of a PNG or JPEG, and not from a thumbnail in its metadata."""
    assert read_size(url) == (800, 600)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        data_url(b"GIF89a" + b"\x20\x03\x58\x02" * 100, "gif"),
        data_url(b"RIFF\0\0\0\0WEBPVP8X" + b"\0" * 100, "webp"),
        data_url(b"<svg xmlns='http://www.w3.org/2000/svg' width='800' height='600'/>", "svg+xml"),
        data_url(png(800, 600)).replace(";base64,", ";charset=utf-8;base64,"),
        data_url(png(800, 600)).replace(";base64,", ","),
        data_url(png(800, 600)) + "," + data_url(png(9_000, 9_000)),
        data_url(png(800, 600)).replace("A", "A\n", 1),
        data_url(png(800, 600)).replace("A", "-", 1),
        data_url(png(800, 600)[:20]),
        data_url(png(0, 600)),
        data_url(png(800, 600).replace(b"IHDR", b"CgBI")),
        data_url(jpeg(frame(800, 0)), "jpeg"),
        data_url(jpeg(segment(0xDA, b"\0" * 10), frame(800, 600)), "jpeg"),
        data_url(jpeg(b"xx", frame(800, 600)), "jpeg"),
        data_url(jpeg(b"\xff\xff", frame(800, 600)), "jpeg"),
        data_url(jpeg(b"\xff\xd8", frame(800, 600)), "jpeg"),
        data_url(jpeg(*[segment(0xE2, b"x" * 60_000)] * 2, frame(800, 600)), "jpeg"),
        data_url(jpeg(segment(0xE1, b"")[:2] + b"\0\0", frame(800, 600))[:20], "jpeg"),
        data_url(b""),
        "data:image/png;base64,",
    ],
    ids=lambda url: url[:60],
)
def test_what_proves_no_size_has_none(url):
    """Other formats, odd encodings and heads without a size give no size."""
    assert read_size(url) is None


# Tokens that makers document for their own models, by the picture's size.
KNOWN = [
    (MODEL, (512, 512), 258),  # Gemini 2: a tile
    (MODEL, (40, 30), 13 * 256),  # InternVL: twelve tiles and a thumbnail, whatever the size
    (MODEL, (1, 1), 2_240),  # Gemini 3 at its highest resolution
    (MODEL, (600, 600), 4 * 1_601),  # Llama 3.2
    (MODEL, (1_024, 1_024), 64 * 64 + 64),  # Pixtral: patches of 16 pixels, and one for each row
    (MODEL, (4_096, 300), 16 * 2 * 258),  # Gemini 2: tiles of at least 256 pixels
    (MODEL, (3_584, 3_584), 16_384),  # Qwen 2.5: patches of 28 pixels, at most 16,384
    (MODEL, (20_000, 20_000), 16_384),
    (MODEL, (1_920, 1_080), 2_768),  # Claude 4.7 and later: about a token for 750 pixels
    (GPT, (1_024, 1_024), round(32 * 32 * 2.46)),  # the highest factor
    (GPT, (4_032, 3_024), round(126 * 95 * 1.2)),  # not scaled down
    (GPT, (9_000, 6_000), round(282 * 188 * 1.2)),
    (GPT, (10, 10), 85 + 8 * 170),  # older models count tiles
    (MINI, (512, 512), 2_833 + 5_667),
    (MINI, (1_024, 1_024), 2_833 + 4 * 5_667),
    (MINI, (20_000, 20_000), 2_833 + 8 * 5_667),
]


@pytest.mark.parametrize(("model", "size", "tokens"), KNOWN)
def test_the_bound_covers_what_makers_document(model, size, tokens):
    """A picture's bound is not below the tokens that the makers of its models document."""
    assert PictureTokens.of(Size(*size)).for_model(model) >= tokens


@pytest.mark.parametrize(("model", "most"), [(MODEL, 16_384), (GPT, 81_920), (MINI, 48_169)])
def test_a_picture_of_unknown_size_has_the_most(model, most):
    """A picture of unknown size has the bound of the largest one, and so has a huge one."""
    unknown = PictureTokens.of(None).for_model(model)
    assert unknown == PictureTokens.of(Size(2**31, 2**31)).for_model(model) == most


def test_a_smaller_picture_has_a_smaller_bound():
    """Bounds grow with the size of a picture, and add up."""
    for model in (MODEL, GPT, MINI):
        bounds = [
            PictureTokens.of(Size(side, side)).for_model(model) for side in (10, 600, 1_500, 9_000)
        ]
        assert bounds == sorted(bounds)
        assert bounds[0] < bounds[1] < bounds[2]
        both = NO_PICTURES.plus(PictureTokens.of(Size(10, 10))).plus(PictureTokens.of(Size(9, 9)))
        assert both.for_model(model) == 2 * bounds[0]


CALL = {"id": "c", "type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("message", "is_picture"),
    [
        (lambda part: {"role": "user", "content": [part]}, True),
        (lambda part: {"type": "function_call_output", "call_id": "c", "output": [part]}, True),
        (
            lambda part: {
                "role": "assistant",
                "tool_calls": [{**CALL, "function": {"name": "f", "arguments": part}}],
            },
            False,
        ),
        (
            lambda part: {
                "role": "assistant",
                "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {"content": part}}}],
            },
            False,
        ),
        (lambda part: {"role": "user", "content": "Hello", "other": [part]}, False),
    ],
)
def test_only_content_has_pictures(message, is_picture):
    """What looks like a picture counts as one only in a message's content. Elsewhere a model may
    get it as a text, of a length that only its window bounds."""
    content = Content()
    content.read([message({"type": "image_url", "image_url": {"url": data_url(png(1, 1))}})])

    assert (content.pictures is not NO_PICTURES) is is_picture
    assert content.is_unbounded is not is_picture


@pytest.mark.parametrize(
    ("beside", "is_unbounded"),
    [
        ({}, False),
        ({"name": "a", "cache_control": {"type": "ephemeral"}, "reasoning_content": "b"}, False),
        ({"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}, False),
        ({"audio": {"id": "a"}}, True),
        ({"images": ["a"]}, True),
        ({"type": "input_audio"}, True),
        ({"output": {"file": "a"}}, True),
    ],
)
def test_media_beside_a_text_are_found(beside, is_unbounded):
    """A message whose content is a text may have media in its other members."""
    for message in ({"role": "user", "content": "Hello", **beside}, {"content": "", **beside}):
        content = Content()
        content.read([{"role": "user", "content": "Hello"}, message])

        assert content.is_unbounded is is_unbounded
