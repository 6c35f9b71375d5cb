"""Prices as lines for people, from Venice's own objects."""

import msgspec
import pytest

from service.catalog import price_lines


def leaf(usd):
    """A price in Venice's form."""
    return {"usd": usd, "diem": usd}


def lines(model_type, pricing):
    """The prices as tuples."""
    found = price_lines(model_type, msgspec.json.encode(pricing))
    return [(line.what, line.usd, line.per) for line in found]


def test_tokens():
    """Rates are for a million tokens; those of long prompts name the threshold."""
    pricing = {
        "input": leaf(6),
        "output": leaf(30),
        "cache_input": leaf(0.6),
        "extended": {"context_token_threshold": 200_000, "input": leaf(12)},
    }

    assert lines("text", pricing) == [
        ("input", "6.00", "million tokens"),
        ("output", "30.00", "million tokens"),
        ("cached input", "0.60", "million tokens"),
        ("input, prompts over 200,000 tokens", "12.00", "million tokens"),
    ]


def test_images():
    """Images are priced by what decides their price."""
    pricing = {
        "resolutions": {"1K": leaf(0.18), "4K": leaf(0.35)},
        "quality": {"1K": {"low": leaf(0.01)}},
        "upscale": {"2x": leaf(0.02)},
        "inputImages": {"included": 1, "additional": leaf(0.005)},
    }

    assert lines("image", pricing) == [
        ("image, 1K", "0.18", "image"),
        ("image, 4K", "0.35", "image"),
        ("image, 1K, low", "0.01", "image"),
        ("upscale, 2x", "0.02", "image"),
        ("input images after 1", "0.005", "image"),
    ]


def test_sound():
    """Sound is priced by characters, seconds or pieces of a length."""
    duration = {**leaf(0.4), "min_seconds": 3, "max_seconds": 30}

    assert lines("tts", {"input": leaf(3.5)}) == [("text", "3.50", "million characters")]
    assert lines("asr", {"per_audio_second": leaf(0.0001)}) == [("sound", "0.0001", "second")]
    assert lines("music", {"durations": {"30": duration}}) == [("3 to 30 s", "0.40", "piece")]


@pytest.mark.parametrize(
    ("model_type", "pricing"),
    [
        ("video", {"input": leaf(1)}),
        ("nosuch", {}),
        ("text", None),
        ("text", {"input": {"usd": -1}}),
        ("text", {"input": {"usd": "one"}}),
        ("image", [1]),
    ],
)
def test_what_is_no_price_has_no_line(model_type, pricing):
    """A type without prices, and prices that cannot be parsed, have no lines."""
    assert lines(model_type, pricing) == []
