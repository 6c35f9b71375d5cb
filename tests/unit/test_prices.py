"""Prices of every type of model, as Venice states them."""

import json
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.catalog.prices import AudioPrice, ImagePrice, TokenPrice, Usage, read_price
from service.sandbox.models import of_type


def leaf(usd):
    """Return a price in Venice's format."""
    return {"usd": usd, "diem": usd}


def price_of(kind, **pricing):
    return read_price(kind, json.dumps(pricing).encode(), 100_000, 4_000)


TEXT = {
    "input": leaf(6),
    "output": leaf(30),
    "cache_input": leaf(0.6),
    "cache_write": leaf(7.5),
    "extended": {
        "context_token_threshold": 1_000,
        "input": leaf(12),
        "output": leaf(45),
        "cache_input": leaf(1.2),
        "cache_write": leaf(15),
    },
}


def test_tokens():
    """Cached tokens have their own rates, and past the threshold all tokens have the extended
    ones."""
    price = price_of("text", **TEXT)

    def usage(*tokens):
        names = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens")
        return price.cost_nanos(Usage(**dict(zip(names, tokens, strict=False))))

    assert usage(100, 10) == 100 * 6_000 + 10 * 30_000
    assert usage(100, 10, 50, 20) == 30 * 6_000 + 50 * 600 + 20 * 7_500 + 10 * 30_000
    assert usage(1_000, 0) == 1_000 * 6_000
    assert usage(1_001, 1) == 1_001 * 12_000 + 45_000
    assert (price.context_tokens, price.max_output_tokens) == (100_000, 4_000)


counts = st.integers(0, 3_000)


@given(counts, counts, st.floats(0, 1), st.floats(0, 1), counts, counts)
def test_no_usage_costs_more_than_its_bound(most_in, most_out, cached, written, more, extra):
    """No usage costs more than its bound, whatever part of the input is cached or written to a
    cache."""
    price = price_of("text", **TEXT)
    cached = int(most_in * cached)
    usage = Usage(
        input_tokens=most_in,
        output_tokens=most_out,
        cached_input_tokens=cached,
        cache_write_tokens=int((most_in - cached) * written),
    )

    assert price.cost_nanos(usage) <= price.bound_nanos(most_in + more, most_out + extra)


def test_a_prompt_that_cannot_pass_the_threshold_has_no_extended_bound():
    """The bound has extended rates only for prompts that may be past the threshold."""
    price = price_of("text", **TEXT)

    assert price.bound_nanos(1_000, 10) == 1_000 * 7_500 + 10 * 30_000
    assert price.bound_nanos(1_001, 10) == 1_001 * 15_000 + 10 * 45_000


def test_missing_prices_are_unknown():
    """A missing rate or tier makes the price None, never zero; a stated zero is free."""
    embedding = price_of("embedding", input=leaf(0.15))
    free = price_of("text", input=leaf(0), output=leaf(0))

    assert embedding.bound_nanos(10, 0) == 1_500
    assert embedding.bound_nanos(10, 1) is None
    assert embedding.cost_nanos(Usage(input_tokens=10, output_tokens=1)) is None
    assert free.bound_nanos(10, 10) == 0


@pytest.mark.parametrize(
    ("pricing", "asked", "nanos"),
    [
        ({"generation": leaf(0.01)}, {"count": 3}, 30_000_000),
        ({"generation": leaf(0.01)}, {"count": 1, "resolution": "4K"}, 10_000_000),
        ({"inpaint": leaf(0.04)}, {"count": 1}, 40_000_000),
        ({"resolutions": {"1K": leaf(0.18), "4K": leaf(0.35)}}, {"count": 1}, 350_000_000),
        (
            {"resolutions": {"1K": leaf(0.18), "4K": leaf(0.35)}},
            {"count": 2, "resolution": "1K"},
            360_000_000,
        ),
        (
            {"resolutions": {"1K": leaf(0.18), "4K": leaf(0.35)}},
            {"count": 1, "resolution": "8K"},
            350_000_000,
        ),
        ({"upscale": {"2x": leaf(0.02), "4x": leaf(0.08)}}, {"count": 1}, None),
    ],
)
def test_images(pricing, asked, nanos):
    """An image costs the requested tier, or the dearest one."""
    assert price_of("image", **pricing).images_nanos(**asked) == nanos


@pytest.mark.parametrize(
    ("resolution", "quality", "nanos"),
    [("1K", "low", 2), ("1K", None, 27), (None, "low", 5), (None, None, 83), ("1K", "best", 27)],
)
def test_images_by_quality(resolution, quality, nanos):
    """An image costs the tier of its resolution and quality; what is not stated is taken as the
    dearest."""
    table = {
        "1K": {"low": leaf(0.02), "medium": leaf(0.07), "high": leaf(0.27)},
        "4K": {"low": leaf(0.05), "medium": leaf(0.21), "high": leaf(0.83)},
    }
    price = price_of("image", quality=table, resolutions={"1K": leaf(9)})

    found = price.images_nanos(1, resolution=resolution, quality=quality)
    assert found == nanos * 10**7


def test_input_images_beyond_the_included_ones_are_paid_for():
    """Input images beyond the included ones are paid for with each output image."""
    more = {"included": 1, "additional": leaf(0.0045)}
    price = price_of("inpaint", inpaint=leaf(0.04), inputImages=more)

    assert price.images_nanos(2, input_images=1) == 80_000_000
    assert price.images_nanos(2, input_images=3) == 80_000_000 + 2 * 2 * 4_500_000


def test_upscales():
    """An upscale costs the requested scale, or the dearest; without a price it is None."""
    price = price_of("upscale", upscale={"2x": leaf(0.02), "4x": leaf(0.08)})

    assert [price.upscale_nanos(scale) for scale in ("2x", "4x", None, "8x")] == [
        20_000_000,
        80_000_000,
        80_000_000,
        80_000_000,
    ]
    assert price_of("image", generation=leaf(1)).upscale_nanos("2x") is None


@pytest.mark.parametrize(
    ("kind", "pricing", "facts", "nanos"),
    [
        ("tts", {"input": leaf(3.5)}, {"characters": 1}, 3_500),
        ("tts", {"input": leaf(3.5)}, {}, None),
        ("asr", {"per_audio_second": leaf(0.0001)}, {"seconds": Decimal("1.5")}, 150_000),
        ("asr", {"per_audio_second": leaf(0.0001)}, {"seconds": Decimal("0.0000001")}, 1),
        ("music", {"generation": leaf(0.02)}, {"seconds": 10}, 20_000_000),
        ("music", {"per_second": leaf(0.005)}, {"seconds": 10}, 50_000_000),
        ("music", {"per_thousand_characters": leaf(0.01)}, {"characters": 1_001}, 10_010_000),
    ],
)
def test_sound(kind, pricing, facts, nanos):
    """Sound is paid by characters, seconds or piece, rounded up."""
    assert price_of(kind, **pricing).nanos(**facts) == nanos


def test_music_by_length():
    """Music costs the tier of its length, the dearest one if the length is not known, and None
    beyond the last tier."""
    tiers = {
        "short": {**leaf(0.5), "min_seconds": 1, "max_seconds": 60},
        "long": {**leaf(0.9), "min_seconds": 61, "max_seconds": 240},
    }
    price = price_of("music", durations=tiers)

    assert [price.nanos(seconds=s) for s in (1, 60, 61, None, 500)] == [
        500_000_000,
        500_000_000,
        900_000_000,
        900_000_000,
        None,
    ]


@pytest.mark.parametrize("kind", ["text", "image", "tts", "music", "video", "something"])
@pytest.mark.parametrize(
    "pricing",
    [
        b"null",
        b"{}",
        b"[]",
        b"not json",
        b'{"input": 3}',
        b'{"input": {"usd": "x"}}',
        b'{"input": {"usd": -1}, "generation": {"usd": -1}}',
        b'{"input": {"usd": 1e300}, "generation": {"usd": 1e300}}',
    ],
)
def test_unreadable_prices_are_none(kind, pricing):
    """A price that cannot be parsed is None and raises nothing."""
    assert read_price(kind, pricing) is None


def test_the_sandboxs_catalogue_is_read():
    """Each of the sandbox's models that states a price has one of its type's kind."""
    kinds = dict.fromkeys(("image", "inpaint", "upscale"), ImagePrice)
    kinds |= dict.fromkeys(("tts", "asr", "music"), AudioPrice)
    for model in of_type("all"):
        line = json.loads(msgspec.json.encode(model.entry()))
        spec = line["model_spec"]
        price = read_price(line["type"], json.dumps(spec.get("pricing")).encode())
        assert isinstance(price, kinds.get(line["type"], TokenPrice)) or "pricing" not in spec


def test_a_cost_is_rounded_up_once():
    """A cost is rounded up once, after the parts of all kinds of tokens were summed."""
    price = price_of("text", input=leaf(0.000001), output=leaf(0.000001))

    assert price.cost_nanos(Usage(input_tokens=400, output_tokens=600)) == 1
    assert price.cost_nanos(Usage(input_tokens=401, output_tokens=600)) == 2
    assert price.bound_nanos(1, 0) == 1
