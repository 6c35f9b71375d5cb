"""Parses Venice's model list and compares it with the copy. No I/O."""

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
    """A model as Venice lists it.

    ``listing`` is Venice's own object, byte for byte. Numbers in ``prices`` are Decimals or
    integers. ``also_named`` holds its traits and the other names that Venice accepts for it.
    """

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
        """The fields whose change creates a new version."""
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
        """The model that Venice names as the replacement when this one is retired."""
        stated = self.deprecation if isinstance(self.deprecation, dict) else {}
        name = stated.get("replacementModelId")
        return name if isinstance(name, str) and name else None

    def price(self) -> Price | None:
        """Return the price; None when Venice states no price that can be parsed."""
        pricing = _NUMBERS.encode(self.prices)
        return read_price(self.type, pricing, self.context_tokens, self.max_output_tokens)


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A model in the copy: current, or the last version of a model retired at ``retired_at``."""

    model: Model
    version: int
    retired_at: datetime | None = None


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """The differences between Venice's list and the copy.

    ``changed`` pairs the old and new version of models whose terms changed. ``refreshed`` holds
    models of which only other fields changed.
    """

    added: list[Model]
    changed: list[tuple[Model, Model]]
    refreshed: list[Model]
    gone: list[Model]

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.refreshed or self.gone)


def read_model(listing: str) -> Model:
    """Parse Venice's object for one model.

    :raises msgspec.DecodeError: when it is not a valid model.
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
    """Parse Venice's list in its order. The first of duplicate entries is kept.

    :raises UpstreamError: when the list cannot be parsed or is empty. An empty list must not retire
        every model.
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
        raise UpstreamError("Venice's model list could not be parsed.") from error
    if not models:
        raise UpstreamError("Venice's model list is empty.")
    return list(models.values())


def compare(
    stored: Mapping[str, Stored], listed: Sequence[Model], taken: Collection[str] = ()
) -> Changes:
    """Return the changes that bring the copy up to date with Venice's list.

    A new model whose name is ``taken`` by a global alias is not added.
    """
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
