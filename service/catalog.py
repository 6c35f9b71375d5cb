"""What Venice offers and at which price.

Lists of models are kept as the bytes Venice sent, for a minute, fetched once however many ask at
the same time, and served stale when Venice does not answer. Prices are read from the same lists.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

import msgspec
import structlog

from service.db import Database, uuid7
from service.errors import ClientError, NotFound, Unavailable, UpstreamError
from service.prices import Price, TokenPrice, read_price

log = structlog.get_logger()

FRESH_S: Final = 60.0
STALE_S: Final = 86_400.0
REFRESH_S: Final = 300.0
RETRY_S: Final = 15.0
MODEL_TYPES: Final = (
    "asr",
    "embedding",
    "image",
    "music",
    "text",
    "tts",
    "upscale",
    "inpaint",
    "video",
    "decision",
    "all",
    "code",
)

OVERHEAD_TOKENS: Final = 128
"""What Venice adds to a prompt, until more is seen."""
SYSTEM_PROMPT_TOKENS: Final = 4_096
"""The same, with its own system prompt."""

MOST_OVERHEAD_TOKENS: Final = 16_384
"""The most that is learned of one call for all others of its model."""

READ_OVERHEADS: Final = """
    SELECT name, overhead_tokens, overhead_tokens_with_venice_prompt
    FROM public.models
    WHERE organization_id IS NULL
      AND is_current
      AND kind = 'venice'
"""
RAISE_OVERHEAD: Final = """
    INSERT INTO public.models AS m (
        id, name, kind, overhead_tokens, overhead_tokens_with_venice_prompt
    )
    VALUES ($1, $2, 'venice', $3, $4)
    ON CONFLICT (organization_id, name) WHERE is_current DO UPDATE
    SET overhead_tokens = greatest(m.overhead_tokens, excluded.overhead_tokens),
        overhead_tokens_with_venice_prompt = greatest(
            m.overhead_tokens_with_venice_prompt, excluded.overhead_tokens_with_venice_prompt
        )
"""

SIGNS: Final = str.maketrans("._ /", "----")
"""Signs that Venice does not tell apart in a model's name."""

FetchModels = Callable[[str | None], Awaitable[bytes]]


class ModelSpec(msgspec.Struct, rename="camel"):
    """The parts of a model's description that are used here."""

    pricing: msgspec.Raw = msgspec.Raw(b"null")
    available_context_tokens: int | None = None
    max_completion_tokens: int | None = None
    capabilities: Any = None


class Model(msgspec.Struct):
    """One line of Venice's list."""

    id: str
    type: str = "text"
    model_spec: ModelSpec = msgspec.field(default_factory=ModelSpec)


class ModelList(msgspec.Struct):
    """Venice's list."""

    data: list[Model]


class _Cached(msgspec.Struct, frozen=True):
    fetched_at: float
    body: bytes


class Catalog:
    """Models and prices of one process."""

    def __init__(self, fetch: FetchModels, database: Database) -> None:
        self._fetch = fetch
        self._database = database
        self._lists: dict[str | None, _Cached] = {}
        self._fetching: dict[str | None, asyncio.Task[bytes]] = {}
        self._prices: dict[str, Price] = {}
        self._names: set[str] = set()
        self._spellings: dict[str, str] = {}
        self._types: dict[str, str] = {}
        self._capabilities: dict[str, frozenset[str]] = {}
        self._overheads: dict[tuple[str, bool], int] = {}
        self._learned: set[str] = set()

    async def models(self, model_type: str | None) -> bytes:
        """Venice's list of models of a type, as JSON; without a type, its own default.

        :raises ClientError: when there is no such type.
        :raises UpstreamError: when Venice does not answer and nothing is kept of it.
        """
        if model_type is not None and model_type not in MODEL_TYPES:
            raise ClientError(f"type must be one of {', '.join(MODEL_TYPES)}", param="type")
        cached = self._lists.get(model_type)
        age_s = time.monotonic() - cached.fetched_at if cached else STALE_S
        if cached and age_s < FRESH_S:
            return cached.body
        try:
            return await self._fetch_once(model_type)
        except UpstreamError:
            if cached and age_s < STALE_S:
                log.warning("stale list of models served", type=model_type, age_s=round(age_s))
                return cached.body
            raise

    async def _fetch_once(self, model_type: str | None) -> bytes:
        task = self._fetching.get(model_type)
        if task is None:
            task = asyncio.create_task(self._fetch_and_keep(model_type))
            self._fetching[model_type] = task
            task.add_done_callback(lambda done: self._fetched(model_type, done))
        # The one who asked first may leave; the others still want the answer.
        return await asyncio.shield(task)

    def _fetched(self, model_type: str | None, task: asyncio.Task[bytes]) -> None:
        del self._fetching[model_type]
        if not task.cancelled():
            task.exception()  # read, so that asyncio does not report it when nobody waits any more

    async def _fetch_and_keep(self, model_type: str | None) -> bytes:
        body = await self._fetch(model_type)
        models = _decode(body)
        self._lists[model_type] = _Cached(time.monotonic(), body)
        for model in models.data:
            self._names.add(model.id)
            self._spellings[_folded(model.id)] = model.id
            self._types[model.id] = model.type
            self._capabilities[model.id] = _capabilities(model.model_spec.capabilities)
            if (price := _price(model)) is not None:
                self._prices[model.id] = price
        return body

    def overhead_tokens(self, name: str, *, with_prompt: bool) -> int:
        """What Venice adds to a prompt for the model at most, with its own system prompt or without
        it: the largest excess seen, and never less than what was thought at the beginning."""
        learned = self._overheads.get((name.partition(":")[0], with_prompt), 0)
        return max(learned, SYSTEM_PROMPT_TOKENS if with_prompt else OVERHEAD_TOKENS)

    def learn_overhead(self, name: str, excess_tokens: int, *, with_prompt: bool) -> None:
        """A prompt of the model had so many tokens more than its text bounds."""
        if excess_tokens > MOST_OVERHEAD_TOKENS:
            # That is nothing Venice adds to every prompt.
            log.warning("prompt above its bound", model=name, tokens=excess_tokens)
        elif excess_tokens > self.overhead_tokens(name, with_prompt=with_prompt):
            model = name.partition(":")[0]
            self._overheads[model, with_prompt] = excess_tokens
            self._learned.add(model)
            log.warning(
                "overhead learned", model=model, tokens=excess_tokens, with_prompt=with_prompt
            )

    @property
    def is_loaded(self) -> bool:
        """Whether Venice's prices were read at least once."""
        return bool(self._prices)

    def targets(
        self, organization_id: Any, name: str, allowed: frozenset[str] | None
    ) -> tuple[str, ...]:
        """A stand-in until the catalogue is merged."""
        name = self.resolve(name)
        if self.is_loaded and not self.lists(name):
            raise NotFound(f"There is no model {name!r}.", code="model_not_found", param="model")
        return (name,)

    def price_version(self, name: str) -> int | None:
        """A stand-in until the catalogue is merged."""
        return None

    @property
    def names(self) -> Collection[str]:
        """What Venice calls its models."""
        return self._names

    def lists(self, name: str) -> bool:
        """Whether Venice has a model of this name. Feature suffixes do not matter."""
        return name.partition(":")[0] in self._names

    def resolve(self, name: str) -> str:
        """The name as Venice lists the model, should it be spelt in another way that Venice
        tolerates; a feature suffix stays."""
        model, colon, suffix = name.partition(":")
        if model in self._names:
            return name
        return self._spellings.get(_folded(model), model) + colon + suffix

    def can(self, name: str, capability: str) -> bool:
        """Whether the model has a capability, by Venice's name for it: ``supportsReasoning``."""
        model = self.resolve(name).partition(":")[0]
        return capability in self._capabilities.get(model, ())

    def token_price(self, *names: str) -> TokenPrice | None:
        """The price of the first of these models that has one for tokens."""
        price = self.price(*names)
        return price if isinstance(price, TokenPrice) else None

    def price(self, *names: str) -> Price | None:
        """The price of the first of these models that has one. Feature suffixes do not matter."""
        for name in names:
            price = self._prices.get(name) or self._prices.get(name.partition(":")[0])
            if price is not None:
                return price
        return None

    def prices_of_type(self, model_type: str) -> list[Price]:
        """The prices of all models of the type."""
        return [
            price for name, price in self._prices.items() if self._types.get(name) == model_type
        ]

    async def keep_fresh(self) -> None:
        """Refresh the prices, for ever."""
        while True:
            try:
                await self._fetch_once("all")
                log.info("catalogue refreshed", prices=len(self._prices))
                await self.share_overheads()
                await asyncio.sleep(REFRESH_S)
            except (UpstreamError, Unavailable) as error:
                log.warning("catalogue not refreshed", error=str(error), retry_s=RETRY_S)
                await asyncio.sleep(RETRY_S)

    async def share_overheads(self) -> None:
        """Write what was learned of overheads, and read what the other replicas did."""
        for model in list(self._learned):
            overheads = [self._overheads.get((model, with_prompt)) for with_prompt in (False, True)]
            await self._database.fetch(RAISE_OVERHEAD, uuid7(), model, *overheads)
            self._learned.discard(model)
        for row in await self._database.fetch(READ_OVERHEADS):
            for with_prompt, column in (
                (False, "overhead_tokens"),
                (True, "overhead_tokens_with_venice_prompt"),
            ):
                key = (row["name"], with_prompt)
                self._overheads[key] = max(self._overheads.get(key, 0), row[column] or 0)


def _folded(name: str) -> str:
    return name.removeprefix("venice-").translate(SIGNS).lower()


def _capabilities(stated: Any) -> frozenset[str]:
    if not isinstance(stated, dict):
        return frozenset()
    return frozenset(name for name, is_there in stated.items() if is_there is True)


def _decode(body: bytes) -> ModelList:
    try:
        return msgspec.json.decode(body, type=ModelList)
    except msgspec.DecodeError as error:
        raise UpstreamError("Venice's list of models cannot be read.") from error


def _price(model: Model) -> Price | None:
    spec = model.model_spec
    return read_price(
        model.type, bytes(spec.pricing), spec.available_context_tokens, spec.max_completion_tokens
    )
