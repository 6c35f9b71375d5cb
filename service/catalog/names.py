"""What a caller's name for a model stands for (pure, in memory)."""

import difflib
import functools
import heapq
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import msgspec

from service.catalog.models import Model, Stored
from service.catalog.prices import Price
from service.errors import ClientError, Forbidden, NotFound, Unavailable

SIGNS: Final = str.maketrans("._ /", "----")
"""Signs that Venice does not tell apart in a model's name."""
FIRST_TYPE: Final = "text"
"""Whose other name it is when models of several types have the same, as ``default``."""
NEAREST: Final = 3
NEAREST_LENGTH: Final = 100
ALIKE_LENGTH: Final = 3
"""How many characters of their beginnings or ends similar names have in common."""
MAX_COMPARED: Final = 6
"""How many names an unknown one is compared with."""
SHOWN_LENGTH: Final = 200
MOST_REPLACEMENTS: Final = 8


class Alias(msgspec.Struct, frozen=True, kw_only=True):
    """A name of the operator's for one model or several, the best first."""

    name: str
    organization_id: UUID | None
    targets: tuple[str, ...]
    created_at: datetime


class Models:
    """All models of one copy of Venice's list."""

    def __init__(self, stored: Iterable[Stored] = ()) -> None:
        self.stored: dict[str, Stored] = {}
        self.listed: dict[str, Stored] = {}
        self.prices: dict[str, Price] = {}
        self._spellings: dict[str, str] = {}
        self._also_named: dict[tuple[str, str], str] = {}
        self._capabilities: dict[str, frozenset[str]] = {}
        # In Venice's order, but the retired first: a name in use goes before one that was.
        for known in sorted(
            stored, key=lambda known: (known.retired_at is None, known.model.position)
        ):
            self._add(known)

    def _add(self, known: Stored) -> None:
        model = known.model
        self.stored[model.name] = known
        self._spellings[_folded(model.name)] = model.name
        if (price := model.price()) is not None:
            self.prices[model.name] = price
        if known.retired_at is None:
            self.listed[model.name] = known
            self._capabilities[model.name] = _true_ones(model.capabilities)
            for name in model.also_named:
                self._also_named.setdefault((model.type, name), model.name)

    def resolve(self, name: str) -> str:
        """The name as Venice lists the model, should it be spelt in another way that Venice
        tolerates; a feature suffix stays."""
        model, colon, suffix = name.partition(":")
        known = self._known(model)
        is_listed = known is not None and known.model.name in self.listed
        return known.model.name + colon + suffix if known and is_listed else name

    def _known(self, name: str) -> Stored | None:
        return self.stored.get(name) or self.stored.get(self._spellings.get(_folded(name), ""))

    def can(self, name: str, capability: str) -> bool:
        """Whether the model has a capability."""
        model = self.resolve(name).partition(":")[0]
        return capability in self._capabilities.get(model, ())

    def of_type(self, model_type: str) -> Iterator[Model]:
        """The listed models of a type in Venice's order; ``all`` and ``code`` are types too."""
        for name, known in self.listed.items():
            is_code = "optimizedForCode" in self._capabilities[name]
            if model_type in (known.model.type, "all") or (model_type == "code" and is_code):
                yield known.model

    def target(self, name: str, model_type: str | None) -> str:
        """The listed model that a name without a suffix stands for, by its name, another spelling,
        another name, or as the replacement of one that is retired.

        :raises KeyError: when there is none.
        """
        for _ in range(MOST_REPLACEMENTS):
            known = self._known(name)
            if known is not None and known.retired_at is None:
                return known.model.name
            if (other := self._other(name, model_type)) is not None:
                return other
            if known is None or known.model.replacement is None:
                break
            name = known.model.replacement
        raise KeyError(name)

    def _other(self, name: str, model_type: str | None) -> str | None:
        if model_type is not None:
            return self._also_named.get((model_type, name))
        if (first := self._also_named.get((FIRST_TYPE, name))) is not None:
            return first
        others = (to for (_, also_named), to in self._also_named.items() if also_named == name)
        return next(others, None)

    def retired_at(self, name: str) -> datetime | None:
        """When the model of this name went, if it did."""
        known = self._known(name)
        return None if known is None else known.retired_at


class Names:
    """Models and aliases of one instant."""

    def __init__(self, models: Models, aliases: Iterable[Alias] = ()) -> None:
        self.models = models
        self.aliases: Mapping[tuple[UUID | None, str], Alias] = {
            (alias.organization_id, alias.name): alias for alias in aliases
        }
        self._aliases_of: dict[UUID | None, list[str]] = {}
        for organization_id, name in self.aliases:
            self._aliases_of.setdefault(organization_id, []).append(name)

    def alias(self, organization_id: UUID, name: str) -> Alias | None:
        """The organization's own, else the one for all."""
        return self.aliases.get((organization_id, name)) or self.aliases.get((None, name))

    def aliases_of(self, organization_id: UUID) -> list[Alias]:
        """Those that the organization's callers can use, by name."""
        found = {
            alias.name: alias
            for owner in (None, organization_id)
            for alias in self.aliases.values()
            if alias.organization_id == owner
        }
        return [found[name] for name in sorted(found)]

    def targets(
        self,
        organization_id: UUID,
        name: str,
        allowed: frozenset[str] | None,
        model_type: str | None,
    ) -> tuple[str, ...]:
        """See :meth:`service.catalog.Catalog.targets`."""
        plain, colon, suffix = name.partition(":")
        alias = self.alias(organization_id, plain)
        if not self.models.listed:
            usable = _unchecked(plain, alias, allowed)
        elif alias is None:
            usable = self._model(organization_id, plain, allowed, model_type)
        else:
            usable = self._models_of(alias, allowed)
        return tuple([target + colon + suffix for target in usable])

    def _model(
        self,
        organization_id: UUID,
        name: str,
        allowed: frozenset[str] | None,
        model_type: str | None,
    ) -> list[str]:
        try:
            target = self.models.target(name, model_type)
        except KeyError:
            raise self._unknown(organization_id, name, allowed) from None
        if allowed is not None and target not in allowed:
            raise _not_allowed(name)
        return [target]

    def _models_of(self, alias: Alias, allowed: frozenset[str] | None) -> list[str]:
        there = []
        for name in alias.targets:
            try:
                there.append(self.models.target(name, None))
            except KeyError:
                continue  # gone without a replacement: the next one answers
        if not there:
            raise NotFound(
                f"Nothing that {alias.name!r} stands for is there any more.",
                code="model_retired",
                param="model",
            )
        is_all = allowed is None or alias.name in allowed
        usable = [name for name in there if is_all or name in (allowed or ())]
        if not usable:
            raise _not_allowed(alias.name)
        return list(dict.fromkeys(usable))

    def _unknown(
        self, organization_id: UUID, name: str, allowed: frozenset[str] | None
    ) -> ClientError:
        retired_at = self.models.retired_at(name)
        if retired_at is not None:
            return _retired(name, retired_at)
        text = f"There is no model {name[:SHOWN_LENGTH]!r}."
        usable = self._is_usable(organization_id, allowed)
        aliases = (self._aliases_of.get(whose, ()) for whose in (None, organization_id))
        nearest = _nearest(name, itertools.chain(self.models.listed, *aliases), usable)
        if nearest:
            text += f" Did you mean {_listed(nearest)}?"
        return NotFound(text, code="model_not_found", param="model")

    def _is_usable(
        self, organization_id: UUID, allowed: frozenset[str] | None
    ) -> Callable[[str], bool]:
        """Whether a caller may use a name that is there."""

        def is_usable(name: str) -> bool:
            alias = self.alias(organization_id, name)
            if alias is not None:
                return self.first_target(alias, allowed) is not None
            return allowed is None or name in allowed

        return is_usable

    def first_target(self, alias: Alias, allowed: frozenset[str] | None) -> Model | None:
        """The first model that a caller of the alias would get; None when it would get none."""
        try:
            first = self._models_of(alias, allowed)[0]
        except ClientError:
            return None
        return self.models.listed[first].model


def _unchecked(name: str, alias: Alias | None, allowed: frozenset[str] | None) -> Collection[str]:
    """What can be said while no model is known: an alias's targets, or the name as it is."""
    names = (name,) if alias is None else alias.targets
    usable = [to for to in names if allowed is None or name in allowed or to in allowed]
    if not usable:
        # It may be another name of a model that is.
        raise Unavailable("The models are not known yet.", retry_after_s=1)
    return usable


def _not_allowed(name: str) -> Forbidden:
    return Forbidden(
        f"This key may not use the model {name[:SHOWN_LENGTH]!r}.",
        code="model_not_allowed",
        param="model",
    )


def _retired(name: str, retired_at: datetime) -> NotFound:
    return NotFound(
        f"The model {name[:SHOWN_LENGTH]!r} was retired on {retired_at.astimezone(UTC):%Y-%m-%d},"
        " and nothing takes its place.",
        code="model_retired",
        param="model",
    )


def _nearest(name: str, names: Iterable[str], is_usable: Callable[[str], bool]) -> list[str]:
    """The usable names that are most like it. Only a few that begin or end as it does are compared,
    so that a wrong name costs about as much as a right one, however many names there are."""
    folded = _folded(name[:NEAREST_LENGTH])
    start, end = folded[:ALIKE_LENGTH], folded[-ALIKE_LENGTH:]
    by_folded = {_folded_known(known): known for known in names}
    alike = [known for known in by_folded if known.startswith(start) or known.endswith(end)]
    compared = heapq.nsmallest(MAX_COMPARED, alike, key=lambda known: abs(len(known) - len(folded)))
    near = difflib.get_close_matches(folded, compared, n=MAX_COMPARED)
    usable = (by_folded[known] for known in near if is_usable(by_folded[known]))
    return list(itertools.islice(usable, NEAREST))


def _listed(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _folded(name: str) -> str:
    return name.removeprefix("venice-").translate(SIGNS).lower()


@functools.lru_cache(maxsize=10_000)
def _folded_known(name: str) -> str:
    return _folded(name)


def _true_ones(stated: object) -> frozenset[str]:
    if not isinstance(stated, dict):
        return frozenset()
    return frozenset(name for name, is_there in stated.items() if is_there is True)
