"""Prices of Venice's models, parsed into integers.

Venice states prices in a different format for each model type (``GET /models``,
``model_spec.pricing``). Each becomes a struct that computes, in nano-dollars, the most a request
can cost and the cost of its usage. A price that is missing or cannot be parsed is None, meaning
unknown, never zero. Venice states no prices for video; its bound comes from a quote.
"""

from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final

import msgspec

from service import money

CHARACTERS_PER_PRICE: Final = 1_000
MAX_SECONDS: Final = Decimal(10**9)
UNKNOWN_WINDOW_TOKENS: Final = 1_000_000
"""The context window of a model that states none."""


def count_characters(text: str) -> int:
    """Count characters as Venice does: a character above U+FFFF counts as two."""
    return len(text) + sum(character > "\uffff" for character in text)


class Leaf(msgspec.Struct, frozen=True):
    """A price in Venice's format. The number is the same in USD and DIEM."""

    usd: Decimal

    @property
    def nanos(self) -> int:
        """The price in nano-dollars.

        :raises ValueError: when it is negative or too large for the ledger.
        """
        nanos = money.parse_usd(self.usd)
        if nanos < 0:
            raise ValueError("a price must not be negative")
        return nanos


class Rates(msgspec.Struct, frozen=True):
    """Prices per million tokens."""

    input: Leaf | None = None
    output: Leaf | None = None
    cache_input: Leaf | None = None
    cache_write: Leaf | None = None


class Extended(Rates, frozen=True):
    """Prices of the whole request once its prompt passes the threshold."""

    context_token_threshold: int = 0


class TokenPricing(Rates, frozen=True):
    """Prices of a text, embedding or decision model."""

    extended: Extended | None = None


class InputImages(msgspec.Struct, frozen=True):
    """The input images that an output image's price includes, and the price of each further one."""

    included: int
    additional: Leaf


class ImagePricing(msgspec.Struct, frozen=True, rename="camel"):
    """Prices of an image or inpaint model: per image, per resolution, or per resolution and
    quality."""

    generation: Leaf | None = None
    inpaint: Leaf | None = None
    resolutions: dict[str, Leaf] = {}
    quality: dict[str, dict[str, Leaf]] = {}
    upscale: dict[str, Leaf] = {}
    input_images: InputImages | None = None


class Duration(Leaf, frozen=True):
    """The price of a track whose length is within these seconds."""

    min_seconds: Decimal
    max_seconds: Decimal


class AudioPricing(msgspec.Struct, frozen=True):
    """Prices of speech (``input``, per million characters), transcription and music."""

    input: Leaf | None = None
    per_audio_second: Leaf | None = None
    generation: Leaf | None = None
    durations: dict[str, Duration] = {}
    per_second: Leaf | None = None
    per_thousand_characters: Leaf | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens used by a call. Input tokens include cached ones."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0


class _TokenRates(msgspec.Struct, frozen=True):
    """Nano-dollars per million tokens."""

    input: int
    output: int | None
    cache_input: int
    cache_write: int
    highest_input: int
    """The highest of the three rates for input."""

    @classmethod
    def of(cls, rates: Rates) -> "_TokenRates | None":
        if rates.input is None:
            return None
        price = rates.input.nanos
        cache_input = rates.cache_input.nanos if rates.cache_input else price
        cache_write = rates.cache_write.nanos if rates.cache_write else price
        return cls(
            price,
            rates.output.nanos if rates.output else None,
            cache_input,
            cache_write,
            max(price, cache_input, cache_write),
        )


class TokenPrice(msgspec.Struct, frozen=True):
    """The token prices and token limits of a model."""

    rates: _TokenRates
    extended: _TokenRates | None
    threshold_tokens: int
    context_tokens: int | None = None
    max_output_tokens: int | None = None

    def cost_nanos(self, usage: Usage) -> int | None:
        """Return the cost of the usage, or None when a required rate is not stated.

        Cached and cache-writing tokens are part of the input and have their own rates where the
        catalogue states them. Past the threshold, everything is billed at the extended rates.
        """
        rates = self.rates
        if self.extended is not None and usage.input_tokens > self.threshold_tokens:
            rates = self.extended
        if rates.output is None and usage.output_tokens:
            return None
        plain = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
        return money.cost_of_tokens(
            (max(0, plain), rates.input),
            (usage.cached_input_tokens, rates.cache_input),
            (usage.cache_write_tokens, rates.cache_write),
            (usage.output_tokens, rates.output or 0),
        )

    def bound_nanos(self, input_tokens: int, output_tokens: int) -> int | None:
        """Return the most that these tokens can cost, or None when a rate is not stated.

        Cached or cache-writing input may cost more than plain input, so the bound uses the highest
        of these rates. A prompt that may be past the threshold may have the extended rates.
        """
        nanos = 0
        for rates in (self.rates, self.extended):
            if rates is None or (rates is self.extended and input_tokens <= self.threshold_tokens):
                continue
            if rates.output is None and output_tokens:
                return None
            bound_nanos = money.cost_of_tokens(
                (input_tokens, rates.highest_input), (output_tokens, rates.output or 0)
            )
            nanos = max(nanos, bound_nanos)
        return nanos


class TokenTerms(msgspec.Struct, frozen=True):
    """What the models that may answer a call take, give and cost at most."""

    prices: tuple[TokenPrice | None, ...]
    """The price of each model; None for one that has none."""
    max_input_tokens: int
    """The most input that any of them takes."""
    max_output_tokens: int
    """The most output of one choice that any of them gives."""

    @classmethod
    def of(cls, prices: Iterable[TokenPrice | None]) -> "TokenTerms":
        """The terms of models with these prices."""
        found = tuple(prices)
        most_input = most_output = 0
        for price in found:
            window = (price and price.context_tokens) or UNKNOWN_WINDOW_TOKENS
            most_input = max(most_input, window)
            most_output = max(most_output, (price and price.max_output_tokens) or window)
        return cls(found, most_input, most_output)

    def bound_nanos(self, input_tokens: int, output_tokens: int) -> int | None:
        """Return the most that these tokens cost with any of the models, or None when one has no
        price."""
        most = 0
        for price in self.prices:
            nanos = None if price is None else price.bound_nanos(input_tokens, output_tokens)
            if nanos is None:
                return None
            most = max(most, nanos)
        return most


class ImagePrice(msgspec.Struct, frozen=True):
    """The prices of images. Resolutions (``1K``) and qualities (``low``) are Venice's tiers."""

    base: int | None
    resolutions: Mapping[str, int]
    quality: Mapping[str, Mapping[str, int]]
    upscale: Mapping[str, int]
    included_images: int
    additional_image: int

    def images_nanos(
        self,
        count: int,
        *,
        resolution: str | None = None,
        quality: str | None = None,
        input_images: int = 0,
    ) -> int | None:
        """Return the cost of generated or edited images at the requested tier.

        The most expensive tier applies when none is requested or the requested one has no price.
        None when no price is stated.
        """
        tiers = self.quality.get(resolution or "") if resolution else None
        by_quality = [tiers] if tiers else list(self.quality.values())
        prices = [
            price
            for tier in by_quality
            for name, price in tier.items()
            if quality not in tier or name == quality
        ]
        if not prices:
            stated = self.resolutions.get(resolution or "")
            prices = [stated] if stated is not None else list(self.resolutions.values())
        if not prices:
            prices = [] if self.base is None else [self.base]
        if not prices:
            return None
        more = max(0, input_images - self.included_images) * self.additional_image
        return count * (max(prices) + more)

    def upscale_nanos(self, scale: str | None = None) -> int | None:
        """Return the cost of an upscale by ``2x`` or ``4x``, or the highest price when none is
        given."""
        stated = self.upscale.get(scale or "")
        return stated if stated is not None else max(self.upscale.values(), default=None)


class AudioPrice(msgspec.Struct, frozen=True):
    """The prices of speech, transcription and music."""

    million_characters: int | None
    thousand_characters: int | None
    second: int | None
    piece: int | None
    durations: tuple[tuple[Decimal, Decimal, int], ...]

    def nanos(
        self, *, characters: int | None = None, seconds: Decimal | int | None = None
    ) -> int | None:
        """Return the cost of characters of text or seconds of sound.

        When prices depend on an unknown length, the highest applies. None when the price needs a
        fact that is missing.
        """
        if self.million_characters is not None and characters is not None:
            return money.cost_of_tokens((characters, self.million_characters))
        if self.thousand_characters is not None and characters is not None:
            return -(-characters * self.thousand_characters // CHARACTERS_PER_PRICE)
        if self.second is not None and seconds is not None:
            length = min(Decimal(seconds), MAX_SECONDS)
            return int((length * self.second).to_integral_value(rounding=ROUND_CEILING))
        fitting = [
            price
            for shortest, longest, price in self.durations
            if seconds is None or shortest <= seconds <= longest
        ]
        return max(fitting, default=self.piece)


Price = TokenPrice | ImagePrice | AudioPrice

TOKEN_TYPES: Final = frozenset({"text", "code", "embedding", "decision"})
IMAGE_TYPES: Final = frozenset({"image", "inpaint", "upscale"})
AUDIO_TYPES: Final = frozenset({"tts", "asr", "music"})


def read_price(
    model_type: str,
    pricing: bytes,
    context_tokens: int | None = None,
    max_output_tokens: int | None = None,
) -> Price | None:
    """Parse the price of a model; None when the catalogue states no price that can be parsed."""
    try:
        if model_type in TOKEN_TYPES:
            return _tokens(_decode(pricing, TokenPricing), context_tokens, max_output_tokens)
        if model_type in IMAGE_TYPES:
            return _images(_decode(pricing, ImagePricing))
        if model_type in AUDIO_TYPES:
            return _audio(_decode(pricing, AudioPricing))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return None


def _decode(pricing: bytes, shape: Any) -> Any:
    return msgspec.json.decode(pricing, type=shape)


def _tokens(
    stated: TokenPricing, context_tokens: int | None, max_output_tokens: int | None
) -> TokenPrice | None:
    rates = _TokenRates.of(stated)
    if rates is None:
        return None
    extended, threshold_tokens = None, 0
    if stated.extended is not None:
        extended = _TokenRates.of(stated.extended)
        threshold_tokens = stated.extended.context_token_threshold
    return TokenPrice(rates, extended, threshold_tokens, context_tokens, max_output_tokens)


def _images(stated: ImagePricing) -> ImagePrice | None:
    base = stated.generation or stated.inpaint
    if base is None and not (stated.resolutions or stated.quality or stated.upscale):
        return None
    more = stated.input_images
    return ImagePrice(
        base=base.nanos if base else None,
        resolutions=_nanos(stated.resolutions),
        quality={tier: _nanos(leaves) for tier, leaves in stated.quality.items()},
        upscale=_nanos(stated.upscale),
        included_images=more.included if more else 0,
        additional_image=more.additional.nanos if more else 0,
    )


def _audio(stated: AudioPricing) -> AudioPrice | None:
    price = AudioPrice(
        million_characters=_or_none(stated.input),
        thousand_characters=_or_none(stated.per_thousand_characters),
        second=_or_none(stated.per_audio_second or stated.per_second),
        piece=_or_none(stated.generation),
        durations=tuple(
            (tier.min_seconds, tier.max_seconds, tier.nanos) for tier in stated.durations.values()
        ),
    )
    return (
        price if any(value not in (None, ()) for value in msgspec.structs.astuple(price)) else None
    )


def _or_none(leaf: Leaf | None) -> int | None:
    return leaf.nanos if leaf else None


def _nanos(leaves: Mapping[str, Leaf]) -> dict[str, int]:
    return {name: leaf.nanos for name, leaf in leaves.items()}
