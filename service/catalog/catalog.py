"""The catalogue of one process."""

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
from service.catalog.names import Alias, Models, Names
from service.catalog.prices import Price, TokenPrice
from service.database.connections import Database
from service.errors import (
    ClientError,
    Forbidden,
    NotFound,
    ServiceError,
    UpstreamError,
)

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
"""The types of which Venice tells other names of models."""
MODEL_TYPES: Final = (*NAMED_TYPES, "decision", "all", "code")
LISTS: Final = ("/models/compatibility_mapping", "/models/traits")
"""Where other names of models are; the later goes before the earlier."""

OVERHEAD_TOKENS: Final = 128
"""What Venice adds to a prompt, until more is seen."""
SYSTEM_PROMPT_TOKENS: Final = 4_096
"""The same, with its own system prompt."""

MAX_OVERHEAD_TOKENS: Final = 16_384
"""The most that is learned of one call for the organization's others of its model."""
OVERHEAD_KEPT_S: Final = 86_400.0
MAX_OVERHEADS: Final = 10_000

Fetch = Callable[[str, str], Awaitable[bytes]]
"""One of Venice's lists, by path and type."""


class _Mapping(msgspec.Struct):
    data: dict[str, str]


class _Described(msgspec.Struct):
    model_spec: msgspec.Raw = msgspec.Raw(b"{}")


class Catalog:
    """Models, prices and aliases of one process."""

    def __init__(self, fetch: Fetch, database: Database) -> None:
        self._fetch = fetch
        self._database = database
        self._copy: Copy = {}
        self._names = Names(Models())
        self._syncing: asyncio.Task[None] | None = None
        self._overheads = _Overheads()

    async def load(self) -> None:
        """Know what the database does."""
        known = await copy.read(self._database)
        self._use(known, await aliases.read(self._database))

    async def load_aliases(self) -> None:
        """Know the aliases that are in force now."""
        self._names = Names(self._names.models, await aliases.read(self._database))

    def _use(self, known: Copy, its_aliases: Iterable[Alias]) -> None:
        models = self._names.models
        if known != self._copy:
            self._copy, models = known, Models(known.values())
        self._names = Names(models, its_aliases)

    async def sync(self) -> None:
        """Ask Venice for its lists and bring the copy to them, once however many ask at a time.

        :raises UpstreamError: when Venice does not answer, or nothing that can be read.
        :raises Unavailable: when the database does not.
        """
        if self._syncing is None:
            self._syncing = asyncio.create_task(self._sync())
            self._syncing.add_done_callback(self._synced)
        # The one who asked first may leave; the others still want the answer.
        await asyncio.shield(self._syncing)

    def _synced(self, task: asyncio.Task[None]) -> None:
        self._syncing = None
        if not task.cancelled():
            task.exception()  # read, so that asyncio does not report it when nobody waits any more

    async def _sync(self) -> None:
        # Read first: a copy that has changed by the time Venice has answered is newer than that.
        before = await copy.read(self._database)
        listed = read_list(await self._fetch("/models", "all"))
        if not before:
            # The first time callers wait for prices: other names come after them.
            await copy.write(self._database, before, listed)
            await self.load()
            before = self._copy
        named = await asyncio.gather(*(self._other_names(kind) for kind in NAMED_TYPES))
        names = dict(zip(NAMED_TYPES, named, strict=True))
        await copy.write(self._database, before, _with_names(listed, names, before))
        await self.load()
        log.info("catalogue refreshed", models=len(self._names.models.listed))

    async def _other_names(self, model_type: str) -> dict[str, str] | None:
        """Models of the type by their other names; None when Venice does not say."""
        names: dict[str, str] = {}
        try:
            for path in LISTS:
                body = await self._fetch(path, model_type)
                names |= msgspec.json.decode(body, type=_Mapping).data
        except (UpstreamError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("other names not read", type=model_type, error=type(error).__name__)
            return None
        return names

    async def keep_fresh(self) -> None:
        """Ask Venice again every few minutes, for ever."""
        try:
            while True:
                pause_s = await self._try_to_sync()
                await asyncio.sleep(pause_s * random.uniform(0.9, 1.1))  # noqa: S311 - not a secret
        finally:
            if self._syncing is not None:
                self._syncing.cancel()
                await asyncio.wait({self._syncing})

    async def _try_to_sync(self) -> float:
        """Sync; returns after how many seconds to do it again."""
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
        """Whether models and prices are known: of the copy, or of Venice."""
        return bool(self._names.models.listed)

    @property
    def names(self) -> Collection[str]:
        """What Venice calls its models."""
        return self._names.models.listed

    def resolve(self, name: str) -> str:
        """The name as Venice lists the model, should it be spelt in another way that Venice
        tolerates; a feature suffix stays."""
        return self._names.models.resolve(name)

    def targets(
        self,
        organization_id: UUID,
        name: str,
        allowed: frozenset[str] | None,
        model_type: str | None = None,
    ) -> tuple[str, ...]:
        """Venice's models that the caller's name stands for, the best first: an alias's targets,
        or one model, by its name, another spelling, a trait or name that Venice takes for it, or as
        the replacement of one that is retired. A feature suffix stays on each.

        ``allowed`` are the aliases and models that the caller may use, None for all. A trait that
        models of several types have, as ``default``, is that of ``model_type``, or of text.

        While no model is known the name stands for itself.

        :raises NotFound: ``model_not_found``, with the nearest names; ``model_retired``.
        :raises Forbidden: ``model_not_allowed``, when the caller may use none of them.
        :raises Unavailable: when models are not known yet, and one of those allowed may be meant.
        """
        return self._names.targets(organization_id, name, allowed, model_type)

    def price_version(self, name: str) -> int | None:
        """The version of the model's prices and windows. Feature suffixes do not matter."""
        known = self._names.models.listed.get(self.resolve(name).partition(":")[0])
        return None if known is None else known.version

    def can(self, name: str, capability: str) -> bool:
        """Whether the model has a capability, by Venice's name for it: ``supportsReasoning``."""
        return self._names.models.can(name, capability)

    def token_price(self, *names: str) -> TokenPrice | None:
        """The price of the first of these models that has one for tokens."""
        price = self.price(*names)
        return price if isinstance(price, TokenPrice) else None

    def price(self, *names: str) -> Price | None:
        """The price of the first of these models that has one; of a retired model its last.
        Feature suffixes do not matter."""
        prices = self._names.models.prices
        for name in names:
            price = prices.get(name) or prices.get(name.partition(":")[0])
            if price is not None:
                return price
        return None

    def prices_of_type(self, model_type: str) -> list[Price]:
        """The prices of all models of the type."""
        models = self._names.models
        return [
            models.prices[name]
            for name, known in models.listed.items()
            if known.model.type == model_type and name in models.prices
        ]

    async def listing(
        self, organization_id: UUID, allowed: frozenset[str] | None, model_type: str
    ) -> bytes:
        """What a caller may use of a type, as JSON in Venice's shape: Venice's own objects as
        they are, then aliases. Venice is asked only while no model is known.

        :raises ClientError: when there is no such type.
        :raises UpstreamError: when no model is known and Venice does not answer.
        """
        if model_type not in MODEL_TYPES:
            raise ClientError(f"type must be one of {', '.join(MODEL_TYPES)}", param="type")
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
        """One entry of the list, by any name that the caller may use.

        :raises NotFound: when there is none.
        :raises UpstreamError: when no model is known and Venice does not answer.
        """
        if not self.is_loaded:
            await self.sync()
        try:
            target, *_ = self.targets(organization_id, name, allowed)
        except Forbidden as error:
            raise NotFound(str(error), code="model_not_found", param="model") from None
        model = self._names.models.listed[target.partition(":")[0]].model
        alias = self._names.alias(organization_id, name.partition(":")[0])
        return model.listing.encode() if alias is None else _alias_entry(alias, model)

    def overhead_tokens(self, name: str, organization_id: UUID, *, with_prompt: bool) -> int:
        """What Venice adds at most to a prompt that the organization sends the model, with its own
        system prompt or without it: the largest excess the organization has seen lately, and never
        less than what was thought at the beginning."""
        model = name.partition(":")[0]
        learned = self._overheads.get((organization_id, model, with_prompt))
        return max(learned, SYSTEM_PROMPT_TOKENS if with_prompt else OVERHEAD_TOKENS)

    def learn_overhead(
        self, name: str, organization_id: UUID, excess_tokens: int, *, with_prompt: bool
    ) -> None:
        """A prompt of the organization's had so many tokens more than its text bounds.

        Only its own bounds are higher from then on. A caller chooses what it sends, so its calls
        must not change what those of others may cost.
        """
        if excess_tokens > MAX_OVERHEAD_TOKENS:
            # That is nothing Venice adds to every prompt.
            log.warning("prompt above its bound", model=name, tokens=excess_tokens)
        elif excess_tokens > self.overhead_tokens(name, organization_id, with_prompt=with_prompt):
            model = name.partition(":")[0]
            self._overheads.put((organization_id, model, with_prompt), excess_tokens)
            log.warning(
                "overhead learned", model=model, tokens=excess_tokens, with_prompt=with_prompt
            )


class _Overheads:
    """The largest excess of each organization's prompts over their bounds, by model and whether
    Venice's own prompt was there. Kept for a day, and of so many only as fit."""

    def __init__(self) -> None:
        self._tokens: dict[tuple[UUID, str, bool], tuple[int, float]] = {}

    def get(self, key: tuple[UUID, str, bool]) -> int:
        """The excess, or 0."""
        tokens, until = self._tokens.get(key, (0, 0.0))
        return tokens if time.monotonic() < until else 0

    def put(self, key: tuple[UUID, str, bool], tokens: int) -> None:
        """Note an excess; the one that was noted first makes room for it."""
        self._tokens.pop(key, None)
        if len(self._tokens) >= MAX_OVERHEADS:
            del self._tokens[next(iter(self._tokens))]
        self._tokens[key] = (tokens, time.monotonic() + OVERHEAD_KEPT_S)


def _with_names(
    listed: Iterable[Model], names: Mapping[str, Mapping[str, str] | None], before: Copy
) -> list[Model]:
    """The models with their other names; those of a type of which Venice did not say keep what
    they had."""
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
    spec = msgspec.json.decode(first.listing, type=_Described).model_spec
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
