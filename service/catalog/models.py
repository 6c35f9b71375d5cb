"""Venice's list, read, and what is new in it (pure)."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec

from service.catalog.prices import Price, read_price
from service.errors import UpstreamError

NAME_LENGTH: Final = 200

_EXACT: Final = msgspec.json.Decoder(float_hook=Decimal)
_NUMBERS: Final = msgspec.json.Encoder(decimal_format="number")


class _Spec(msgspec.Struct, rename="camel"):
    pricing: msgspec.Raw = msgspec.Raw(b"null")
    available_context_tokens: int | None = None
    max_completion_tokens: int | None = None
    capabilities: msgspec.Raw = msgspec.Raw(b"{}")
    deprecation: msgspec.Raw = msgspec.Raw(b"null")


class _Entry(msgspec.Struct):
    id: str
    type: str = "text"
    model_spec: _Spec = msgspec.field(default_factory=_Spec)


class _List(msgspec.Struct):
    data: list[msgspec.Raw]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model as Venice lists it. ``listing`` is Venice's own object, byte for byte; numbers of
    ``prices`` are Decimals and integers. ``also_named`` are its traits and names of other makers
    that Venice takes for it."""

    name: str
    type: str
    prices: Any
    context_tokens: int | None
    max_output_tokens: int | None
    capabilities: Any
    deprecation: Any
    listing: str
    position: int = 0
    also_named: tuple[str, ...] = ()

    @property
    def terms(self) -> tuple[Any, ...]:
        """What makes a new version when it changes."""
        return (
            self.type,
            self.prices,
            self.context_tokens,
            self.max_output_tokens,
            self.capabilities,
            self.deprecation,
        )

    @property
    def replacement(self) -> str | None:
        """What Venice names for when the model is gone."""
        stated = self.deprecation if isinstance(self.deprecation, dict) else {}
        name = stated.get("replacementModelId")
        return name if isinstance(name, str) and name else None

    def price(self) -> Price | None:
        """What it costs; None when no price is stated that can be read."""
        pricing = _NUMBERS.encode(self.prices)
        return read_price(self.type, pricing, self.context_tokens, self.max_output_tokens)


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the copy: current, or the last version of one that went at ``retired_at``."""

    model: Model
    version: int
    retired_at: datetime | None = None


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """How Venice's list differs from the copy. ``changed`` are the models whose terms did, each
    with what it was; ``refreshed`` are those of whom only the rest did."""

    added: list[Model]
    changed: list[tuple[Model, Model]]
    refreshed: list[Model]
    gone: list[Model]

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.refreshed or self.gone)


def read_model(listing: str) -> Model:
    """A model by Venice's own object.

    :raises msgspec.DecodeError: when it is none.
    """
    entry = msgspec.json.decode(listing, type=_Entry)
    spec = entry.model_spec
    return Model(
        name=entry.id,
        type=entry.type,
        prices=_EXACT.decode(spec.pricing),
        context_tokens=spec.available_context_tokens,
        max_output_tokens=spec.max_completion_tokens,
        capabilities=_EXACT.decode(spec.capabilities),
        deprecation=_EXACT.decode(spec.deprecation),
        listing=listing,
    )


def read_list(body: bytes) -> list[Model]:
    """Venice's list, in its order; of a model that is listed twice the first.

    :raises UpstreamError: when it cannot be read, or is empty: that is no reason to forget all.
    """
    try:
        entries = msgspec.json.decode(body, type=_List).data
        models: dict[str, Model] = {}
        for position, entry in enumerate(entries):
            model = read_model(bytes(entry).decode())
            placed = msgspec.structs.replace(model, position=position)
            if 1 <= len(model.name) <= NAME_LENGTH:
                models.setdefault(model.name, placed)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamError("Venice's list of models cannot be read.") from error
    if not models:
        raise UpstreamError("Venice lists no models.")
    return list(models.values())


def compare(
    stored: Mapping[str, Stored], listed: Sequence[Model], taken: Collection[str] = ()
) -> Changes:
    """What has to be written so that the copy is as Venice's list. A name that is ``taken`` by an
    alias for all is the alias's."""
    changes = Changes(added=[], changed=[], refreshed=[], gone=[])
    names = set()
    for model in listed:
        names.add(model.name)
        known = stored.get(model.name)
        if known is None or known.retired_at is not None:
            if model.name not in taken:
                changes.added.append(model)
        elif known.model.terms != model.terms:
            changes.changed.append((known.model, model))
        elif known.model != model:
            changes.refreshed.append(model)
    for name, known in stored.items():
        if known.retired_at is None and name not in names:
            changes.gone.append(known.model)
    return changes
