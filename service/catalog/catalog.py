"""The model catalogue of one process."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Final
from uuid import UUID

import msgspec
import structlog

from service.catalog import aliases, copy
from service.catalog.copy import Copy
from service.catalog.models import Model, read_list
from service.catalog.names import Alias, Models, Names, about_model
from service.catalog.prices import Price, TokenTerms
from service.database.database import Database
from service.errors import (
    ClientError,
    Forbidden,
    NotFound,
    ServiceError,
    UpstreamError,
)
from service.telemetry import logs

log = structlog.get_logger()

REFRESH_S: Final = 300.0
RETRY_S: Final = 15.0
ALIASES_EVERY_S: Final = 3.0
"""How often a process reads the aliases, since any replica may change them."""
NAMED_TYPES: Final = (
    "asr",
    "embedding",
    "image",
    "music",
    "text",
    "tts",
    "upscale",
    "inpaint",
    "video",
)
"""The model types for which Venice publishes alternative names."""
MODEL_TYPES: Final = (*NAMED_TYPES, "decision", "all", "code")
LISTS: Final = ("/models/compatibility_mapping", "/models/traits")
"""The endpoints with alternative model names. Later entries override earlier ones."""

OVERHEAD_TOKENS: Final = 128
"""The tokens that Venice is assumed to add to a prompt until a call shows more."""
SYSTEM_PROMPT_TOKENS: Final = 4_096
"""The same assumption when Venice adds its own system prompt."""

MAX_OVERHEAD_TOKENS: Final = 16_384
"""The largest overhead that one call can teach the process about its organization and model."""
OVERHEAD_KEPT_S: Final = 86_400.0
MAX_OVERHEADS: Final = 10_000

Fetch = Callable[[str, str], Awaitable[bytes]]
"""Fetches one of Venice's lists by path and model type."""


class _Mapping(msgspec.Struct):
    data: dict[str, str]


class _ListingSpec(msgspec.Struct):
    model_spec: msgspec.Raw = msgspec.Raw(b"{}")


class Catalog:
    """The models, prices and aliases known to one process."""

    def __init__(self, fetch: Fetch, database: Database) -> None:
        self._fetch = fetch
        self._database = database
        self._copy: Copy = {}
        self._names = Names(Models())
        self._syncing: asyncio.Task[None] | None = None
        self._overheads = _Overheads()

    async def load(self) -> None:
        """Load the models and aliases from the database."""
        known = await copy.read(self._database)
        self._use(known, await aliases.read(self._database))

    async def load_aliases(self) -> None:
        """Reload the current aliases from the database."""
        self._names = Names(self._names.models, await aliases.read(self._database))

    def _use(self, known: Copy, its_aliases: Iterable[Alias]) -> None:
        models = self._names.models
        if known != self._copy:
            self._copy, models = known, Models(known.values())
        self._names = Names(models, its_aliases)

    async def sync(self) -> None:
        """Fetch Venice's lists and update the copy. Concurrent callers share one run.

        :raises UpstreamError: when Venice does not answer, or the answer cannot be parsed.
        :raises Unavailable: when the database is unavailable.
        """
        if self._syncing is None:
            self._syncing = asyncio.create_task(self._sync())
            self._syncing.add_done_callback(self._synced)
        # The first caller may leave while others still wait for the result.
        await asyncio.shield(self._syncing)

    def _synced(self, task: asyncio.Task[None]) -> None:
        self._syncing = None
        if not task.cancelled():
            # Retrieve the exception so that asyncio does not report it when all waiters have left.
            task.exception()

    async def _sync(self) -> None:
        # Read the copy before asking Venice. If another process changes it meanwhile, ours is
        # stale.
        before = await copy.read(self._database)
        listed = read_list(await self._fetch("/models", "all"))
        if not before:
            # On the first run callers wait for prices, so write those before fetching alternative
            # names.
            await copy.write(self._database, before, listed)
            await self.load()
            before = self._copy
        named = await asyncio.gather(*(self._other_names(kind) for kind in NAMED_TYPES))
        names = dict(zip(NAMED_TYPES, named, strict=True))
        await copy.write(self._database, before, _with_names(listed, names, before))
        await self.load()
        logs.detail("catalogue refreshed", models=len(self._names.models.listed))

    async def _other_names(self, model_type: str) -> dict[str, str] | None:
        """Map alternative names to models of the type. None when Venice does not return them."""
        names: dict[str, str] = {}
        try:
            for path in LISTS:
                body = await self._fetch(path, model_type)
                names |= msgspec.json.decode(body, type=_Mapping).data
        except (UpstreamError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning(
                "alternative model names not read", type=model_type, error=type(error).__name__
            )
            return None
        return names

    async def keep_fresh(self) -> None:
        """Sync every few minutes, forever."""
        try:
            while True:
                pause_s = await self._try_to_sync()
                await asyncio.sleep(pause_s * random.uniform(0.9, 1.1))  # noqa: S311 - not a secret
        finally:
            if self._syncing is not None:
                self._syncing.cancel()
                await asyncio.wait({self._syncing})

    async def _try_to_sync(self) -> float:
        """Sync, and return the seconds until the next run."""
        try:
            await self.sync()
        except ServiceError as error:
            log.warning("catalogue not refreshed", error=str(error), retry_s=RETRY_S)
            return RETRY_S
        except Exception:
            log.exception("catalogue not refreshed", retry_s=REFRESH_S)
        return REFRESH_S

    @property
    def is_loaded(self) -> bool:
        """True once models and prices are known, from the copy or from Venice."""
        return bool(self._names.models.listed)

    @property
    def names(self) -> Collection[str]:
        """The model names on Venice's list."""
        return self._names.models.listed

    def resolve(self, name: str) -> str:
        """Return the name as Venice spells it, if it is another accepted spelling. A feature suffix
        is kept."""
        return self._names.models.resolve(name)

    def targets(
        self,
        organization_id: UUID,
        name: str,
        allowed: frozenset[str] | None,
        model_type: str | None = None,
    ) -> tuple[str, ...]:
        """Return the Venice models that the caller's name resolves to, best first.

        An alias resolves to its targets. Any other name resolves to one model: by its name, another
        spelling, a trait or another name that Venice accepts, or as the replacement of a retired
        model. A feature suffix is kept on each result.

        ``allowed`` holds the aliases and models that the caller may use, None for all. A trait
        shared by several types, such as ``default``, resolves within ``model_type``, or within text
        models.

        While no models are known, the name resolves to itself.

        :raises NotFound: ``model_not_found``, with the nearest names; ``model_retired``.
        :raises Forbidden: ``model_not_allowed``, when the caller may use none of them.
        :raises Unavailable: when no models are known yet and the name may resolve to an allowed
            one.
        """
        return self._names.targets(organization_id, name, allowed, model_type)

    def price_version(self, name: str) -> int | None:
        """Return the version of the model's prices and token limits. Ignores feature suffixes."""
        listed = self._names.models.listed
        known = listed.get(name.partition(":")[0])
        if known is None:
            known = listed.get(self.resolve(name).partition(":")[0])
        return None if known is None else known.version

    def can(self, name: str, capability: str) -> bool:
        """Return whether the model has a capability, by Venice's name for it."""
        return self._names.models.can(name, capability)

    def token_terms(self, *names: str) -> TokenTerms:
        """Return what a call to one of these models takes, gives and costs at most."""
        models = self._names.models
        terms = models.token_terms.get(names[0]) if len(names) == 1 else None
        return models.terms_of(names) if terms is None else terms

    def price(self, *names: str) -> Price | None:
        """Return the price of the first of these models that has one.

        A retired model has its last price. Feature suffixes are ignored.
        """
        prices = self._names.models.prices
        for name in names:
            price = prices.get(name) or prices.get(name.partition(":")[0])
            if price is not None:
                return price
        return None

    def prices_of_type(self, model_type: str) -> list[Price]:
        """Return the prices of all models of the type."""
        models = self._names.models
        return [
            models.prices[name]
            for name, known in models.listed.items()
            if known.model.type == model_type and name in models.prices
        ]

    async def listing(
        self, organization_id: UUID, allowed: frozenset[str] | None, model_type: str
    ) -> bytes:
        """Return the models of a type that a caller may use, as JSON in Venice's format.

        Venice's own objects come first, unchanged, then aliases. Asks Venice only while no models
        are known.

        :raises ClientError: when there is no such type.
        :raises UpstreamError: when no models are known and Venice does not answer.
        """
        if model_type not in MODEL_TYPES:
            raise ClientError(f"type: must be one of {', '.join(MODEL_TYPES)}.", param="type")
        if not self.is_loaded:
            await self.sync()
        names = self._names
        of_type = list(names.models.of_type(model_type))
        entries = [
            model.listing.encode() for model in of_type if allowed is None or model.name in allowed
        ]
        in_type = {model.name for model in of_type}
        for alias in names.aliases_of(organization_id):
            first = names.first_target(alias, allowed)
            if first is not None and first.name in in_type:
                entries.append(_alias_entry(alias, first))
        return b'{"object":"list","type":"%b","data":[%b]}' % (
            model_type.encode(),
            b",".join(entries),
        )

    async def entry(
        self, organization_id: UUID, allowed: frozenset[str] | None, name: str
    ) -> bytes:
        """Return one entry of the list, by any name that the caller may use.

        :raises NotFound: when there is no such model.
        :raises UpstreamError: when no models are known and Venice does not answer.
        """
        if not self.is_loaded:
            await self.sync()
        try:
            target, *_ = self.targets(organization_id, name, allowed)
        except Forbidden as error:
            hidden = NotFound(str(error), code="model_not_found", param="model")
            raise about_model(hidden, name) from None
        model = self._names.models.listed[target.partition(":")[0]].model
        alias = self._names.alias(organization_id, name.partition(":")[0])
        return model.listing.encode() if alias is None else _alias_entry(alias, model)

    def overhead_tokens(self, name: str, organization_id: UUID, *, with_prompt: bool) -> int:
        """Return the most tokens that Venice is expected to add to the organization's prompts.

        This is the largest recent excess that the organization has seen for the model, with or
        without Venice's system prompt, and never less than the initial assumption.
        """
        least = SYSTEM_PROMPT_TOKENS if with_prompt else OVERHEAD_TOKENS
        if not self._overheads.tokens:
            return least
        model = name.partition(":")[0]
        return max(least, self._overheads.get((organization_id, model, with_prompt)))

    def learn_overhead(
        self, name: str, organization_id: UUID, excess_tokens: int, *, with_prompt: bool
    ) -> None:
        """Record that a prompt of the organization had ``excess_tokens`` more than its text bounds.

        Only the organization's own bounds grow. Callers choose what they send, so one caller's
        prompts must not change what another's calls may cost.
        """
        if excess_tokens > MAX_OVERHEAD_TOKENS:
            # Venice does not add this much to every prompt.
            log.warning("prompt above its bound", model=name, tokens=excess_tokens)
        elif excess_tokens > self.overhead_tokens(name, organization_id, with_prompt=with_prompt):
            model = name.partition(":")[0]
            self._overheads.put((organization_id, model, with_prompt), excess_tokens)
            log.warning(
                "overhead learned", model=model, tokens=excess_tokens, with_prompt=with_prompt
            )


class _Overheads:
    """The largest excess of each organization's prompts over their bounds.

    Keyed by organization, model and whether Venice's system prompt was included. Entries expire
    after a day; the oldest is dropped when the table is full.
    """

    def __init__(self) -> None:
        self.tokens: dict[tuple[UUID, str, bool], tuple[int, float]] = {}
        """Each with the time until which it is kept. As a rule there is none."""

    def get(self, key: tuple[UUID, str, bool]) -> int:
        """Return the excess, or 0."""
        tokens, until = self.tokens.get(key, (0, 0.0))
        return tokens if time.monotonic() < until else 0

    def put(self, key: tuple[UUID, str, bool], tokens: int) -> None:
        """Record an excess, and drop the oldest entry when the table is full."""
        self.tokens.pop(key, None)
        if len(self.tokens) >= MAX_OVERHEADS:
            del self.tokens[next(iter(self.tokens))]
        self.tokens[key] = (tokens, time.monotonic() + OVERHEAD_KEPT_S)


def _with_names(
    listed: Iterable[Model], names: Mapping[str, Mapping[str, str] | None], before: Copy
) -> list[Model]:
    """Attach alternative names to the models. A type that Venice returned no names for keeps its
    own."""
    found: dict[tuple[str, str], list[str]] = {}
    for kind, its_names in names.items():
        for name, target in sorted((its_names or {}).items()):
            found.setdefault((kind, target), []).append(name)
    named = []
    for model in listed:
        also_named = tuple(found.get((model.type, model.name), ()))
        if model.type in names and names[model.type] is None and model.name in before:
            also_named = before[model.name].model.also_named
        named.append(msgspec.structs.replace(model, also_named=also_named))
    return named


def _alias_entry(alias: Alias, first: Model) -> bytes:
    spec = msgspec.json.decode(first.listing, type=_ListingSpec).model_spec
    return msgspec.json.encode(
        {
            "id": alias.name,
            "object": "model",
            "created": int(alias.created_at.timestamp()),
            "owned_by": "rialto",
            "type": first.type,
            "model_spec": spec,
        }
    )
