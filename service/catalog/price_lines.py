"""The prices of a model as lines for people, from Venice's own object. No I/O."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from service import money
from service.catalog.prices import (
    AUDIO_TYPES,
    IMAGE_TYPES,
    TOKEN_TYPES,
    AudioPricing,
    ImagePricing,
    Leaf,
    Rates,
    TokenPricing,
)


class PriceLine(msgspec.Struct, frozen=True, kw_only=True):
    """One price: ``usd``, an exact decimal string, for one ``per`` of ``what``."""

    what: str
    usd: str
    per: str


def price_lines(model_type: str, pricing: bytes) -> list[PriceLine]:
    """List the prices of a model of this type. Empty when Venice states none that can be parsed."""
    for types, shape, lines in _READERS:
        if model_type in types:
            try:
                stated = msgspec.json.decode(pricing, type=shape)
                return [
                    PriceLine(what=what, usd=money.format_usd(leaf.nanos), per=per)
                    for what, leaf, per in lines(stated)
                    if leaf is not None
                ]
            except (msgspec.DecodeError, ValueError, RecursionError):
                return []
    return []


_Lines = Iterator[tuple[str, Leaf | None, str]]


def _of_tokens(stated: TokenPricing) -> _Lines:
    yield from _of_rates(stated, "")
    if stated.extended is not None:
        yield from _of_rates(
            stated.extended, f", prompts over {stated.extended.context_token_threshold:,} tokens"
        )


def _of_rates(rates: Rates, suffix: str) -> _Lines:
    per = "million tokens"
    yield f"input{suffix}", rates.input, per
    yield f"output{suffix}", rates.output, per
    yield f"cached input{suffix}", rates.cache_input, per
    yield f"cache write{suffix}", rates.cache_write, per


def _of_images(stated: ImagePricing) -> _Lines:
    yield "image", stated.generation, "image"
    yield "edit", stated.inpaint, "image"
    for resolution, leaf in stated.resolutions.items():
        yield f"image, {resolution}", leaf, "image"
    for resolution, tiers in stated.quality.items():
        for quality, leaf in tiers.items():
            yield f"image, {resolution}, {quality}", leaf, "image"
    for scale, leaf in stated.upscale.items():
        yield f"upscale, {scale}", leaf, "image"
    if stated.input_images is not None:
        included = stated.input_images.included
        yield f"input images after {included}", stated.input_images.additional, "image"


def _of_audio(stated: AudioPricing) -> _Lines:
    yield "text", stated.input, "million characters"
    yield "text", stated.per_thousand_characters, "thousand characters"
    yield "sound", stated.per_audio_second, "second"
    yield "sound", stated.per_second, "second"
    yield "piece", stated.generation, "piece"
    for tier in stated.durations.values():
        yield f"{tier.min_seconds} to {tier.max_seconds} s", tier, "piece"


_READERS: Final[Sequence[tuple[frozenset[str], Any, Callable[[Any], _Lines]]]] = (
    (TOKEN_TYPES, TokenPricing, _of_tokens),
    (IMAGE_TYPES, ImagePricing, _of_images),
    (AUDIO_TYPES, AudioPricing, _of_audio),
)
"""How the prices of each type of model are read."""
