"""The catalog, a copy of Venice's lists: what is written, when, and what it provides without
Venice."""

import asyncio
import contextlib
import uuid

import pytest
from structlog.testing import capture_logs
from support import MODEL, make_settings

from service import audit, catalog
from service.audit import OPERATOR_ORGANIZATION_ID, Actor
from service.background.repeated import every
from service.catalog import Catalog, NewAlias
from service.database.pool import open_pool
from service.errors import ClientError, Conflict, NotFound, UpstreamError, UpstreamUnreachable
from service.upstream import UpstreamKey, UpstreamKeys, open_venice

ACME = uuid.UUID(int=7)
DEARER = {"input": {"usd": 0.9, "diem": 0.9}, "output": {"usd": 2.8, "diem": 2.8}}
OPERATOR = Actor(name="operator")


async def silent(*_):
    """A Venice that does not answer."""
    raise UpstreamUnreachable("Venice cannot be reached.")


@pytest.fixture
async def database(database_address):
    """A pool on a new database; the chain of audit events must be intact at the end."""
    async with open_pool(make_settings(database_address, "http://x"), database_address) as pool:
        yield pool
        assert await audit.first_break(pool, OPERATOR_ORGANIZATION_ID) is None


@pytest.fixture
async def fetch(database_address, upstream):
    """Fetches Venice's lists through the client."""
    keys = UpstreamKeys([UpstreamKey(id=uuid.UUID(int=1), name="x", secret="sandbox")])
    settings = make_settings(database_address, upstream.url)
    async with open_venice(settings, base_url=settings.venice_base_url, keys=keys) as venice:
        yield venice.models


@pytest.fixture
async def synced(fetch, database):
    """A catalog that has loaded all of Venice's lists."""
    catalogue = Catalog(fetch, database)
    await catalogue.sync()
    return catalogue


async def rows(database, name=MODEL):
    """Return the versions of a name."""
    return await database.fetch(
        "SELECT * FROM public.models WHERE name = $1 ORDER BY version", name
    )


async def everything(database):
    """Return all rows with their physical position, which changes when a row is written again."""
    found = await database.fetch("SELECT ctid, xmin, m.* FROM public.models m ORDER BY id")
    return [tuple(row) for row in found]


async def events(database):
    """Return action, model and detail of the operator's events, oldest first."""
    found = await audit.list_events(database, OPERATOR_ORGANIZATION_ID, 10**9, 100)
    return [(event.action, event.target, event.detail) for event in reversed(found)]


async def test_the_first_list_records_no_events(synced, database):
    """An empty table is filled with version 1 of every model, without events."""
    assert synced.is_loaded
    assert synced.price_version(MODEL) == synced.price_version("llama-3-3-70b:a=b") == 1
    assert synced.price_version("unheard-of") is None
    assert synced.price(MODEL).context_tokens == 131_072
    (row,) = await rows(database)
    assert (row["kind"], row["type"], row["context_tokens"]) == ("venice", "text", 131_072)
    assert row["also_named"] == ["gpt-4o-mini"]
    assert await events(database) == []


async def test_nothing_is_written_when_nothing_changed(synced, database):
    """The same list again leaves every row where it is."""
    before = await everything(database)
    await synced.sync()

    assert await everything(database) == before


async def test_a_start_without_venice(synced, database, upstream):
    """Without Venice prices, windows, names, aliases and lists come unchanged from the copy."""
    async with database.transaction() as conn:
        await catalog.set_alias(conn, OPERATOR, "fast", NewAlias(targets=[MODEL]))
    started = Catalog(silent, database)
    assert not started.is_loaded
    await started.load()

    assert started.is_loaded
    assert set(started.names) == set(synced.names)
    assert started.price(MODEL) == synced.price(MODEL)
    assert started.prices_of_type("image") == synced.prices_of_type("image")
    assert started.can(MODEL, "supportsFunctionCalling")
    assert started.targets(ACME, "gpt-4o", None) == ("zai-org-glm-5-1",)
    assert started.targets(ACME, "default", None, "image") == ("venice-sd35",)
    assert started.targets(ACME, "fast", None) == (MODEL,)
    await synced.load_aliases()
    for kind in ("text", "all", "image"):
        assert await started.listing(ACME, None, kind) == await synced.listing(ACME, None, kind)
    with pytest.raises(UpstreamUnreachable):
        await started.sync()
    assert started.is_loaded


async def test_a_price_changes(synced, database, upstream):
    """A changed price is a new version, an event with both prices, and one log line; the old
    version stays."""
    upstream.listing.change(MODEL, {"pricing": DEARER})
    with capture_logs() as logs:
        await synced.sync()

    old, new = await rows(database)
    assert (old["is_current"], new["is_current"], new["version"]) == (False, True, 2)
    assert synced.price_version(MODEL) == 2
    assert synced.price(MODEL).rates.input == 900_000_000
    stated = {"usd": "2.8", "diem": "2.8"}
    assert await events(database) == [
        (
            "model.price",
            MODEL,
            {
                "before": {"input": {"usd": "0.7", "diem": "0.7"}, "output": stated},
                "after": {"input": {"usd": "0.9", "diem": "0.9"}, "output": stated},
            },
        )
    ]
    assert [line["action"] for line in logs if line["event"] == "catalogue changed"] == [
        "model.price"
    ]
    assert synced.price_version("kimi-k2-6") == 1


async def test_the_terms_of_calls_follow_the_models(synced, database, upstream):
    """What a call to a model may cost, take and give is found once, and again when the models
    change: by a sync of this process, or of another."""
    replica = Catalog(silent, database)
    await replica.load()
    before = synced.token_terms(MODEL)
    assert synced.token_terms(MODEL) is before
    assert replica.token_terms(MODEL) == before
    changed = {"pricing": DEARER, "availableContextTokens": 5_000, "maxCompletionTokens": 500}
    upstream.listing.change(MODEL, changed)
    await synced.sync()
    await replica.load()

    for catalogue in (synced, replica):
        terms = catalogue.token_terms(MODEL)
        assert terms.bound_nanos(1_000_000, 0) == 900_000_000
        assert (terms.max_input_tokens, terms.max_output_tokens) == (5_000, 500)
        assert catalogue.token_terms(f"{MODEL}:a=b") == terms
        assert catalogue.token_terms("unheard-of").bound_nanos(1, 1) is None
        several = catalogue.token_terms(MODEL, "kimi-k2-6")
        assert several.prices == (*terms.prices, *catalogue.token_terms("kimi-k2-6").prices)


@pytest.mark.parametrize(
    "spec",
    [
        {"availableContextTokens": 5},
        {"maxCompletionTokens": 5},
        {"capabilities": {"supportsVision": True}},
    ],
)
async def test_terms_change(synced, database, upstream, spec):
    """A changed window or capability is a new version without an event."""
    upstream.listing.change(MODEL, spec)
    await synced.sync()

    assert [row["version"] for row in await rows(database)] == [1, 2]
    assert await events(database) == []


async def test_a_description_changes(synced, database, upstream):
    """A changed description does not make a new version and is listed at once."""
    upstream.listing.change(MODEL, {"name": "Llama, renamed"})
    await synced.sync()

    (row,) = await rows(database)
    assert row["version"] == 1
    assert "Llama, renamed" in row["listing"]
    assert b"Llama, renamed" in await synced.listing(ACME, None, "text")


async def test_a_deprecation_is_announced(synced, database, upstream):
    """A deprecation, and a change of it, is a new version and an event."""
    first = {"date": "2027-03-01T00:00:00.000Z", "replacementModelId": "kimi-k2-6"}
    second = {"date": "2027-04-01T00:00:00.000Z", "replacementModelId": "kimi-k2-6"}
    for deprecation in (first, second):
        upstream.listing.change(MODEL, {"deprecation": deprecation})
        await synced.sync()

    assert synced.price_version(MODEL) == 3
    assert await events(database) == [
        ("model.deprecation", MODEL, {"before": None, "after": first}),
        ("model.deprecation", MODEL, {"before": first, "after": second}),
    ]


async def test_a_model_goes_and_comes_back(synced, database, upstream):
    """A model that is gone is not listed, and its replacement answers; when it returns it is a new
    version. Both are events."""
    going = "llama-3.2-3b"
    upstream.listing.change(going, None)
    await synced.sync()

    assert going not in synced.names
    assert going.encode() not in await synced.listing(ACME, None, "text")
    assert synced.targets(ACME, f"{going}:a=b", None) == (f"{MODEL}:a=b",)
    assert synced.price(going) is not None
    started = Catalog(silent, database)
    await started.load()
    assert started.targets(ACME, going, None) == (MODEL,)
    (row,) = await rows(database, going)
    assert row["retired_at"] is not None
    listed = await catalog.list_names(database, uuid.UUID(int=0), 100)
    assert [name.retired_at for name in listed if name.name == going] == [row["retired_at"]]

    upstream.listing.reset()
    await synced.sync()
    assert synced.price_version(going) == 2
    (gone, _, detail), (added, _, _) = await events(database)
    assert (gone, added, detail["replacement"]) == ("model.gone", "model.added", MODEL)


async def test_a_model_goes_for_good(synced, upstream):
    """For a model that is gone without a replacement the error states since when."""
    upstream.listing.change("kimi-k2-6", None)
    await synced.sync()

    with pytest.raises(NotFound, match="was retired on") as refused:
        synced.targets(ACME, "kimi-k2-6", None)
    assert refused.value.code == "model_retired"


async def test_replicas_write_one_version(fetch, database, upstream):
    """Concurrent replicas write and announce a change once, and all of them know it."""
    replicas = [Catalog(fetch, database) for _ in range(4)]
    await asyncio.gather(*(replica.sync() for replica in replicas))
    assert {replica.price_version(MODEL) for replica in replicas} == {1}
    assert len(await rows(database)) == 1

    upstream.listing.change(MODEL, {"pricing": DEARER})
    await asyncio.gather(*(replica.sync() for replica in replicas))

    assert {replica.price_version(MODEL) for replica in replicas} == {2}
    assert len(await rows(database)) == 2
    assert [action for action, _, _ in await events(database)] == ["model.price"]


async def test_an_older_list_is_not_written(fetch, database, upstream):
    """A replica whose list is older than the written one leaves it unchanged."""
    await Catalog(fetch, database).sync()
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(path, kind):
        body = await fetch(path, kind)
        asked.set()
        await go_on.wait()
        return body

    upstream.listing.change(MODEL, {"pricing": {"input": {"usd": 5}, "output": {"usd": 5}}})
    late = Catalog(slow, database)
    syncing = asyncio.create_task(late.sync())
    await asked.wait()
    upstream.listing.change(MODEL, {"pricing": DEARER})
    await Catalog(fetch, database).sync()
    go_on.set()
    await syncing

    assert late.price_version(MODEL) == 2
    assert late.price(MODEL).rates.input == 900_000_000
    assert len(await rows(database)) == 2


async def test_unavailable_names_stay(synced, database, upstream):
    """Names of a type that Venice fails to return stay, and prices are read anyway."""
    upstream.listing.change(MODEL, {"pricing": DEARER})
    upstream.faults.push("/models/traits", "inference_failed")
    await synced.sync()

    assert synced.price_version(MODEL) == 2
    assert synced.targets(ACME, "gpt-4o-mini", None) == (MODEL,)
    assert synced.targets(ACME, "fastest", None) == ("kimi-k2-6",)


async def test_an_empty_list_forgets_nothing(synced, database):
    """An empty list changes nothing."""
    before = await everything(database)

    async def empty(*_):
        return b'{"data":[]}'

    replica = Catalog(empty, database)
    await replica.load()
    with pytest.raises(UpstreamError, match="list is empty"):
        await replica.sync()
    assert replica.is_loaded
    assert await everything(database) == before


async def test_a_row_from_before_the_copy(fetch, database):
    """A row without prices gets a version with the list."""
    await database.fetch(
        "INSERT INTO public.models (id, name, kind) VALUES ($1, $2, 'venice')", uuid.uuid4(), MODEL
    )
    catalogue = Catalog(fetch, database)
    await catalogue.load()
    assert not catalogue.is_loaded
    await catalogue.sync()

    assert catalogue.price_version(MODEL) == 2
    assert await events(database) == []


async def test_a_learned_allowance_stays_within_its_organization(fetch, database):
    """A prompt above its bound changes only the bounds of its own organization, up to a maximum,
    and for a bounded number of organizations."""
    catalogue = Catalog(fetch, database)
    other = uuid.uuid4()
    catalogue.learn_overhead(MODEL, ACME, 700, with_prompt=False)
    catalogue.learn_overhead(MODEL, ACME, 600, with_prompt=False)
    catalogue.learn_overhead(MODEL, other, 1_000_000, with_prompt=False)

    def overhead(organization_id, model=MODEL):
        return catalogue.overhead_tokens(model, organization_id, with_prompt=False)

    assert [overhead(ACME), overhead(other), overhead(ACME, "other")] == [700, 128, 128]
    assert catalogue.overhead_tokens(MODEL, ACME, with_prompt=True) == 4096
    for number in range(10_000):
        catalogue.learn_overhead(MODEL, uuid.UUID(int=number + 10), 700, with_prompt=False)
    assert overhead(ACME) == 128


async def test_a_model_with_the_name_of_an_alias(synced, database, upstream):
    """A shared alias stays when Venice lists a model of the same name, and everything else is
    written; once the alias is removed the model is listed."""
    upstream.listing.change("kimi-k2-6", None)
    await synced.sync()
    async with database.transaction() as conn:
        await catalog.set_alias(conn, OPERATOR, "kimi-k2-6", NewAlias(targets=[MODEL]))
    upstream.listing.change("kimi-k2-6", {})
    upstream.listing.change(MODEL, {"pricing": DEARER})
    await synced.sync()
    assert synced.targets(ACME, "kimi-k2-6", None) == (MODEL,)
    assert synced.price_version(MODEL) == 2

    async with database.transaction() as conn:
        await catalog.remove_alias(conn, OPERATOR, "kimi-k2-6", None)
    await synced.sync()
    assert synced.targets(ACME, "kimi-k2-6", None) == ("kimi-k2-6",)
    async with database.transaction() as conn:
        with pytest.raises(Conflict, match="is the name of a Venice model"):
            await catalog.set_alias(conn, OPERATOR, "kimi-k2-6", NewAlias(targets=[MODEL]))


async def test_replicas_know_aliases_within_seconds(database):
    """A replica notices a changed alias by itself within seconds, also after the database was
    down."""
    replica = Catalog(silent, database)
    keeping = every(0.02, replica.load_aliases, "aliases", waits_first=True)
    try:
        async with database.transaction() as conn:
            await catalog.set_alias(conn, OPERATOR, "fast", NewAlias(targets=["a", "b"]))
        async with asyncio.timeout(5):
            while replica.targets(ACME, "fast", None) == ("fast",):
                await asyncio.sleep(0.01)
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping

    assert replica.targets(ACME, "fast", None) == ("a", "b")


async def test_aliases_are_bounded(database, monkeypatch):
    """The number of an organization's aliases has a maximum, beyond which existing ones can still
    be changed."""
    monkeypatch.setattr("service.catalog.aliases.MAX_ALIASES", 1)
    async with database.transaction() as conn:
        await catalog.set_alias(conn, OPERATOR, "one", NewAlias(targets=["a"]))
        await catalog.set_alias(conn, OPERATOR, "one", NewAlias(targets=["b"]))
        with pytest.raises(Conflict, match="already"):
            await catalog.set_alias(conn, OPERATOR, "two", NewAlias(targets=["a"]))


async def test_no_chain_of_aliases_before_models_are_known(database):
    """Before models are known neither an alias of an alias nor an alias that is another's target
    can be set."""
    async with database.transaction() as conn:
        await catalog.set_alias(conn, OPERATOR, "one", NewAlias(targets=["a"]))
        with pytest.raises(ClientError, match="is itself an alias"):
            await catalog.set_alias(conn, OPERATOR, "two", NewAlias(targets=["one"]))
        with pytest.raises(Conflict, match="is a target of the alias 'one'"):
            await catalog.set_alias(conn, OPERATOR, "a", NewAlias(targets=["b"]))
