"""Resolves a caller's name for a model. In memory, without I/O."""

import difflib
import functools
import heapq
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, TypeVar
from uuid import UUID

import msgspec

from service.catalog.models import Model, Stored
from service.catalog.prices import Price, TokenPrice, TokenTerms
from service.errors import ClientError, Forbidden, NotFound, Unavailable

E = TypeVar("E", bound=ClientError)

EQUIVALENT_CHARACTERS: Final = str.maketrans("._ /", "----")
"""Characters that Venice treats as equal in a model name."""
PREFERRED_TYPE: Final = "text"
"""The type that wins when several types share an alternative name, such as ``default``."""
MAX_SUGGESTIONS: Final = 3
MAX_COMPARED_LENGTH: Final = 100
MATCHED_LENGTH: Final = 3
"""The number of leading or trailing characters that similar names share."""
MAX_CANDIDATES: Final = 6
"""The number of candidates that an unknown name is compared with."""
MAX_SHOWN_LENGTH: Final = 200
MAX_REPLACEMENTS: Final = 8


class Alias(msgspec.Struct, frozen=True, kw_only=True):
    """A name that resolves to one model or several, best first."""

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
        self.token_terms: dict[str, TokenTerms] = {}
        """The terms of each model alone, computed once, since these models never change."""
        self._spellings: dict[str, str] = {}
        self._also_named: dict[tuple[str, str], str] = {}
        self._capabilities: dict[str, frozenset[str]] = {}
        # Venice's order, with retired models first so that current models override their spellings.
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
        self.token_terms[model.name] = TokenTerms.of([_of_tokens(price)])
        if known.retired_at is None:
            self.listed[model.name] = known
            self._capabilities[model.name] = _enabled_capabilities(model.capabilities)
            for name in model.also_named:
                self._also_named.setdefault((model.type, name), model.name)

    def resolve(self, name: str) -> str:
        """Return the name as Venice spells it, if it is another accepted spelling. A feature suffix
        is kept."""
        model, colon, suffix = name.partition(":")
        known = self._known(model)
        is_listed = known is not None and known.model.name in self.listed
        return known.model.name + colon + suffix if known and is_listed else name

    def _known(self, name: str) -> Stored | None:
        return self.stored.get(name) or self.stored.get(self._spellings.get(_folded(name), ""))

    def can(self, name: str, capability: str) -> bool:
        """Return whether the model has a capability."""
        model = self.resolve(name).partition(":")[0]
        return capability in self._capabilities.get(model, ())

    def terms_of(self, names: Iterable[str]) -> TokenTerms:
        """Return the terms of several models, or of one by its name with a suffix."""
        known = (self.prices.get(name) or self.prices.get(name.partition(":")[0]) for name in names)
        return TokenTerms.of(map(_of_tokens, known))

    def of_type(self, model_type: str) -> Iterator[Model]:
        """Yield the listed models of a type in Venice's order. ``all`` and ``code`` also work."""
        for name, known in self.listed.items():
            is_code = "optimizedForCode" in self._capabilities[name]
            if model_type in (known.model.type, "all") or (model_type == "code" and is_code):
                yield known.model

    def target(self, name: str, model_type: str | None) -> str:
        """Resolve a name without a suffix to a listed model.

        The name may be the model's own, another spelling, an alternative name, or a retired model
        with a replacement.

        :raises KeyError: when no model matches.
        """
        for _ in range(MAX_REPLACEMENTS):
            known = self._known(name)
            if known is not None and known.retired_at is None:
                return known.model.name
            if (other := self._by_alternative_name(name, model_type)) is not None:
                return other
            if known is None or known.model.replacement is None:
                break
            name = known.model.replacement
        raise KeyError(name)

    def _by_alternative_name(self, name: str, model_type: str | None) -> str | None:
        if model_type is not None:
            return self._also_named.get((model_type, name))
        if (first := self._also_named.get((PREFERRED_TYPE, name))) is not None:
            return first
        others = (to for (_, also_named), to in self._also_named.items() if also_named == name)
        return next(others, None)

    def retired_at(self, name: str) -> datetime | None:
        """Return when the model was retired, or None."""
        known = self._known(name)
        return None if known is None else known.retired_at


class Names:
    """The models and aliases at one point in time."""

    def __init__(self, models: Models, aliases: Iterable[Alias] = ()) -> None:
        self.models = models
        self.aliases: Mapping[tuple[UUID | None, str], Alias] = {
            (alias.organization_id, alias.name): alias for alias in aliases
        }
        self._aliases_of: dict[UUID | None, list[str]] = {}
        for organization_id, name in self.aliases:
            self._aliases_of.setdefault(organization_id, []).append(name)

    def alias(self, organization_id: UUID, name: str) -> Alias | None:
        """Return the organization's own alias, or else the global one."""
        return self.aliases.get((organization_id, name)) or self.aliases.get((None, name))

    def aliases_of(self, organization_id: UUID) -> list[Alias]:
        """Return the aliases that the organization's callers can use, sorted by name."""
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
        """Resolve a name; see :meth:`service.catalog.Catalog.targets`."""
        plain, colon, suffix = name.partition(":")
        alias = self.alias(organization_id, plain) if self.aliases else None
        if alias is None and plain in self.models.listed and (allowed is None or plain in allowed):
            return (name,)
        if not self.models.listed:
            usable = _resolve_before_load(plain, alias, allowed)
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
                continue  # Retired without a replacement, so try the next target.
        if not there:
            retired = NotFound(
                f"All models of the alias {alias.name!r} are retired.",
                code="model_retired",
                param="model",
            )
            raise about_model(retired, alias.name)
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
        text = f"There is no model {name[:MAX_SHOWN_LENGTH]!r}."
        usable = self._is_usable(organization_id, allowed)
        aliases = (self._aliases_of.get(whose, ()) for whose in (None, organization_id))
        nearest = _nearest(name, itertools.chain(self.models.listed, *aliases), usable)
        if nearest:
            text += f" Did you mean {_listed(nearest)}?"
        return about_model(NotFound(text, code="model_not_found", param="model"), name)

    def _is_usable(
        self, organization_id: UUID, allowed: frozenset[str] | None
    ) -> Callable[[str], bool]:
        """Return a predicate that checks whether the caller may use a known name."""

        def is_usable(name: str) -> bool:
            alias = self.alias(organization_id, name)
            if alias is not None:
                return self.first_target(alias, allowed) is not None
            return allowed is None or name in allowed

        return is_usable

    def first_target(self, alias: Alias, allowed: frozenset[str] | None) -> Model | None:
        """Return the model that a caller of the alias would get, or None if there is none."""
        try:
            first = self._models_of(alias, allowed)[0]
        except ClientError:
            return None
        return self.models.listed[first].model


def _resolve_before_load(
    name: str, alias: Alias | None, allowed: frozenset[str] | None
) -> Collection[str]:
    """Resolve a name while no models are known.

    An alias resolves to its targets, any other name to itself.
    """
    names = (name,) if alias is None else alias.targets
    usable = [to for to in names if allowed is None or name in allowed or to in allowed]
    if not usable:
        # The name may be an alternative name of an allowed model.
        raise Unavailable("The model list is not loaded yet. Retry in a second.", retry_after_s=1)
    return usable


def _not_allowed(name: str) -> Forbidden:
    error = Forbidden(
        f"This key may not use the model {name[:MAX_SHOWN_LENGTH]!r}.",
        code="model_not_allowed",
        param="model",
    )
    return about_model(error, name)


def _retired(name: str, retired_at: datetime) -> NotFound:
    error = NotFound(
        f"The model {name[:MAX_SHOWN_LENGTH]!r} was retired on"
        f" {retired_at.astimezone(UTC):%Y-%m-%d} and has no replacement.",
        code="model_retired",
        param="model",
    )
    return about_model(error, name)


def about_model(error: E, name: str) -> E:
    """Return the error with the caller's name for the model in question."""
    error.model = name
    return error


def _nearest(name: str, names: Iterable[str], is_usable: Callable[[str], bool]) -> list[str]:
    """Return the usable names most similar to an unknown one.

    Only a few names with the same beginning or end are compared, so a wrong name costs about as
    much as a right one, however many names exist.
    """
    folded = _folded(name[:MAX_COMPARED_LENGTH])
    start, end = folded[:MATCHED_LENGTH], folded[-MATCHED_LENGTH:]
    by_folded = {_folded_known(known): known for known in names}
    alike = [known for known in by_folded if known.startswith(start) or known.endswith(end)]
    compared = heapq.nsmallest(
        MAX_CANDIDATES, alike, key=lambda known: abs(len(known) - len(folded))
    )
    near = difflib.get_close_matches(folded, compared, n=MAX_CANDIDATES)
    usable = (by_folded[known] for known in near if is_usable(by_folded[known]))
    return list(itertools.islice(usable, MAX_SUGGESTIONS))


def _listed(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _of_tokens(price: Price | None) -> TokenPrice | None:
    return price if isinstance(price, TokenPrice) else None


def _folded(name: str) -> str:
    return name.removeprefix("venice-").translate(EQUIVALENT_CHARACTERS).lower()


@functools.lru_cache(maxsize=10_000)
def _folded_known(name: str) -> str:
    return _folded(name)


def _enabled_capabilities(stated: object) -> frozenset[str]:
    if not isinstance(stated, dict):
        return frozenset()
    return frozenset(name for name, is_there in stated.items() if is_there is True)
